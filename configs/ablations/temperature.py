"""A learned temperature beside fixed ones.

clip-jax ablate temperature --workdir=runs/ablations
"""

from ml_collections import ConfigDict

from configs import ablation_bases
from configs.ablation_bases import finding, same

SETS = {"what": "zero_shot"}
FIXED = (3, 14, 50, 100)  # logit scales, 1 / temperature; 1 / 0.07 is 14, 100 the clamp


def get_config(scale: str = "mini") -> ConfigDict:
    config = ablation_bases.get_config(scale)
    config.about.question = "Does a learned temperature spare the search for a fixed one?"
    config.about.place = "sec. 2.3"
    config.about.finding = (
        "the temperature is optimised in training as a log-parameterised multiplicative scalar, which avoids tuning it "
        "as a hyper-parameter; the paper shows no fixed ones."
    )
    config.about.note = "Finding: the learned one is at most three points below the best of the fixed ones."
    config.measure.sets = ablation_bases.sets(scale)
    fixed = tuple(f"fixed {value}" for value in FIXED)
    config.findings = (
        finding(
            "the learned temperature less the best fixed one:",
            "difference_to_best",
            {**SETS, "arm": "learned"},
            {**SETS, "arm": fixed},
            low=-0.03,
        ),
        finding(
            "the learned one less the scale fixed at 3:",
            "difference",
            {**SETS, "arm": "learned"},
            {**SETS, "arm": fixed[0]},
        ),
    )
    return config


def arms(scale: str) -> dict:
    def fixed(value: float):
        def change(config: ConfigDict) -> ConfigDict:
            config.model.logit_scale_init = float(value)
            config.optimizer.learn_logit_scale = False
            return config

        return change

    return {"learned": same, **{f"fixed {value}": fixed(value) for value in FIXED}}
