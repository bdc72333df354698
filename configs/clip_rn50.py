"""RN50 as in the paper (tables 18 and 19), and the base of the other ResNets.

    clip-jax train --config=clip_rn50 --config.data.path='TARS/{00000..39999}.tar' --workdir=runs/rn50

Hardware and time: not told in the paper.
Result, the paper's and not ours: zero-shot ImageNet top-1 59.6 % of the released weights, with 80 prompts ensembled.
"""

from ml_collections import ConfigDict

from configs import clip_vit_b32


def get_config() -> ConfigDict:
    config = clip_vit_b32.get_config()

    config.model.embed_dim = 1024

    config.vision = ConfigDict()  # table 19
    config.vision.image_size = 224  # pixels
    config.vision.stages = (3, 4, 6, 3)  # blocks
    config.vision.stem_width = 64  # channels; the last stage has 32 times as many
    config.vision.num_heads = 32  # of the attention pooling
    config.vision.batch_norm = "per_device"  # statistics over the images of one device

    config.optimizer.b2 = 0.999
    config.optimizer.eps = 1e-8
    return config
