"""ViT-B/16 as in the paper (table 20): ViT-B/32 with smaller patches.

    clip-jax train --config=clip_vit_b16 --config.data.path='TARS/{00000..39999}.tar' --workdir=runs/vit_b16

Hardware and time: not in the paper.
Result, the paper's and not ours: zero-shot ImageNet top-1 68.6 % of the released weights, with 80 prompts ensembled.
"""

from ml_collections import ConfigDict

from configs import clip_vit_b32
from configs.model_sizes import set_sizes


def get_config() -> ConfigDict:
    return set_sizes(clip_vit_b32.get_config(), "ViT-B/16")
