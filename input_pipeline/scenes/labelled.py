"""Labelled sets of drawn scenes for zero-shot classification: what each asks, and the source that gives its records."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from input_pipeline.scenes.captions import POSITION_PHRASES, with_article
from input_pipeline.scenes.drawing import check_image_size, draw_scene
from input_pipeline.scenes.sampling import (
    count_scene,
    digit_scene,
    jitter,
    object_scene,
    pair_scene,
    trained_pair,
    word_scene,
)
from input_pipeline.scenes.source import check_num_examples, checked_index
from input_pipeline.scenes.streams import Stream, Uniforms, check_stream, pick
from input_pipeline.scenes.world import (
    COLOURS,
    COUNTS,
    DIGITS,
    HELD_OUT,
    PAIRS,
    POSITIONS,
    RELATIONS,
    RGB,
    SHAPES,
    SIZES,
    TEXTURES,
    TRAINED_PAIRS,
    VERSION,
    WORDS,
    Scene,
)

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


@dataclass(frozen=True)
class LabelledSet:
    """A classification protocol: class names that fit the templates, and the scene for the k-th example."""

    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    sample: Callable[[Uniforms, int], tuple[Scene, int]]


def _recoloured_scene(rng: Uniforms, shape: str) -> Scene:
    shades, tints = pick(rng, ((_DARK_SHADES, _PALE_TINTS), (_PASTELS, _DEEP_TINTS)))
    colour, background = pick(rng, tuple(shades)), pick(rng, tuple(tints))
    tint = jitter(rng, tints[background], 6)
    return object_scene(rng, (shape, colour), rgb=shades[colour], background=background, background_rgb=tint)


def _sketch_scene(rng: Uniforms, shape: str) -> Scene:
    paper: dict[str, Any] = {"background": "white", "background_rgb": (255, 255, 255), "background_field": 0}
    return object_scene(rng, trained_pair(rng, shape), "large", "plain", outline=True, **paper)


_SINGULAR = ("{}", "a picture of {}", "a photo of {}", "a drawing of {}", "an image of {}", "this is {}")
_PLURAL = ("{}", "a picture of {}", "a photo of {}", "a drawing of {}", "an image of {}")
_PAIR_NAMES = tuple(with_article(f"{colour} {shape}") for shape, colour in PAIRS)
_SHAPE_NAMES = tuple(map(with_article, SHAPES))


def _pair_classes(pairs: tuple[tuple[str, str], ...]) -> LabelledSet:
    def sample(rng: Uniforms, index: int) -> tuple[Scene, int]:
        pair = pairs[index % len(pairs)]
        return object_scene(rng, pair), PAIRS.index(pair)

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


# What each set asks. Classes are balanced: example k has class k modulo their number (for the two sets of shape-colour
# pairs, pair k modulo the pairs drawn, among the names of all 64). Relations are asked of a circle and a square in all
# pictures, in trained colours, so that four names fit every picture and only the relation distinguishes them.
LABELLED_SETS: dict[str, LabelledSet] = {
    "compositions": _pair_classes(TRAINED_PAIRS),
    "held_out": _pair_classes(HELD_OUT),
    "shape": _classes(SHAPES, _SHAPE_NAMES, lambda rng, shape: object_scene(rng, trained_pair(rng, shape))),
    "colour": _classes(
        COLOURS,
        [with_article(f"{colour} shape") for colour in COLOURS],
        lambda rng, colour: object_scene(rng, trained_pair(rng, colour=colour)),
    ),
    "size": _classes(
        SIZES, [f"a {size} shape" for size in SIZES], lambda rng, size: object_scene(rng, size=size, position="centre")
    ),
    "texture": _classes(
        TEXTURES,
        [f"a {texture} shape" for texture in TEXTURES],
        lambda rng, texture: object_scene(rng, texture=texture),
    ),
    "position": _classes(
        POSITIONS,
        [f"a shape {POSITION_PHRASES[position]}" for position in POSITIONS],
        lambda rng, position: object_scene(rng, position=position),
    ),
    "count": _classes(range(1, 6), [f"{word} shape{'s' * (word != 'one')}" for word in COUNTS], count_scene, _PLURAL),
    "relation": _classes(
        RELATIONS,
        [f"a circle {relation} a square" for relation in RELATIONS],
        partial(pair_scene, shapes=("circle", "square")),
    ),
    "digit": _classes(DIGITS, [f"the digit {digit}" for digit in DIGITS], digit_scene),
    "word": _classes(WORDS, [f"the word {word}" for word in WORDS], word_scene),
    "sketch": _classes(SHAPES, _SHAPE_NAMES, _sketch_scene),
    "recoloured": _classes(SHAPES, _SHAPE_NAMES, _recoloured_scene),
}


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
        check_stream(self.seed)
        check_num_examples(self.num_examples)
        check_image_size(self.image_size)
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
        rng = Stream(self.seed, checked_index(index, self.num_examples), self.name)
        return LABELLED_SETS[self.name].sample(rng, index)

    def fingerprint(self) -> dict[str, Any]:
        settings = {"seed": self.seed, "length": self.num_examples, "image_size": self.image_size}
        return {"kind": "labelled_scenes", "version": VERSION, "name": self.name} | settings
