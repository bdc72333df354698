"""What the digests of a checkpoint cost: saves of about 1 GB with and without them, interleaved.

    python tests/benchmarks/digests.py --folder=DIR

A save lasts from the call until the checkpoint is on the disk. The digests are those of clip_jax/training/digests.py,
computed while training goes on; the call itself does not wait for them.
"""

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import tempfile
import time
import zlib
from collections.abc import Callable
from hashlib import blake2b, sha256
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from clip_jax.training import checkpoint, digests

ARRAYS, SIZE = 16, 2**24  # float32: 1.07 GB


def save(folder: Path, step: int, state: dict[str, jax.Array]) -> tuple[float, float, float]:
    """Seconds that the call takes, until all is on the disk, and of all cores together."""
    checkpointer = checkpoint.Checkpointer(folder, keep=1)
    start, start_cpu = time.perf_counter(), time.process_time()
    checkpointer.save(step, state, {"next_batch": step})  # type: ignore[arg-type]  # any tree
    called = time.perf_counter() - start
    checkpointer.wait()
    seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    checkpointer.close()
    return called, seconds, cpu


def rates() -> dict[str, float]:
    """GB/s of one thread: of ours with reading the file, of others over data in memory."""
    data = np.random.default_rng(0).bytes(2**26)
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        path = Path(file.name)
        functions = {
            "ours": lambda _: digests._digest(path, 0),
            "crc32": zlib.crc32,
            "sha256": sha256,
            "blake2b": blake2b,
        }
        return {name: _rate(function, data) for name, function in functions.items()}


def _rate(function: Callable[[bytes], object], data: bytes) -> float:
    seconds = []
    for _ in range(7):
        start = time.perf_counter()
        function(data)
        seconds.append(time.perf_counter() - start)
    return len(data) / min(seconds) / 1e9


def processor() -> str:
    lines = subprocess.run(["lscpu"], capture_output=True, text=True, check=False).stdout.splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("Model name")]
    return names[0] if names else platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", help="on the file system to be measured; by default the temporary one")
    parser.add_argument("--num_runs", type=int, default=7)
    options = parser.parse_args()
    keys = jax.random.split(jax.random.key(0), ARRAYS)
    state = {f"array_{i}": jax.random.normal(key, (SIZE // 4096, 4096), jnp.float32) for i, key in enumerate(keys)}
    jax.block_until_ready(state)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    cpu_seconds: dict[bool, list[float]] = {True: [], False: []}
    own: list[float] = []

    def timed(folder: Path, step: int, ahead: digests.DigestsAhead | None) -> None:
        start = time.perf_counter()
        digests.write_digests(folder, step, ahead)
        own.append(time.perf_counter() - start)

    for run in range(options.num_runs + 1):
        for with_digests in (True, False) if run % 2 else (False, True):
            folder = Path(tempfile.mkdtemp(dir=options.folder))
            write, ahead = (timed, digests.DigestsAhead) if with_digests else (mock.Mock(), mock.Mock())
            os.sync()  # what earlier saves have left to be written is not counted
            with mock.patch.multiple(checkpoint, write_digests=write, DigestsAhead=ahead):
                called, total, cpu = save(folder, 1, state)
            size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
            shutil.rmtree(folder)
            if run:  # the first warms up
                seconds[with_digests].append(total)
                cpu_seconds[with_digests].append(cpu)
            name = f"run {run} digests={with_digests!s:5}"
            print(f"{name}: call {called:.2f} s, save {total:.2f} s, {cpu:.2f} of cores, {size / 1e9:.2f} GB")
    print(f"processor: {processor()}, {jax.local_device_count()} device(s)")
    print("one thread, GB/s:", ", ".join(f"{name} {rate:.1f}" for name, rate in rates().items()))
    for what, found in (("save", seconds), ("seconds of all cores", cpu_seconds)):
        ratios = sorted(a / b for a, b in zip(found[True], found[False]))
        print(
            f"{what}, with over without: {min(found[True]) / min(found[False]):.3f} by the fastest, median of pairs "
            f"{statistics.median(ratios):.3f}, from {ratios[0]:.3f} to {ratios[-1]:.3f}"
        )
    left = statistics.median(own)
    print(f"left at the end: median {left:.3f} s, {left / statistics.median(seconds[False]):.1%} of a save")


if __name__ == "__main__":
    main()
