"""RN50 as in the paper (tables 18 and 19), and the base of the other ResNets.

    clip-jax train --config=clip_rn50 --config.data.path='TARS/{00000..39999}.tar' --workdir=runs/rn50

Hardware and time: not told in the paper.
Result, the paper's and not ours: zero-shot ImageNet top-1 59.6 % of the released weights, with 80 prompts ensembled.
"""

from ml_collections import ConfigDict

from configs import clip_vit_b32
from configs.model_sizes import MODEL_SIZES, set_sizes


def get_config() -> ConfigDict:
    config = clip_vit_b32.get_config()

    config.vision = ConfigDict(MODEL_SIZES["RN50"]["vision"])  # heads are those of the attention pooling
    config.vision.batch_norm = "per_device"  # statistics over the images of one device
    set_sizes(config, "RN50")

    config.optimizer.b2 = 0.999
    config.optimizer.eps = 1e-8
    return config
