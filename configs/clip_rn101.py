"""RN101 as in the paper (table 19).

    clip-jax train --config=clip_rn101 --config.data.path='TARS/{00000..39999}.tar' --workdir=runs/rn101

Hardware and time: not in the paper.
Result, the paper's and not ours: zero-shot ImageNet top-1 62.2 % of the released weights, with 80 prompts ensembled.
"""

from ml_collections import ConfigDict

from configs import clip_rn50
from configs.model_sizes import set_sizes


def get_config() -> ConfigDict:
    return set_sizes(clip_rn50.get_config(), "RN101")
