"""Trains CLIP: `clip-jax train --config=tiny --workdir=runs/tiny`, or continues a run where it was stopped."""

import signal
from pathlib import Path

from clip_jax.cli import common_flags

common_flags.declare("config", "workdir", *common_flags.HOST_FLAGS)


def main() -> int:
    """Runs the command; see the module's docstring."""
    from clip_jax.distributed import processes
    from clip_jax.runs.loop import train
    from clip_jax.runs.stopping import end_after

    workdir = Path(common_flags.required(common_flags.WORKDIR, "runs/tiny"))
    sections = common_flags.required(common_flags.CONFIG, "tiny").to_dict()
    try:
        with processes.joined(**common_flags.host_options()):
            code = train(sections, workdir)
    except KeyboardInterrupt:
        end_after(3, 128 + signal.SIGINT)  # whatever a thread is stuck in
        raise
    if code:
        end_after(5, code)
    return code
