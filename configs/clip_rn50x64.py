"""RN50x64 as in the paper (table 19).

    clip-jax train --config=clip_rn50x64 --config.data.path='TARS/{00000..39999}.tar' --workdir=runs/rn50x64

Hardware and time, the paper's (sec. 2.5): 18 days on 592 V100 GPUs.
Result, the paper's and not ours: zero-shot ImageNet top-1 73.6 % of the released weights, with 80 prompts ensembled.
"""

from ml_collections import ConfigDict

from configs import clip_rn50
from configs.model_sizes import set_sizes


def get_config() -> ConfigDict:
    config = set_sizes(clip_rn50.get_config(), "RN50x64")
    config.optimizer.learning_rate = 3.6e-4
    return config
