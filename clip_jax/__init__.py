"""CLIP in JAX/Flax: models, losses, training and evaluation. Read README.md beside this file for the order.

The names below are imported when they are first used, so that `import clip_jax` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

from clip_jax.installation import __version__, check_distributions

if TYPE_CHECKING:
    from clip_jax.distributed.sharding import ShardingConfig, make_mesh
    from clip_jax.inference.api import Model, available_models, load
    from clip_jax.losses import contrastive_loss, sharded_contrastive_loss
    from clip_jax.models import CLIP, ModelConfig, ResNetConfig, TextConfig, VisionConfig

check_distributions()

_MODULES = {
    "CLIP": "models",
    "Model": "inference.api",
    "ModelConfig": "models",
    "ResNetConfig": "models",
    "ShardingConfig": "distributed.sharding",
    "TextConfig": "models",
    "VisionConfig": "models",
    "available_models": "inference.api",
    "contrastive_loss": "losses",
    "load": "inference.api",
    "make_mesh": "distributed.sharding",
    "sharded_contrastive_loss": "losses",
}
__all__ = [
    "CLIP",
    "Model",
    "ModelConfig",
    "ResNetConfig",
    "ShardingConfig",
    "TextConfig",
    "VisionConfig",
    "__version__",
    "available_models",
    "contrastive_loss",
    "load",
    "make_mesh",
    "sharded_contrastive_loss",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'clip_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(f"clip_jax.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
