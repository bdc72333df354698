"""What there is to see, and how random numbers become a `Scene`, the description of one picture.

The numbers are a pure function of (seed, index, name). There is a function for each kind of scene, and a draw among the
kinds.
"""

import math
import zlib
from bisect import bisect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol, TypeVar

import numpy as np

T = TypeVar("T")
RGB = tuple[int, int, int]

VERSION = 1  # of the world: raise it when the same (seed, index) gives another picture or other captions

SHAPES = ("circle", "square", "triangle", "star", "cross", "heart", "diamond", "ring")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
SIZES = ("small", "large")
TEXTURES = ("plain", "striped", "dotted", "checkered")
POSITIONS = ("left", "right", "top", "bottom", "centre")
RELATIONS = ("left of", "right of", "above", "below")
COUNTS = ("one", "two", "three", "four", "five")
DIGITS = ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")
WORDS = ("cat", "dog", "sun", "car", "tree", "fish", "hat", "cup", "bird", "moon", "boat", "key")
BACKGROUNDS = ("white", "light grey", "grey", "beige", "brown", "black")
KIND_WEIGHTS = {"object": 0.5, "pair": 0.15, "count": 0.15, "digit": 0.1, "word": 0.1}
_BACKGROUND_FIELDS = 17  # flat, gradients in eight directions, eight noises: see drawing.py

# (shape, colour)
PAIRS = tuple((shape, colour) for shape in SHAPES for colour in COLOURS)
# Each shape once and each colour once, so that both are seen in seven of their eight pairs.
HELD_OUT = tuple((shape, COLOURS[(i + 3) % len(COLOURS)]) for i, shape in enumerate(SHAPES))
TRAINED_PAIRS = tuple(pair for pair in PAIRS if pair not in HELD_OUT)

COLOUR_RGB: dict[str, RGB] = {
    "red": (214, 32, 36),
    "orange": (246, 124, 16),
    "yellow": (242, 210, 28),
    "green": (36, 150, 58),
    "cyan": (50, 205, 222),
    "blue": (36, 70, 214),
    "purple": (140, 46, 184),
    "pink": (250, 130, 192),
}
BACKGROUND_RGB: dict[str, RGB] = {
    "white": (248, 248, 246),
    "light grey": (212, 212, 214),
    "grey": (160, 160, 162),
    "beige": (224, 208, 178),
    "brown": (92, 66, 46),
    "black": (26, 26, 30),
}


@dataclass(frozen=True)
class Thing:
    """One drawn thing. Lengths are fractions of the picture's side, x rightwards, y downwards, from the top left.

    `shape` is one of SHAPES, or the digit or word that is written. `size` is empty where it does not matter (pairs,
    counts, text). `angle` is in radians, `rgb` in 0..255, already jittered around `colour`.
    """

    shape: str
    colour: str
    texture: str
    size: str
    x: float
    y: float
    diameter: float
    angle: float
    rgb: RGB


@dataclass(frozen=True)
class Scene:
    """Everything a picture shows, whatever its resolution.

    In a "pair", `things[0]` is `relation` `things[1]`. `position` is set for "object" scenes only. `background_field`
    is 0 for a flat background, else the gradient or noise over it. `outline` asks for thin contours only.
    """

    kind: str
    things: tuple[Thing, ...]
    background: str
    background_rgb: RGB
    background_field: int
    position: str = ""
    relation: str = ""
    outline: bool = False


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


def jitter(rng: Uniforms, rgb: RGB, by: int) -> RGB:
    r, g, b = (min(255, max(0, round(c + between(rng, -by, by)))) for c in rgb)
    return r, g, b


def _thing(
    rng: Uniforms,
    shape: str,
    colour: str,
    x: float,
    y: float,
    diameter: float,
    *,
    texture: str = "plain",
    size: str = "",
    rgb: RGB | None = None,
) -> Thing:
    angle = math.radians(between(rng, -12, 12))
    return Thing(shape, colour, texture, size, x, y, diameter, angle, jitter(rng, rgb or COLOUR_RGB[colour], 12))


def _scene(rng: Uniforms, kind: str, things: tuple[Thing, ...], **more: Any) -> Scene:
    background = pick(rng, BACKGROUNDS)
    tint = jitter(rng, BACKGROUND_RGB[background], 6)
    shading = int(rng.random() * _BACKGROUND_FIELDS) if rng.random() < 0.6 else 0
    ground: dict[str, Any] = {"background": background, "background_rgb": tint, "background_field": shading}
    return Scene(kind, things, **ground | more)


def trained_pair(rng: Uniforms, shape: str | None = None, colour: str | None = None) -> tuple[str, str]:
    """A trained (shape, colour), uniform over those that agree with what is given."""
    return pick(rng, [pair for pair in TRAINED_PAIRS if shape in (None, pair[0]) and colour in (None, pair[1])])


def object_scene(
    rng: Uniforms,
    pair: tuple[str, str] | None = None,
    size: str | None = None,
    texture: str | None = None,
    position: str | None = None,
    rgb: RGB | None = None,
    **more: Any,
) -> Scene:
    """One object. A large one fills the picture, so that only a small one can be elsewhere than in the centre."""
    shape, colour = pair or pick(rng, TRAINED_PAIRS)
    size = size or ("small" if position or rng.random() < 0.4 else "large")
    texture = texture or ("plain" if rng.random() < 0.55 else pick(rng, TEXTURES[1:]))
    position = position or (pick(rng, POSITIONS) if size == "small" else "centre")
    diameter = between(rng, 0.36, 0.45) if size == "small" else between(rng, 0.62, 0.8)
    near, across = diameter / 2 + between(rng, 0.01, 0.06), between(rng, 0.44, 0.56)
    if position == "centre":
        slack = 0.05 if size == "small" else (1 - diameter) / 3
        x, y = between(rng, 0.5 - slack, 0.5 + slack), between(rng, 0.5 - slack, 0.5 + slack)
    else:
        along = near if position in ("left", "top") else 1 - near
        x, y = (along, across) if position in ("left", "right") else (across, along)
    thing = _thing(rng, shape, colour, x, y, diameter, texture=texture, size=size, rgb=rgb)
    return _scene(rng, "object", (thing,), position=position, **more)


def pair_scene(rng: Uniforms, relation: str | None = None, shapes: tuple[str, str] | None = None) -> Scene:
    """Two objects that differ in shape and in colour; `things[0]` is `relation` `things[1]`."""
    relation = relation or pick(rng, RELATIONS)
    first = trained_pair(rng, shapes[0] if shapes else None)
    second = pick(
        rng,
        [
            (shape, colour)
            for shape, colour in TRAINED_PAIRS
            if shape != first[0] and colour != first[1] and (shapes is None or shape == shapes[1])
        ],
    )
    things = []
    for pair, low in ((first, relation in ("left of", "above")), (second, relation in ("right of", "below"))):
        along = between(rng, 0.24, 0.28) if low else between(rng, 0.72, 0.76)
        across = between(rng, 0.38, 0.62)
        x, y = (along, across) if relation in ("left of", "right of") else (across, along)
        texture = "plain" if rng.random() < 0.75 else pick(rng, TEXTURES[1:])
        things.append(_thing(rng, *pair, x, y, between(rng, 0.36, 0.44), texture=texture))
    return _scene(rng, "pair", tuple(things), relation=relation)


def count_scene(rng: Uniforms, count: int | None = None) -> Scene:
    """One to five equal objects on a jittered 3 x 3 grid; the size does not depend on the count."""
    shape, colour = pick(rng, TRAINED_PAIRS)
    slots = list(range(9))
    things = []
    diameter = between(rng, 0.22, 0.26)
    for _ in range(count or 1 + int(rng.random() * len(COUNTS))):
        row, column = divmod(slots.pop(int(rng.random() * len(slots))), 3)
        x, y = (0.18 + 0.32 * cell + between(rng, -0.02, 0.02) for cell in (column, row))
        things.append(_thing(rng, shape, colour, x, y, diameter))
    return _scene(rng, "count", tuple(things))


def digit_scene(rng: Uniforms, digit: str | None = None) -> Scene:
    x, y = between(rng, 0.45, 0.55), between(rng, 0.46, 0.54)
    thing = _thing(rng, digit or pick(rng, DIGITS), pick(rng, COLOURS), x, y, between(rng, 0.62, 0.82))
    return _scene(rng, "digit", (thing,))


def word_scene(rng: Uniforms, word: str | None = None) -> Scene:
    text = word or pick(rng, WORDS)
    text = text if rng.random() < 0.7 else text.upper()
    x, y = between(rng, 0.48, 0.52), between(rng, 0.35, 0.65)
    thing = _thing(rng, text, pick(rng, COLOURS), x, y, between(rng, 0.82, 0.92))
    return _scene(rng, "word", (thing,))


_SAMPLERS: dict[str, Callable[[Uniforms], Scene]] = {
    "object": object_scene,
    "pair": pair_scene,
    "count": count_scene,
    "digit": digit_scene,
    "word": word_scene,
}


def sample_kind(rng: Uniforms, kinds: Mapping[str, float]) -> Scene:
    """A scene of one of `kinds`, drawn by the weights that `kind_weights` gave."""
    bounds = list(accumulate(kinds.values()))
    kind = list(kinds)[bisect(bounds, rng.random() * bounds[-1], hi=len(bounds) - 1)]
    return _SAMPLERS[kind](rng)


def sample_scene(
    seed: int, index: int, *, split: str = "train", kinds: Mapping[str, float] | Sequence[str] | None = None
) -> Scene:
    """The scene at (seed, index) of `split`, its kind drawn by the weights `kinds` (default KIND_WEIGHTS).

    Raises:
      ValueError: seed or index is negative, or the split or a kind is not known.
    """
    check_stream(seed, index, split)
    return sample_kind(Stream(seed, index, split), kind_weights(kinds))


def kind_weights(kinds: Mapping[str, float] | Sequence[str] | None) -> dict[str, float]:
    """Weights, or names for equal weights, as {kind: weight > 0} sorted by kind; ValueError if they make no sense."""
    if kinds is None:
        kinds = KIND_WEIGHTS
    names = (kinds,) if isinstance(kinds, str) else kinds
    weights = dict(names) if isinstance(names, Mapping) else dict.fromkeys(names, 1.0)
    unknown = sorted(set(weights) - set(KIND_WEIGHTS))
    if unknown or not weights:
        raise ValueError(f"kinds={kinds!r} of the drawn scenes: name one or more of {', '.join(KIND_WEIGHTS)}")
    if not all(0 <= weight < math.inf for weight in weights.values()) or sum(weights.values()) <= 0:
        raise ValueError(f"kinds={kinds!r} of the drawn scenes: weights must be finite, not negative, and not all zero")
    # Sorted: the order in which a config happens to list the kinds must not change the data.
    return {kind: float(weights[kind]) for kind in sorted(weights) if weights[kind]}
