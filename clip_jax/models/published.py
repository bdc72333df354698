"""The published models by name. Their sizes are in model_sizes.json, whose keys `configs.model_sizes` explains."""

import json
from importlib.resources import files
from typing import Any

from clip_jax.models.config import ModelConfig
from clip_jax.models.towers import ResNetConfig, TextConfig, VisionConfig

FAMILIES: dict[str, dict[str, Any]] = json.loads(files(__package__).joinpath("model_sizes.json").read_text())
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
for family, models in FAMILIES.items():
    for name, sizes in models.items():
        image, words = sizes["vision"], {"mlp_dim": 4 * sizes["text"]["width"], **sizes["text"]}
        if "stages" in image:
            vision: VisionConfig | ResNetConfig = ResNetConfig(**{**image, "stages": tuple(image["stages"])})
        else:
            pooling: Any = "attention" if family == "siglip" else "class_token"
            vision = VisionConfig(**{"mlp_dim": 4 * image["width"], **image}, pooling=pooling)
        text = TextConfig(**words, **(SIGLIP_TEXT if family == "siglip" else {"eot_token": words["vocab_size"] - 1}))
        activation = "quick_gelu" if family == "openai" else "gelu"
        others = SIGLIP_MODEL if family == "siglip" else {"activation": activation}
        PUBLISHED[name] = ModelConfig(**sizes["model"], vision=vision, text=text, **others)
