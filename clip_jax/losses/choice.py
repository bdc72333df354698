"""Which loss trains, from the config's section."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from clip_jax.losses.contrastive import Metrics, normalize, sharded_contrastive_loss
from clip_jax.losses.sigmoid import sharded_sigmoid_loss, streamed_sigmoid_loss
from clip_jax.losses.streamed import streamed_contrastive_loss

Features = tuple[jax.Array, jax.Array]  # of images and texts, [N, E] each, not normalised
Loss = Callable[[Mapping[str, Any], Features], tuple[jax.Array, Metrics]]
# By kind, with each device's whole rows, and streamed.
FORMS: dict[str, tuple[Callable, Callable]] = {
    "contrastive": (sharded_contrastive_loss, streamed_contrastive_loss),
    "sigmoid": (sharded_sigmoid_loss, streamed_sigmoid_loss),
}


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """What compares the pairs of a batch.

    Attributes:
      kind: "contrastive", the paper's softmax over rows and columns, or "sigmoid", SigLIP's, with a bias.
      block_size: 0 computes each device's rows of the similarities at once, N²/D numbers; more computes so many rows at
        a time while the texts travel round the devices, so that memory is O(N/D): the same numbers for batches whose
        rows do not fit.

    Reference: Radford et al. 2021, sec. 2.3; Zhai et al. 2023, https://arxiv.org/abs/2303.15343, sec. 3.2.
    """

    kind: Literal["contrastive", "sigmoid"] = "contrastive"
    block_size: int = 0

    def __post_init__(self) -> None:
        if self.block_size < 0:
            raise ValueError(
                f"loss.block_size={self.block_size} must be rows computed at once, or 0 for all of a device's"
            )


def make_loss(config: LossConfig, mesh: Mesh) -> Loss:
    """(parameters, features of the global batch) -> (loss, metrics); of the parameters it reads logit_scale and, if
    sigmoid, logit_bias. `chance_loss` is what one answer to all questions, the best one, would give."""
    whole, streamed = FORMS[config.kind]
    form, options = (streamed, {"block_size": config.block_size}) if config.block_size else (whole, {})
    scalars = ("logit_scale", "logit_bias") if config.kind == "sigmoid" else ("logit_scale",)

    def loss(params: Mapping[str, Any], features: Features) -> tuple[jax.Array, Metrics]:
        zi, zt = map(normalize, features)
        value, metrics = form(zi, zt, *(params[name] for name in scalars), mesh=mesh, **options)
        return value, {**metrics, "chance_loss": jnp.asarray(chance_loss(config.kind, len(zi)))}

    return loss


def chance_loss(kind: str, N: int) -> float:
    """ln N; of the sigmoid loss ln N - (N - 1) ln(1 - 1/N), about ln N + 1: "a pair" with probability 1/N for each."""
    if kind == "contrastive" or N == 1:
        return math.log(N)
    return math.log(N) - (N - 1) * math.log1p(-1 / N)
