"""A sample of a data set's records: statistics of all, a few to show, and those that cannot be used."""

import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np

from input_pipeline.prefetch import load_ahead
from input_pipeline.prepare.statistics import Facts, Statistics
from input_pipeline.prepare.transform import open_record, shrink
from input_pipeline.sources import BrokenRecordError, Record, Source

TILE_PIXELS = 256  # of the shorter side
MAX_BROKEN_TILES = 6
AHEAD = 16  # records read before they are needed


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A record to show: its picture, uint8 [H, W, 3], or None and why it is broken; and the texts below it."""

    record_id: str
    image: np.ndarray | None
    texts: Sequence[str]
    reason: str = ""


@dataclass(kw_only=True)
class Sample:
    """What was found in some records of a source.

    Attributes:
      statistics: of the records that can be used.
      broken: (id, reason) of the others.
      tiles: for a contact sheet.
      num_records: number of records read.
    """

    statistics: Statistics = field(default_factory=Statistics)
    broken: list[tuple[str, str]] = field(default_factory=list)
    tiles: list[Tile] = field(default_factory=list)
    num_records: int = 0


def sample_source(source: Source, num_records: int, num_tiles: int) -> Sample:
    """Reads records spread evenly over the source.

    Of the tiles at most MAX_BROKEN_TILES are records that cannot be used, found in the sample or in the source's index;
    the others are spread evenly over the sample.
    """
    indices = spread(len(source), num_records)
    shown = {indices[position] for position in spread(len(indices), num_tiles)}
    sample = Sample(num_records=len(indices))

    def load(index: int) -> tuple[Record, Facts, np.ndarray | None] | BrokenRecordError:
        try:
            record = source[index]
            image, facts = open_record(record)
        except BrokenRecordError as error:
            return error
        pixels = shrink(image, TILE_PIXELS) if index in shown else None
        return {name: value for name, value in record.items() if name != "image"}, facts, pixels

    with closing(load_ahead(load, indices, os.cpu_count() or 1, AHEAD)) as found:
        for item in found:
            if isinstance(item, BrokenRecordError):
                sample.broken.append((item.record_id, item.reason))
                continue
            record, facts, pixels = item
            sample.statistics.add(record, facts)
            if pixels is not None:
                sample.tiles.append(Tile(record_id=record["id"], image=pixels, texts=_texts(record, source)))
    broken = [*sample.broken, *source.broken]
    marked = [broken[position] for position in spread(len(broken), min(MAX_BROKEN_TILES, num_tiles))]
    tiles = [sample.tiles[position] for position in spread(len(sample.tiles), num_tiles - len(marked))]
    sample.tiles = tiles + [Tile(record_id=x, image=None, texts=(), reason=reason) for x, reason in marked]
    return sample


def spread(length: int, count: int) -> list[int]:
    """At most `count` of the positions [0, length), evenly spread, the first one among them."""
    return [i * length // min(count, length) for i in range(min(count, length))]


def _texts(record: Record, source: Source) -> tuple[str, ...]:
    """The captions; of a record without them its label."""
    if record["captions"] or "label" not in record:
        return record["captions"]
    names = source.class_names
    return (names[record["label"]] if names else f"label {record['label']}",)
