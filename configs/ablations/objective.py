"""Contrast, bag of words or language model: clip-jax ablate objective --workdir=runs/ablations"""

from ml_collections import ConfigDict

from configs.ablations import bases
from configs.ablations.bases import ZERO_SHOT, changed, finding, same

ARMS = ("contrastive", "bag of words", "language model")
PAPER = (("bag of words over\nlanguage model", 3.0), ("contrast over\nbag of words", 4.0))


def get_config(scale: str = "mini") -> ConfigDict:
    config = bases.get_config(scale)
    config.about.question = "Which objective learns zero-shot classification from the fewest images?"
    config.about.place = "fig. 2"
    config.about.finding = (
        "bag-of-words prediction learns three times as fast as a transformer language model of the same captions, and "
        "the contrastive objective another four times as fast."
    )
    config.about.note = (
        "Asked: contrast reaches the language model's last accuracy with at most a quarter of its images, and the bag "
        "of words' with at most half; the bag of words the language model's with at most half. All have the rate of "
        "the contrastive recipe, which is not tuned for the other two. "
    )
    judged, *others = bases.PAIR_SETS if scale == "mini" else bases.FULL_SETS
    if scale == "mini":
        config.about.note += (
            "Judged on pairs of shape and colour that captions name. On pairs that no caption names, the other two "
            "cannot score: they learn which words stand together, and that these never do."
        )
        config.base.train.total_steps, config.base.train.evaluate_every = 1200, 75
        config.base.evaluation.zero_shot, config.base.evaluation.num_examples = bases.PAIR_SETS, 256
    else:  # the language model reads every prompt with every picture
        config.base.train.evaluate_every = config.base.train.total_steps // 40
        config.base.evaluation.templates, config.base.evaluation.num_examples = "one", 5000
    config.measure.kind, config.measure.sets = "curve", (judged, *others)
    config.figure.kind, config.figure.x, config.figure.log_x = "lines", "samples_seen", True
    config.figure.series = (("{arm}", {**ZERO_SHOT, "set": judged}),)
    config.figure.x_label = "images processed"
    config.second = config.figure.copy_and_resolve_references()
    config.second.x, config.second.x_label = "far_compute", "FLOPs of training"
    unseen = tuple((f"{arm}, unnamed pairs", {**ZERO_SHOT, "set": name, "arm": arm}) for name in others for arm in ARMS)
    config.figure.series += unseen
    config.paper.series = (("times fewer images", PAPER),)
    config.paper.x_label, config.paper.source = "times fewer images for the same accuracy", "fig. 2"
    contrast, words, language = ({**ZERO_SHOT, "set": judged, "arm": arm} for arm in ARMS)

    def ratio(words: str, a: dict, b: dict, low: float) -> dict:
        return finding(words, "ratio_to_reach", a, b, x="samples_seen", low=low, unit="times")

    compute = "compute of the language model over that of contrast,"
    config.findings = (
        ratio("images of the language model over those of contrast,", contrast, language, 4),
        ratio("of the bag of words over those of contrast,", contrast, words, 2),
        ratio("of the language model over those of the bag of words,", words, language, 2),
        finding(compute, "ratio_to_reach", contrast, language, x="far_compute", unit="times"),
    )
    for name in others:
        where = {**ZERO_SHOT, "set": name, "last": True}
        config.findings += tuple(
            finding(f"{arm} on unnamed pairs:", "mean", {**where, "arm": arm}, unit="percent") for arm in ARMS
        )
    return config


def arms(scale: str) -> dict:
    changes = same, changed(loss__kind="bag_of_words"), changed(loss__kind="language_model")
    return dict(zip(ARMS, changes))
