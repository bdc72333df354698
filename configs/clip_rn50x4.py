"""RN50x4 as in the paper (table 19).

    clip-jax train --config=clip_rn50x4 --config.data.path='TARS/{00000..39999}.tar' --workdir=runs/rn50x4

Hardware and time: not told in the paper.
Result, the paper's and not ours: zero-shot ImageNet top-1 65.8 % of the released weights, with 80 prompts ensembled.
"""

from ml_collections import ConfigDict

from configs import clip_rn50


def get_config() -> ConfigDict:
    config = clip_rn50.get_config()

    config.model.embed_dim = 640

    config.vision.image_size = 288
    config.vision.stages = (4, 6, 10, 6)
    config.vision.stem_width = 80
    config.vision.num_heads = 40

    config.text.width = 640
    config.text.num_heads = 10
    return config
