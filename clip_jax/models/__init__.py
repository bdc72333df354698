"""The encoders as Flax NNX modules."""

from clip_jax.models.clip import CLIP, CLIPFeatures, normalize_images
from clip_jax.models.config import ModelConfig, TextConfig, TransformerConfig, VisionConfig

__all__ = ["CLIP", "CLIPFeatures", "ModelConfig", "TextConfig", "TransformerConfig", "VisionConfig", "normalize_images"]
