"""Trains CLIP: `clip-jax train --config=tiny --workdir=runs/tiny`, and goes on where a run was stopped."""

from pathlib import Path

from absl import flags

from clip_jax.cli import command
from clip_jax.distributed import processes
from clip_jax.runs.loop import train

for flag in ("config", "workdir", *command.HOST_FLAGS):
    flags.declare_key_flag(flag)


def main() -> int:
    """Runs the command; see the module's docstring."""
    workdir = Path(command.required(command.WORKDIR, "runs/tiny"))
    sections = command.required(command.CONFIG, "tiny").to_dict()
    with processes.joined(**command.host_options()):
        return train(sections, workdir)
