"""Resident memory of a process and its workers while records go by, as Linux tells it."""

import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np


def watch_memory(batches: Iterator[Any], num_records: int, batch_size: int) -> dict[str, dict[str, float]]:
    """Resident memory of this process and of its workers, a shared page counted once, at ten places of the way.

    Raises ValueError on a system that does not tell it.
    """
    places = np.linspace(0, -(-num_records // batch_size), 11).astype(int)[1:].tolist()
    found = {}
    for number in range(1, places[-1] + 1):
        next(batches)
        if number in places:
            workers = [child.pid for child in multiprocessing.active_children()]
            sizes = {"process": resident_mib("self"), "workers": sum(resident_mib(pid) for pid in workers)}
            found[f"{number * batch_size:,} records"] = sizes
    return found


def resident_mib(process: int | str | None) -> float:
    """A process's proportional share of resident memory."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError as error:
        raise ValueError(f"--memory_records needs Linux, which tells a process's memory: {error}") from error
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024
