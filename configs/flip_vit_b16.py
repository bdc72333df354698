"""FLIP's ViT-B/16: half of the patches of each picture are left out, so that a step costs about half.

    clip-jax train --config=flip_vit_b16 --config.data.path='TARS/{00000..39999}.tar' --workdir=runs/flip_vit_b16

Then flip_vit_b16_unmasked. Reference: Li et al. 2022, https://arxiv.org/abs/2212.00794; what the paper leaves open is
its released configuration's. Our towers and vocabulary are CLIP's; theirs average over the patches and have BERT's
vocabulary and fixed sine positions for images.
Hardware and time: the paper gives those of ViT-L/16 only. Result: not measured here.
"""

from ml_collections import ConfigDict

from configs import clip_vit_b16


def get_config() -> ConfigDict:
    config = clip_vit_b16.get_config()

    config.vision.patch_dropout = 0.5

    config.text.context_length = 32

    config.data.min_crop_scale = 0.71  # of the shorter side: their crops have at least half of the area

    config.optimizer.learning_rate = 4e-6 * 65_536 / 256
    config.optimizer.b2 = 0.95
    config.optimizer.warmup_steps = 391  # 25.6M pairs

    config.train.global_batch_size = 65_536
    config.train.total_steps = 195_312  # 32 epochs of 400M pairs
    return config
