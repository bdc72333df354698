"""Counts of what is in a data set: merged from any parts, in any order, they are the counts of the whole."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from input_pipeline.sources.base import Record

PERCENTILES = (5, 50, 95)
DRAWN = "drawn"


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Of a picture in its source: pixels, "JPEG", ... or DRAWN, encoded bytes (0 when drawn), EXIF orientation."""

    width: int
    height: int
    form: str
    num_bytes: int
    orientation: int = 1


@dataclass(kw_only=True)
class Statistics:
    """How often each value occurs.

    Attributes:
      captions: captions of a record.
      characters, words: of a caption.
      width, height: pixels of a picture in the source.
      num_bytes: of an encoded picture there, to three significant digits.
      forms: "JPEG", "PNG", ..., "drawn".
      labels: of labelled records.
      orientations: EXIF's, 2 to 8, of pictures that are not stored upright.
    """

    captions: Counter = field(default_factory=Counter)
    characters: Counter = field(default_factory=Counter)
    words: Counter = field(default_factory=Counter)
    width: Counter = field(default_factory=Counter)
    height: Counter = field(default_factory=Counter)
    sizes: Counter = field(default_factory=Counter)  # "WIDTHxHEIGHT"
    num_bytes: Counter = field(default_factory=Counter)
    forms: Counter = field(default_factory=Counter)
    labels: Counter = field(default_factory=Counter)
    orientations: Counter = field(default_factory=Counter)

    def add(self, record: Record, facts: Facts) -> None:
        """Counts one record."""
        captions = record["captions"]
        self.captions[len(captions)] += 1
        self.characters.update(map(len, captions))
        self.words.update(len(caption.split()) for caption in captions)
        self.width[facts.width] += 1
        self.height[facts.height] += 1
        self.sizes[f"{facts.width}x{facts.height}"] += 1
        self.forms[facts.form] += 1
        if facts.orientation != 1:
            self.orientations[facts.orientation] += 1
        if facts.num_bytes:
            self.num_bytes[int(float(f"{facts.num_bytes:.3g}"))] += 1
        if "label" in record:
            self.labels[record["label"]] += 1

    def merge(self, other: "Statistics") -> None:
        for name, counts in vars(other).items():
            getattr(self, name).update(counts)

    def as_json(self) -> dict[str, dict[str, int]]:
        return {name: {str(key): counts[key] for key in sorted(counts)} for name, counts in vars(self).items()}

    @classmethod
    def from_json(cls, content: Mapping[str, Mapping[str, int]]) -> "Statistics":
        def key(name: str, text: str) -> Any:
            return text if name in ("forms", "sizes") else int(text)

        return cls(**{name: Counter({key(name, k): n for k, n in c.items()}) for name, c in content.items()})

    def named(self, class_names: Sequence[str] | None) -> dict[str, Mapping[Any, int]]:
        """All counts by the names of the attributes, labels by those of the classes where they have any."""
        labels = {class_names[label]: count for label, count in self.labels.items()} if class_names else self.labels
        return {**vars(self), "labels": labels}

    def describe(self) -> list[tuple[str, int, float, int, int, int, int, int]]:
        """Rows of a table: name, count, mean, smallest, 5 %, 50 % and 95 % quantiles, largest; none without values."""
        named = {
            "captions of a record": self.captions,
            "characters of a caption": self.characters,
            "words of a caption": self.words,
            "width": self.width,
            "height": self.height,
            "bytes of a picture": self.num_bytes,
        }
        return [
            (name, counts.total(), mean(counts), min(counts), *quantiles(counts), max(counts))
            for name, counts in named.items()
            if counts
        ]


def mean(counts: Mapping[int, int]) -> float:
    return sum(value * count for value, count in counts.items()) / sum(counts.values())


def quantiles(counts: Mapping[int, int]) -> list[int]:
    """The smallest value with at least 5, 50, 95 % of all at or below it."""
    found, below, total = [], 0, sum(counts.values())
    values = iter(sorted(counts))
    for percent in PERCENTILES:
        while below * 100 < percent * total:
            value = next(values)
            below += counts[value]
        found.append(value)
    return found


def reason_kind(reason: str) -> str:
    """A reason without what differs from record to record, for counting."""
    for mark in ":;(,":
        reason = reason.partition(mark)[0]
    return re.sub(r"(?<= )\d+\b", "N", reason).strip()


def count_reasons(pairs: Iterable[Sequence[str]]) -> dict[str, int]:
    """(id, reason) pairs -> kind of reason -> how many, most frequent first."""
    return dict(Counter(reason_kind(reason) for _, reason in pairs).most_common())
