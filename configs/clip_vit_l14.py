"""ViT-L/14 as in the paper (table 20).

    clip-jax train --config=clip_vit_l14 --config.data.path='TARS/{00000..39999}.tar' --workdir=runs/vit_l14

Hardware and time, the paper's (sec. 2.5): 12 days on 256 V100 GPUs.
Result, the paper's and not ours: zero-shot ImageNet top-1 75.3 % of the released weights, with 80 prompts ensembled.
"""

from ml_collections import ConfigDict

from configs import clip_vit_b32
from configs.model_sizes import set_sizes


def get_config() -> ConfigDict:
    config = set_sizes(clip_vit_b32.get_config(), "ViT-L/14")
    config.optimizer.learning_rate = 4e-4
    return config
