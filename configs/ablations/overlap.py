"""What near-duplicates add to accuracy: clip-jax ablate overlap --workdir=runs/ablations"""

from ml_collections import ConfigDict

from configs.ablations import bases
from configs.ablations.bases import finding

SHARE, GAIN = {"what": "overlap_share"}, {"what": "overlap_gain"}
DIFFERENCE, BEYOND = {"what": "overlap_difference"}, {"what": "overlap_beyond"}


def get_config(scale: str = "mini") -> ConfigDict:
    config = bases.world_config(scale)
    config.about.question = "Does overlap with the training images inflate zero-shot accuracy?"
    config.about.place = "fig. 17"
    config.about.finding = "2.2 % of a set overlap in the median, which adds rarely more than 0.1 points, 0.6 at most."
    taken = "5,000 training images of a run" if scale == "mini" else "A million training images"
    config.about.note = (
        f"{taken}; a duplicate is 0.95 or more similar by the perceptual embedding. Only sets with both overlapping "
        "and clean images count, and what the overlap adds to a set's accuracy is never more than its share. Asked: "
        "images that overlap are right more often than the clean ones of their set by less than five points, and "
        "beyond the interval of 99.5 % on less than a quarter of the sets."
    )
    config.figure.kind, config.figure.unit = "scatter", "points"
    config.figure.series = (("overlap", SHARE), ("difference", DIFFERENCE))
    config.figure.x_label, config.figure.y_label = "share of the set that overlaps", "accuracy, overlapping less clean"
    config.second = config.figure.copy_and_resolve_references()
    config.second.series, config.second.y_label = (("overlap", SHARE), ("gain", GAIN)), "accuracy, all less clean"
    nothing = "not decidable: no set has both overlapping and clean images"
    config.findings = (
        finding("accuracy, overlapping less clean:", "mean", DIFFERENCE, high=0.05, nothing=nothing),
        finding("sets with more beyond 99.5 %:", "mean", BEYOND, high=0.25, unit="percent", nothing=nothing),
        finding("what overlap adds to a set, the most:", "largest_difference", GAIN, nothing=nothing),
        finding("overlap of a set in the median:", "median", SHARE, unit="percent"),
    )
    return config


arms = bases.one_run
