"""What a suite measured, as dataclasses, and the one place where these become JSON and come back from it.

In JSON a field that is None by default is left out while it is None, and the content of `metrics`, a dict that a module
of `clip_jax.evaluation.metrics` describes, stands beside the other fields.
"""

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

Result = TypeVar("Result", bound="Measured")
Skipped = Sequence[tuple[str, str]]  # (id, reason) of each picture that cannot be used
Files = Mapping[str, Path | str]  # files, in JSON relative to the suite's folder
SKIPPED_NAMED = 5  # in results; the count is of all


@dataclass(frozen=True, kw_only=True)
class Absent:
    """Why a measure of a set has no numbers, such as a probe of a set without training split."""

    absent: str


@dataclass(frozen=True, kw_only=True)
class Unmeasured:
    """Why a measure over several sets has no numbers."""

    state: Literal["absent", "failed"]
    reason: str


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A number in [0, 1] with its bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Measured:
    """metrics: numbers that the suite only passes on to the report. pictures, files: {what it shows: file}.

    By itself the result of: `few_shot` with matches_zero_shot (see `labels_to_match`) and left_out_shots, above a
    class's images; `measure_retrieval`, pictures without captions among the skipped; a probe adapted to the reference
    set, {set: accuracy}; `contamination` with training_images, how many were compared; `bias_metrics`.
    """

    metrics: Mapping[str, Any]
    pictures: Files | None = None
    files: Files | None = None


@dataclass(frozen=True, kw_only=True)
class ZeroShot(Measured):
    """Numbers of the headline's prompts: see `single_label_metrics` and `multi_label_metrics`."""

    value: float
    low: float
    high: float
    chance: float
    count: int
    per_class: Mapping[str, float | None]
    num_skipped: int
    top1: Interval | None = None


@dataclass(frozen=True, kw_only=True)
class LinearProbe(Measured):
    """See `linear_probe`. num_skipped: {split: pictures}."""

    score: float
    count: int
    num_train: int
    num_validation: int
    num_skipped: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Robustness(Measured):
    """metrics: see `robustness_metrics`."""

    adapted: Mapping[str, float] | None = None


@dataclass(frozen=True, kw_only=True)
class SetResults:
    """All measures of one data set. hashes: of its splits, and of its class names and prompts."""

    name: str
    title: str
    state: Literal["done", "absent", "failed"]
    reason: str | None = None
    metric: str | None = None
    note: str | None = None
    classes: int | None = None
    hashes: Mapping[str, str] | None = None
    zero_shot: ZeroShot | None = None
    linear_probe: LinearProbe | Absent | None = None
    few_shot: Measured | Absent | None = None
    overlap: Measured | Absent | None = None


@dataclass(frozen=True, kw_only=True)
class Report:
    """What report.json holds."""

    title: str
    model: Mapping[str, Any]
    environment: Mapping[str, Any]
    settings: Mapping[str, Any]
    sets: Sequence[SetResults]
    retrieval: Measured | Unmeasured | None = None
    robustness: Robustness | Unmeasured | None = None
    overlap: Measured | Unmeasured | None = None
    bias: Measured | Unmeasured | None = None


def count_skipped(skipped: Skipped, more: int = 0) -> dict[str, Any]:
    """The fields num_skipped, `more` pictures included, and first_skipped."""
    return {"num_skipped": len(skipped) + more, "first_skipped": [list(pair) for pair in skipped[:SKIPPED_NAMED]]}


def to_json(value: Any) -> Any:
    """Ready for JSON but for the paths in it; see the module."""
    if dataclasses.is_dataclass(value):
        fields = {field.name: (getattr(value, field.name), field.default) for field in dataclasses.fields(value)}
        found = {name: to_json(x) for name, (x, default) in fields.items() if x is not None or default is not None}
        return {**found.pop("metrics", {}), **found}
    if isinstance(value, Mapping):
        return {name: to_json(x) for name, x in value.items()}
    return [to_json(x) for x in value] if isinstance(value, list | tuple) else value


def from_json(kind: type[Result], stored: Mapping[str, Any]) -> Result | Absent:
    """The dataclass of one measure, from what `to_json` made of it or the same names and values."""
    if set(stored) == {"absent"}:
        return Absent(**stored)
    types = typing.get_type_hints(kind)
    values = {name: x for name, x in stored.items() if name in types}
    values["metrics"] = {name: x for name, x in stored.items() if name not in types}
    for name in values:
        if Interval in typing.get_args(types[name]):
            values[name] = Interval(**values[name])
    return kind(**values)
