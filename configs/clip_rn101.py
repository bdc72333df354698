"""RN101 as in the paper (table 19).

    clip-jax train --config=clip_rn101 --config.data.path='TARS/{00000..39999}.tar' --workdir=runs/rn101

Hardware and time: not told in the paper.
Result, the paper's and not ours: zero-shot ImageNet top-1 62.2 % of the released weights, with 80 prompts ensembled.
"""

from ml_collections import ConfigDict

from configs import clip_rn50


def get_config() -> ConfigDict:
    config = clip_rn50.get_config()

    config.model.embed_dim = 512

    config.vision.stages = (3, 4, 23, 3)
    return config
