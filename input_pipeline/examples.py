"""A position of the endless stream to an example: record, crop and text, a pure function of the seed and the data."""

import functools
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import numpy as np
import PIL
from grain.experimental import index_shuffle
from PIL import Image

from input_pipeline.jpeg import libraries, random_jpeg_crop
from input_pipeline.sources import BrokenRecordError, Mixture, Record, Source
from input_pipeline.sources.base import as_broken
from input_pipeline.sources.remote import count_retries
from input_pipeline.tokenizers import Tokenizer
from input_pipeline.transforms import decode_image, exif_orientation, random_square_crop, turn_upright

Decode = Literal["fast", "exact"]
MAX_BROKEN_IN_A_ROW = 100
STAGES = ("read", "decode", "tokenise")
DATA_VERSION = 1  # of the order, the choice of captions and the crops: raise it when the same data gives other batches
BLOCK = 10_000  # positions in which each source of a mixture has a whole number of samples
_KEPT_BLOCKS = 4  # whose order is remembered
_MIXTURE_STREAM = 0x6D69  # keeps the random numbers of blocks apart from those of epochs


class Order:
    """Shuffled epochs of one source, or of several in fixed shares.

    Of several sources each BLOCK of positions holds a whole number of samples of each: its weight's share, rounded by
    the largest remainders. The block's order is shuffled, and each source goes through shuffled epochs of its own,
    every record once an epoch, however long the others are. Everything follows from (seed, position) at a cost that
    does not grow with the position.

    Args:
      lengths: records of each source.
      weights: relative shares of the samples, above 0.
      seed: at least 0.

    Raises:
      ValueError: a weight whose share is below one sample a block.
    """

    def __init__(self, lengths: Sequence[int], weights: Sequence[float], seed: int):
        self._lengths, self._seed = tuple(lengths), seed
        self._starts = (0, *itertools.accumulate(lengths))
        self._shares = _shares(weights) if len(lengths) > 1 else np.array([BLOCK])
        self._blocks: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def locate(self, position: int) -> tuple[int, int]:
        """The number of the source of a position's sample, and the number of its samples before that position."""
        if len(self._lengths) == 1:
            return 0, position
        block, offset = divmod(position, BLOCK)
        sources, ranks = self._block(block)
        source = int(sources[offset])
        return source, block * int(self._shares[source]) + int(ranks[offset])

    def index(self, source: int, sample: int, ahead: int = 0) -> int:
        """The record that is a source's sample of that number, or `ahead` records after it in its epoch.

        A record's index counts the records of all sources, one source after the other.
        """
        length = self._lengths[source]
        epoch, offset = divmod(sample, length)
        return self._starts[source] + self._shuffled(source, epoch, (offset + ahead) % length)

    def samples_seen(self, position: int) -> tuple[int, ...]:
        """Number of samples of each source before a position."""
        if len(self._lengths) == 1:
            return (position,)
        block, offset = divmod(position, BLOCK)
        rest = np.bincount(self._block(block)[0][:offset], minlength=len(self._lengths))
        return tuple((block * self._shares + rest).tolist())

    def _shuffled(self, source: int, epoch: int, offset: int) -> int:
        length = self._lengths[source]
        if length == 1:
            return 0
        # The first source's is that of [seed, epoch], which orders of one source had before there were mixtures.
        seed = np.random.SeedSequence([self._seed, epoch, source]).generate_state(1)[0]
        return index_shuffle(offset, max_index=length - 1, seed=int(seed), rounds=4)

    def _block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """For each position of a block its source, and the number of that source's samples before it in the block."""
        if (made := self._blocks.get(block)) is None:
            bits = np.random.Philox(np.random.SeedSequence([self._seed, block, _MIXTURE_STREAM])).random_raw(BLOCK)
            slots = np.repeat(np.arange(len(self._lengths)), self._shares)
            sources = slots[np.argsort(bits, kind="stable")]  # numpy promises the same bits, not the same permutation
            ranks = np.empty(BLOCK, np.int64)
            ranks[np.argsort(sources, kind="stable")] = np.concatenate([np.arange(share) for share in self._shares])
            made = sources, ranks
            self._blocks = {**dict(list(self._blocks.items())[1 - _KEPT_BLOCKS :]), block: made}
        return made


def _shares(weights: Sequence[float]) -> np.ndarray:
    """Whole numbers in the proportion of the weights that sum to BLOCK, by the largest remainders."""
    exact = np.array(weights, np.float64) / sum(weights) * BLOCK
    shares = exact.astype(np.int64)
    shares[np.argsort(shares - exact, kind="stable")[: BLOCK - shares.sum()]] += 1
    if not shares.all():
        raise ValueError(
            f"the weight {weights[int(np.argmin(shares))]} of {[*weights]} is below one sample in {BLOCK}: raise it or "
            "leave its source out"
        )
    return shares


class Batch(TypedDict):
    """One process's rows of a global batch.

    image: uint8 [b, H, W, 3]. text: int32 [b, L]. index: int64 [b], the records' indices in the source.
    truncated: how many captions were cut. broken: (id, reason) of the records met that could not be used. retries: how
    many reads failed and were tried again. seconds: [3] that a worker spent on its rows, by STAGES; decoding with
    cropping.
    """

    image: np.ndarray
    text: np.ndarray
    index: np.ndarray
    truncated: int
    seconds: np.ndarray
    broken: list[tuple[str, str]]
    retries: int


class Example(TypedDict):
    """One row of a batch and what happened while it was made."""

    image: np.ndarray
    text: np.ndarray
    index: int
    truncated: bool
    seconds: np.ndarray
    broken: list[tuple[str, str]]
    retries: int


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Position in the endless stream of shuffled epochs -> example, a pure function.

    A record that cannot be used is reported at its position, and replaced by the next one of its source's epoch.
    min_scale: the smallest side of the random square crop, as a share of the image's shorter side.
    decode: "exact" decodes and resizes with Pillow, as the evaluation does; "fast" takes `jpeg.random_jpeg_crop` for
      plain JPEGs: the same square, nearly the same pixels.
    orient: turns pictures upright by their EXIF tag first.
    caption_weights: of the fields of a `CaptionFields` source: one is drawn in their proportion, of those that the
      record has, and then one of its captions; (): one of all captions.
    """

    source: Source
    tokenizer: Tokenizer
    image_size: int
    min_scale: float
    seed: int
    decode: Decode = "exact"
    orient: bool = False
    caption_weights: tuple[float, ...] = ()

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
        part, sample = self._order.locate(position)
        rng = np.random.Generator(np.random.Philox(key=[self.seed, position]))
        square_numbers = rng.random(3)
        started = time.perf_counter()
        broken: list[tuple[str, str]] = []
        retries = -count_retries()
        for attempt in range(MAX_BROKEN_IN_A_ROW):
            index = self._order.index(part, sample, attempt)
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
            text, truncated = self.tokenizer.encode(self.choose_caption(record, rng))
            seconds = np.diff([started, read, cropped, time.perf_counter()])
            # Only the first record is this position's to report: the others have positions of their own.
            retries += count_retries()
            return Example(
                image=image,
                text=text,
                index=index,
                truncated=truncated,
                seconds=seconds,
                broken=broken[:1],
                retries=retries,
            )
        raise ValueError(
            f"{MAX_BROKEN_IN_A_ROW} records in a row cannot be used; the first is {broken[0][0]}: {broken[0][1]}"
        )

    def choose_caption(self, record: Record, rng: np.random.Generator) -> str:
        """One of a record's captions, by random numbers of the position."""
        captions = record["captions"]
        if not self.caption_weights:
            return captions[rng.integers(len(captions))]
        fields = np.array(record["caption_fields"])
        weights = np.array(self.caption_weights) * np.isin(np.arange(len(self.caption_weights)), fields)
        of_field = np.flatnonzero(fields == rng.choice(len(weights), p=weights / weights.sum()))
        return captions[of_field[rng.integers(len(of_field))]]

    def crop(self, record: Record, numbers: np.ndarray) -> np.ndarray:
        """The random square crop of a record, uint8 [S, S, 3]; three numbers in [0, 1) choose it.

        Raises BrokenRecordError for a picture that cannot be used.
        """
        turned = self.orient and isinstance(record["image"], bytes) and exif_orientation(record["image"]) != 1
        if self.decode == "fast" and isinstance(record["image"], bytes) and not turned:
            crop = random_jpeg_crop(record["image"], self.image_size, self.min_scale, numbers)
            if crop is not None:
                return crop
        image = load_image(record)
        if turned:
            image = turn_upright(image, exif_orientation(record["image"]))
        return random_square_crop(image, self.image_size, self.min_scale, numbers)

    def fingerprint(self) -> dict[str, Any]:
        """What decides the content of every batch, together with the batch size."""
        return {
            "version": DATA_VERSION,
            "source": self.source.fingerprint(),
            "tokenizer": self.tokenizer.fingerprint(),
            "image_size": self.image_size,
            "min_scale": self.min_scale,
            "seed": self.seed,
            "decode": decoder(self.decode),
            **({"orient": True} if self.orient else {}),
        }


def decoder(decode: Decode) -> dict[str, str]:
    """What decides the pixels, for the fingerprint."""
    return {"path": decode, "pillow": PIL.__version__, **(libraries() if decode == "fast" else {})}


def load_image(record: Record) -> Image.Image | np.ndarray:
    """The record's picture, decoded unless it was drawn; raises BrokenRecordError where that cannot be done."""
    image = record["image"]
    if isinstance(image, np.ndarray):
        return image
    with as_broken(record["id"]):
        return decode_image(image)


def collate(examples: Sequence[Example]) -> Batch:
    """Stacks examples into a batch."""
    return Batch(
        image=np.stack([e["image"] for e in examples]),
        text=np.stack([e["text"] for e in examples]),
        index=np.array([e["index"] for e in examples], np.int64),
        truncated=sum(e["truncated"] for e in examples),
        seconds=np.sum([e["seconds"] for e in examples], axis=0),
        broken=[pair for e in examples for pair in e["broken"]],
        retries=sum(e["retries"] for e in examples),
    )
