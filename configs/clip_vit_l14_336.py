"""ViT-L/14@336px as in the paper: one more epoch of ViT-L/14 at 336 pixels (sec. 2.5, table 20).

    clip-jax train --config=clip_vit_l14_336 --config.data.path='TARS/{00000..39999}.tar' --workdir=runs/vit_l14_336

Starts from the released ViT-L/14; --config.train.init_from=PATH takes other weights. The paper does not tell the
schedule of this epoch but for its learning rate: warm-up and cosine are those of the other models.
Hardware and time: not told in the paper.
Result, the paper's and not ours: zero-shot ImageNet top-1 76.2 % of the released weights, with 80 prompts ensembled.
"""

from ml_collections import ConfigDict

from configs import clip_vit_l14
from configs.model_sizes import set_sizes


def get_config() -> ConfigDict:
    config = set_sizes(clip_vit_l14.get_config(), "ViT-L/14@336px")
    config.optimizer.learning_rate = 2e-5
    config.train.init_from = "ViT-L/14"
    config.train.total_steps = 12_207  # 400M pairs
    return config
