"""RN50x64 as in the paper (table 19).

    clip-jax train --config=clip_rn50x64 --config.data.path='TARS/{00000..39999}.tar' --workdir=runs/rn50x64

Hardware and time, the paper's (sec. 2.5): 18 days on 592 V100 GPUs.
Result, the paper's and not ours: zero-shot ImageNet top-1 73.6 % of the released weights, with 80 prompts ensembled.
"""

from ml_collections import ConfigDict

from configs import clip_rn50


def get_config() -> ConfigDict:
    config = clip_rn50.get_config()

    config.vision.image_size = 448
    config.vision.stages = (3, 15, 36, 10)
    config.vision.stem_width = 128
    config.vision.num_heads = 64

    config.text.width = 1024
    config.text.num_heads = 16

    config.optimizer.learning_rate = 3.6e-4
    return config
