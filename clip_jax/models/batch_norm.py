"""Batch normalisation with PyTorch's running statistics, over the whole batch or over each device's part of it."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from clip_jax.distributed.sharding import BATCH_AXES
from clip_jax.models.config import ModelConfig

EPS = 1e-5
MOMENTUM = 0.1  # the share of the new statistics, as PyTorch counts


class BatchNorm(nnx.Module):
    """Normalises each channel, with statistics in at least float32.

    `nnx.BatchNorm` keeps the biased running variance; the released weights have the unbiased one. With "per_device"
    statistics the batch is split into one group for each device that shares it, each group is normalised alone, and the
    running statistics are the mean over the groups (PyTorch keeps the first device's).

    Reference: Ioffe & Szegedy 2015, https://arxiv.org/abs/1502.03167.
    """

    def __init__(self, width: int, model: ModelConfig, statistics: Literal["per_device", "global"]):
        param_dtype = model.dtypes["param_dtype"]
        stat_dtype = jnp.promote_types(param_dtype, jnp.float32)
        self.statistics = statistics
        self.scale = nnx.Param(jnp.ones(width, param_dtype))
        self.bias = nnx.Param(jnp.zeros(width, param_dtype))
        self.mean = nnx.BatchStat(jnp.zeros(width, stat_dtype))
        self.var = nnx.BatchStat(jnp.ones(width, stat_dtype))
        self.count = nnx.BatchStat(jnp.zeros((), jnp.int32))  # batches seen; PyTorch stores it, nothing reads it

    def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B H W C"]:
        """In training with the batch's statistics, which update the running ones; otherwise with the running ones."""
        wide = jnp.promote_types(x.dtype, jnp.float32)
        if not train:
            gain = self.scale[...].astype(wide) * jax.lax.rsqrt(self.var[...].astype(wide) + EPS)
            return ((x.astype(wide) - self.mean[...]) * gain + self.bias[...]).astype(x.dtype)
        grouped = _split_over_devices(x) if self.statistics == "per_device" else x[None]
        grouped = grouped.astype(wide)  # [G, B / G, H, W, C]
        mean = grouped.mean((1, 2, 3), keepdims=True)
        centred = grouped - mean
        var = jnp.square(centred).mean((1, 2, 3), keepdims=True)
        num_values = grouped[0, ..., 0].size
        if num_values == 1:
            raise ValueError(
                "a batch norm sees a single value of each channel, which has no variance: use more images per device, "
                "larger ones, or vision.batch_norm='global'"
            )
        self._update(self.mean, mean.mean((0, 1, 2, 3)))
        self._update(self.var, var.mean((0, 1, 2, 3)) * (num_values / (num_values - 1)))
        self.count.set_value(self.count[...] + 1)
        y = centred * (jax.lax.rsqrt(var + EPS) * self.scale[...]) + self.bias[...]
        return y.reshape(x.shape).astype(x.dtype)

    def _update(self, running: nnx.BatchStat, new: Array) -> None:
        running.set_value((1 - MOMENTUM) * running[...] + MOMENTUM * new.astype(running.dtype))


def _split_over_devices(x: Float[Array, "B ..."]) -> Float[Array, "G B/G ..."]:
    """Group g is what device g, of those that share the batch, holds."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x[None]
    num_groups = mesh.shape["data"] * mesh.shape["fsdp"]
    grouped = x.reshape(num_groups, -1, *x.shape[1:])
    return jax.lax.with_sharding_constraint(grouped, P(BATCH_AXES))
