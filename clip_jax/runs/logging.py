"""A run's numbers: JSON lines, TensorBoard event files, a progress bar, and the tables a person reads."""

import json
import math
import os
import shutil
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tensorboardX import SummaryWriter
from tensorboardX.proto.summary_pb2 import Summary

from clip_jax.tables import format_table
from input_pipeline.prefetch import progress_bar
from input_pipeline.sources import Source
from input_pipeline.sources.unread import remarks
from input_pipeline.storage import listed, write_text

Row = dict[str, Any]
METRICS_LAG = 4  # steps that may still be running when the next one is dispatched
ACCURACIES = {
    "image_to_text_accuracy": "image to text accuracy in the batch",
    "text_to_image_accuracy": "text to image accuracy in the batch",
    "token_accuracy": "words or tokens predicted",
}
SUMMARISED = {"loss", "chance_loss", "images_per_s", "data_wait_share"}  # what each row of a step has
BROKEN_NAMED = 20  # records that the summary names


class MetricsWriter:
    """Appends rows to workdir/metrics.jsonl and to TensorBoard files in workdir/tensorboard.

    A row is {"step": int, "samples_seen": int, name: float, ...}. Rows after `resume_step` are deleted when the file is
    opened: the run writes them again. Damaged lines and missing rows before it are named on stderr, and the damaged
    file is kept.
    """

    def __init__(self, workdir: Path, resume_step: int):
        self._path = workdir / "metrics.jsonl"
        rows, damaged = _parse_metrics(self._path)
        rows = [row for row in rows if row["step"] <= resume_step]
        _report_damage(self._path, rows, damaged, resume_step)
        write_text(self._path, "".join(json.dumps(row) + "\n" for row in rows))
        self._file = self._path.open("a", buffering=1)  # a row can be read as soon as it is written
        self._events = SummaryWriter(str(workdir / "tensorboard"), purge_step=resume_step + 1)

    def write(self, row: Row) -> None:
        self._file.write(json.dumps(row) + "\n")
        values = {name: value for name, value in row.items() if name != "step" and isinstance(value, int | float)}
        # One event for the row: an event for each value costs a step of a small model a millisecond.
        summary = Summary(value=[Summary.Value(tag=n.replace("@", "_at_"), simple_value=v) for n, v in values.items()])
        self._events.file_writer.add_summary(summary, row["step"])

    def flush(self) -> None:
        """Puts all rows on the disk: those before a checkpoint survive the loss of the machine."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._events.flush()

    def close(self) -> None:
        self._file.close()
        self._events.close()


def read_metrics(workdir: Path) -> list[Row]:
    """All rows of a run that are whole: not a line cut short by a kill or damaged otherwise. No file: no rows."""
    return _parse_metrics(workdir / "metrics.jsonl")[0]


def _parse_metrics(file: Path) -> tuple[list[Row], list[int]]:
    """The whole rows, and the numbers of the other lines, from 1."""
    rows: list[Row] = []
    damaged: list[int] = []
    for number, line in enumerate(file.read_bytes().split(b"\n") if file.exists() else [], 1):
        try:
            row = json.loads(line) if line else None
        except (ValueError, RecursionError):
            row = None
        if row is not None and _is_row(row):
            rows.append(row)
        elif line:
            damaged.append(number)
    return rows, damaged


def _is_row(row: Any) -> bool:
    return (
        isinstance(row, dict)
        and type(row.get("step")) is int
        and type(row.get("samples_seen")) is int
        and all(type(value) in (int, float) for value in row.values())
    )


def _report_damage(file: Path, rows: list[Row], damaged: list[int], resume_step: int) -> None:
    """Names steps so far that have no row, and damaged lines; those at the end, of a kill, are written again."""
    written = {row["step"] for row in rows if "loss" in row}
    missing = [step for step in range(1, resume_step + 1) if step not in written]
    within = [number for number in damaged if number <= len(rows)]
    if not missing and not within:
        return
    found = []
    if damaged:
        found.append(f"{listed([f'line {number}' for number in damaged], 3)} cannot be read")
    if missing:
        found.append(
            f"{len(missing):,} of the first {resume_step:,} steps have no row, the first of them {missing[0]:,}"
        )
    kept = ""
    if file.exists():
        shutil.copyfile(file, copy := file.with_name(f"{file.name}.damaged"))
        kept = f" The file as it was is {copy}."
    what = f"clip-jax: {file} is damaged: {'; '.join(found)}."
    print(f"{what} The run goes on; curves and means leave them out.{kept}", file=sys.stderr)


class NonFiniteLossError(ValueError):
    """The loss or its gradient is not finite at `step`; `index`, int [b], are the records of its batch."""

    def __init__(self, step: int, what: str, value: float, index: np.ndarray):
        super().__init__(f"the {what} is {value} at step {step}")
        self.step = step
        self.index = index


class _Silent:
    """The writer of all processes but the first."""

    def write(self, row: Row) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


class ProgressLog:
    """Logs a run without delaying it: a step's metrics are read METRICS_LAG steps later, when they are computed.

    Each row also has images_per_s and data_wait_share, the share of the time spent waiting for the input pipeline; the
    bar shows data_broken where it is not 0.
    silent: writes and shows nothing, but still raises for a loss that is not finite.
    """

    def __init__(self, workdir: Path, resume_step: int, total_steps: int, global_batch_size: int, silent: bool = False):
        self._writer: MetricsWriter | _Silent = _Silent() if silent else MetricsWriter(workdir, resume_step)
        self._batch_size = global_batch_size
        self._pending: deque[tuple[int, Mapping[str, jax.Array | float], np.ndarray]] = deque()
        self._bar = progress_bar(total=total_steps, initial=resume_step, unit="step", disable=silent)
        self._last_time = time.perf_counter()
        self._waited_s = 0.0
        if resume_step < total_steps:
            self.show("compiling the step")

    def show(self, what: str) -> None:
        """Says on the bar what is done now, until the next step's numbers replace it."""
        self._bar.set_postfix_str(what)

    @contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Counts the time of the block as waiting for data."""
        start = time.perf_counter()
        yield
        self._waited_s += time.perf_counter() - start

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Excludes the block, such as an evaluation, from images_per_s."""
        self.flush()
        yield
        self._last_time, self._waited_s = time.perf_counter(), 0.0

    def add(self, step: int, metrics: Mapping[str, jax.Array | float], index: np.ndarray) -> None:
        """Takes the metrics of a step and the records of its batch, int [b].

        Raises NonFiniteLossError of an earlier step, up to METRICS_LAG steps later.
        """
        self._pending.append((step, metrics, index))
        while len(self._pending) > METRICS_LAG:
            self._log_oldest()

    def flush(self) -> None:
        """Waits for all steps added so far and puts their rows on the disk."""
        while self._pending:
            self._log_oldest()
        self._writer.flush()

    def write(self, row: Row) -> None:
        """Writes a separate row, such as an evaluation's."""
        self._writer.write(row)
        self._writer.flush()

    def close(self) -> None:
        self._bar.close()
        self._writer.close()

    def _log_oldest(self) -> None:
        step, metrics, index = self._pending.popleft()
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        for name in ("loss", "grad_norm"):
            if not math.isfinite(values[name]):
                raise NonFiniteLossError(step, name, values[name], index)
        now = time.perf_counter()
        elapsed, self._last_time = max(now - self._last_time, 1e-9), now
        wait_share, self._waited_s = min(self._waited_s / elapsed, 1.0), 0.0
        speed = self._batch_size / elapsed
        row = {"step": step, "samples_seen": step * self._batch_size, **values}
        self._writer.write({**row, "images_per_s": speed, "data_wait_share": wait_share})
        broken = f", {values['data_broken']:,.0f} broken records" if values.get("data_broken") else ""
        accuracies = [value for name, value in values.items() if name.endswith("_accuracy")]
        accuracy = sum(accuracies) / len(accuracies)
        self._bar.update()
        self._bar.set_postfix_str(
            f"loss {values['loss']:.3f} (chance {values['chance_loss']:.2f}), accuracy {accuracy:.1%}, "
            f"{speed:.0f} images/s, {wait_share:.0%} waiting for data{broken}",
            refresh=False,
        )


def summary_table(
    rows: list[Row], source: Source, data_state: dict[str, Any], seen: dict[str, float], run_s: float, *, packed: bool
) -> str:
    """The end of a run as a person reads it, with the records that could not be used.

    Args:
      rows: of metrics, all of the run.
      data_state: of `BatchIterator.get_state`, over all processes.
      seen: of `BatchIterator.samples_seen`.
      run_s: seconds of this call.
      packed: whether captions were packed.
    """
    cells = [
        *_metrics_cells([row for row in rows if row.keys() >= SUMMARISED]),
        ["time of this call", f"{run_s:.0f} s"],
        ["records that could not be used", f"{data_state['broken']} met, {len(source.broken)} left out beforehand"],
        ["captions truncated", f"{data_state['truncated']:,}"],
        ["reads tried again", f"{data_state['retries']:,}"],
        *source_cells(source, seen),
    ]
    if packed:
        cells.append(
            ["batches that did not fit their packed rows", f"{sum(row.get('unpacked', 0) for row in rows):.0f}"]
        )
    named = [*source.broken, *data_state["first_broken"]][:BROKEN_NAMED]
    lines = [f"broken: {record_id}: {reason}" for record_id, reason in named] + remarks(source)
    return format_table(["training", ""], cells) + "".join(f"\n  {line}" for line in lines)


def _metrics_cells(rows: list[Row]) -> list[list[str]]:
    if not rows:
        return [["loss", "unknown: metrics.jsonl has no rows of steps"]]
    final, last = rows[-max(len(rows) // 20, 1) :], rows[-1]

    def mean(name: str) -> float:
        return sum(row[name] for row in final) / len(final)

    return [
        ["samples seen", f"{last['samples_seen']:,}"],
        ["loss, mean of the last twentieth", f"{mean('loss'):.3f} (chance {last['chance_loss']:.3f})"],
        *([label, f"{mean(name):.1%}"] for name, label in ACCURACIES.items() if all(name in row for row in final)),
        *([["logit scale", f"{last['logit_scale']:.2f}"]] if "logit_scale" in last else []),
        ["images/s", f"{mean('images_per_s'):.0f} ({mean('data_wait_share'):.0%} of the time waiting for data)"],
    ]


def source_cells(source: Source, seen: dict[str, float]) -> list[list[str]]:
    """Epochs, of a mixture for each source with its samples, and what filters left out for which reason."""
    cells = []
    for name, number in seen.items():
        what, _, part = name.partition("/")
        if what == "epochs":
            samples = f" ({seen[f'samples_seen/{part}']:,} samples)" if part else ""
            cells.append([f"epochs of {part}" if part else "epochs", f"{number:.2f}{samples}"])
    return cells + [[f"filtered: {reason}", f"{count:,}"] for reason, count in left_out(source).items()]


def left_out(source: Source) -> dict[str, int]:
    """How many records filters left out, by the reason; of a mixture NAME: reason."""
    return dict(getattr(source, "filtered", {}))
