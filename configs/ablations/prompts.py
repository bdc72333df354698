"""Bare names, one prompt, a set's own and 80: clip-jax ablate prompts --workdir=runs/ablations"""

from ml_collections import ConfigDict

from configs.ablations import bases
from configs.ablations.bases import finding

NAMES = {"bare": "bare names", "one": "a photo of a {}.", "own": "the set's own", "imagenet80": "ImageNet's 80"}
PROMPTS = {prompts: {"what": "prompts", "prompts": prompts} for prompts in NAMES}
PAPER = (("prompts and ensembles, 36 sets", 5.0), ("one prompt, ImageNet", 1.3), ("80 prompts, ImageNet", 4.8))


def get_config(scale: str = "mini") -> ConfigDict:
    config = bases.world_config(scale, "zero_shot", steps=700)  # the runs of scaling.py
    config.about.question = "How much do prompts and their ensembles add to bare class names?"
    config.about.place = "fig. 4 and sec. 3.1.4"
    config.about.finding = "almost five points on average over 36 sets; on ImageNet one prompt 1.3, 80 another 3.5."
    config.about.note = "Asked: the sets' own prompts above bare names."
    if scale == "mini":
        config.about.note += (
            " Names of the drawn sets are phrases with an article already, as captions have them, and their own "
            "prompts are the captions' own; prompts about photographs are strange to these models."
        )
    config.figure.kind, config.figure.x, config.figure.log_x = "lines", "compute", True
    config.figure.series = tuple((name, PROMPTS[prompts]) for prompts, name in NAMES.items())
    config.figure.x_label = "FLOPs of encoding one pair"
    config.figure.y_label = "zero-shot accuracy, average over sets"
    config.paper.series = (("points over bare names", PAPER),)
    config.paper.x_label, config.paper.source = "points over bare names", "fig. 4 and sec. 3.1.4"
    own, bare = PROMPTS["own"], PROMPTS["bare"]
    config.findings = (finding("the sets' own ensembles less bare names:", "difference", own, bare, low=0),)
    return config


def arms(scale: str) -> dict:
    return bases.sizes(scale)
