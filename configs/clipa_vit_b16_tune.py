"""CLIPA's second part: the model of clipa_vit_b16 for a short while at full resolution and 32 positions.

    clip-jax train --config=clipa_vit_b16_tune --config.data.path='TARS/{00000..39999}.tar' --workdir=runs/clipa_tuned

Starts from runs/clipa_vit_b16, its positions interpolated; --config.train.init_from=PATH takes another run.
Reference and result: see clipa_vit_b16.
"""

from ml_collections import ConfigDict

from configs import clipa_vit_b16


def get_config() -> ConfigDict:
    config = clipa_vit_b16.get_config()

    config.vision.image_size = 224

    config.text.context_length = 32

    config.optimizer.learning_rate = 8e-7 * 32_768 / 256
    config.optimizer.warmup_steps = 800

    config.train.init_from = "runs/clipa_vit_b16"
    config.train.total_steps = 4000  # 131M pairs
    return config
