"""CLIP in JAX/Flax: models, losses, training and evaluation. Read README.md beside this file for the order."""

from clip_jax.distributed.sharding import ShardingConfig, make_mesh
from clip_jax.inference.api import Model, available_models, load
from clip_jax.losses import contrastive_loss, sharded_contrastive_loss
from clip_jax.models import CLIP, ModelConfig, ResNetConfig, TextConfig, VisionConfig

__all__ = [
    "CLIP",
    "Model",
    "ModelConfig",
    "ResNetConfig",
    "ShardingConfig",
    "TextConfig",
    "VisionConfig",
    "available_models",
    "contrastive_loss",
    "load",
    "make_mesh",
    "sharded_contrastive_loss",
]
