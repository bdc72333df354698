"""The symmetric cross-entropy over all N×N pairs: the definition, and its twin that splits the rows over devices.

Both take features [N, E] as `normalize` gives them and the logarithm of the logit scale, compute in at least float32
at the highest matrix precision, and return the loss with the share of correct matches in the batch each way.

Reference: Radford et al. 2021, sec. 2.3 and fig. 3; rows per device, sec. 2.5.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from clip_jax.distributed.sharding import BATCH_AXES

Metrics = dict[str, jax.Array]


def at_least_float32(*arrays: jax.typing.ArrayLike) -> list[jax.Array]:
    """All in one dtype, that of the widest, float32 or more."""
    dtype = jnp.result_type(jnp.float32, *arrays)
    return [jnp.asarray(array, dtype) for array in arrays]


def normalize(features: jax.Array) -> jax.Array:
    """Features [N, E] scaled to unit length, in at least float32."""
    (features,) = at_least_float32(features)
    return features / jnp.linalg.norm(features, axis=-1, keepdims=True)


def contrastive_loss(
    image_features: jax.Array, text_features: jax.Array, logit_scale: jax.Array
) -> tuple[jax.Array, Metrics]:
    """The definition, dense on one device.

    A match counts as correct only if no other candidate scores as high: ties count against the model.
    """
    image_features, text_features, logit_scale = at_least_float32(image_features, text_features, logit_scale)
    logits = jnp.exp(logit_scale) * jnp.matmul(image_features, text_features.T, precision="highest")  # [N, N]
    positives = jnp.exp(logit_scale) * jnp.sum(image_features * text_features, axis=-1)  # [N]
    image_loss = jax.nn.logsumexp(logits, axis=1) - positives
    text_loss = jax.nn.logsumexp(logits, axis=0) - positives
    return jnp.mean(image_loss + text_loss) / 2, accuracy(logits)


def sharded_contrastive_loss(
    image_features: jax.Array, text_features: jax.Array, logit_scale: jax.Array, mesh: Mesh
) -> tuple[jax.Array, Metrics]:
    """The same numbers with each device computing only its rows, n = N / devices, of the matrix.

    Every logit is computed once: the log-sum-exp of a column comes from all devices' rows by an all-reduce of maxima
    and of sums, not from a second, transposed product. Take the gradient outside of this function.
    """

    @partial(jax.shard_map, mesh=mesh, in_specs=(P(BATCH_AXES), P(BATCH_AXES), P()), out_specs=P())
    def rows(zi: jax.Array, zt: jax.Array, logit_scale: jax.Array) -> tuple[jax.Array, Metrics]:
        all_zt = lax.all_gather(zt, BATCH_AXES, tiled=True)  # [N, E]
        N = len(all_zt)
        logits = jnp.exp(logit_scale) * jnp.matmul(zi, all_zt.T, precision="highest")  # [n, N]
        positives = jnp.exp(logit_scale) * jnp.sum(zi * zt, axis=-1)  # [n]

        row_lse = jax.nn.logsumexp(logits, axis=1)  # [n]
        column_max = lax.pmax(lax.stop_gradient(logits.max(axis=0)), BATCH_AXES)  # [N]
        column_sum = lax.psum(jnp.sum(jnp.exp(logits - column_max), axis=0), BATCH_AXES)
        column_lse = jnp.log(column_sum) + column_max  # [N]
        loss = (lax.psum(jnp.sum(row_lse - 2 * positives), BATCH_AXES) + jnp.sum(column_lse)) / (2 * N)

        return loss, sharded_accuracy(logits)

    return rows(*at_least_float32(image_features, text_features, logit_scale))


def accuracy(logits: jax.Array) -> Metrics:
    """The share of rows and of columns of [N, N] whose own logit beats all others."""
    match = jnp.diagonal(logits)  # unlike a product of its own, rounded as the others are: an exact tie stays one
    others = jnp.where(jnp.eye(len(logits), dtype=bool), -jnp.inf, logits)
    return {
        "image_to_text_accuracy": jnp.mean(match > others.max(axis=1)),
        "text_to_image_accuracy": jnp.mean(match > others.max(axis=0)),
    }


def sharded_accuracy(logits: jax.Array) -> Metrics:
    """The same from this device's rows [n, N]; inside of a `shard_map`."""
    n, N = logits.shape
    own = lax.axis_index(BATCH_AXES) * n + jnp.arange(n)  # [n]
    match = jnp.take_along_axis(logits, own[:, None], axis=1)[:, 0]  # [n]
    others = lax.stop_gradient(jnp.where(own[:, None] == jnp.arange(N), -jnp.inf, logits))
    return share_of_matches(match, others.max(axis=1), lax.pmax(others.max(axis=0), BATCH_AXES)[own])


def share_of_matches(match: jax.Array, row_others: jax.Array, column_others: jax.Array) -> Metrics:
    """The same from each row's own logit and the best other one in its row and in its column, each [n] a device."""
    N = len(match) * lax.axis_size(BATCH_AXES)
    return {
        "image_to_text_accuracy": lax.psum(jnp.sum(match > row_others), BATCH_AXES) / N,
        "text_to_image_accuracy": lax.psum(jnp.sum(match > column_others), BATCH_AXES) / N,
    }
