"""Where zero-shot is weak: counts, relations, digits: clip-jax ablate limitations --workdir=runs/ablations"""

from ml_collections import ConfigDict

from configs.ablations import bases
from configs.ablations.bases import FEW_SHOT, PROBE, ZERO_SHOT, finding


def get_config(scale: str = "mini") -> ConfigDict:
    config = bases.world_config(scale)
    config.about.question = "Where does zero-shot fail although a probe of the same features does not?"
    config.about.place = "sec. 3.1.5 and 6"
    config.about.finding = (
        "zero-shot is weak at abstract tasks such as counting and at what is unlike its training data, as handwritten "
        "digits (88 % on MNIST); a probe with few labels starts below zero-shot."
    )
    config.about.note = (
        "Asked: zero-shot below the probe of the same features on counts and relations, and on handwritten digits; and "
        "one label a class below zero-shot on average over all sets, shifts and digits included."
    )
    if scale == "mini":
        config.about.note += " The digits are scikit-learn's; counts, relations and drawn digits are in the captions."
    abstract, digits = (
        (("scenes/count", "scenes/relation"), bases.DIGITS) if scale == "mini" else (("clevr_counts", "kitti"), "mnist")
    )
    one = {**FEW_SHOT, "shots": 1}
    config.figure.kind, config.figure.x_label, config.figure.y_label = "bars", "accuracy", ""
    config.figure.series = (("zero-shot", ZERO_SHOT), ("one label a class", one), ("linear probe", PROBE))
    counted, written = ([{**what, "set": names} for what in (PROBE, ZERO_SHOT)] for names in (abstract, digits))
    config.findings = (
        finding("counts and relations, probe less zero-shot:", "difference", *counted, low=0),
        finding("handwritten digits, probe less zero-shot:", "difference", *written, low=0),
        finding("zero-shot less one label a class:", "difference", ZERO_SHOT, one, low=0),
    )
    return config


arms = bases.one_run
