"""The built-in data set: a miniature visual world drawn with Pillow, a pure function of (seed, index).

Nothing is downloaded or stored. Each picture shows one object, a pair in a relation, one to five equal objects, a digit
or a word. The eight shape-colour pairs of HELD_OUT are never drawn by `SceneSource`; `LabelledScenes("held_out", ...)`
asks for them, so naming them right takes composition, not memory.

Read in this order: `world.py` (what there is to see, and random numbers to scene), `captions.py` (scene to words),
`drawing.py` (scene to pixels), `source.py` (records by index, to train on or labelled).
"""

from input_pipeline.scenes.captions import caption_scene
from input_pipeline.scenes.drawing import draw_scene
from input_pipeline.scenes.source import LABELLED_SETS, LabelledScenes, SceneSource
from input_pipeline.scenes.world import (
    HELD_OUT,
    KIND_WEIGHTS,
    PAIRS,
    TRAINED_PAIRS,
    VERSION,
    Scene,
    Thing,
    sample_scene,
)

__all__ = [
    "HELD_OUT",
    "KIND_WEIGHTS",
    "LABELLED_SETS",
    "PAIRS",
    "TRAINED_PAIRS",
    "VERSION",
    "LabelledScenes",
    "Scene",
    "SceneSource",
    "Thing",
    "caption_scene",
    "draw_scene",
    "sample_scene",
]
