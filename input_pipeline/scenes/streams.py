"""Random numbers that are a pure function of (seed, index, name), and how choices are made from them."""

import zlib
from collections.abc import Sequence
from typing import Protocol, TypeVar

import numpy as np

T = TypeVar("T")


class Uniforms(Protocol):
    """A stream of floats in [0, 1): `numpy.random.Generator`, `random.Random`, or a `Stream`."""

    def random(self) -> float: ...


class Stream:
    """Uniform floats from Philox at (seed, index, name). Raw bits, so the numbers hold for every numpy version."""

    def __init__(self, seed: int, index: int, name: str):
        self._bits = np.random.Philox(key=(seed, index), counter=(0, 0, 0, zlib.crc32(name.encode())))
        self._values: list[float] = []

    def random(self) -> float:
        if not self._values:
            self._values = ((self._bits.random_raw(128) >> np.uint64(11)) * 2.0**-53).tolist()
        return self._values.pop()


def pick(rng: Uniforms, options: Sequence[T]) -> T:
    return options[int(rng.random() * len(options))]


def between(rng: Uniforms, low: float, high: float) -> float:
    return low + (high - low) * rng.random()


def check_stream(seed: int, index: int = 0, split: str = "train") -> None:
    """Raises ValueError for what no stream of training scenes has."""
    if not 0 <= seed < 2**64 or not 0 <= index < 2**64:
        raise ValueError(f"seed={seed}, index={index} of the drawn scenes: both must be in 0..2**64-1")
    if split not in ("train", "validation"):
        raise ValueError(f"split={split!r} of the drawn scenes is unknown: choose 'train' or 'validation'")
