"""What a workdir records of its run: its config, compared when it is resumed, and the environment of the process."""

import dataclasses
import importlib.metadata
import json
import platform
import shlex
import shutil
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

import jax

from clip_jax.config.experiment import DERIVED, Config, make_config
from clip_jax.installation import DISTRIBUTION, __version__
from clip_jax.models import ResNetConfig, TextConfig, VisionConfig
from input_pipeline.storage import check_unchanged, checksum_json, differences, listed, write_bytes, write_json

# What may change when a run is resumed: how fast and how often, never what is learned. Data that moved to another
# path is recognised by its fingerprint.
MAY_CHANGE = ("data.path", "data.link_root", "data.pack_text", "data.num_workers", "data.max_broken_share",
              "model.remat", "loss.block_size", "sharding.", "train.num_microbatches", "train.checkpoint_every",
              "train.evaluate_every", "train.keep_checkpoints", "train.hang_timeout_s", "evaluation.")  # fmt: skip


CONFIG, COPY = "config.json", "config.copy.json"  # the copy, with a digest, tells an edit from damage


def check_workdir(sections: dict[str, dict[str, Any]], workdir: Path) -> None:
    """Raises ValueError that lists the keys in which the config of a run in the workdir differs.

    A damaged config.json is no obstacle: its copy is compared; of an earlier version's run, which has none, nothing is.
    """
    sections = json.loads(json.dumps(sections))  # tuples to lists, as a file has them
    before = _read_copy(workdir) or _read_sections(workdir / CONFIG)
    if before is not None:
        _check_same(sections, before, workdir)


def _check_same(sections: dict[str, dict[str, Any]], before: dict[str, dict[str, Any]], workdir: Path) -> None:
    # Batch norms see one microbatch at a time, so of a ResNet their number decides what is learned.
    learned = ("train.num_microbatches",) if "stages" in sections["vision"] else ()
    old, new = _without_paths(_with_defaults(before)), _without_paths(sections)
    may_change = tuple(name for name in MAY_CHANGE if name not in learned)
    check_unchanged(
        old,
        new,
        holds=f"workdir {workdir} holds a run of another config",
        fix=f"Use another --workdir, or the config it was started with{_new_run(old, new, may_change, workdir)}",
        may_change=may_change,
    )


def _new_run(old: dict[str, Any], new: dict[str, Any], may_change: tuple[str, ...], workdir: Path) -> str:
    """The command for a new run from this one's weights, where nothing differs that these have to fit."""
    changed = [found.name for found in differences(old, new, None) if not found.name.startswith(may_change)]
    steps = [int(folder.name) for folder in (workdir / "checkpoints").glob("*") if folder.name.isdigit()]
    if not steps or not all(name.startswith(("optimizer.", "train.", "loss.")) for name in changed):
        return ""
    other = workdir.with_name(f"{workdir.name}_from_{max(steps)}")
    words, given = ["clip-jax"], iter(sys.argv[1:])
    for word in given:
        if word == "--workdir":
            next(given, None)
        elif not word.startswith(("--workdir=", "--config.train.init_from=")):
            words.append(word)
    if words[1:2] != ["train"]:  # called from Python
        words = ["clip-jax", "train", "..."]
    command = shlex.join([*words, f"--config.train.init_from={workdir}", f"--workdir={other}"])
    return f". A new run that starts from its weights: {command}"


def record_config(sections: dict[str, dict[str, Any]], workdir: Path) -> None:
    """Writes config.json, its copy and environment.json into the workdir; raises like `check_workdir`."""
    check_workdir(sections, workdir)
    _report_damage(workdir)
    # In this order: a config without a copy is one of an earlier version, a copy alone is complete.
    copy = json.loads(json.dumps({"digest": checksum_json(sections), "config": sections}))
    write_bytes(workdir / COPY, json.dumps(copy).encode() + b"\n", durable=True)
    write_bytes(workdir / CONFIG, json.dumps(sections, indent=2).encode() + b"\n", durable=True)
    write_json(workdir / "environment.json", environment())


def has_config(workdir: Path) -> bool:
    """Whether a run recorded its config there, be it damaged."""
    return any((workdir / name).is_file() for name in (CONFIG, COPY))


def load_config(workdir: Path) -> Config:
    """The config of a run, from its workdir; where config.json is not what the run wrote, from its copy.

    Raises ValueError where there is none, or one of another version.
    """
    if not has_config(workdir):
        raise ValueError(f"{workdir} is not the workdir of a run: it has no {CONFIG}")
    found, copy = _read_sections(workdir / CONFIG), _read_copy(workdir)
    if copy is not None:
        if found != copy:
            _print(f"{_describe_change(workdir, found, copy)}; {COPY} is read. Remove that to have yours read")
        return _as_config(copy, workdir / COPY)
    if found is None:
        raise ValueError(f"{workdir / CONFIG} is damaged: the command that trained the run writes it anew")
    return _as_config(found, workdir / CONFIG)


def _describe_change(workdir: Path, found: dict[str, Any] | None, copy: dict[str, Any]) -> str:
    file = workdir / CONFIG
    if found is None:
        return f"{file} {'cannot be read' if file.is_file() else 'is missing'}"
    return f"{file} is not what the run wrote ({listed(differences(copy, found), 3)})"


def _report_damage(workdir: Path) -> None:
    """Says that config.json, which is about to be written anew, is not what the run wrote; keeps that file."""
    file = workdir / CONFIG
    found, copy = _read_sections(file), _read_copy(workdir)
    if not has_config(workdir) or (found is not None and copy in (None, found)):
        return
    kept = f"; the file as it was is {shutil.copyfile(file, f'{file}.damaged')}" if file.is_file() else ""
    if copy is not None:
        _print(f"{_describe_change(workdir, found, copy)}: it is written anew{kept}")
    else:
        _print(
            f"{file} cannot be read and has no copy, so nothing says whether the run was started with this command's "
            f"config: it is written anew from that{kept}"
        )


def _as_config(sections: dict[str, dict[str, Any]], file: Path) -> Config:
    try:
        return make_config(_with_defaults(sections))
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is not a config of this version of clip_jax: {error}") from None


def _read_sections(file: Path) -> dict[str, dict[str, Any]] | None:
    """Sections of keys; None where there is no file, or no such thing in it."""
    try:
        sections = json.loads(file.read_bytes()) if file.is_file() else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(sections, dict) or not all(isinstance(keys, dict) for keys in sections.values()):
        return None
    return sections if {"data", "vision", "train"} <= set(sections) else None


def _read_copy(workdir: Path) -> dict[str, dict[str, Any]] | None:
    """The sections in the copy; None where there is none that agrees with its digest."""
    try:
        copy = json.loads((workdir / COPY).read_bytes()) if (workdir / COPY).is_file() else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(copy, dict) or "config" not in copy or copy.get("digest") != checksum_json(copy["config"]):
        return None
    return copy["config"]


def _print(message: str) -> None:
    print(f"clip-jax: {message}", file=sys.stderr)


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
