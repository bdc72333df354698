"""Records to batches: one global order that depends on the seed and the data alone.

Which record stands at which place of which batch is a pure function of (seed, position), never of the number of
workers or hosts, so the whole state of the iterator is the number of the next batch.
"""

import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import grain
import numpy as np
import PIL
from absl import flags
from grain.experimental import index_shuffle
from PIL import Image

from input_pipeline.jpeg import libraries, random_jpeg_crop
from input_pipeline.scenes import SceneSource
from input_pipeline.sources import BrokenRecordError, Record, Source, SubsetSource, make_source
from input_pipeline.tokenizers import Tokenizer
from input_pipeline.transforms import decode_image, random_square_crop

MAX_BROKEN_IN_A_ROW = 100
LAST_ROW = 2**62  # the stream has no end that a run could reach
FEW_RECORDS = 1000  # the share of broken records is not judged on fewer
BROKEN_REMEMBERED = 20
STAGES = ("read", "decode", "tokenise")
MAX_RESTARTS = 3  # of the worker processes in a run, when one was killed
Decode = Literal["fast", "exact"]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which records a run reads, and how.

    Attributes:
      source: "scenes" (drawn, needs no path), "webdataset", "tfds", "array_record" or "table".
      path: tar, folder, table or pattern of the source; for tfds the data set's folder, DATA_DIR/NAME.
      split: of a tfds data set; unused elsewhere.
      num_examples: pictures of a drawn epoch; unused elsewhere.
      scene_kinds: kinds drawn, equally often; empty draws all in their usual shares; unused elsewhere.
      num_validation: the source's last records, never trained on (for scenes, as many drawn from another stream).
      min_crop_scale: smallest side of the random square crop, as a share of the shorter side; 1 cuts the full height.
      decode: of training's JPEGs, "fast", or "exact" as the evaluation decodes; see `Examples`.
      tokenizer: "sentencepiece" or "clip_bpe".
      tokenizer_file: its vocabulary; empty trains SentencePiece on the run's captions, or looks in the Hub's cache.
      pack_text: several captions share a row of the text tower: the same features and gradients but for rounding, from
        fewer positions. A batch that does not fit the rows foreseen is encoded unpacked, and counted.
      num_workers: processes that read and decode; 0 does it in the training process.
      max_broken_share: the run stops when more of the records than this cannot be used.
      seed: of the order, the crops, the choice of captions and the drawn scenes.
    """

    source: Literal["scenes", "webdataset", "tfds", "array_record", "table"]
    path: str
    split: str
    num_examples: int
    scene_kinds: tuple[str, ...]
    num_validation: int
    min_crop_scale: float
    decode: Decode
    tokenizer: Literal["sentencepiece", "clip_bpe"]
    tokenizer_file: str
    pack_text: bool
    num_workers: int
    max_broken_share: float
    seed: int

    def __post_init__(self) -> None:
        if self.num_workers < 0:
            raise ValueError(f"data.num_workers={self.num_workers} must be at least 0")
        if not 0 < self.min_crop_scale <= 1:
            raise ValueError(f"data.min_crop_scale={self.min_crop_scale} must lie in (0, 1]")
        if not 0 <= self.max_broken_share <= 1:
            raise ValueError(f"data.max_broken_share={self.max_broken_share} must lie in [0, 1]")
        if self.seed < 0:
            raise ValueError(f"data.seed={self.seed} must be at least 0")


def make_sources(config: DataConfig, image_size: int) -> tuple[Source, Source]:
    """The records to train on and those held out for validation."""
    if config.source == "scenes":

        def scenes(num_examples: int, split: Literal["train", "validation"]) -> SceneSource:
            return SceneSource(config.seed, num_examples, image_size, config.scene_kinds or None, split)

        return scenes(config.num_examples, "train"), scenes(config.num_validation, "validation")
    if not config.path:
        raise ValueError(f"data.path is empty: data.source={config.source!r} needs one, as --config.data.path=DIR")
    source = make_source(config.source, config.path, config.split)
    check_broken_share(len(source.broken), len(source) + len(source.broken), source.broken, config.max_broken_share)
    num_train = len(source) - config.num_validation
    if num_train < 1 or config.num_validation < 1:
        raise ValueError(
            f"data.num_validation={config.num_validation} must leave something on both sides of the "
            f"{len(source)} records of {config.path}"
        )
    return SubsetSource(source, 0, num_train), SubsetSource(source, num_train, len(source))


def check_broken_share(
    num_broken: int,
    num_seen: int,
    broken: Sequence[tuple[str, str]],
    max_share: float,
    limit: str = "data.max_broken_share",
) -> None:
    """Raises ValueError that names the first broken records when their share is over the limit, of that name."""
    if num_broken > max_share * num_seen:
        examples = "; ".join(f"{record_id}: {reason}" for record_id, reason in broken[:3])
        raise ValueError(
            f"{num_broken} of {num_seen} records cannot be used, more than {limit}={max_share} "
            f"({examples}): mend the data or raise {limit}"
        )


class Batch(TypedDict):
    """One process's rows of a global batch.

    image: uint8 [b, H, W, 3]. text: int32 [b, L]. index: int64 [b], the records' places in the source.
    truncated: how many captions were cut. broken: (id, reason) of the records met that could not be used.
    seconds: [3] that a worker spent on its rows, by STAGES; decoding with cropping.
    """

    image: np.ndarray
    text: np.ndarray
    index: np.ndarray
    truncated: int
    seconds: np.ndarray
    broken: list[tuple[str, str]]


class Example(TypedDict):
    """One row of a batch and what happened on the way to it."""

    image: np.ndarray
    text: np.ndarray
    index: int
    truncated: bool
    seconds: np.ndarray
    broken: list[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Position in the endless stream of shuffled epochs -> example, a pure function.

    A record that cannot be used is reported where it stands, and the next one of the epoch takes its place.
    min_scale: the smallest side of the random square crop, as a share of the image's shorter side.
    decode: "exact" decodes and resizes with Pillow, as the evaluation does; "fast" takes `jpeg.random_jpeg_crop` for
      plain JPEGs: the same square, nearly the same pixels.
    """

    source: Source
    tokenizer: Tokenizer
    image_size: int
    min_scale: float
    seed: int
    decode: Decode = "exact"

    def __getitem__(self, position: int) -> Example:
        epoch, offset = divmod(position, len(self.source))
        rng = np.random.Generator(np.random.Philox(key=[self.seed, position]))
        square_numbers = rng.random(3)
        started = time.perf_counter()
        broken: list[tuple[str, str]] = []
        for attempt in range(MAX_BROKEN_IN_A_ROW):
            index = self._shuffled(epoch, (offset + attempt) % len(self.source))
            try:
                record = self.source[index]
                if not record["captions"]:  # as labelled records may be
                    raise BrokenRecordError(record["id"], "no caption")
                read = time.perf_counter()
                image = self.crop(record, square_numbers)
            except BrokenRecordError as error:
                broken.append((error.record_id, error.reason))
                continue
            cropped = time.perf_counter()
            text, truncated = self.tokenizer.encode(record["captions"][rng.integers(len(record["captions"]))])
            seconds = np.diff([started, read, cropped, time.perf_counter()])
            # Only the record that stands here is this position's to report: the others stand elsewhere, too.
            return Example(image=image, text=text, index=index, truncated=truncated, seconds=seconds, broken=broken[:1])
        raise ValueError(
            f"{MAX_BROKEN_IN_A_ROW} records in a row cannot be used; the first is {broken[0][0]}: {broken[0][1]}"
        )

    def crop(self, record: Record, numbers: np.ndarray) -> np.ndarray:
        """The random square crop of a record, uint8 [S, S, 3]; three numbers in [0, 1) choose it.

        Raises BrokenRecordError for a picture that cannot be used.
        """
        if self.decode == "fast" and isinstance(record["image"], bytes):
            crop = random_jpeg_crop(record["image"], self.image_size, self.min_scale, numbers)
            if crop is not None:
                return crop
        return random_square_crop(load_image(record), self.image_size, self.min_scale, numbers)

    def _shuffled(self, epoch: int, offset: int) -> int:
        if len(self.source) == 1:
            return 0
        seed = np.random.SeedSequence([self.seed, epoch]).generate_state(1)[0]
        return index_shuffle(offset, max_index=len(self.source) - 1, seed=int(seed), rounds=4)

    def fingerprint(self) -> dict[str, Any]:
        """What decides the content of every batch, together with the batch size."""
        return {
            "source": self.source.fingerprint(),
            "tokenizer": self.tokenizer.fingerprint(),
            "image_size": self.image_size,
            "min_scale": self.min_scale,
            "seed": self.seed,
            "decode": {
                "path": self.decode,
                "pillow": PIL.__version__,
                **(libraries() if self.decode == "fast" else {}),
            },
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
        seconds=np.sum([e["seconds"] for e in examples], axis=0),
        broken=[pair for e in examples for pair in e["broken"]],
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

    When a worker process is killed all start anew from the next batch, MAX_RESTARTS times at most; nothing is lost or
    read twice.

    Raises ValueError when the state to go on from belongs to other data, when more than max_broken_share of the records
    met cannot be used, and when workers go on dying.

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
            raise ValueError(f"rows={rows.tolist()} must be places in a batch of global_batch_size={global_batch_size}")
        fingerprint = {**examples.fingerprint(), "global_batch_size": global_batch_size}
        fingerprint = json.loads(json.dumps(fingerprint))  # as a checkpoint gives it back
        start = state or {"next_batch": 0, "truncated": 0, "broken": 0, "first_broken": []}
        if (state or {}).get("fingerprint", fingerprint) != fingerprint:
            raise ValueError(f"the data is not what the checkpoint was made with: {_differences(state, fingerprint)}")
        self._start = {**start, "fingerprint": fingerprint}
        self.progress: dict[str, Any] = {
            "batches": 0,
            "truncated": 0,
            "broken": 0,
            "first_broken": [],
            "restarts": 0,
        }
        self._local_batch_size = len(rows)
        self._batch_size = global_batch_size
        self._max_broken_share = max_broken_share
        self._few = min(len(examples.source), FEW_RECORDS)
        self._local = _LocalExamples(examples=examples, global_batch_size=global_batch_size, rows=rows)
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
            stream = stream.mp_prefetch(options, _start_worker)
        return iter(stream)

    def __next__(self) -> Batch:
        batch = self._next_batch()
        start, before = self._start, self.progress
        self.progress = own = {
            "batches": before["batches"] + 1,
            "truncated": before["truncated"] + batch["truncated"],
            "broken": before["broken"] + len(batch["broken"]),
            "first_broken": (before["first_broken"] + [list(pair) for pair in batch["broken"]])[:BROKEN_REMEMBERED],
            "restarts": before["restarts"],
        }
        if batch["broken"]:
            seen = start["next_batch"] * self._batch_size + own["batches"] * self._local_batch_size
            met = [*start["first_broken"], *own["first_broken"]]
            check_broken_share(start["broken"] + own["broken"], max(seen, self._few), met, self._max_broken_share)
        return batch

    def _next_batch(self) -> Batch:
        """The stream's next batch, from new workers where one was killed."""
        while True:
            try:
                return next(self._batches)
            except RuntimeError as error:
                if "terminated unexpectedly" not in str(error):
                    raise
                restarts = self.progress["restarts"] + 1
                if restarts > MAX_RESTARTS:
                    raise ValueError(
                        f"a data worker died, and {MAX_RESTARTS} times before, perhaps for want of memory: lower "
                        f"data.num_workers={self._num_workers} ({error})"
                    ) from error
            self.close()
            self.progress = {**self.progress, "restarts": restarts}
            number = self._start["next_batch"] + self.progress["batches"]
            message = f"a data worker died; the workers start anew at batch {number}, time {restarts} of {MAX_RESTARTS}"
            print(message, file=sys.stderr)
            self._batches = self._open_stream()

    def get_state(
        self,
        gather: Callable[[dict[str, Any]], list[dict[str, Any]]] = lambda own: [own],
        progress: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """For JSON: next_batch, the counts truncated and broken, first_broken as [id, reason], fingerprint.

        gather: a process's own counts to those of all processes with other rows; the state is then that of all.
        progress: that of an earlier batch, the last one that was used, where later ones were read ahead.
        """
        progress = progress or self.progress
        start, counts = self._start, gather(progress)
        met = start["first_broken"] + [pair for own in counts for pair in own["first_broken"]]
        return {
            "next_batch": start["next_batch"] + progress["batches"],
            "truncated": start["truncated"] + sum(own["truncated"] for own in counts),
            "broken": start["broken"] + sum(own["broken"] for own in counts),
            "first_broken": met[:BROKEN_REMEMBERED],
            "fingerprint": start["fingerprint"],
        }

    def close(self) -> None:
        """Stops the worker processes."""
        if hasattr(self._batches, "close"):
            self._batches.close()


def _differences(state: dict[str, Any] | None, fingerprint: dict[str, Any]) -> str:
    old = (state or {})["fingerprint"]
    names = sorted(name for name in {*old, *fingerprint} if old.get(name) != fingerprint.get(name))
    return "; ".join(f"{name} was {old.get(name)!r:.200}, is {fingerprint.get(name)!r:.200}" for name in names)
