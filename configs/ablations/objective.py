"""Three objectives on one image encoder: contrast, a bag of the caption's words, a language model of the caption.

clip-jax ablate objective --workdir=runs/ablations
"""

from ml_collections import ConfigDict

from configs.ablations import bases
from configs.ablations.bases import ZERO_SHOT, changed, finding, same


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
        "of words' with at most half; the bag of words the language model's with at most half. Half of the measure are "
        "pairs of shape and colour that no caption names."
    )
    config.measure.kind, config.measure.sets = "curve", bases.sets(scale)
    config.base.train.total_steps = 2000 if scale == "mini" else config.base.train.total_steps
    config.base.train.evaluate_every = config.base.train.total_steps // 10
    config.figure.kind, config.figure.x, config.figure.log_x = "lines", "samples_seen", True
    config.figure.series = (("{arm}", ZERO_SHOT),)
    config.figure.x_label = "images processed"
    config.second = config.figure.copy_and_resolve_references()
    config.second.x, config.second.x_label = "far_compute", "FLOPs of training"
    contrast, words, language = ({**ZERO_SHOT, "arm": arm} for arm in arms(scale))

    def ratio(words: str, a: dict, b: dict, low: float) -> dict:
        return finding(words, "ratio_to_reach", a, b, x="samples_seen", low=low, unit="times")

    config.findings = (
        ratio("images of the language model over those of contrast,", contrast, language, 4),
        ratio("of the bag of words over those of contrast,", contrast, words, 2),
        ratio("of the language model over those of the bag of words,", words, language, 2),
    )
    return config


def arms(scale: str) -> dict:
    return {
        "contrastive": same,
        "bag of words": changed(loss__kind="bag_of_words"),
        "language model": changed(loss__kind="language_model"),
    }
