"""A learned temperature beside fixed ones: clip-jax ablate temperature --workdir=runs/ablations"""

from ml_collections import ConfigDict

from configs.ablations import bases
from configs.ablations.bases import ZERO_SHOT, changed, finding, same

FIXED = (14, 100)  # logit scales, 1 / temperature; near 14, 1 / 0.07, the learned one starts; 100 is the clamp


def get_config(scale: str = "mini") -> ConfigDict:
    config = bases.get_config(scale)
    config.about.question = "Does a learned temperature spare the search for a fixed one?"
    config.about.place = "sec. 2.3"
    config.about.finding = (
        "the temperature is optimised in training as a log-parameterised multiplicative scalar, which avoids tuning it "
        "as a hyper-parameter; the paper shows no fixed ones."
    )
    config.about.note = "Asked: the learned one at most three points below the best fixed one, and above the worst."
    if scale == "mini":
        config.about.note += " In 1,000 steps the learned scale moves from 14.3 to about 16 only."
    learned = {**ZERO_SHOT, "arm": "learned"}
    fixed = {**ZERO_SHOT, "arm": tuple(f"fixed {value}" for value in FIXED)}
    config.findings = (
        finding("the learned temperature less the best fixed one:", "difference_to_best", learned, fixed, low=-0.03),
        finding("less the worst fixed one:", "difference_to_worst", learned, fixed, low=0),
    )
    return config


def arms(scale: str) -> dict:
    def fixed(value: float):
        return changed(model__logit_scale_init=float(value), optimizer__learn_logit_scale=False)

    return {"learned": same, **{f"fixed {value}": fixed(value) for value in FIXED}}
