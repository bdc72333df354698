"""What near-duplicates of test images among the training images add to accuracy.

clip-jax ablate overlap --workdir=runs/ablations
"""

from ml_collections import ConfigDict

from configs.ablations import bases
from configs.ablations.bases import finding, same

SHARE, GAIN = {"what": "overlap_share"}, {"what": "overlap_gain"}


def get_config(scale: str = "mini") -> ConfigDict:
    config = bases.get_config(scale)
    config.about.question = "Does overlap with the training images inflate zero-shot accuracy?"
    config.about.place = "fig. 17"
    config.about.finding = "2.2 % of a set overlap in the median, which adds rarely more than 0.1 points, 0.6 at most."
    config.about.note = (
        "5,000 training images of a run; a duplicate is 0.95 or more similar by the perceptual embedding. A set "
        "without overlap gains nothing. Asked: what overlap adds to a set's accuracy is within one point on average."
    )
    config.measure.kind = "suite"
    config.suite = bases.world_suite(scale)
    config.base = bases.world(scale)
    config.figure.kind, config.figure.unit = "scatter", "points"
    config.figure.series = (("overlap", SHARE), ("gain", GAIN))
    config.figure.x_label, config.figure.y_label = "share of the set that overlaps", "accuracy, all less clean"
    config.findings = (
        finding("what overlap adds to a set, mean:", "mean", GAIN, low=-0.01, high=0.01),
        finding("overlap of a set in the median:", "median", SHARE, unit="percent"),
    )
    return config


def arms(scale: str) -> dict:
    return {"world": same}
