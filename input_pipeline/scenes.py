"""The built-in data set: a miniature visual world drawn with Pillow, a pure function of (seed, index).

Nothing is downloaded or stored: `SceneSource` gives record `index` by drawing it, so it is random-access and as long as
one likes. Each picture shows one object, a pair in a relation, one to five equal objects, a digit or a word; captions
come from the grammar in `scene_captions.py`. The eight shape-colour pairs of HELD_OUT are never drawn by `SceneSource`;
`LabelledScenes("held_out", ...)` asks for them, so naming them right takes composition, not memory.

One core draws 5,800 pictures a second with their captions at 32 pixels, 4,100 at 48 and 2,900 at 64 (Pillow 13):
`python -m timeit -s "from itertools import count; from input_pipeline.scenes import SceneSource; i = count();
source = SceneSource(0, 10**9, 32)" "source[next(i)]"`.
"""

import math
import zlib
from bisect import bisect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import accumulate
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFont

from input_pipeline.scene_captions import (
    BACKGROUNDS,
    COLOURS,
    COUNTS,
    DIGITS,
    KINDS,
    POSITION_PHRASES,
    POSITIONS,
    RELATIONS,
    SHAPES,
    SIZES,
    TEXTURES,
    WORDS,
    Scene,
    Thing,
    Uniforms,
    caption_scene,
    pick,
    with_article,
)

RGB = tuple[int, int, int]

VERSION = 1  # of the world: raise it when the same (seed, index) gives another picture or other captions
CAPTIONS_PER_IMAGE = 5
MIN_IMAGE_SIZE, MAX_IMAGE_SIZE = 16, 256
KIND_WEIGHTS = {"object": 0.5, "pair": 0.15, "count": 0.15, "digit": 0.1, "word": 0.1}

PAIRS = tuple((shape, colour) for shape in SHAPES for colour in COLOURS)
# Each shape once and each colour once, so that both are seen in seven of their eight pairs.
HELD_OUT = tuple((shape, COLOURS[(i + 3) % len(COLOURS)]) for i, shape in enumerate(SHAPES))
TRAINED_PAIRS = tuple(pair for pair in PAIRS if pair not in HELD_OUT)

_COLOUR_RGB: dict[str, RGB] = {
    "red": (214, 32, 36),
    "orange": (246, 124, 16),
    "yellow": (242, 210, 28),
    "green": (36, 150, 58),
    "cyan": (50, 205, 222),
    "blue": (36, 70, 214),
    "purple": (140, 46, 184),
    "pink": (250, 130, 192),
}
_BACKGROUND_RGB: dict[str, RGB] = {
    "white": (248, 248, 246),
    "light grey": (212, 212, 214),
    "grey": (160, 160, 162),
    "beige": (224, 208, 178),
    "brown": (92, 66, 46),
    "black": (26, 26, 30),
}
# The shift of the "recoloured" set: dark shades on pale tints or pastels on deep tints, none of them drawn in training.
_DARK_SHADES: dict[str, RGB] = {
    "navy": (20, 24, 84),
    "maroon": (96, 12, 34),
    "forest": (14, 62, 34),
    "ink": (34, 34, 38),
}
_PASTELS: dict[str, RGB] = {
    "ivory": (250, 246, 226),
    "mint": (186, 238, 206),
    "sky": (188, 216, 246),
    "silver": (200, 200, 206),
}
_PALE_TINTS: dict[str, RGB] = {
    "rose tint": (246, 196, 204),
    "lilac tint": (216, 200, 240),
    "lime tint": (214, 240, 170),
}
_DEEP_TINTS: dict[str, RGB] = {"teal": (10, 96, 102), "indigo": (62, 30, 122), "rust": (142, 54, 18)}

_FIELDS = 17  # backgrounds: flat, eight gradients, eight noises


class _Stream:
    """Uniform floats from Philox at (seed, index, name). Raw bits, so the numbers hold for every numpy version."""

    def __init__(self, seed: int, index: int, name: str):
        self._bits = np.random.Philox(key=(seed, index), counter=(0, 0, 0, zlib.crc32(name.encode())))
        self._values: list[float] = []

    def random(self) -> float:
        if not self._values:
            self._values = ((self._bits.random_raw(128) >> np.uint64(11)) * 2.0**-53).tolist()
        return self._values.pop()


def _between(rng: Uniforms, low: float, high: float) -> float:
    return low + (high - low) * rng.random()


def _jitter(rng: Uniforms, rgb: RGB, by: int) -> RGB:
    r, g, b = (min(255, max(0, round(c + _between(rng, -by, by)))) for c in rgb)
    return r, g, b


def _thing(
    rng: Uniforms, shape: str, colour: str, x: float, y: float, diameter: float, *, texture="plain", size="", rgb=None
) -> Thing:
    angle = math.radians(_between(rng, -12, 12))
    return Thing(shape, colour, texture, size, x, y, diameter, angle, _jitter(rng, rgb or _COLOUR_RGB[colour], 12))


def _scene(rng: Uniforms, kind: str, things: tuple[Thing, ...], **more: Any) -> Scene:
    background = pick(rng, BACKGROUNDS)
    tint = _jitter(rng, _BACKGROUND_RGB[background], 6)
    shading = int(rng.random() * _FIELDS) if rng.random() < 0.6 else 0
    ground: dict[str, Any] = {"background": background, "background_rgb": tint, "background_field": shading}
    return Scene(kind, things, **ground | more)


def _allowed(rng: Uniforms, shape: str | None = None, colour: str | None = None) -> tuple[str, str]:
    """A trained (shape, colour), uniform over those that agree with what is given."""
    return pick(rng, [pair for pair in TRAINED_PAIRS if shape in (None, pair[0]) and colour in (None, pair[1])])


def _object_scene(
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
    diameter = _between(rng, 0.36, 0.45) if size == "small" else _between(rng, 0.62, 0.8)
    near, across = diameter / 2 + _between(rng, 0.01, 0.06), _between(rng, 0.44, 0.56)
    if position == "centre":
        slack = 0.05 if size == "small" else (1 - diameter) / 3
        x, y = _between(rng, 0.5 - slack, 0.5 + slack), _between(rng, 0.5 - slack, 0.5 + slack)
    else:
        along = near if position in ("left", "top") else 1 - near
        x, y = (along, across) if position in ("left", "right") else (across, along)
    thing = _thing(rng, shape, colour, x, y, diameter, texture=texture, size=size, rgb=rgb)
    return _scene(rng, "object", (thing,), position=position, **more)


def _pair_scene(rng: Uniforms, relation: str | None = None, shapes: tuple[str, str] | None = None) -> Scene:
    """Two objects that differ in shape and in colour; `things[0]` is `relation` `things[1]`."""
    relation = relation or pick(rng, RELATIONS)
    first = _allowed(rng, shapes[0] if shapes else None)
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
        along = _between(rng, 0.24, 0.28) if low else _between(rng, 0.72, 0.76)
        across = _between(rng, 0.38, 0.62)
        x, y = (along, across) if relation in ("left of", "right of") else (across, along)
        texture = "plain" if rng.random() < 0.75 else pick(rng, TEXTURES[1:])
        things.append(_thing(rng, *pair, x, y, _between(rng, 0.36, 0.44), texture=texture))
    return _scene(rng, "pair", tuple(things), relation=relation)


def _count_scene(rng: Uniforms, count: int | None = None) -> Scene:
    """One to five equal objects on a jittered 3 x 3 grid; the size does not depend on the count."""
    shape, colour = pick(rng, TRAINED_PAIRS)
    slots = list(range(9))
    things = []
    diameter = _between(rng, 0.22, 0.26)
    for _ in range(count or 1 + int(rng.random() * len(COUNTS))):
        row, column = divmod(slots.pop(int(rng.random() * len(slots))), 3)
        x, y = (0.18 + 0.32 * cell + _between(rng, -0.02, 0.02) for cell in (column, row))
        things.append(_thing(rng, shape, colour, x, y, diameter))
    return _scene(rng, "count", tuple(things))


def _digit_scene(rng: Uniforms, digit: str | None = None) -> Scene:
    x, y = _between(rng, 0.45, 0.55), _between(rng, 0.46, 0.54)
    return _scene(
        rng, "digit", (_thing(rng, digit or pick(rng, DIGITS), pick(rng, COLOURS), x, y, _between(rng, 0.62, 0.82)),)
    )


def _word_scene(rng: Uniforms, word: str | None = None) -> Scene:
    text = word or pick(rng, WORDS)
    text = text if rng.random() < 0.7 else text.upper()
    x, y = _between(rng, 0.48, 0.52), _between(rng, 0.35, 0.65)
    return _scene(rng, "word", (_thing(rng, text, pick(rng, COLOURS), x, y, _between(rng, 0.82, 0.92)),))


def _recoloured_scene(rng: Uniforms, shape: str) -> Scene:
    shades, tints = pick(rng, ((_DARK_SHADES, _PALE_TINTS), (_PASTELS, _DEEP_TINTS)))
    colour, background = pick(rng, tuple(shades)), pick(rng, tuple(tints))
    tint = _jitter(rng, tints[background], 6)
    return _object_scene(rng, (shape, colour), rgb=shades[colour], background=background, background_rgb=tint)


def _sketch_scene(rng: Uniforms, shape: str) -> Scene:
    paper: dict[str, Any] = {"background": "white", "background_rgb": (255, 255, 255), "background_field": 0}
    return _object_scene(rng, _allowed(rng, shape), "large", "plain", outline=True, **paper)


_SAMPLERS: dict[str, Callable[[Uniforms], Scene]] = {
    "object": _object_scene,
    "pair": _pair_scene,
    "count": _count_scene,
    "digit": _digit_scene,
    "word": _word_scene,
}


def _sample(rng: Uniforms, kinds: Mapping[str, float]) -> Scene:
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
    _check_stream(seed, split, index)
    return _sample(_Stream(seed, index, split), _weights(kinds))


@lru_cache(maxsize=4)
def _fields(side: int) -> tuple[Image.Image, ...]:
    """Masks [side, side] of a second background shade: none, gradients in eight directions, eight grainy noises."""
    ramp = np.linspace(-0.5, 0.5, side)
    fields: list[np.ndarray] = [np.zeros((side, side))]
    for turn in range(8):
        angle = turn * math.pi / 4
        fields.append(160 * (0.5 + (ramp * math.cos(angle) + ramp[:, None] * math.sin(angle)) / math.sqrt(2)))
    for seed in range(8):
        bits = np.random.Philox(key=(seed, side)).random_raw(side * side)
        fields.append((bits >> np.uint64(57)).reshape(side, side))
    return tuple(Image.fromarray(mask.astype(np.uint8)) for mask in fields)


@lru_cache(maxsize=512)
def _texture_mask(texture: str, side: int) -> Image.Image:
    """Where an object with bounding box [side, side] shows its second tone: an "L" mask of 0 and 255."""
    v, u = np.mgrid[:side, :side] / side - 0.5
    if texture == "striped":
        mask = ((u + v) * 3.2 % 1) < 0.45
    elif texture == "dotted":
        mask = np.hypot((u * 4) % 1 - 0.5, (v * 4) % 1 - 0.5) < 0.32
    else:
        mask = ((u * 4.4) // 1 + (v * 4.4) // 1) % 2 == 0
    return Image.fromarray(mask.astype(np.uint8) * 255)


@lru_cache(maxsize=256)
def _glyphs(text: str) -> Image.Image:
    """`text` in Pillow's own font, emboldened, as an "L" mask cropped to the ink, about 90 pixels high."""
    font = ImageFont.load_default(96)
    canvas = Image.new("L", (96 * len(text) + 40, 200))
    ImageDraw.Draw(canvas).text((20, 20), text, fill=255, font=font, stroke_width=2)
    return canvas.crop(canvas.getbbox())


def _rotated(points: Sequence[tuple[float, float]], angle: float) -> list[tuple[float, float]]:
    c, s = math.cos(angle), math.sin(angle)
    return [(x * c - y * s, x * s + y * c) for x, y in points]


def _star() -> list[tuple[float, float]]:
    radii = [(1.08, 0.45)[i % 2] for i in range(10)]
    return [(r * math.sin(math.pi * i / 5), -r * math.cos(math.pi * i / 5)) for i, r in enumerate(radii)]


def _heart() -> list[tuple[float, float]]:
    turns = [2 * math.pi * i / 28 for i in range(28)]
    heights = (13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t) for t in turns)
    return [(math.sin(t) ** 3, -height / 16.5 - 0.1) for t, height in zip(turns, heights)]


# Outlines in [-1, 1]², y downwards; circle and ring are drawn as ellipses.
_OUTLINES: dict[str, list[tuple[float, float]]] = {
    "square": [(-0.84, -0.84), (0.84, -0.84), (0.84, 0.84), (-0.84, 0.84)],
    "triangle": [(0.0, -0.95), (1.0, 0.82), (-1.0, 0.82)],
    "star": _star(),
    "cross": [p for turn in range(4) for p in _rotated([(-0.3, -1), (0.3, -1), (0.3, -0.3)], turn * math.pi / 2)],
    "heart": _heart(),
    "diamond": [(0.0, -1.08), (0.68, 0.0), (0.0, 1.08), (-0.68, 0.0)],
}


def _draw_shape(
    draw: ImageDraw.ImageDraw, thing: Thing, x: float, y: float, radius: float, ink: Any, stroke: int
) -> None:
    """The shape around (x, y), in pixels of `draw`: filled, or its contour if `stroke` > 0 pixels."""
    if thing.shape in ("circle", "ring"):
        box = (x - radius, y - radius, x + radius, y + radius)
        width = stroke or round(0.38 * radius)
        if thing.shape == "circle" and not stroke:
            draw.ellipse(box, fill=ink)
        else:
            draw.ellipse(box, outline=ink, width=width)
        if thing.shape == "ring" and stroke:
            inner = 0.6 * radius
            draw.ellipse((x - inner, y - inner, x + inner, y + inner), outline=ink, width=stroke)
        return
    points = [(x + radius * u, y + radius * v) for u, v in _rotated(_OUTLINES[thing.shape], thing.angle)]
    if stroke:
        draw.line([*points, *points[:2]], fill=ink, width=stroke, joint="curve")
    else:
        draw.polygon(points, fill=ink)


def _second_tone(rgb: RGB) -> RGB:
    """Far from `rgb` in lightness: nearly white for dark colours, a dark shade for light ones."""
    light = 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2] > 120
    r, g, b = (round(0.35 * c) if light else round(255 - 0.12 * (255 - c)) for c in rgb)
    return r, g, b


def draw_scene(scene: Scene, image_size: int) -> np.ndarray:
    """Draws `scene` antialiased.

    Args:
      scene: what to draw; nothing else but the size decides the pixels.
      image_size: side S of the picture in pixels, 16..256.

    Returns:
      uint8 [S, S, 3], RGB.

    Raises:
      ValueError: image_size is out of range.
    """
    _check_image_size(image_size)
    factor = 4 if image_size <= 64 else 2
    side = factor * image_size
    tint = scene.background_rgb
    if scene.background_field:
        canvas = Image.new("RGB", (image_size, image_size), tint)
        shade = 0 if sum(tint) > 384 else 255
        second = tuple(round(0.75 * c + 0.25 * shade) for c in tint)
        canvas.paste(second, (0, 0), _fields(image_size)[scene.background_field])
        canvas = canvas.resize((side, side), Image.Resampling.NEAREST)
    else:
        canvas = Image.new("RGB", (side, side), tint)
    draw = ImageDraw.Draw(canvas)
    for thing in scene.things:
        x, y, radius = thing.x * side, thing.y * side, thing.diameter * side / 2
        if thing.shape not in SHAPES:
            glyphs = _glyphs(thing.shape)
            scale = 2 * radius / max(glyphs.size)
            mask = glyphs.resize((round(glyphs.width * scale), round(glyphs.height * scale)), Image.Resampling.BILINEAR)
            mask = mask.rotate(-math.degrees(thing.angle) / 2, Image.Resampling.BILINEAR, expand=True)
            canvas.paste(thing.rgb, (round(x - mask.width / 2), round(y - mask.height / 2)), mask)
            continue
        stroke = max(factor, round(0.03 * side)) if scene.outline else 0
        _draw_shape(draw, thing, x, y, radius, thing.rgb, stroke)
        if thing.texture != "plain":
            half = math.ceil(1.1 * radius)
            left, top = round(x) - half, round(y) - half
            mask = Image.new("L", (2 * half, 2 * half))
            _draw_shape(ImageDraw.Draw(mask), thing, x - left, y - top, radius, 255, 0)
            mask = ImageChops.multiply(mask, _texture_mask(thing.texture, 2 * half))
            canvas.paste(_second_tone(thing.rgb), (left, top), mask)
            # A rim of the first tone: the second may be the background's.
            _draw_shape(draw, thing, x, y, radius, thing.rgb, max(factor // 2, round(0.1 * radius)))
    return np.array(canvas.reduce(factor))


@dataclass(frozen=True)
class LabelledSet:
    """A classification protocol: class names that fit the templates, and the scene for the k-th example."""

    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    sample: Callable[[Uniforms, int], tuple[Scene, int]]


_SINGULAR = ("{}", "a picture of {}", "a photo of {}", "a drawing of {}", "an image of {}", "this is {}")
_PLURAL = ("{}", "a picture of {}", "a photo of {}", "a drawing of {}", "an image of {}")
_PAIR_NAMES = tuple(with_article(f"{colour} {shape}") for shape, colour in PAIRS)


def _pair_classes(pairs: tuple[tuple[str, str], ...]) -> LabelledSet:
    def sample(rng: Uniforms, index: int) -> tuple[Scene, int]:
        pair = pairs[index % len(pairs)]
        return _object_scene(rng, pair), PAIRS.index(pair)

    return LabelledSet(_PAIR_NAMES, _SINGULAR, sample)


def _classes(
    values: Sequence[Any],
    class_names: Sequence[str],
    scene: Callable[[Uniforms, Any], Scene],
    templates: tuple[str, ...] = _SINGULAR,
) -> LabelledSet:
    def sample(rng: Uniforms, index: int) -> tuple[Scene, int]:
        label = index % len(values)
        return scene(rng, values[label]), label

    return LabelledSet(tuple(class_names), templates, sample)


_SHAPE_NAMES = tuple(map(with_article, SHAPES))
# What each set asks. Classes are balanced: example k has class k modulo their number (for the two sets of shape-colour
# pairs, pair k modulo the pairs drawn, among the names of all 64). Relations are asked of a circle and a square in all
# pictures, in trained colours, so that four names fit every picture and only the relation tells them apart.
LABELLED_SETS: dict[str, LabelledSet] = {
    "compositions": _pair_classes(TRAINED_PAIRS),
    "held_out": _pair_classes(HELD_OUT),
    "shape": _classes(SHAPES, _SHAPE_NAMES, lambda rng, shape: _object_scene(rng, _allowed(rng, shape))),
    "colour": _classes(
        COLOURS,
        [with_article(f"{colour} shape") for colour in COLOURS],
        lambda rng, colour: _object_scene(rng, _allowed(rng, colour=colour)),
    ),
    "size": _classes(
        SIZES, [f"a {size} shape" for size in SIZES], lambda rng, size: _object_scene(rng, size=size, position="centre")
    ),
    "texture": _classes(
        TEXTURES,
        [f"a {texture} shape" for texture in TEXTURES],
        lambda rng, texture: _object_scene(rng, texture=texture),
    ),
    "position": _classes(
        POSITIONS,
        [f"a shape {POSITION_PHRASES[position]}" for position in POSITIONS],
        lambda rng, position: _object_scene(rng, position=position),
    ),
    "count": _classes(range(1, 6), [f"{word} shape{'s' * (word != 'one')}" for word in COUNTS], _count_scene, _PLURAL),
    "relation": _classes(
        RELATIONS,
        [f"a circle {relation} a square" for relation in RELATIONS],
        partial(_pair_scene, shapes=("circle", "square")),
    ),
    "digit": _classes(DIGITS, [f"the digit {digit}" for digit in DIGITS], _digit_scene),
    "word": _classes(WORDS, [f"the word {word}" for word in WORDS], _word_scene),
    "sketch": _classes(SHAPES, _SHAPE_NAMES, _sketch_scene),
    "recoloured": _classes(SHAPES, _SHAPE_NAMES, _recoloured_scene),
}


def _check_image_size(image_size: int) -> None:
    if not MIN_IMAGE_SIZE <= image_size <= MAX_IMAGE_SIZE:
        raise ValueError(
            f"image_size={image_size} of the drawn scenes is out of range: "
            f"choose {MIN_IMAGE_SIZE} to {MAX_IMAGE_SIZE} pixels, 32 or more for legible words"
        )


def _check_stream(seed: int, split: str, index: int = 0) -> None:
    if not 0 <= seed < 2**64 or not 0 <= index < 2**64:
        raise ValueError(f"seed={seed}, index={index} of the drawn scenes: both must be in 0..2**64-1")
    if split not in ("train", "validation"):
        raise ValueError(f"split={split!r} of the drawn scenes is unknown: choose 'train' or 'validation'")


def _check_num_examples(num_examples: int) -> None:
    if num_examples < 1:
        raise ValueError(f"num_examples={num_examples} of the drawn scenes: ask for at least 1")


def _weights(kinds: Mapping[str, float] | Sequence[str] | None) -> dict[str, float]:
    if kinds is None:
        kinds = KIND_WEIGHTS
    weights = (
        dict(kinds) if isinstance(kinds, Mapping) else dict.fromkeys((kinds,) if isinstance(kinds, str) else kinds, 1.0)
    )
    unknown = sorted(set(weights) - set(KINDS))
    if unknown or not weights:
        raise ValueError(f"kinds={kinds!r} of the drawn scenes: name one or more of {', '.join(KINDS)}")
    if not all(0 <= weight < math.inf for weight in weights.values()) or sum(weights.values()) <= 0:
        raise ValueError(f"kinds={kinds!r} of the drawn scenes: weights must be finite, not negative, and not all zero")
    # Sorted: the order in which a config happens to list the kinds must not change the data.
    return {kind: float(weights[kind]) for kind in sorted(weights) if weights[kind]}


@dataclass
class SceneSource:
    """Drawn scenes with five captions each, by index: a source (see `sources.py`) with nothing to read.

    Record: {"id": str, "image": uint8 [image_size, image_size, 3], "captions": five strings}. No scene holds a pair of
    HELD_OUT. Record i does not depend on num_examples, and the two splits are disjoint random streams.

    Args:
      seed: 0..2**64-1; another seed is another world of the same kind.
      num_examples: length of the source, at least 1; drawing is lazy, so any length costs nothing.
      image_size: side of the pictures in pixels, 16..256.
      kinds: share of each kind of scene, as weights or as names (equal weights); default KIND_WEIGHTS.
      split: "train" or "validation".

    Raises:
      ValueError: an argument is out of its range.
    """

    seed: int
    num_examples: int
    image_size: int
    kinds: Mapping[str, float] | Sequence[str] | None = None
    split: str = "train"
    class_names: tuple[str, ...] | None = field(init=False, repr=False, default=None)
    broken: list[tuple[str, str]] = field(init=False, repr=False, default_factory=list)

    def __post_init__(self) -> None:
        _check_stream(self.seed, self.split)
        _check_num_examples(self.num_examples)
        _check_image_size(self.image_size)
        self.kinds = _weights(self.kinds)

    def __len__(self) -> int:
        return self.num_examples

    def __getitem__(self, index: int) -> dict[str, Any]:
        scene, captions = self._describe(index)
        record_id = f"scenes/{self.split}/{self.seed}/{index}"
        return {"id": record_id, "image": draw_scene(scene, self.image_size), "captions": captions}

    def captions(self, index: int) -> tuple[str, ...]:
        """The five captions of record `index`, without drawing it."""
        return self._describe(index)[1]

    def scene(self, index: int) -> Scene:
        """What record `index` shows."""
        return self._sample(self._stream(index))

    def fingerprint(self) -> dict[str, Any]:
        kinds = [f"{kind}={weight}" for kind, weight in _weights(self.kinds).items()]
        settings = {"seed": self.seed, "split": self.split, "length": self.num_examples, "image_size": self.image_size}
        return {"kind": "scenes", "version": VERSION, "scene_kinds": kinds} | settings

    def _stream(self, index: int) -> _Stream:
        return _Stream(self.seed, _checked_index(index, self.num_examples), self.split)

    def _sample(self, rng: Uniforms) -> Scene:
        assert isinstance(self.kinds, dict)  # __post_init__ made it so
        return _sample(rng, self.kinds)

    def _describe(self, index: int) -> tuple[Scene, tuple[str, ...]]:
        rng = self._stream(index)
        scene = self._sample(rng)
        captions: list[str] = []
        for attempt in range(4 * CAPTIONS_PER_IMAGE):
            caption = caption_scene(scene, rng)
            if caption not in captions or attempt >= 3 * CAPTIONS_PER_IMAGE:
                captions.append(caption)
            if len(captions) == CAPTIONS_PER_IMAGE:
                break
        return scene, tuple(captions)


@dataclass
class LabelledScenes:
    """One of LABELLED_SETS as a source: drawn scenes with "label", for zero-shot classification.

    Record: {"id": str, "image": uint8 [image_size, image_size, 3], "captions": (class name,), "label": int}. The names
    are whole phrases for `templates`. The random streams are disjoint from each other and from `SceneSource`'s.

    Raises:
      ValueError: an argument is out of its range, or the name is not in LABELLED_SETS (the message lists them).
    """

    name: str
    num_examples: int
    image_size: int
    seed: int = 0
    class_names: tuple[str, ...] | None = field(init=False, repr=False, default=None)
    templates: tuple[str, ...] = field(init=False, repr=False, default=())
    broken: list[tuple[str, str]] = field(init=False, repr=False, default_factory=list)

    def __post_init__(self) -> None:
        if self.name not in LABELLED_SETS:
            known = ", ".join(LABELLED_SETS)
            raise ValueError(f"labelled set {self.name!r} of the drawn scenes is unknown: choose one of {known}")
        _check_stream(self.seed, "train")
        _check_num_examples(self.num_examples)
        _check_image_size(self.image_size)
        self.class_names, self.templates = LABELLED_SETS[self.name].class_names, LABELLED_SETS[self.name].templates

    def __len__(self) -> int:
        return self.num_examples

    def __getitem__(self, index: int) -> dict[str, Any]:
        scene, label = self.scene(index)
        record_id = f"scenes/{self.name}/{self.seed}/{index}"
        captions = (LABELLED_SETS[self.name].class_names[label],)
        return {"id": record_id, "image": draw_scene(scene, self.image_size), "captions": captions, "label": label}

    def captions(self, index: int) -> tuple[str, ...]:
        return (LABELLED_SETS[self.name].class_names[self.scene(index)[1]],)

    def scene(self, index: int) -> tuple[Scene, int]:
        """What record `index` shows, and its label."""
        rng = _Stream(self.seed, _checked_index(index, self.num_examples), self.name)
        return LABELLED_SETS[self.name].sample(rng, index)

    def fingerprint(self) -> dict[str, Any]:
        settings = {"seed": self.seed, "length": self.num_examples, "image_size": self.image_size}
        return {"kind": "labelled_scenes", "version": VERSION, "name": self.name} | settings


def _checked_index(index: int, length: int) -> int:
    if not 0 <= index < length:
        raise IndexError(f"index {index} of a source of {length} drawn scenes")
    return index
