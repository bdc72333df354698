"""The published models by name, from the table of their sizes in `configs.model_sizes`."""

from typing import Any

from clip_jax.models.config import ModelConfig, ResNetConfig, TextConfig, VisionConfig
from configs.model_sizes import OPEN_CLIP, OPENAI, SIGLIP, Sizes

SIGLIP_TEXT: dict[str, Any] = {"eot_token": 1, "causal": False, "pooling": "last", "projection_bias": True}
SIGLIP_MODEL: dict[str, Any] = {
    "activation": "gelu_tanh",
    "layer_norm_eps": 1e-6,
    "logit_scale_init": 10.0,
    "logit_bias_init": -10.0,
    "image_mean": (0.5, 0.5, 0.5),
    "image_std": (0.5, 0.5, 0.5),
}


def _transformer(sizes: dict[str, Any]) -> dict[str, Any]:
    return {"mlp_dim": 4 * sizes["width"], **sizes}


def _clip(sizes: Sizes, activation: Any) -> ModelConfig:
    vision, text = sizes["vision"], sizes["text"]
    return ModelConfig(
        **sizes["model"],
        vision=ResNetConfig(**vision) if "stages" in vision else VisionConfig(**_transformer(vision)),
        text=TextConfig(**_transformer(text), eot_token=text["vocab_size"] - 1),
        activation=activation,
    )


def _siglip(sizes: Sizes) -> ModelConfig:
    vision = VisionConfig(**_transformer(sizes["vision"]), pooling="attention")
    text = TextConfig(**_transformer(sizes["text"]), **SIGLIP_TEXT)
    return ModelConfig(**sizes["model"], vision=vision, text=text, **SIGLIP_MODEL)


PUBLISHED: dict[str, ModelConfig] = {
    **{name: _clip(sizes, "quick_gelu") for name, sizes in OPENAI.items()},
    **{name: _clip(sizes, "gelu") for name, sizes in OPEN_CLIP.items()},
    **{name: _siglip(sizes) for name, sizes in SIGLIP.items()},
}
