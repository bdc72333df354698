"""The encoders as Flax NNX modules."""

from clip_jax.models.caption_models import BagOfWords, LanguageModel
from clip_jax.models.clip import CLIP, normalize_images
from clip_jax.models.config import ModelConfig
from clip_jax.models.published import PUBLISHED
from clip_jax.models.text_transformer import PackedText
from clip_jax.models.towers import ResNetConfig, TextConfig, TransformerConfig, VisionConfig
from clip_jax.models.variables import make_model

__all__ = [
    "CLIP",
    "PUBLISHED",
    "BagOfWords",
    "LanguageModel",
    "ModelConfig",
    "PackedText",
    "ResNetConfig",
    "TextConfig",
    "TransformerConfig",
    "VisionConfig",
    "make_model",
    "normalize_images",
]
