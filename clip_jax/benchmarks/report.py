"""Tables on the terminal and the record of a benchmark as JSON."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from clip_jax.benchmarks.timing import Runner, Timings, alternate
from clip_jax.config.record import environment
from clip_jax.tables import format_table
from input_pipeline.storage import write_json


class Report:
    """Prints each table as it is ready, and writes `file` at the end, whole or not at all.

    Args:
      benchmark: its name.
      settings: for JSON; what was asked for.
      file: None writes nothing.
      num_runs: of each way, at least; with 0 nothing is to be timed.
      max_s: when to give up on a noisy machine, seconds from the first run of a table.

    Raises ValueError, before any work, where the file could not be written.
    """

    def __init__(self, benchmark: str, settings: Mapping[str, Any], file: Path | None, num_runs: int, max_s: float):
        if file and (file.is_dir() or not os.access(file.parent, os.W_OK | os.X_OK)):
            raise ValueError(f"--json={file} cannot be written: name a file in a folder that exists")
        self._file = file
        self._max_s = max_s
        self.num_runs = num_runs
        self.content: dict[str, Any] = {"benchmark": benchmark, "settings": dict(settings), "tables": []}

    def measure(self, runners: Mapping[str, Runner], **options: Any) -> Timings:
        """`alternate`, for as long as was asked for."""
        return alternate(runners, self.num_runs, self._max_s, **options)

    def add(
        self,
        title: str,
        figures: Mapping[str, Mapping[str, Any]],
        timings: Timings | None = None,
        rates: Mapping[str, float] | None = None,
    ) -> None:
        """Prints and keeps figures by way and column, and of what was timed seconds, ratios and the verdict.

        rates: unit -> how many of it the work that was timed holds, for a column of units a second.
        """
        timed = {"rates": dict(rates or {}), **timings.as_json()} if timings else {}
        self.content["tables"].append({"title": title, "figures": {n: dict(row) for n, row in figures.items()}} | timed)
        columns = list(dict.fromkeys(column for row in figures.values() for column in row))
        if columns:
            rows = [[name, *(_text(row.get(column)) for column in columns)] for name, row in figures.items()]
            print(format_table([title, *columns], rows) + "\n", flush=True)
        if timings:
            print(format_table(*timing_table(title, timings, rates or {})))
            print(timings.verdict + "\n", flush=True)

    def tell(self, what: str, rows: Mapping[str, Mapping[str, Any]]) -> None:
        """Prints and keeps what stands beside the tables."""
        self.content[what] = rows
        for name, row in rows.items():
            print(f"{what}: {name}: " + ", ".join(f"{key} {_text(value)}" for key, value in row.items()), flush=True)

    def write(self) -> None:
        """The file, if one was asked for, with command, commit, versions, devices and what these say of their memory,
        bytes_in_use and others, where they do."""
        if not self._file:
            return
        stats = [device.memory_stats() for device in jax.local_devices()]
        write_json(self._file, {**self.content, **environment(), "memory_stats": stats})
        print(f"written: {self._file}")


def timing_table(title: str, timings: Timings, rates: Mapping[str, float]) -> tuple[list[str], list[list[str]]]:
    """Titles and rows of what was timed: seconds, rates by the median, and ratios to the first way."""
    ratios = timings.ratios
    names = [name for name in timings.seconds if name not in timings.aside]
    titles = [title, "s, fastest", "s, median", *(f"{unit}/s" for unit in rates)]
    titles += ["ratio, fastest", "median of pairs", "may differ by"] if len(names) > 1 else ["may differ by"]
    rows = []
    for name in names:
        seconds, ratio = timings.seconds[name], ratios.get(name)
        median = float(np.median(seconds))
        row = [name, f"{seconds.min():.4g}", f"{median:.4g}", *(f"{count / median:,.1f}" for count in rates.values())]
        if len(names) > 1:
            row += [f"{ratio.fastest:.3f}", f"{ratio.median:.3f}"] if ratio else ["1", "1"]
        rows.append([*row, f"{ratio.spread:.1%}" if ratio else ""])
    return titles, rows


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:,.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
