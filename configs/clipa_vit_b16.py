"""CLIPA's ViT-B/16: most of training on small pictures and short text, 49 patches and 16 positions.

    clip-jax train --config=clipa_vit_b16 --config.data.path='TARS/{00000..39999}.tar' --workdir=runs/clipa_vit_b16

Then clipa_vit_b16_tune. Reference: Li et al. 2023, https://arxiv.org/abs/2305.07017; what the paper leaves open is its
released configuration's. Our towers, vocabulary and positions are CLIP's; theirs have a text tower of width 768, BERT's
vocabulary and fixed sine positions for images.
Hardware and time, the paper's: 2 days on 8 A100 GPUs with the tuning.
Result after tuning, the paper's and not ours: zero-shot ImageNet top-1 63.2 %.
"""

from ml_collections import ConfigDict

from configs import clip_vit_b16


def get_config() -> ConfigDict:
    config = clip_vit_b16.get_config()

    config.vision.image_size = 112

    config.text.context_length = 16

    config.data.min_crop_scale = 0.63  # of the shorter side: their crops have at least 40 % of the area

    config.optimizer.learning_rate = 8e-6 * 32_768 / 256
    config.optimizer.b2 = 0.95
    config.optimizer.warmup_steps = 1600

    config.train.total_steps = 78_125  # 6.4 epochs of 400M pairs
    return config
