"""The built-in world's labelled sets: shapes, colours, textures, positions, counts, relations, digits, words, shifts.

    clip-jax evaluate --config=suites/scenes --workdir=runs/tiny --output=runs/tiny/scenes

Nothing to download; minutes on two cores. Of the run that `--config=tiny` trains, which sees single objects only, the
counts, relations, digits and words are near chance: train with `--config.data.scene_kinds="()"` to draw them, too.
"""

from ml_collections import ConfigDict

from configs.suites import paper


def get_config() -> ConfigDict:
    config = paper.get_config()
    config.suite.name = "The drawn world"
    config.suite.datasets = (
        "scenes/compositions", "scenes/held_out", "scenes/shape", "scenes/colour", "scenes/size", "scenes/texture",
        "scenes/position", "scenes/count", "scenes/relation", "scenes/digit", "scenes/word", "scenes/sketch",
        "scenes/recoloured",
    )  # fmt: skip
    config.suite.measures = ("zero_shot", "linear_probe", "few_shot", "retrieval", "robustness", "overlap")
    config.zero_shot.prompts = ("bare", "one", "own", "imagenet7", "imagenet80")
    config.robustness.reference = "scenes/shape"
    config.robustness.shifts = ("scenes/sketch", "scenes/recoloured")
    config.overlap.num_training = 20_000
    return config
