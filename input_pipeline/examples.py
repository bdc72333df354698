"""A position of the stream to an example: record, crop and text, a pure function of the seed and the data."""

import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import PIL
from PIL import Image

from input_pipeline.data_config import DataConfig, Decode
from input_pipeline.jpeg import libraries, random_jpeg_crop
from input_pipeline.order import Order
from input_pipeline.sources import BrokenRecordError, Mixture, Record, Source
from input_pipeline.sources.remote import count_retries
from input_pipeline.tokenizers import Tokenizer
from input_pipeline.transforms import decode_image, random_square_crop

MAX_BROKEN_IN_A_ROW = 100
STAGES = ("read", "decode", "tokenise")
DATA_VERSION = 1  # of the order, the choice of captions and the crops: raise it when the same data gives other batches


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
    """

    source: Source
    tokenizer: Tokenizer
    image_size: int
    min_scale: float
    seed: int
    decode: Decode = "exact"

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
            text, truncated = self.tokenizer.encode(record["captions"][rng.integers(len(record["captions"]))])
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

    def crop(self, record: Record, numbers: np.ndarray) -> np.ndarray:
        """The random square crop of a record, uint8 [S, S, 3]; three numbers in [0, 1) choose it.

        Raises BrokenRecordError for a picture that cannot be used.
        """
        if self.decode == "fast" and isinstance(record["image"], bytes):
            crop = random_jpeg_crop(record["image"], self.image_size, self.min_scale, numbers)
            if crop is not None:
                return crop
        return random_square_crop(load_image(record), self.image_size, self.min_scale, numbers)

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
        }


def make_examples(config: DataConfig, source: Source, tokenizer: Tokenizer, image_size: int) -> Examples:
    """What a config trains on."""
    return Examples(
        source=source,
        tokenizer=tokenizer,
        image_size=image_size,
        min_scale=config.min_crop_scale,
        seed=config.seed,
        decode=config.decode,
    )


def decoder(decode: Decode) -> dict[str, str]:
    """What decides the pixels, for the fingerprint."""
    return {"path": decode, "pillow": PIL.__version__, **(libraries() if decode == "fast" else {})}


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
        retries=sum(e["retries"] for e in examples),
    )
