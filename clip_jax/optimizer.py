"""AdamW with decoupled decay on matrices only, under a linear warm-up and a cosine."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import optax

# By name, because stacked blocks make a bias two-dimensional.
DECAYED = {"kernel", "embedding", "positional_embedding"}
NOT_DECAYED = {"bias", "scale", "class_embedding", "probe", "logit_scale", "logit_bias"}


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW, its schedule and the clamp of the temperature.

    Attributes:
      learning_rate: the peak, reached after warmup_steps.
      weight_decay: decoupled, multiplied by the learning rate, on weights that are not gains or biases.
      b1, b2, eps: Adam's; the paper has b2 0.98 and eps 1e-6 for ViTs, 0.999 and 1e-8 for ResNets.
      warmup_steps: linear from 0; 2,000 in the paper.
      max_logit_scale: the logit scale is clamped to this after each step; 100 in the paper (sec. 2.5).

    Reference: Radford et al. 2021, tables 18 and 19.
    """

    learning_rate: float
    weight_decay: float
    b1: float
    b2: float
    eps: float
    warmup_steps: int
    max_logit_scale: float

    def __post_init__(self) -> None:
        if self.learning_rate <= 0:
            raise ValueError(f"optimizer.learning_rate={self.learning_rate} must be positive")
        if self.weight_decay < 0 or self.eps <= 0 or not (0 <= self.b1 < 1 and 0 <= self.b2 < 1):
            raise ValueError(
                f"optimizer.weight_decay={self.weight_decay}, eps={self.eps}, b1={self.b1}, b2={self.b2}: decay must "
                "not be negative, eps must be positive, b1 and b2 must lie in [0, 1)"
            )
        if self.max_logit_scale < 1:
            raise ValueError(f"optimizer.max_logit_scale={self.max_logit_scale} must be at least 1")


def make_schedule(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
    """Step to learning rate: 0 at step 0, the peak at warmup_steps, 0 again at total_steps."""
    if not 0 <= config.warmup_steps < total_steps:
        raise ValueError(
            f"optimizer.warmup_steps={config.warmup_steps} must lie between 0 and train.total_steps={total_steps}"
        )
    return optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, config.warmup_steps, total_steps)


def decay_mask(params: Mapping[str, Any]) -> Any:
    """True for each parameter that decays. Raises ValueError for a name that neither list knows."""

    def decays(path: tuple[Any, ...], _: Any) -> bool:
        name = path[-1].key
        if name not in DECAYED | NOT_DECAYED:
            raise ValueError(f"parameter {jax.tree_util.keystr(path)}: say in optimizer.py whether {name!r} decays")
        return name in DECAYED

    return jax.tree_util.tree_map_with_path(decays, params)


def make_optimizer(config: OptimizerConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """The paper's optimizer as an optax transformation."""
    return optax.adamw(
        schedule, b1=config.b1, b2=config.b2, eps=config.eps, weight_decay=config.weight_decay, mask=decay_mask
    )
