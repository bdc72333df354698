"""FLIP's second part: the model of flip_vit_b16 for a short while on whole pictures.

    clip-jax train --config=flip_vit_b16_unmasked --config.data.path='TARS/{00000..39999}.tar' --workdir=runs/flip_tuned

Starts from runs/flip_vit_b16; --config.train.init_from=PATH takes another run. Reference: see flip_vit_b16; the length
is the paper's ("unmasked tuning"); the learning rate, a hundredth of the first part's, and the warm-up are ours.
"""

from ml_collections import ConfigDict

from configs import flip_vit_b16


def get_config() -> ConfigDict:
    config = flip_vit_b16.get_config()

    config.vision.patch_dropout = 0.0

    config.optimizer.learning_rate = 1e-5
    config.optimizer.warmup_steps = 200

    config.train.init_from = "runs/flip_vit_b16"
    config.train.total_steps = 1953  # 0.32 epochs of 400M pairs
    return config
