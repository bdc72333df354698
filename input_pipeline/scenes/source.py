"""Drawn scenes with captions as a source of training records, random-access and as long as one likes.

One core draws 5,800 pictures a second with their captions at 32 pixels, 4,100 at 48 and 2,900 at 64 (Pillow 13):
`python -m timeit -s "from itertools import count; from input_pipeline.scenes import SceneSource; i = count();
source = SceneSource(0, 10**9, 32)" "source[next(i)]"`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from input_pipeline.scenes.captions import caption_scene
from input_pipeline.scenes.drawing import check_image_size, draw_scene
from input_pipeline.scenes.sampling import kind_weights, sample_kind
from input_pipeline.scenes.streams import Stream, check_stream
from input_pipeline.scenes.world import VERSION, Scene

CAPTIONS_PER_IMAGE = 5


@dataclass
class SceneSource:
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
        check_stream(self.seed, split=self.split)
        check_num_examples(self.num_examples)
        check_image_size(self.image_size)
        self.kinds = kind_weights(self.kinds)

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
        return sample_kind(self._stream(index), self._weights)

    def fingerprint(self) -> dict[str, Any]:
        kinds = [f"{kind}={weight}" for kind, weight in self._weights.items()]
        settings = {"seed": self.seed, "split": self.split, "length": self.num_examples, "image_size": self.image_size}
        return {"kind": "scenes", "version": VERSION, "scene_kinds": kinds} | settings

    def _stream(self, index: int) -> Stream:
        return Stream(self.seed, checked_index(index, self.num_examples), self.split)

    @property
    def _weights(self) -> dict[str, float]:
        assert isinstance(self.kinds, dict)  # __post_init__ made it so
        return self.kinds

    def _describe(self, index: int) -> tuple[Scene, tuple[str, ...]]:
        rng = self._stream(index)
        scene = sample_kind(rng, self._weights)
        captions: list[str] = []
        for attempt in range(4 * CAPTIONS_PER_IMAGE):
            caption = caption_scene(scene, rng)
            if caption not in captions or attempt >= 3 * CAPTIONS_PER_IMAGE:
                captions.append(caption)
            if len(captions) == CAPTIONS_PER_IMAGE:
                break
        return scene, tuple(captions)


def check_num_examples(num_examples: int) -> None:
    if num_examples < 1:
        raise ValueError(f"num_examples={num_examples} of the drawn scenes: ask for at least 1")


def checked_index(index: int, length: int) -> int:
    if not 0 <= index < length:
        raise IndexError(f"index {index} of a source of {length} drawn scenes")
    return index
