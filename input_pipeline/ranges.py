"""Ranges of numbers, declared beside the fields of a dataclass and checked in one place.

    learning_rate: Annotated[float, Range(above=0)]

It stands here because configs of every folder have such fields, and all may import this one.
"""

import functools
import math
import numbers
import types
import typing
from dataclasses import dataclass
from typing import Any

INT64, FLOAT32 = 2**63 - 1, 3.4028235e38  # the largest of each


@dataclass(frozen=True)
class Range:
    """The numbers between two ends, of which `above` and `below` are excluded; of a tuple each is one of them."""

    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    below: float = math.inf

    def __contains__(self, number: float) -> bool:
        return self.least <= number <= self.most and self.above < number < self.below

    def rule(self, number: float) -> str:
        """What a number outside breaks."""
        low, high = max(self.least, self.above), min(self.most, self.below)
        if high - low <= 2:  # both ends say more than one
            return f"lie in {'(' if self.above == low else '['}{low:g}, {high:g}{')' if self.below == high else ']'}"
        if number >= high:
            return f"be {'below' if self.below == high else 'at most'} {high}"
        return f"be {'above' if self.above == low else 'at least'} {low}"


# What JAX and NumPy can count, or a machine hold; nothing sensible is near these ends.
SIZE = Range(1, 2**20)  # channels, blocks, heads, pixels, positions
COUNT = Range(1, 2**31 - 1)  # steps, files
COUNT_OR_0 = Range(0, 2**31 - 1)
EXAMPLES_OR_0 = Range(0, 2**30)  # an epoch is shuffled in memory
BATCH = Range(1, 2**24)
SEED = Range(0, INT64)
POSITIVE = Range(above=0)
NOT_NEGATIVE = Range(0)


def check_ranges(values: Any, prefix: str) -> None:
    """Checks every int and float field of a dataclass, a tuple's items and what may be None, too.

    All must be finite, ints also below 2^63 and floats within float32; besides, each lies in its `Range`.
    prefix: goes before a field's name in messages, as "optimizer.".

    Raises ValueError that names the first wrong field and its value.
    """
    fields = _number_fields(type(values))  # type: ignore[arg-type]
    for name, (kind, limits) in fields.items():
        value = getattr(values, name)
        many = isinstance(value, tuple | list)
        for i, number in enumerate(value if many else [value]):
            if number is not None and (broken := _broken_rule(number, kind, limits)):
                index = f"[{i}]" if many else ""
                raise ValueError(f"{prefix}{name}{index}={number!r} must {broken}")


def _broken_rule(number: Any, kind: type, limits: Range) -> str | None:
    expected = numbers.Integral if kind is int else numbers.Real
    if isinstance(number, bool) or not issubclass(type(number), expected):
        return "be a whole number" if kind is int else "be a number"
    if kind is float and not -math.inf < number < math.inf:
        return "be a finite number"
    end = INT64 if kind is int else FLOAT32
    widest = Range(-end, end)
    return next((rule.rule(number) for rule in (limits, widest) if number not in rule), None)


@functools.cache
def _number_fields(cls: type) -> dict[str, tuple[type, Range]]:
    """Its int and float fields, with the range of each."""
    found = {}
    for name, hint in typing.get_type_hints(cls, include_extras=True).items():
        limits, kind = Range(), hint
        while origin := typing.get_origin(kind):
            if origin is typing.Annotated:
                limits = next((note for note in kind.__metadata__ if isinstance(note, Range)), limits)
            elif origin not in (tuple, types.UnionType, typing.Union):
                break
            kind = typing.get_args(kind)[0]
        if kind in (int, float):
            found[name] = kind, limits
    return found
