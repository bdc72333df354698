"""Records to batches: one global order that depends on the seed and the data alone.

The record at each row of each batch is a pure function of (seed, position), never of the number of
workers or hosts, so the whole state of the iterator is the number of the next batch.
"""

import functools
import gc
import json
import multiprocessing
import os
import secrets
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any

import grain
import numpy as np
from absl import flags

from input_pipeline.examples import Batch, Example, Examples, collate, decoder
from input_pipeline.open_data import check_broken_share
from input_pipeline.storage import differences, listed

LAST_ROW = 2**62  # the stream has no end that a run could reach
BROKEN_REMEMBERED = 20
COUNTS = ("truncated", "broken", "retries")
SHARED_MEMORY = Path("/dev/shm")  # where Linux has it
CLOSE_S = 2.0  # for the worker processes to end what they are at
MAX_RESTARTS = 3  # of the worker processes in a run, when one was killed


def _local_example(examples: Examples, global_batch_size: int, rows: np.ndarray, local: int) -> Example:
    """The example at a row of this process's part of the stream; `rows` are its rows of each global batch."""
    batch, row = divmod(local, len(rows))
    return examples[batch * global_batch_size + int(rows[row])]


def _start_worker(prefix: str, worker_index: int, worker_count: int) -> None:
    """Workers ignore a signal to the whole group, and end with the training process, which saves first.

    prefix: of the names of what they share, so that it can be freed whatever they were doing at their end.
    """
    if hasattr(shared_memory, "_SHM_NAME_PREFIX"):
        shared_memory._SHM_NAME_PREFIX = f"/{prefix}"
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


class BatchIterator(Iterator[Batch]):
    """Endless batches, made ahead by worker processes, with a count of what could not be used.

    The order is that of `Examples` for any number of workers and processes, so the number of the next batch is all
    that has to be remembered of the stream.

    rows: of a global batch, those that this process makes; by default all.

    When a worker process is killed all start again from the next batch, MAX_RESTARTS times at most; nothing is lost or
    read twice.

    Raises ValueError when the state to resume from is of other data, when more than max_broken_share of the records
    read cannot be used, and when workers keep dying.

    Attributes:
      progress: what this process has read since the start, batches, truncated, broken, first_broken, and restarts of
        the workers; a new dict for each batch.
    """

    def __init__(
        self,
        examples: Examples,
        global_batch_size: int,
        *,
        state: dict[str, Any] | None = None,
        num_workers: int = 0,
        max_broken_share: float = 0.0,
        rows: np.ndarray | None = None,
    ):
        rows = np.arange(global_batch_size) if rows is None else rows
        if not len(rows) or rows.min() < 0 or rows.max() >= global_batch_size:
            raise ValueError(f"rows={rows.tolist()} must be rows of a batch of global_batch_size={global_batch_size}")
        fingerprint = {**examples.fingerprint(), "global_batch_size": global_batch_size}
        fingerprint = json.loads(json.dumps(fingerprint))  # as a checkpoint gives it back
        none: dict[str, Any] = {**dict.fromkeys(COUNTS, 0), "first_broken": []}
        if state:
            # Checkpoints that name neither are from before there were any: they have the first version's order.
            unnamed = {"version": 1, "decode": decoder("exact")}
            if found := differences({**unnamed, **state["fingerprint"]}, fingerprint):
                raise ValueError(f"the data is not what the checkpoint was made with: {listed(found)}")
        self._start = {"next_batch": 0, **none, **(state or {}), "fingerprint": fingerprint}
        self.progress: dict[str, Any] = {"batches": 0, **none, "restarts": 0}
        self._examples = examples
        self._local_batch_size = len(rows)
        self._batch_size = global_batch_size
        self._max_broken_share = max_broken_share
        self._closed = False
        self._shared: list[weakref.ref] = []  # arrays of batches that are in use
        self._prefix = f"{secrets.token_hex(3)}_"  # Python's names of shared memory have 13 characters
        self._before = set(multiprocessing.active_children())
        self._local = functools.partial(_local_example, examples, global_batch_size, rows)
        self._num_workers = num_workers
        self._batches = self._open_stream()

    def _open_stream(self) -> Iterator[Batch]:
        """The batches from the next one on; workers start when the first one is asked for."""
        b = self._local_batch_size
        first = self._start["next_batch"] + self.progress["batches"]
        stream_rows = grain.MapDataset.range(first * b, LAST_ROW // b * b)
        batches = stream_rows.map(self._local).batch(b, batch_fn=collate)
        ahead = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
        stream = batches.to_iter_dataset(ahead)
        if self._num_workers:
            if not flags.FLAGS.is_parsed():  # outside absl.app, in a notebook, grain's workers would refuse to start
                flags.FLAGS.mark_as_parsed()
            # A worker copies a batch's arrays once, into shared memory, where this process reads them in place.
            options = grain.MultiprocessingOptions(self._num_workers, per_worker_buffer_size=2)
            stream = stream.mp_prefetch(options, functools.partial(_start_worker, self._prefix))
        return iter(stream)

    def __next__(self) -> Batch:
        batch = self._next_batch()
        shared = [weakref.ref(array) for array in batch.values() if getattr(array, "shm", None)]
        self._shared = [array for array in self._shared if array() is not None] + shared
        start, before = self._start, self.progress
        new = {**batch, "broken": len(batch["broken"])}
        self.progress = own = {
            **before,
            "batches": before["batches"] + 1,
            **{name: before[name] + new[name] for name in COUNTS},
            "first_broken": (before["first_broken"] + [list(pair) for pair in batch["broken"]])[:BROKEN_REMEMBERED],
        }
        if batch["broken"]:
            seen = start["next_batch"] * self._batch_size + own["batches"] * self._local_batch_size
            first = [*start["first_broken"], *own["first_broken"]]
            num_broken, num_records = start["broken"] + own["broken"], len(self._examples.source)
            check_broken_share(num_broken, seen, first, self._max_broken_share, num_to_see=num_records)
        return batch

    def _next_batch(self) -> Batch:
        """The stream's next batch, from new workers where one was killed."""
        while True:
            try:
                return next(self._batches)
            except RuntimeError as error:
                if self._closed or "terminated unexpectedly" not in str(error):
                    raise
                restarts = self.progress["restarts"] + 1
                if restarts > MAX_RESTARTS:
                    raise ValueError(
                        f"a data worker died, and {MAX_RESTARTS} times before, perhaps for want of memory: lower "
                        f"data.num_workers={self._num_workers} ({error})"
                    ) from error
            self._close_stream()
            self.progress = {**self.progress, "restarts": restarts}
            number = self._start["next_batch"] + self.progress["batches"]
            message = (
                f"a data worker died; the workers start again at batch {number}, time {restarts} of {MAX_RESTARTS}"
            )
            print(message, file=sys.stderr)
            self._batches = self._open_stream()

    def get_state(
        self,
        gather: Callable[[dict[str, Any]], list[dict[str, Any]]] = lambda own: [own],
        progress: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """For JSON: next_batch, the counts truncated, broken and retries, first_broken as [id, reason], fingerprint.

        gather: a process's own counts to those of all processes with other rows; the state is then that of all.
        progress: that of an earlier batch, the last one that was used, where later ones were read ahead.
        """
        progress = progress or self.progress
        start, counts = self._start, gather(progress)
        first = start["first_broken"] + [pair for own in counts for pair in own["first_broken"]]
        return {
            "next_batch": start["next_batch"] + progress["batches"],
            **{name: start[name] + sum(own[name] for own in counts) for name in COUNTS},
            "first_broken": first[:BROKEN_REMEMBERED],
            "fingerprint": start["fingerprint"],
        }

    def samples_seen(self, num_batches: int) -> dict[str, float]:
        """After so many batches of the whole run, as `Examples.samples_seen`."""
        return self._examples.samples_seen(num_batches * self._batch_size)

    def close(self) -> None:
        """Stops the worker processes, those that are stuck after CLOSE_S seconds, and frees what they share."""
        self._closed = True
        self._close_stream()
        self._batches = iter(())
        if self._num_workers and SHARED_MEMORY.is_dir():
            self._free_shared_memory()

    def _close_stream(self) -> None:
        timer = threading.Timer(CLOSE_S, self._kill_workers)
        timer.daemon = True
        timer.start()
        try:
            if hasattr(self._batches, "close"):
                self._batches.close()
        finally:
            timer.cancel()

    def _free_shared_memory(self) -> None:
        """All that workers had made; arrays that are in use keep their content, and grain need not free them."""
        gc.collect()
        for array in [array for weak in self._shared if (array := weak()) is not None]:
            array._unlink_on_del = False
        for file in SHARED_MEMORY.glob(f"{self._prefix}*"):
            try:
                left = shared_memory.SharedMemory(file.name)
                left.unlink()
                left.close()
            except FileNotFoundError:  # freed in grain's thread meanwhile
                continue
            except ValueError:  # empty: its worker was killed while it made it
                file.unlink(missing_ok=True)

    def _kill_workers(self) -> None:
        for process in set(multiprocessing.active_children()) - self._before:
            if process.name.startswith("grain-process"):  # grain would wait 25 s for each
                process.kill()
