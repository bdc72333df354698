"""The symmetric cross-entropy over all N×N pairs: the definition, and its twin that splits the rows over devices.

Both take features [N, E] normalised by `normalize` and the logarithm of the logit scale, compute in at least float32
at the highest matrix precision, and return the loss with the share of correct matches in the batch each way.

Reference: Radford et al. 2021, sec. 2.3 and fig. 3; rows per device, sec. 2.5.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from clip_jax.sharding import BATCH_AXES

Metrics = dict[str, jax.Array]


def normalize(features: jax.Array) -> jax.Array:
    """Features [N, E] scaled to unit length, in at least float32."""
    features = features.astype(jnp.promote_types(features.dtype, jnp.float32))
    return features / jnp.linalg.norm(features, axis=-1, keepdims=True)


def contrastive_loss(
    image_features: jax.Array, text_features: jax.Array, logit_scale: jax.Array
) -> tuple[jax.Array, Metrics]:
    """The definition, dense on one device.

    A match counts as correct only if no other candidate scores as high: ties count against the model.
    """
    logits = jnp.exp(logit_scale) * jnp.matmul(image_features, text_features.T, precision="highest")  # [N, N]
    positives = jnp.exp(logit_scale) * jnp.sum(image_features * text_features, axis=-1)  # [N]
    image_loss = jax.nn.logsumexp(logits, axis=1) - positives
    text_loss = jax.nn.logsumexp(logits, axis=0) - positives
    matches = jnp.diagonal(logits)  # unlike positives, rounded as the others are: an exact tie stays one
    others = jnp.where(jnp.eye(len(logits), dtype=bool), -jnp.inf, logits)
    return jnp.mean(image_loss + text_loss) / 2, {
        "image_to_text_accuracy": jnp.mean(matches > others.max(axis=1)),
        "text_to_image_accuracy": jnp.mean(matches > others.max(axis=0)),
    }


def sharded_contrastive_loss(
    image_features: jax.Array, text_features: jax.Array, logit_scale: jax.Array, mesh: Mesh
) -> tuple[jax.Array, Metrics]:
    """The same numbers with each device computing only its rows, n = N / devices, of the matrix.

    Every logit is computed once: the log-sum-exp of a column comes from all devices' rows by an all-reduce of maxima
    and of sums, not from a second, transposed product. Take the gradient outside of this function.
    """

    @partial(jax.shard_map, mesh=mesh, in_specs=(P(BATCH_AXES), P(BATCH_AXES), P()), out_specs=P())
    def rows(zi: jax.Array, zt: jax.Array, logit_scale: jax.Array) -> tuple[jax.Array, Metrics]:
        n = len(zi)
        all_zt = lax.all_gather(zt, BATCH_AXES, tiled=True)  # [N, E]
        N = len(all_zt)
        logits = jnp.exp(logit_scale) * jnp.matmul(zi, all_zt.T, precision="highest")  # [n, N]
        positives = jnp.exp(logit_scale) * jnp.sum(zi * zt, axis=-1)  # [n]

        row_lse = jax.nn.logsumexp(logits, axis=1)  # [n]
        column_max = lax.pmax(lax.stop_gradient(logits.max(axis=0)), BATCH_AXES)  # [N]
        column_sum = lax.psum(jnp.sum(jnp.exp(logits - column_max), axis=0), BATCH_AXES)
        column_lse = jnp.log(column_sum) + column_max  # [N]
        loss = (lax.psum(jnp.sum(row_lse - 2 * positives), BATCH_AXES) + jnp.sum(column_lse)) / (2 * N)

        own = lax.axis_index(BATCH_AXES) * n + jnp.arange(n)  # [n]
        matches = jnp.take_along_axis(logits, own[:, None], axis=1)[:, 0]  # [n], rounded as the others are
        others = lax.stop_gradient(jnp.where(own[:, None] == jnp.arange(N), -jnp.inf, logits))
        row_correct = lax.psum(jnp.sum(matches > others.max(axis=1)), BATCH_AXES)
        others_max = lax.pmax(others.max(axis=0), BATCH_AXES)[own]  # [n]
        column_correct = lax.psum(jnp.sum(matches > others_max), BATCH_AXES)
        return loss, {"image_to_text_accuracy": row_correct / N, "text_to_image_accuracy": column_correct / N}

    return rows(image_features, text_features, logit_scale)
