"""The built-in data set: a miniature visual world drawn with Pillow, a pure function of (seed, index).

Nothing is downloaded or stored. Each picture shows one object, a pair in a relation, one to five equal objects, a digit
or a word. The eight shape-colour pairs of HELD_OUT are never drawn by `SceneSource`; `LabelledScenes("held_out", ...)`
asks for them, so naming them right takes composition, not memory.

Read in this order: `world.py` (what there is to see), `streams.py` (random numbers), `sampling.py` (numbers to scene),
`captions.py` (scene to words), `drawing.py` (scene to pixels), `source.py` (training records by index), `labelled.py`
(zero-shot classification sets).
"""

from input_pipeline.scenes.captions import caption_scene
from input_pipeline.scenes.drawing import draw_scene
from input_pipeline.scenes.labelled import LABELLED_SETS, LabelledScenes
from input_pipeline.scenes.sampling import KIND_WEIGHTS, sample_scene
from input_pipeline.scenes.source import SceneSource
from input_pipeline.scenes.world import HELD_OUT, PAIRS, TRAINED_PAIRS, VERSION, Scene, Thing

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
