"""Few-shot probes beside zero-shot, averaged over sets: clip-jax ablate few_shot --workdir=runs/ablations"""

from ml_collections import ConfigDict

from configs.ablations import bases
from configs.ablations.bases import FEW_SHOT, ZERO_SHOT, finding


def get_config(scale: str = "mini") -> ConfigDict:
    config = bases.world_config(scale)
    config.about.question = "How many labels a class does a probe need to match zero-shot on average?"
    config.about.place = "fig. 6"
    config.about.finding = "four on average over 20 sets; one or two labels a class are worse than none."
    config.about.note = "Asked: one label a class below zero-shot, and a match at 16 or fewer."
    if scale == "mini":
        config.about.note = f"Of nine of the drawn world's sets. {config.about.note}"
        # Without the shifts, and compositions, of which some classes have nothing to train on.
        config.measure.sets = bases.WORLD_SETS[:-1]
    config.figure.kind, config.figure.x, config.figure.log_x = "lines", "shots", True
    config.figure.series = (("few-shot probe", FEW_SHOT), ("zero-shot", ZERO_SHOT))
    config.figure.x_label, config.figure.y_label = "labels a class", "accuracy, average over sets"
    match = finding("labels a class to match:", "matching_shots", FEW_SHOT, ZERO_SHOT, low=1, high=16, unit="number")
    one = {**FEW_SHOT, "shots": 1}
    config.findings = (finding("zero-shot less one label a class:", "difference", ZERO_SHOT, one, low=0), match)
    return config


arms = bases.one_run
