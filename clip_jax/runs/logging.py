"""A run's numbers: JSON lines, TensorBoard event files, a progress bar, and the tables a person reads."""

import json
import math
import os
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

from input_pipeline.progress import progress_bar
from input_pipeline.storage import write_text

Row = dict[str, Any]
METRICS_LAG = 4  # steps that may still be running when the next one is dispatched


class MetricsWriter:
    """Appends rows to workdir/metrics.jsonl and to TensorBoard files in workdir/tensorboard.

    A row is {"step": int, "samples_seen": int, name: float, ...}. Rows after `resume_step` are dropped when the file is
    opened: the run is about to make them again.
    """

    def __init__(self, workdir: Path, resume_step: int):
        self._path = workdir / "metrics.jsonl"
        rows = [row for row in read_metrics(workdir) if row["step"] <= resume_step]
        write_text(self._path, "".join(json.dumps(row) + "\n" for row in rows))
        self._file = self._path.open("a", buffering=1)  # a row is there to be read as soon as it is written
        self._events = SummaryWriter(str(workdir / "tensorboard"), purge_step=resume_step + 1)

    def write(self, row: Row) -> None:
        self._file.write(json.dumps(row) + "\n")
        values = {name: value for name, value in row.items() if name != "step" and isinstance(value, int | float)}
        # One event for the row: an event for each value costs a step of a small model a millisecond.
        summary = Summary(value=[Summary.Value(tag=n.replace("@", "_at_"), simple_value=v) for n, v in values.items()])
        self._events.file_writer.add_summary(summary, row["step"])

    def flush(self) -> None:
        """Rows are on the disk: those before a checkpoint outlive a machine that is taken away."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._events.flush()

    def close(self) -> None:
        self._file.close()
        self._events.close()


def read_metrics(workdir: Path) -> list[Row]:
    """All whole rows of a run; a line cut short by a kill is left out."""
    path = workdir / "metrics.jsonl"
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


class NonFiniteLossError(ValueError):
    """The loss or its gradient is no longer finite; `step` says when and `index` which records it saw."""

    def __init__(self, step: int, what: str, value: float, index: np.ndarray):
        super().__init__(f"the {what} is {value} at step {step}")
        self.step = step
        self.index = index


class _Silent:
    """Of several processes only one writes."""

    def write(self, row: Row) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


class ProgressLog:
    """Follows a run without holding it up: a step's metrics are read a few steps later, when they are surely done.

    Each row also has images_per_s and data_wait_share, the share of the time spent waiting for the input pipeline; the
    bar tells what data_broken counts.
    silent: writes and shows nothing, and still raises for a loss that is no number.
    """

    def __init__(self, workdir: Path, resume_step: int, total_steps: int, global_batch_size: int, silent: bool = False):
        self._writer: MetricsWriter | _Silent = _Silent() if silent else MetricsWriter(workdir, resume_step)
        self._batch_size = global_batch_size
        self._pending: deque[tuple[int, Mapping[str, jax.Array | float], np.ndarray]] = deque()
        self._bar = progress_bar(total=total_steps, initial=resume_step, unit="step", disable=silent)
        self._last_time = time.perf_counter()
        self._waited_s = 0.0

    @contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Times what it encloses as waiting."""
        start = time.perf_counter()
        yield
        self._waited_s += time.perf_counter() - start

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves what it encloses, such as an evaluation, out of images_per_s."""
        self.flush()
        yield
        self._last_time, self._waited_s = time.perf_counter(), 0.0

    def add(self, step: int, metrics: Mapping[str, jax.Array | float], index: np.ndarray) -> None:
        """Takes the metrics of a step and the records of its batch. Raises NonFiniteLossError, a little late."""
        self._pending.append((step, metrics, index))
        while len(self._pending) > METRICS_LAG:
            self._log_oldest()

    def flush(self) -> None:
        """Waits for all steps given so far and puts their rows on the disk."""
        while self._pending:
            self._log_oldest()
        self._writer.flush()

    def write(self, row: Row) -> None:
        """A row of its own, such as an evaluation's."""
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
