"""CLIP in JAX/Flax: models, losses, training and evaluation. Read README.md beside this file for the order."""

from clip_jax.losses import contrastive_loss, sharded_contrastive_loss
from clip_jax.models import CLIP, ModelConfig, TextConfig, VisionConfig

__all__ = ["CLIP", "ModelConfig", "TextConfig", "VisionConfig", "contrastive_loss", "sharded_contrastive_loss"]
