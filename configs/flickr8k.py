"""CLIP from scratch on real photographs: Flickr8k's 6,000 training pictures at 128 pixels, 500 of them held out.

    clip-jax train --config=flickr8k --config.data.path=DIR_OF_TARS --workdir=runs/flickr8k

Hardware: two CPU cores. Time: 12 minutes in all, about 350 images/s.
Result, measured on the 500 held-out pictures with five captions each: R@1/5/10 4.2/16.0/21.8 % image to text and
3.6/13.1/20.3 % text to image (chance 0.2/1/2 %).
"""

from ml_collections import ConfigDict

from configs import tiny


def get_config() -> ConfigDict:
    config = tiny.get_config()

    config.model.embed_dim = 128

    config.vision.image_size = 80
    config.vision.patch_size = 16
    config.vision.width = 128

    config.text.context_length = 24  # of Flickr8k's captions about 1 in 50 is longer
    config.text.vocab_size = 2048
    config.text.width = 128
    config.text.depth = 2

    config.data.source = "auto"
    config.data.path = ""  # of the data: --config.data.path=DIR
    config.data.num_validation = 500
    config.data.min_crop_scale = 0.4

    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 1.5
    config.optimizer.warmup_steps = 100

    config.train.global_batch_size = 256
    config.train.total_steps = 900
    config.train.checkpoint_every = 150
    config.train.evaluate_every = 150

    config.evaluation.zero_shot = ()
    return config
