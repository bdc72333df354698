"""AdamW with decoupled decay on matrices only, under a linear warm-up and a cosine."""

from collections.abc import Mapping
from typing import Any

import jax
import optax

from clip_jax.config.experiment import OptimizerConfig

# By name, because stacked blocks make a bias two-dimensional.
DECAYED = {"kernel", "embedding", "positional_embedding"}
NOT_DECAYED = {"bias", "scale", "class_embedding", "start_embedding", "probe", "logit_scale", "logit_bias"}


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
    adamw = optax.adamw(
        schedule,
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        mu_dtype=None if config.first_moment_dtype == "param_dtype" else config.first_moment_dtype,
        weight_decay=config.weight_decay,
        mask=decay_mask,
    )
    if config.learn_logit_scale:
        return adamw
    stays = optax.masked(optax.set_to_zero(), lambda params: {name: name == "logit_scale" for name in params})
    return optax.chain(adamw, stays)
