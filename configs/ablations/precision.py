"""Activations in bfloat16 beside float32: clip-jax ablate precision --workdir=runs/ablations"""

from ml_collections import ConfigDict

from configs.ablations import bases
from configs.ablations.bases import changed, zero_shot_difference


def get_config(scale: str = "mini") -> ConfigDict:
    config = bases.get_config(scale)
    config.about.question = "Does mixed precision cost accuracy?"
    config.about.place = "sec. 2.5"
    config.about.finding = "mixed precision is used for speed and memory; float32 is not shown."
    config.about.note = (
        "bfloat16 here, float16 in the paper; parameters, moments and the loss are float32 in both runs. Asked: a "
        "difference of less than three points either way."
    )
    config.findings = (zero_shot_difference("bfloat16 less float32:", "bfloat16", "float32", low=-0.03, high=0.03),)
    return config


def arms(scale: str) -> dict:
    return {dtype: changed(model__compute_dtype=dtype) for dtype in ("float32", "bfloat16")}
