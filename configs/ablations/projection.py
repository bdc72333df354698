"""Linear and non-linear projections into the joint space: clip-jax ablate projection --workdir=runs/ablations"""

from ml_collections import ConfigDict

from configs.ablations import bases
from configs.ablations.bases import changed, same, zero_shot_difference


def get_config(scale: str = "mini") -> ConfigDict:
    config = bases.get_config(scale)
    config.about.question = "Does a non-linear projection into the joint space learn more than a linear one?"
    config.about.place = "sec. 2.3"
    config.about.finding = "no difference in training efficiency between the two versions."
    config.about.note = "Asked: a difference of less than three points either way."
    config.findings = (zero_shot_difference("non-linear less linear:", "non-linear", "linear", low=-0.03, high=0.03),)
    return config


def arms(scale: str) -> dict:
    return {"linear": same, "non-linear": changed(model__projection="mlp")}
