"""What a workdir records of its run: its config, compared when it is resumed, and the environment of the process."""

import dataclasses
import importlib.metadata
import json
import platform
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

import jax

from clip_jax.config.experiment import DERIVED, Config, make_config
from clip_jax.installation import DISTRIBUTION, __version__
from clip_jax.models import ResNetConfig, TextConfig, VisionConfig
from input_pipeline.storage import check_unchanged, write_json

# What may change when a run is resumed: how fast and how often, never what is learned. Data that moved to another
# path is recognised by its fingerprint.
MAY_CHANGE = ("data.path", "data.link_root", "data.pack_text", "data.num_workers", "data.max_broken_share",
              "model.remat", "loss.block_size", "sharding.", "train.num_microbatches", "train.checkpoint_every",
              "train.evaluate_every", "train.keep_checkpoints", "train.hang_timeout_s", "evaluation.")  # fmt: skip


def check_workdir(sections: dict[str, dict[str, Any]], workdir: Path) -> None:
    """Raises ValueError that lists the keys in which the config of a run in the workdir differs."""
    file = workdir / "config.json"
    if not file.exists():
        return
    sections = json.loads(json.dumps(sections))  # tuples to lists, as a file has them
    # Batch norms see one microbatch at a time, so of a ResNet their number decides what is learned.
    learned = ("train.num_microbatches",) if "stages" in sections["vision"] else ()
    check_unchanged(
        _without_paths(_with_defaults(json.loads(file.read_text()))),
        _without_paths(sections),
        holds=f"workdir {workdir} holds a run of another config",
        fix="Use another --workdir, or the config it was started with",
        may_change=tuple(name for name in MAY_CHANGE if name not in learned),
    )


def record_config(sections: dict[str, dict[str, Any]], workdir: Path) -> None:
    """Writes config.json and environment.json into the workdir; raises like `check_workdir`."""
    check_workdir(sections, workdir)
    write_json(workdir / "config.json", sections)
    write_json(workdir / "environment.json", environment())


def load_config(workdir: Path) -> Config:
    """The config of a run, from its workdir. Raises ValueError where there is none, or one of another version."""
    file = workdir / "config.json"
    if not file.is_file():
        raise ValueError(f"{workdir} is not the workdir of a run: it has no config.json")
    try:
        return make_config(_with_defaults(json.loads(file.read_text())))
    except ValueError as error:
        raise ValueError(f"{file} is not a config of this version of clip_jax: {error}") from None


def _with_defaults(sections: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The sections of a run that was started before there were the newest keys, with their neutral values."""
    classes = {
        **typing.get_type_hints(Config),
        "vision": ResNetConfig if "stages" in sections.get("vision", {}) else VisionConfig,
        "text": TextConfig,
    }

    def defaults(section: str) -> dict[str, Any]:
        known = {f.name: f.default for f in dataclasses.fields(classes[section]) if f.name not in DERIVED}
        return {name: value for name, value in known.items() if value is not dataclasses.MISSING}

    filled = {section: {**defaults(section), **values} for section, values in sections.items() if section in classes}
    return {**sections, **json.loads(json.dumps(filled))}


def _without_paths(sections: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The sections without the paths of a mixture's sources, which may change as data.path may, and with every key."""
    parts = [
        {"image_field": "", "separator": "", **part, "path": "", "link_root": ""}
        for part in sections["data"].get("mixture", ())
    ]
    return {**sections, "data": {**sections["data"], "mixture": parts}}


def package_versions() -> dict[str, str]:
    """The versions of what decides a run's numbers."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "pillow")
    return {DISTRIBUTION: __version__, **{name: importlib.metadata.version(name) for name in packages}}


def environment() -> dict[str, Any]:
    """Command, commit, package versions and devices of this process."""
    describe = "git ls-files --error-unmatch record.py && git describe --always --dirty --abbrev=40"
    # The first command fails where the installed package merely lies within another repository.
    output = subprocess.run(
        describe, shell=True, cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    commit = output.stdout.splitlines()[-1] if output.returncode == 0 else ""
    return {
        "command": sys.argv,
        "commit": commit.strip() or None,
        "python": platform.python_version(),
        "versions": package_versions(),
        "devices": [device.device_kind for device in jax.devices()],
    }
