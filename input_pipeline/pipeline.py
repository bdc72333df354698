"""Records to batches: one global order that depends on the seed and the data alone.

Which record stands at which place of which batch is a pure function of (seed, position), never of the number of
workers or hosts, so the whole state of the iterator is the number of the next batch.
"""

import functools
import itertools
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import grain
import numpy as np
from absl import flags
from PIL import Image

from input_pipeline.data_config import check_broken_share
from input_pipeline.order import Order
from input_pipeline.sources import BrokenRecordError, Mixture, Record, Source
from input_pipeline.sources.remote import count_retries
from input_pipeline.tokenizers import Tokenizer
from input_pipeline.transforms import decode_image, random_square_crop

MAX_BROKEN_IN_A_ROW = 100
LAST_ROW = 2**62  # the stream has no end that a run could reach
FEW_RECORDS = 1000  # the share of broken records is not judged on fewer
BROKEN_REMEMBERED = 20
DIFFERENCES_NAMED = 10
_MISSING = object()
DATA_VERSION = 1  # of the order, the choice of captions and the crops: raise it when the same data gives other batches


class Batch(TypedDict):
    """One process's rows of a global batch.

    image: uint8 [b, H, W, 3]. text: int32 [b, L]. index: int64 [b], the records' places in the source.
    truncated: how many captions were cut. broken: (id, reason) of the records met that could not be used. retries: how
    many reads failed and were tried again.
    """

    image: np.ndarray
    text: np.ndarray
    index: np.ndarray
    truncated: int
    broken: list[tuple[str, str]]
    retries: int


class Example(TypedDict):
    """One row of a batch and what happened on the way to it."""

    image: np.ndarray
    text: np.ndarray
    index: int
    truncated: bool
    broken: list[tuple[str, str]]
    retries: int


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Position in the endless stream of shuffled epochs -> example, a pure function.

    A record that cannot be used is reported where it stands, and the next one of its source's epoch takes its place.
    min_scale: the smallest side of the random square crop, as a share of the image's shorter side.
    """

    source: Source
    tokenizer: Tokenizer
    image_size: int
    min_scale: float
    seed: int

    @functools.cached_property
    def _order(self) -> Order:
        if isinstance(self.source, Mixture):
            return Order(self.source.lengths, self.source.weights, self.seed)
        return Order([len(self.source)], [1], self.seed)

    def samples_seen(self, position: int) -> dict[str, float]:
        """At a position of the stream: epochs, or of a mixture for each source samples_seen/NAME and epochs/NAME."""
        seen = self._order.samples_seen(position)
        if not isinstance(self.source, Mixture):
            return {"epochs": seen[0] / len(self.source)}
        named = list(zip(self.source.names, seen, self.source.lengths))
        epochs = {f"epochs/{name}": number / length for name, number, length in named}
        return {f"samples_seen/{name}": number for name, number, _ in named} | epochs

    def __getitem__(self, position: int) -> Example:
        part, sample = self._order.place(position)
        rng = np.random.Generator(np.random.Philox(key=[self.seed, position]))
        broken: list[tuple[str, str]] = []
        retries = -count_retries()
        for attempt in range(MAX_BROKEN_IN_A_ROW):
            index = self._order.index(part, sample, attempt)
            try:
                record = self.source[index]
                if not record["captions"]:  # as labelled records may be
                    raise BrokenRecordError(record["id"], "no caption")
                image = random_square_crop(load_image(record), self.image_size, self.min_scale, rng)
            except BrokenRecordError as error:
                broken.append((error.record_id, error.reason))
                continue
            text, truncated = self.tokenizer.encode(record["captions"][rng.integers(len(record["captions"]))])
            # Only the record that stands here is this position's to report: the others stand elsewhere, too.
            retries += count_retries()
            return Example(image=image, text=text, index=index, truncated=truncated, broken=broken[:1], retries=retries)
        raise ValueError(
            f"{MAX_BROKEN_IN_A_ROW} records in a row cannot be used; the first is {broken[0][0]}: {broken[0][1]}"
        )

    def fingerprint(self) -> dict[str, Any]:
        """What decides the content of every batch, together with the batch size."""
        return {
            "version": DATA_VERSION,
            "source": self.source.fingerprint(),
            "tokenizer": self.tokenizer.fingerprint(),
            "image_size": self.image_size,
            "min_scale": self.min_scale,
            "seed": self.seed,
        }


def load_image(record: Record) -> Image.Image | np.ndarray:
    """The record's picture, decoded unless it was drawn; raises BrokenRecordError where that cannot be done."""
    image = record["image"]
    if isinstance(image, np.ndarray):
        return image
    try:
        return decode_image(image)
    except ValueError as error:
        raise BrokenRecordError(record["id"], str(error)) from error


def collate(examples: Sequence[Example]) -> Batch:
    """Stacks examples into a batch."""
    return Batch(
        image=np.stack([e["image"] for e in examples]),
        text=np.stack([e["text"] for e in examples]),
        index=np.array([e["index"] for e in examples], np.int64),
        truncated=sum(e["truncated"] for e in examples),
        broken=[pair for e in examples for pair in e["broken"]],
        retries=sum(e["retries"] for e in examples),
    )


@dataclass(frozen=True, kw_only=True)
class _LocalExamples:
    """Row of this process's part of the stream -> example; `rows` are its places in each global batch."""

    examples: Examples
    global_batch_size: int
    rows: np.ndarray

    def __call__(self, local: int) -> Example:
        batch, row = divmod(local, len(self.rows))
        return self.examples[batch * self.global_batch_size + int(self.rows[row])]


def _start_worker(worker_index: int, worker_count: int) -> None:
    """Workers live as long as the training process: a signal to the whole group leaves them until it has saved."""
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

    rows: the places in a global batch that this process makes, by default all of them.

    Raises ValueError when the state to go on from belongs to other data, and when more than max_broken_share of the
    records met cannot be used.
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
            raise ValueError(f"rows={rows.tolist()} must be places in a batch of global_batch_size={global_batch_size}")
        fingerprint = {**examples.fingerprint(), "global_batch_size": global_batch_size}
        fingerprint = json.loads(json.dumps(fingerprint))  # as a checkpoint gives it back
        start = {"next_batch": 0, "truncated": 0, "broken": 0, "retries": 0, "first_broken": [], **(state or {})}
        if state:
            # Checkpoints that name no version are from before there were any; the first one has their order.
            differing = differences({"version": 1, **state["fingerprint"]}, fingerprint)
            if differing:
                raise ValueError(f"the data is not what the checkpoint was made with: {differing}")
        self._start = {**start, "fingerprint": fingerprint}
        # By this process since the start.
        self._own: dict[str, Any] = {
            "batches": 0,
            "truncated": 0,
            "broken": 0,
            "retries": 0,
            "first_broken": [],
        }
        self._examples = examples
        self._local_batch_size = b = len(rows)
        self._batch_size = global_batch_size
        self._max_broken_share = max_broken_share
        self._few = min(len(examples.source), FEW_RECORDS)
        local = _LocalExamples(examples=examples, global_batch_size=global_batch_size, rows=rows)
        stream_rows = grain.MapDataset.range(start["next_batch"] * b, LAST_ROW // b * b)
        batches = stream_rows.map(local).batch(b, batch_fn=collate)
        ahead = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
        stream = batches.to_iter_dataset(ahead)
        if num_workers:
            if not flags.FLAGS.is_parsed():  # outside absl.app, in a notebook, grain's workers would refuse to start
                flags.FLAGS.mark_as_parsed()
            options = grain.MultiprocessingOptions(num_workers, per_worker_buffer_size=2)
            stream = stream.mp_prefetch(options, _start_worker)
        self._batches = iter(stream)

    def __next__(self) -> Batch:
        try:
            batch = next(self._batches)
        except RuntimeError as error:
            if "terminated unexpectedly" not in str(error):
                raise
            raise ValueError(
                f"a data worker died, perhaps for want of memory: lower data.num_workers ({error})"
            ) from error
        start, own = self._start, self._own
        self._own = own = {
            "batches": own["batches"] + 1,
            "truncated": own["truncated"] + batch["truncated"],
            "broken": own["broken"] + len(batch["broken"]),
            "retries": own["retries"] + batch["retries"],
            "first_broken": (own["first_broken"] + [list(pair) for pair in batch["broken"]])[:BROKEN_REMEMBERED],
        }
        if batch["broken"]:
            seen = start["next_batch"] * self._batch_size + own["batches"] * self._local_batch_size
            met = [*start["first_broken"], *own["first_broken"]]
            check_broken_share(start["broken"] + own["broken"], max(seen, self._few), met, self._max_broken_share)
        return batch

    def get_state(self, gather: Callable[[dict[str, Any]], list[dict[str, Any]]] = lambda own: [own]) -> dict[str, Any]:
        """For JSON: next_batch, the counts truncated, broken and retries, first_broken as [id, reason], fingerprint.

        gather: a process's own counts to those of all processes with other rows; the state is then that of all.
        """
        start, counts = self._start, gather(self._own)
        met = start["first_broken"] + [pair for own in counts for pair in own["first_broken"]]
        return {
            "next_batch": start["next_batch"] + self._own["batches"],
            "truncated": start["truncated"] + sum(own["truncated"] for own in counts),
            "broken": start["broken"] + sum(own["broken"] for own in counts),
            "retries": start["retries"] + sum(own["retries"] for own in counts),
            "first_broken": met[:BROKEN_REMEMBERED],
            "fingerprint": start["fingerprint"],
        }

    def samples_seen(self, num_batches: int) -> dict[str, float]:
        """After so many batches of the whole run, as `Examples.samples_seen`."""
        return self._examples.samples_seen(num_batches * self._batch_size)

    def close(self) -> None:
        """Stops the worker processes."""
        if hasattr(self._batches, "close"):
            self._batches.close()


def differences(old: Any, new: Any) -> str:
    """What differs between two fingerprints, by dotted names; empty if nothing does. Long lists are cut."""
    found = [f"{name} was {before}, is {after}" for name, before, after in _changes("", old, new)]
    more = f"; and {len(found) - DIFFERENCES_NAMED} more" if len(found) > DIFFERENCES_NAMED else ""
    return "; ".join(found[:DIFFERENCES_NAMED]) + more


def _changes(name: str, old: Any, new: Any) -> Iterator[tuple[str, str, str]]:
    if isinstance(old, list) and isinstance(new, list):
        for i, (before, after) in enumerate(itertools.zip_longest(old, new, fillvalue=_MISSING)):
            yield from _changes(f"{name}[{i}]", before, after)
    elif isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            inner = f"{name}.{key}" if name else key
            yield from _changes(inner, old.get(key, _MISSING), new.get(key, _MISSING))
    elif old != new:
        before, after = ("missing" if value is _MISSING else f"{value!r:.200}" for value in (old, new))
        yield name, before, after
