"""Labels a class that match zero-shot, set by set: clip-jax ablate data_efficiency --workdir=runs/ablations"""

from ml_collections import ConfigDict

from configs.ablations import bases
from configs.ablations.bases import finding

LABELS = {"what": "labels_to_match"}
PAPER = (("least", 1.0), ("median", 5.4), ("ImageNet", 16.0), ("mean", 20.8), ("most", 184.0))


def get_config(scale: str = "mini") -> ConfigDict:
    config = bases.world_config(scale)
    config.about.question = "How many labels a class is zero-shot worth, set by set?"
    config.about.place = "fig. 7"
    config.about.finding = "from 1 to 184, 5.4 in the median, 20.8 on average, 16 on ImageNet."
    config.about.note = (
        "A set whose probe with one label is above zero-shot counts 1, one whose probe stays below counts all labels. "
        "Asked: a median of more than one label."
    )
    config.figure.kind, config.figure.unit, config.figure.y_label = "bars", "number", ""
    config.figure.log_x = True
    config.figure.series = (("labels a class", LABELS),)
    config.figure.x_label = "labels a class that match zero-shot"
    config.paper.series = (("labels a class", PAPER),)
    config.paper.x_label, config.paper.source = "labels a class that match zero-shot", "fig. 7"
    config.findings = (finding("labels a class in the median:", "median", LABELS, low=1, unit="number"),)
    return config


arms = bases.one_run
