"""What the command answers before any command of it runs: version, completion, a reader that goes away, no TPU."""

import os
import re
import subprocess
import sys

import pytest

from clip_jax import installation
from clip_jax.cli import command, completion
from clip_jax.cli.common_flags import shipped_configs
from configs.tiny import get_config

CLIP_JAX = [sys.executable, "-m", "clip_jax"]


def test_version(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["clip-jax", "--version"])
    command.main()
    pattern = r"jax-clip 0\.1\.0 \(.*\), Python 3\.[\d.]+, JAX [\d.]+\n"
    assert re.fullmatch(pattern, capsys.readouterr().out)


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["completion", "bash"], pytest.param(["train", "--help"], marks=pytest.mark.nightly)],
)
def test_a_reader_that_goes_away_sees_no_traceback(arguments):
    reading, writing = os.pipe()
    os.close(reading)
    ran = subprocess.run([*CLIP_JAX, *arguments], stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writing)
    assert (ran.returncode, ran.stderr) == (141, "")


COMMANDS = [*command.COMMANDS, "completion", "--version", "--help"]
KEYS = [f"--config.{section}.{key}=" for section, keys in get_config().to_dict().items() for key in keys]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("clip-jax ", COMMANDS),
        ("clip-jax t", ["train", "tokenizer"]),
        ("clip-jax train --w", ["--workdir="]),
        ("clip-jax train --config=", shipped_configs()),
        ("clip-jax train --config=ti", ["tiny"]),
        ("clip-jax train --config=suites/sc", ["suites/scenes"]),
        ("clip-jax train --config=tiny --config.", KEYS),
        ("clip-jax train --config=tiny --config.optimizer.learning", ["--config.optimizer.learning_rate="]),
        ("clip-jax train --config=none --config.optimizer.learning", []),
        ("clip-jax train --workdir=runs/", []),
        ("clip-jax bench ", ["step", "encode", "loss", "input", "decode"]),
        pytest.param("clip-jax bench step --pub", ["--published="], marks=pytest.mark.nightly),  # it imports jax
        ("clip-jax train mor", []),
    ],
)
def test_completions_of_a_line(line, expected):
    assert completion.completions(line, command.COMMANDS) == expected


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_the_script_of_a_shell(shell, capsys):
    completion.main([shell], command.COMMANDS)
    script = capsys.readouterr().out
    checked = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")
    with pytest.raises(SystemExit, match="1"):
        completion.main(["fish"], command.COMMANDS)


def test_no_libtpu_on_a_machine_without_tpu(monkeypatch):
    """A TPU or a GPU that may be there, or the user's own choice, is left to JAX."""

    def chosen(existing=(), files=(), libtpu=True, before=None):
        monkeypatch.delenv("JAX_PLATFORMS", raising=False)
        if before:
            monkeypatch.setenv("JAX_PLATFORMS", before)
        monkeypatch.setattr(installation.importlib.util, "find_spec", lambda name: object() if libtpu else None)
        monkeypatch.setattr(installation.glob, "glob", lambda pattern: [f for f in files if f[:7] == pattern[:7]])
        monkeypatch.setattr(installation.os.path, "exists", lambda file: file in existing)
        installation.skip_missing_tpu()
        return os.environ.pop("JAX_PLATFORMS", None)

    assert chosen() == "cpu"
    assert chosen(libtpu=False) is None
    assert chosen(before="tpu") == "tpu"
    assert chosen(existing=["/dev/nvidia0"]) is None
    assert chosen(files=["/dev/accel0"]) is None
