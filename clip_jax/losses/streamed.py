"""The contrastive loss without the matrix of all pairs: each block of it is computed, used and dropped.

Each device keeps its image rows while the texts travel round the ring. A log-sum-exp is carried as its maximum and its
sum, those of a text with the text; the backward pass computes the logits again. So memory holds N / devices rows of
features, and blocks of N / devices columns, at any N.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from clip_jax.distributed.sharding import BATCH_AXES
from clip_jax.losses.blockwise import BLOCK_SIZE, check_block_size, scan_blocks, split_logits
from clip_jax.losses.contrastive import Features, Metrics, Scalar, at_least_float32, reduced_accuracy

ROWS = P(BATCH_AXES)


def streamed_contrastive_loss(
    image_features: Features,
    text_features: Features,
    log_logit_scale: Scalar,
    mesh: Mesh,
    block_size: int = BLOCK_SIZE,
) -> tuple[Float[Array, ""], Metrics]:
    """Streamed `contrastive_loss`: same value and gradient, in blocks of at most block_size rows.

    Every logit is computed twice, once for the loss and once for the gradients, which are of first order only. Take
    them outside of this function.
    """
    arrays = at_least_float32(image_features, text_features, log_logit_scale)
    return _loss(*arrays, mesh, check_block_size(block_size))


# The rule stands outside of the shard_maps: inside, the cotangent of a replicated output would arrive divided.
@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _loss(zi, zt, log_logit_scale, mesh, block_size):
    return _forward(zi, zt, log_logit_scale, mesh, block_size)[0]


def _forward(zi, zt, log_logit_scale, mesh, block_size):
    @partial(jax.shard_map, mesh=mesh, in_specs=(ROWS, ROWS, P()), out_specs=(P(), ROWS))
    def rows(zi, zt, log_logit_scale):
        n, logit_scale = len(zi), jnp.exp(log_logit_scale)
        lowest = jnp.finfo(zi.dtype).min  # unlike -inf it has a difference with itself, where a block has no negatives

        def block_fn(zi, zt, match_index, is_real):
            logits = logit_scale * jnp.matmul(zi, zt.T, precision="highest")  # [b, n]
            negatives, match = split_logits(logits, match_index, is_real)
            row_max = negatives.max(axis=1, initial=lowest)
            column_max = negatives.max(axis=0, initial=lowest)
            row_sum = jnp.sum(jnp.exp(negatives - row_max[:, None]), axis=1)
            return (row_max, row_sum, match), (column_max, jnp.sum(jnp.exp(negatives - column_max), axis=0))

        def combine(one, other):
            top = jnp.maximum(one[0], other[0])
            total = one[1] * jnp.exp(one[0] - top) + other[1] * jnp.exp(other[0] - top)
            return top, total, *(a + b for a, b in zip(one[2:], other[2:]))

        zeros = jnp.zeros_like(zi[:, 0])
        identity = (zeros + lowest, zeros, zeros), (zeros + lowest, zeros)
        row_results, text_results = scan_blocks(block_fn, combine, zi, zt, identity, block_size)
        row_max, row_sum, match = row_results
        column_max, column_sum = text_results
        row_lse = jnp.logaddexp(row_max + jnp.log(row_sum), match)  # [n]
        column_lse = jnp.logaddexp(column_max + jnp.log(column_sum), match)  # [n]
        positives = logit_scale * jnp.sum(zi * zt, axis=-1)  # [n]
        total = lax.psum(jnp.sum(row_lse + column_lse - 2 * positives), BATCH_AXES)
        loss = total / (2 * n * lax.axis_size(BATCH_AXES))
        return (loss, reduced_accuracy(match, row_max, column_max)), (row_lse, column_lse)

    outputs, lse = rows(zi, zt, log_logit_scale)
    return outputs, (zi, zt, log_logit_scale, *lse)


def _backward(mesh, block_size, residuals, cotangents):
    @partial(jax.shard_map, mesh=mesh, in_specs=(ROWS, ROWS, P(), ROWS, ROWS, P()), out_specs=(ROWS, ROWS, P()))
    def rows(zi, zt, log_logit_scale, row_lse, column_lse, d_loss):
        logit_scale = jnp.exp(log_logit_scale)
        factor = d_loss * logit_scale / (2 * len(zi) * lax.axis_size(BATCH_AXES))

        def block_fn(rows, texts, match_index, is_real):
            (zi, row_lse), (zt, column_lse) = rows, texts
            logits = logit_scale * jnp.matmul(zi, zt.T, precision="highest")  # [b, n]
            softmaxes = jnp.exp(logits - row_lse[:, None]) + jnp.exp(logits - column_lse)
            # The columns' product is kept as [E, n]: faster on CPU than the transpose of the wide matrix.
            return jnp.matmul(softmaxes, zt, precision="highest"), jnp.matmul(zi.T, softmaxes, precision="highest")

        identity = jnp.zeros_like(zi), jnp.zeros_like(zt.T)
        d_zi, d_zt = scan_blocks(block_fn, jnp.add, (zi, row_lse), (zt, column_lse), identity, block_size)
        d_zi, d_zt = factor * (d_zi - 2 * zt), factor * (d_zt.T - 2 * zi)
        # A logit is linear in the image's features as it is in the scale: the gradient of one gives that of the other.
        return d_zi, d_zt, lax.psum(jnp.sum(zi * d_zi), BATCH_AXES)

    return rows(*residuals, cotangents[0])


_loss.defvjp(_forward, _backward)
