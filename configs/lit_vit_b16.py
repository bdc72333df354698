"""LiT: a new text tower learns to read the frozen image tower of the released ViT-B/16.

    clip-jax train --config=lit_vit_b16 --config.data.path='TARS/{00000..39999}.tar' --workdir=runs/lit_vit_b16

--config.train.init_from=PATH takes another image tower, a run's too. Reference: Zhai et al. 2021,
https://arxiv.org/abs/2111.07991 ("Lu": locked image tower, text tower from scratch); batch, steps, learning rate,
temperature, and length and size of the text tower are those of its released example. There the image tower was trained
to classify and has no projection, the optimizer decays and clips otherwise, and pictures are augmented.
Hardware and time, result: not measured here.
"""

from ml_collections import ConfigDict

from configs import clip_vit_b16


def get_config() -> ConfigDict:
    config = clip_vit_b16.get_config()

    config.model.logit_scale_init = 10.0

    config.text.context_length = 16
    config.text.width = 768
    config.text.num_heads = 12

    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 150
    config.optimizer.frozen = ("visual",)

    config.train.init_from = "ViT-B/16"
    config.train.init_towers = ("visual",)
    config.train.global_batch_size = 4096
    config.train.total_steps = 5000
    return config
