"""The published models by name, from the table of their sizes in `configs.model_sizes`."""

from typing import Any

from clip_jax.models.config import ModelConfig, ResNetConfig, TextConfig, VisionConfig
from configs.model_sizes import MODEL_SIZES, OPENAI, SIGLIP

SIGLIP_TEXT: dict[str, Any] = {"eot_token": 1, "causal": False, "pooling": "last", "projection_bias": True}
SIGLIP_MODEL: dict[str, Any] = {
    "activation": "gelu_tanh",
    "layer_norm_eps": 1e-6,
    "logit_scale_init": 10.0,
    "logit_bias_init": -10.0,
    "image_mean": (0.5, 0.5, 0.5),
    "image_std": (0.5, 0.5, 0.5),
}

PUBLISHED: dict[str, ModelConfig] = {}
for name, sizes in MODEL_SIZES.items():
    image, words = sizes["vision"], {"mlp_dim": 4 * sizes["text"]["width"], **sizes["text"]}
    if "stages" in image:
        vision: VisionConfig | ResNetConfig = ResNetConfig(**image)
    else:
        pooling: Any = "attention" if name in SIGLIP else "class_token"
        vision = VisionConfig(**{"mlp_dim": 4 * image["width"], **image}, pooling=pooling)
    text = TextConfig(**words, **(SIGLIP_TEXT if name in SIGLIP else {"eot_token": words["vocab_size"] - 1}))
    others = SIGLIP_MODEL if name in SIGLIP else {"activation": "quick_gelu" if name in OPENAI else "gelu"}
    PUBLISHED[name] = ModelConfig(**sizes["model"], vision=vision, text=text, **others)
