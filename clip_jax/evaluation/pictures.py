"""Pictures of a source for an encoder: read ahead in threads, the broken ones excluded with their reasons."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from input_pipeline.examples import load_image
from input_pipeline.prefetch import load_ahead, progress_bar
from input_pipeline.sources import BrokenRecordError, Record, Source
from input_pipeline.transforms import resize_and_center_crop

AHEAD = 512  # pictures decoded before the device asks for them
Features = TypeVar("Features")


@dataclass(frozen=True, kw_only=True)
class Encoded(Generic[Features]):
    """Features of the N usable pictures of a source.

    index: int64 [N], their positions in the source. records: theirs, without the pictures. skipped: (id, reason) of
    the others.
    """

    features: Features
    index: np.ndarray
    records: list[Record]
    skipped: list[tuple[str, str]]

    def labels(self, num_classes: int) -> dict[str, np.ndarray]:
        """`labels`, int64 [N]; of records with several each bool [N, num_classes], and `difficult`; {} without any."""
        if all("label" in record for record in self.records):
            return {"labels": np.array([record["label"] for record in self.records], np.int64)}
        if not all("labels" in record for record in self.records):
            return {}
        found = {key: np.zeros((len(self.records), num_classes), bool) for key in ("labels", "difficult")}
        for key, matrix in found.items():
            for row, record in enumerate(self.records):
                matrix[row, list(record[key])] = True
        return found


def encode_pictures(
    encode: Callable[[Iterable[np.ndarray]], Features],
    source: Source,
    chosen: Sequence[int] | np.ndarray,
    prepare: Callable[[Record], np.ndarray],
    title: str,
    show_progress: bool = True,
) -> Encoded[Features]:
    """Encodes the chosen records of a source.

    Args:
      encode: takes an iterable of what `prepare` returns, once.
      chosen: positions in the source.
      prepare: record to the encoder's picture; a BrokenRecordError excludes the record.
      title: what is encoded, for the progress bar and messages.
      show_progress: draw the bar.

    Raises:
      ValueError: no picture can be used, with the first reason; what `encode` raises.
    """
    kept: list[tuple[int, Record]] = []
    skipped: list[tuple[str, str]] = []

    def pictures() -> Iterator[np.ndarray]:
        for index, record, picture in _read(source, chosen, prepare, skipped, title, show_progress):
            kept.append((index, record))
            yield picture

    try:
        features = encode(pictures())
    except ValueError as error:
        if not skipped or kept:
            raise
        name, reason = skipped[0]
        raise ValueError(
            f"none of the {len(chosen)} pictures of {title} can be used; the first is {name}: {reason}"
        ) from error
    index = np.array([index for index, _ in kept], np.int64)
    return Encoded(features=features, index=index, records=[record for _, record in kept], skipped=skipped)


def _read(
    source: Source,
    chosen: Sequence[int] | np.ndarray,
    prepare: Callable[[Record], np.ndarray],
    skipped: list[tuple[str, str]],
    title: str,
    show_progress: bool,
) -> Iterator[tuple[int, Record, np.ndarray]]:
    """Position, record without its picture, and prepare(record) of the usable records; the others go to skipped."""

    def load(index: int) -> tuple[int, Record, np.ndarray] | BrokenRecordError:
        try:
            record = source[index]
            return index, {**record, "image": None}, prepare(record)
        except BrokenRecordError as error:
            return error

    bar = progress_bar(total=len(chosen), desc=title, unit=" images", disable=not show_progress)
    with bar, closing(load_ahead(load, map(int, chosen), min(32, os.cpu_count() or 1), AHEAD)) as loaded:
        for found in loaded:
            bar.update()
            if isinstance(found, BrokenRecordError):
                skipped.append((found.record_id, found.reason))
            else:
                yield found


def thumbnail(source: Source, index: int, size: int) -> np.ndarray:
    """The centre of a record's picture, uint8 [size, size, 3]."""
    return resize_and_center_crop(load_image(source[int(index)]), size)
