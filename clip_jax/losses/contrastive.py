"""The symmetric cross-entropy over all N×N pairs: the definition, and its form that splits the rows over devices.

Both take features as `normalize` gives them and the logarithm of the logit scale, compute in at least float32 at the
highest matrix precision, and return the loss with the share of correct matches in the batch in each direction.

Reference: Radford et al. 2021, sec. 2.3 and fig. 3; rows per device, sec. 2.5.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from clip_jax.distributed.sharding import BATCH_AXES

Features = Float[ArrayLike, "N E"]
Scalar = Float[ArrayLike, ""]
Metrics = dict[str, Float[Array, ""]]


def at_least_float32(*arrays: ArrayLike) -> list[Array]:
    """All in one dtype, that of the widest, float32 or more."""
    dtype = jnp.result_type(jnp.float32, *arrays)
    return [jnp.asarray(array, dtype) for array in arrays]


def normalize(features: Features) -> Float[Array, "N E"]:
    """Features scaled to unit length, in at least float32."""
    (z,) = at_least_float32(features)
    return z / jnp.linalg.norm(z, axis=-1, keepdims=True)


def contrastive_loss(
    image_features: Features, text_features: Features, log_logit_scale: Scalar
) -> tuple[Float[Array, ""], Metrics]:
    """The definition, dense on one device.

    A match counts as correct only if no other candidate scores as high: ties count against the model.
    """
    zi, zt, log_logit_scale = at_least_float32(image_features, text_features, log_logit_scale)
    logits = jnp.exp(log_logit_scale) * jnp.matmul(zi, zt.T, precision="highest")  # [N, N]
    positives = jnp.exp(log_logit_scale) * jnp.sum(zi * zt, axis=-1)  # [N]
    image_loss = jax.nn.logsumexp(logits, axis=1) - positives
    text_loss = jax.nn.logsumexp(logits, axis=0) - positives
    return jnp.mean(image_loss + text_loss) / 2, accuracy(logits)


def sharded_contrastive_loss(
    image_features: Features, text_features: Features, log_logit_scale: Scalar, mesh: Mesh
) -> tuple[Float[Array, ""], Metrics]:
    """Sharded `contrastive_loss`: same value and gradient; each device computes n = N / devices rows.

    Every logit is computed once: the log-sum-exp of a column comes from all devices' rows by an all-reduce of maxima
    and of sums, not from a second, transposed product. Take the gradient outside of this function.
    """

    @partial(jax.shard_map, mesh=mesh, in_specs=(P(BATCH_AXES), P(BATCH_AXES), P()), out_specs=P())
    def rows(
        zi: Float[Array, "n E"], zt: Float[Array, "n E"], log_logit_scale: Float[Array, ""]
    ) -> tuple[Float[Array, ""], Metrics]:
        all_zt = lax.all_gather(zt, BATCH_AXES, tiled=True)  # [N, E]
        N = len(all_zt)
        logits = jnp.exp(log_logit_scale) * jnp.matmul(zi, all_zt.T, precision="highest")  # [n, N]
        positives = jnp.exp(log_logit_scale) * jnp.sum(zi * zt, axis=-1)  # [n]

        row_lse = jax.nn.logsumexp(logits, axis=1)  # [n]
        column_max = lax.pmax(lax.stop_gradient(logits.max(axis=0)), BATCH_AXES)  # [N]
        column_sum = lax.psum(jnp.sum(jnp.exp(logits - column_max), axis=0), BATCH_AXES)
        column_lse = jnp.log(column_sum) + column_max  # [N]
        loss = (lax.psum(jnp.sum(row_lse - 2 * positives), BATCH_AXES) + jnp.sum(column_lse)) / (2 * N)

        return loss, sharded_accuracy(logits)

    return rows(*at_least_float32(image_features, text_features, log_logit_scale))


def accuracy(logits: Float[Array, "N N"]) -> Metrics:
    """The share of rows and of columns whose own logit is above all others."""
    match = jnp.diagonal(logits)  # unlike a product of its own, rounded as the others are: an exact tie stays one
    negatives = jnp.where(jnp.eye(len(logits), dtype=bool), -jnp.inf, logits)
    return {
        "image_to_text_accuracy": jnp.mean(match > negatives.max(axis=1)),
        "text_to_image_accuracy": jnp.mean(match > negatives.max(axis=0)),
    }


def sharded_accuracy(logits: Float[Array, "n N"]) -> Metrics:
    """`accuracy` from this device's rows; inside of a `shard_map`."""
    n, N = logits.shape
    match_index = lax.axis_index(BATCH_AXES) * n + jnp.arange(n)  # [n]
    match = jnp.take_along_axis(logits, match_index[:, None], axis=1)[:, 0]  # [n]
    negatives = lax.stop_gradient(jnp.where(match_index[:, None] == jnp.arange(N), -jnp.inf, logits))
    return reduced_accuracy(match, negatives.max(axis=1), lax.pmax(negatives.max(axis=0), BATCH_AXES)[match_index])


def reduced_accuracy(match: Float[Array, "n"], row_max: Float[Array, "n"], column_max: Float[Array, "n"]) -> Metrics:
    """`accuracy` from each row's own logit and the largest negative in its row and in its column."""
    N = len(match) * lax.axis_size(BATCH_AXES)
    return {
        "image_to_text_accuracy": lax.psum(jnp.sum(match > row_max), BATCH_AXES) / N,
        "text_to_image_accuracy": lax.psum(jnp.sum(match > column_max), BATCH_AXES) / N,
    }
