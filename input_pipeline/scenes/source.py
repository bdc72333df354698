"""Drawn scenes as sources: with captions to train on, and labelled sets for zero-shot classification.

One core draws 5,800 pictures a second with their captions at 32 pixels, 4,100 at 48 and 2,900 at 64 (Pillow 13):
`python -m timeit -s "from itertools import count; from input_pipeline.scenes import SceneSource; i = count();
source = SceneSource(0, 10**9, 32)" "source[next(i)]"`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from input_pipeline.scenes import world
from input_pipeline.scenes.captions import POSITION_PHRASES, caption_scene, with_article
from input_pipeline.scenes.drawing import check_image_size, draw_scene
from input_pipeline.scenes.world import RGB, Scene, Stream, Uniforms, object_scene, trained_pair

CAPTIONS_PER_IMAGE = 5


class _DrawnSource:
    """What both sources share: the checks, the length, and the random numbers of a record."""

    seed: int
    num_examples: int
    image_size: int

    def _check(self, split: str = "train") -> None:
        world.check_stream(self.seed, split=split)
        if self.num_examples < 1:
            raise ValueError(f"num_examples={self.num_examples} of the drawn scenes: ask for at least 1")
        check_image_size(self.image_size)

    def __len__(self) -> int:
        return self.num_examples

    def _stream(self, index: int, name: str) -> Stream:
        if not 0 <= index < self.num_examples:
            raise IndexError(f"index {index} of a source of {self.num_examples} drawn scenes")
        return Stream(self.seed, index, name)


@dataclass
class SceneSource(_DrawnSource):
    """Drawn scenes with five captions each, by index: a `Source` (see `input_pipeline.sources`) with nothing to read.

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
        self._check(self.split)
        self.kinds = world.kind_weights(self.kinds)

    def __getitem__(self, index: int) -> dict[str, Any]:
        scene, captions = self._describe(index)
        record_id = f"scenes/{self.split}/{self.seed}/{index}"
        return {"id": record_id, "image": draw_scene(scene, self.image_size), "captions": captions}

    def captions(self, index: int) -> tuple[str, ...]:
        """The five captions of record `index`, without drawing it."""
        return self._describe(index)[1]

    def scene(self, index: int) -> Scene:
        """What record `index` shows."""
        return world.sample_kind(self._stream(index, self.split), self._weights)

    def fingerprint(self) -> dict[str, Any]:
        kinds = [f"{kind}={weight}" for kind, weight in self._weights.items()]
        settings = {"seed": self.seed, "split": self.split, "length": self.num_examples, "image_size": self.image_size}
        return {"kind": "scenes", "version": world.VERSION, "scene_kinds": kinds} | settings

    @property
    def _weights(self) -> dict[str, float]:
        assert isinstance(self.kinds, dict)  # __post_init__ made it so
        return self.kinds

    def _describe(self, index: int) -> tuple[Scene, tuple[str, ...]]:
        rng = self._stream(index, self.split)
        scene = world.sample_kind(rng, self._weights)
        captions: list[str] = []
        for attempt in range(4 * CAPTIONS_PER_IMAGE):
            caption = caption_scene(scene, rng)
            if caption not in captions or attempt >= 3 * CAPTIONS_PER_IMAGE:
                captions.append(caption)
            if len(captions) == CAPTIONS_PER_IMAGE:
                break
        return scene, tuple(captions)


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
    shades, tints = world.pick(rng, ((_DARK_SHADES, _PALE_TINTS), (_PASTELS, _DEEP_TINTS)))
    colour, background = world.pick(rng, tuple(shades)), world.pick(rng, tuple(tints))
    tint = world.jitter(rng, tints[background], 6)
    return object_scene(rng, (shape, colour), rgb=shades[colour], background=background, background_rgb=tint)


def _sketch_scene(rng: Uniforms, shape: str) -> Scene:
    paper: dict[str, Any] = {"background": "white", "background_rgb": (255, 255, 255), "background_field": 0}
    return object_scene(rng, trained_pair(rng, shape), "large", "plain", outline=True, **paper)


_SINGULAR = ("{}", "a picture of {}", "a photo of {}", "a drawing of {}", "an image of {}", "this is {}")
_PLURAL = ("{}", "a picture of {}", "a photo of {}", "a drawing of {}", "an image of {}")
_PAIR_NAMES = tuple(with_article(f"{colour} {shape}") for shape, colour in world.PAIRS)
_SHAPE_NAMES = tuple(map(with_article, world.SHAPES))


def _pair_classes(pairs: tuple[tuple[str, str], ...]) -> LabelledSet:
    def sample(rng: Uniforms, index: int) -> tuple[Scene, int]:
        pair = pairs[index % len(pairs)]
        return object_scene(rng, pair), world.PAIRS.index(pair)

    return LabelledSet(_PAIR_NAMES, _SINGULAR, sample)


def _classes(
    values: Sequence[Any],
    class_names: str | Sequence[str],
    scene: Callable[[Uniforms, Any], Scene],
    templates: tuple[str, ...] = _SINGULAR,
) -> LabelledSet:
    """class_names: of the values, or a pattern of them."""
    names = [class_names.format(value) for value in values] if isinstance(class_names, str) else class_names

    def sample(rng: Uniforms, index: int) -> tuple[Scene, int]:
        label = index % len(values)
        return scene(rng, values[label]), label

    return LabelledSet(tuple(names), templates, sample)


# What each set asks. Classes are balanced: example k has class k modulo their number (for the two sets of shape-colour
# pairs, pair k modulo the pairs drawn, among the names of all 64). Relations are asked of a circle and a square in all
# pictures, in trained colours, so that four names fit every picture and only the relation distinguishes them.
LABELLED_SETS: dict[str, LabelledSet] = {
    "compositions": _pair_classes(world.TRAINED_PAIRS),
    "held_out": _pair_classes(world.HELD_OUT),
    "shape": _classes(world.SHAPES, _SHAPE_NAMES, lambda rng, shape: object_scene(rng, trained_pair(rng, shape))),
    "colour": _classes(
        world.COLOURS,
        [with_article(f"{colour} shape") for colour in world.COLOURS],
        lambda rng, colour: object_scene(rng, trained_pair(rng, colour=colour)),
    ),
    "size": _classes(world.SIZES, "a {} shape", lambda rng, size: object_scene(rng, size=size, position="centre")),
    "texture": _classes(world.TEXTURES, "a {} shape", lambda rng, texture: object_scene(rng, texture=texture)),
    "position": _classes(
        world.POSITIONS,
        [f"a shape {POSITION_PHRASES[position]}" for position in world.POSITIONS],
        lambda rng, position: object_scene(rng, position=position),
    ),
    "count": _classes(
        range(1, 6), [f"{word} shape{'s' * (word != 'one')}" for word in world.COUNTS], world.count_scene, _PLURAL
    ),
    "relation": _classes(
        world.RELATIONS, "a circle {} a square", partial(world.pair_scene, shapes=("circle", "square"))
    ),
    "digit": _classes(world.DIGITS, "the digit {}", world.digit_scene),
    "word": _classes(world.WORDS, "the word {}", world.word_scene),
    "sketch": _classes(world.SHAPES, _SHAPE_NAMES, _sketch_scene),
    "recoloured": _classes(world.SHAPES, _SHAPE_NAMES, _recoloured_scene),
}


@dataclass
class LabelledScenes(_DrawnSource):
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
        self._check()
        self.class_names, self.templates = LABELLED_SETS[self.name].class_names, LABELLED_SETS[self.name].templates

    def __getitem__(self, index: int) -> dict[str, Any]:
        scene, label = self.scene(index)
        record_id = f"scenes/{self.name}/{self.seed}/{index}"
        captions = (LABELLED_SETS[self.name].class_names[label],)
        return {"id": record_id, "image": draw_scene(scene, self.image_size), "captions": captions, "label": label}

    def captions(self, index: int) -> tuple[str, ...]:
        return (LABELLED_SETS[self.name].class_names[self.scene(index)[1]],)

    def scene(self, index: int) -> tuple[Scene, int]:
        """What record `index` shows, and its label."""
        return LABELLED_SETS[self.name].sample(self._stream(index, self.name), index)

    def fingerprint(self) -> dict[str, Any]:
        settings = {"seed": self.seed, "length": self.num_examples, "image_size": self.image_size}
        return {"kind": "labelled_scenes", "version": world.VERSION, "name": self.name} | settings
