"""The paper's softmax loss beside SigLIP's sigmoid loss: clip-jax ablate loss --workdir=runs/ablations"""

from ml_collections import ConfigDict

from configs.ablations import bases
from configs.ablations.bases import changed, same, zero_shot_difference


def get_config(scale: str = "mini") -> ConfigDict:
    config = bases.get_config(scale)
    config.about.question = "Does the sigmoid loss learn as much as the softmax over the batch?"
    config.about.place = "sec. 2.3; Zhai et al. 2023 (SigLIP), sec. 4.1"
    config.about.finding = "SigLIP: the sigmoid loss is ahead at small batches, and level at large ones."
    config.about.note = "Asked: the sigmoid loss at most three points below the softmax."
    config.findings = (zero_shot_difference("sigmoid less softmax:", "sigmoid", "softmax", low=-0.03),)
    return config


def arms(scale: str) -> dict:
    sigmoid = changed(loss__kind="sigmoid", model__logit_bias_init=-10.0, model__logit_scale_init=10.0)
    return {"softmax": same, "sigmoid": sigmoid}
