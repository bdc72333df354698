"""RN50x16 as in the paper (table 19).

    clip-jax train --config=clip_rn50x16 --config.data.path='TARS/{00000..39999}.tar' --workdir=runs/rn50x16

Hardware and time: not told in the paper.
Result, the paper's and not ours: zero-shot ImageNet top-1 70.5 % of the released weights, with 80 prompts ensembled.
"""

from ml_collections import ConfigDict

from configs import clip_rn50


def get_config() -> ConfigDict:
    config = clip_rn50.get_config()

    config.model.embed_dim = 768

    config.vision.image_size = 384
    config.vision.stages = (6, 8, 18, 8)
    config.vision.stem_width = 96
    config.vision.num_heads = 48

    config.text.width = 768
    config.text.num_heads = 12

    config.optimizer.learning_rate = 4e-4
    return config
