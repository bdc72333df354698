"""The host's time in a step of `tiny`: `python tests/benchmarks/overhead.py`.

Placing the batch; calling the jitted step until it returns, before its work is done; logging a step that is done. Also
the number of programs that were compiled for the step.
"""

import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import jax
import numpy as np
from absl import flags

from clip_jax.cli.common_flags import run_command
from clip_jax.distributed.sharding import place_batch
from clip_jax.runs.logging import ProgressLog
from clip_jax.runs.setup import prepare_run
from clip_jax.tables import format_table
from configs.tiny import get_config

NUM_STEPS = flags.DEFINE_integer("num_steps", 100, "Steps that are timed, after the first.")


def main() -> int:
    """Prints the table; see the module's docstring."""
    config = get_config()
    config.data.num_workers = 0
    config.train.total_steps = NUM_STEPS.value + 1
    config.optimizer.warmup_steps = 1
    seconds: dict[str, list[float]] = {"placing the batch": [], "calling the step": [], "logging": []}
    with tempfile.TemporaryDirectory() as workdir:
        run = prepare_run(config.to_dict(), Path(workdir))
        log = ProgressLog(Path(workdir), 0, config.train.total_steps, config.train.global_batch_size)
        with closing(run.checkpointer), closing(run.batches), closing(log), jax.set_mesh(run.mesh):
            batch = next(run.batches)
            for step in range(1, config.train.total_steps + 1):
                times = [time.perf_counter()]
                arrays = place_batch({"image": batch["image"], "text": batch["text"]}, run.mesh)
                times.append(time.perf_counter())
                run.state, metrics = run.step_fn(run.state, arrays)
                times.append(time.perf_counter())
                jax.block_until_ready(run.state)
                done = time.perf_counter()
                log.add(step, metrics, batch["index"])
                logging = time.perf_counter() - done
                if step > 1:
                    for times_of, spent in zip(seconds.values(), [*np.diff(times), logging]):
                        times_of.append(spent)
            programs = run.step_fn._cache_size()  # type: ignore[attr-defined]
    rows = [
        [name, f"{1e3 * np.median(times_of):.3f}", f"{1e3 * np.quantile(times_of, 0.9):.3f}"]
        for name, times_of in seconds.items()
    ]
    total = np.sum(list(seconds.values()), axis=0)
    rows.append(["together", f"{1e3 * np.median(total):.3f}", f"{1e3 * np.quantile(total, 0.9):.3f}"])
    print(format_table(["host's work in a step of tiny", "median, ms", "nine tenths below, ms"], rows))
    print(f"programs compiled for the step: {programs}")
    return 0


if __name__ == "__main__":
    run_command(main, sys.argv)
