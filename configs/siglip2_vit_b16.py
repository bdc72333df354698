"""SigLIP 2's ViT-B/16 at 256 pixels, as far as its training is published: the sigmoid loss and captions beside it.

    clip-jax train --config=siglip2_vit_b16 --config.data.path='TARS/{00000..99999}.tar' \\
        --config.data.tokenizer_file=GEMMA/tokenizer.json --workdir=runs/siglip2_b16

tokenizer.json is that of google/siglip2-base-patch16-256, with tokenizer_config.json beside it. Not here: the losses of
the last fifth of training (self-distillation, masked prediction), LocCa's boxes, prediction of all tokens at once and
gradient clipping; and WebLI is not public.
Hardware and time: `clip-jax plan` says at least 105 hours on 256 TPU v5e chips, for 40 billion pairs.
Result, the paper's and not ours: zero-shot ImageNet top-1 79.1 %.

Reference: Tschannen et al. 2025, https://arxiv.org/abs/2502.14786, sec. 2; Zhai et al. 2023, https://arxiv.org/abs/2303.15343.
"""

from ml_collections import ConfigDict

from configs import clip_vit_b32


def get_config() -> ConfigDict:
    config = clip_vit_b32.get_config()

    config.model.embed_dim = 768  # the towers' width: attention pooling has no projection behind it
    config.model.activation = "gelu_tanh"
    config.model.layer_norm_eps = 1e-6
    config.model.decoder_depth = 6  # half of the text tower's; sec. 2.2
    config.model.logit_scale_init = 10.0
    config.model.logit_bias_init = -10.0
    config.model.image_mean = config.model.image_std = (0.5, 0.5, 0.5)

    config.vision.image_size = 256  # pixels
    config.vision.patch_size = 16  # pixels
    config.vision.pooling = "attention"
    config.vision.width = 768
    config.vision.depth = 12
    config.vision.num_heads = 12

    config.text.context_length = 64
    config.text.vocab_size = 256_000  # Gemma's
    config.text.causal = False
    config.text.pooling = "last"
    config.text.projection_bias = True
    config.text.width = 768
    config.text.depth = 12
    config.text.num_heads = 12

    config.loss.kind = "sigmoid"
    config.loss.block_size = 256
    config.loss.caption_weight = 1.0  # as much as the sigmoid loss; sec. 2.2

    config.data.tokenizer = "tokenizer_json"
    config.data.pack_text = False

    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 1e-4
    config.optimizer.b2 = 0.95
    config.optimizer.warmup_steps = 20_000

    config.train.global_batch_size = 32_768
    config.train.total_steps = 1_220_703  # 40 billion pairs
    return config
