"""AdamW with decoupled decay on matrices only, under a linear warm-up and a cosine."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

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
      learn_logit_scale: the logit scale learns, as in the paper (sec. 2.3); else it stays as it starts.
      first_moment_dtype: in which Adam's first moment is stored, by default the parameters' own; "bfloat16" halves it
        (Zhai et al. 2021, sec. 3.4). The second moment needs more digits and keeps the parameters' dtype.
      ema_decay: of an exponential moving average of the parameters and running statistics, by which the model is then
        evaluated and exported; in [0, 1), and 0 keeps none.
      frozen: towers that do not learn, their projection included: (), ("visual",) as in LiT, or ("text",).

    Reference: Radford et al. 2021, tables 18 and 19; first moment in bfloat16: Zhai et al. 2021,
    https://arxiv.org/abs/2106.04560; frozen towers: Zhai et al. 2021, https://arxiv.org/abs/2111.07991.
    """

    learning_rate: float
    weight_decay: float
    b1: float
    b2: float
    eps: float
    warmup_steps: int
    max_logit_scale: float
    learn_logit_scale: bool = True
    first_moment_dtype: Literal["param_dtype", "bfloat16"] = "param_dtype"
    ema_decay: float = 0.0
    frozen: tuple[Literal["visual", "text"], ...] = ()

    @property
    def has_ema(self) -> bool:
        """Whether a moving average is kept."""
        return self.ema_decay > 0

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
        if self.first_moment_dtype not in ("param_dtype", "bfloat16"):
            raise ValueError(
                f"optimizer.first_moment_dtype={self.first_moment_dtype!r} must be 'param_dtype' or 'bfloat16'"
            )
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"optimizer.ema_decay={self.ema_decay} must lie in [0, 1); 0 keeps no average")
        if self.frozen not in ((), ("visual",), ("text",)):
            raise ValueError(
                f"optimizer.frozen={self.frozen} must be (), ('visual',) or ('text',): with both towers frozen there "
                "is nothing to train"
            )


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
