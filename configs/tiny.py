"""The default job: CLIP on drawn scenes, from nothing to zero-shot accuracy in minutes on two cores.

    clip-jax train --config=tiny --workdir=runs/tiny

Hardware: two CPU cores. Time: 3.6 minutes in all, about 1,250 images/s.
Result, measured: zero-shot over all 64 shape-colour pairs (chance 1.6 %) 96.7 % on trained pairs and 83.2 % on pairs
held out of training; retrieval among 512 pictures, R@10 91.6 % image to text and 84.6 % text to image (chance 2 %).
"""

from ml_collections import ConfigDict

from configs import clip_vit_b32


def get_config() -> ConfigDict:
    config = clip_vit_b32.get_config()

    config.model.embed_dim = 64  # channels of the joint space
    config.model.compute_dtype = "float32"
    config.model.remat = "full"  # on a CPU faster than storing activations, at any batch size

    config.vision.image_size = 32  # pixels
    config.vision.patch_size = 8  # pixels
    config.vision.position_init_scale = 5.0  # 1 in the paper; this small, it learns shapes 1.5 times sooner with 5
    config.vision.width = 64
    config.vision.depth = 4
    config.vision.num_heads = 4

    config.text.context_length = 16  # tokens, start and end included
    config.text.vocab_size = 768
    config.text.width = 64
    config.text.depth = 1
    config.text.num_heads = 4

    config.data.source = "scenes"
    config.data.num_examples = 1_000_000  # drawn on demand
    config.data.scene_kinds = ("object",)  # () draws pairs, counts, digits and words, too
    config.data.num_validation = 512
    config.data.tokenizer = "sentencepiece"
    config.data.num_workers = 1

    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup_steps = 100

    config.train.global_batch_size = 128
    config.train.total_steps = 2000
    config.train.checkpoint_every = 500  # steps
    config.train.evaluate_every = 1000  # steps
    config.train.keep_checkpoints = 2

    config.evaluation.zero_shot = ("scenes/compositions", "scenes/held_out")
    config.evaluation.batch_size = 256
    return config
