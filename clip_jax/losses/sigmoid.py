"""The sigmoid loss: every pair of a batch is a yes-or-no question of its own. The definition, and its twins that split
the rows over devices, with the whole matrix and without.

All take features [N, E] as `normalize` gives them, the logarithm of the logit scale and the bias of the logits, compute
in at least float32 at the highest matrix precision, and return the loss with the metrics of `contrastive_loss`.

Reference: Zhai et al. 2023 (SigLIP), sec. 3.2; in blocks, sec. 3.3.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from clip_jax.distributed.sharding import BATCH_AXES
from clip_jax.losses.blockwise import BLOCK_SIZE, check_block_size, meet, split
from clip_jax.losses.contrastive import Metrics, accuracy, at_least_float32, sharded_accuracy, share_of_matches

ROWS = P(BATCH_AXES)


def sigmoid_loss(
    image_features: jax.Array, text_features: jax.Array, logit_scale: jax.Array, logit_bias: jax.Array
) -> tuple[jax.Array, Metrics]:
    """The definition, dense on one device: the sum over all pairs, divided by N."""
    zi, zt, logit_scale, logit_bias = at_least_float32(image_features, text_features, logit_scale, logit_bias)
    logits = jnp.exp(logit_scale) * jnp.matmul(zi, zt.T, precision="highest")  # [N, N]
    signs = 2 * jnp.eye(len(logits), dtype=logits.dtype) - 1
    loss = -jnp.sum(jax.nn.log_sigmoid(signs * (logits + logit_bias))) / len(logits)
    return loss, accuracy(logits)  # without the bias, whose rounding could make ties


def sharded_sigmoid_loss(
    image_features: jax.Array, text_features: jax.Array, logit_scale: jax.Array, logit_bias: jax.Array, mesh: Mesh
) -> tuple[jax.Array, Metrics]:
    """The same numbers, each device computing only its rows, n = N / devices. Take the gradient outside of this."""

    @partial(jax.shard_map, mesh=mesh, in_specs=(ROWS, ROWS, P(), P()), out_specs=P())
    def rows(zi, zt, logit_scale, logit_bias):
        all_zt = lax.all_gather(zt, BATCH_AXES, tiled=True)  # [N, E]
        n, N = len(zi), len(all_zt)
        logits = jnp.exp(logit_scale) * jnp.matmul(zi, all_zt.T, precision="highest")  # [n, N]
        own = lax.axis_index(BATCH_AXES) * n + jnp.arange(n)  # [n]
        signs = jnp.where(own[:, None] == jnp.arange(N), 1, -1)
        total = lax.psum(jnp.sum(jax.nn.log_sigmoid(signs * (logits + logit_bias))), BATCH_AXES)
        return -total / N, sharded_accuracy(logits)

    return rows(*at_least_float32(image_features, text_features, logit_scale, logit_bias))


def streamed_sigmoid_loss(
    image_features: jax.Array,
    text_features: jax.Array,
    logit_scale: jax.Array,
    logit_bias: jax.Array,
    mesh: Mesh,
    block_size: int = BLOCK_SIZE,
) -> tuple[jax.Array, Metrics]:
    """The same numbers in blocks of at most block_size rows, n columns: memory holds N/D rows of features, never N×N.

    No pair needs to know of another, so the loss and its gradients, of first order only, come from one way round the
    ring, every logit computed once. Take the gradient outside of this function.
    """
    return _loss(
        *at_least_float32(image_features, text_features, logit_scale, logit_bias), mesh, check_block_size(block_size)
    )


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _loss(zi, zt, logit_scale, logit_bias, mesh, block_size):
    return _forward(zi, zt, logit_scale, logit_bias, mesh, block_size)[0]


def _forward(zi, zt, logit_scale, logit_bias, mesh, block_size):
    @partial(jax.shard_map, mesh=mesh, in_specs=(ROWS, ROWS, P(), P()), out_specs=(P(), (ROWS, ROWS, P(), P())))
    def rows(zi, zt, logit_scale, logit_bias):
        n, scale = len(zi), jnp.exp(logit_scale)
        N = n * lax.axis_size(BATCH_AXES)

        def visit(zi, zt, own, real):
            logits = scale * jnp.matmul(zi, zt.T, precision="highest")  # [b, n]
            strangers, match = split(logits, own, real)
            signs = jnp.where(own[:, None] == jnp.arange(n), 1, -1)
            answers = signs * (logits + logit_bias)
            losses = -jnp.sum(jax.nn.log_sigmoid(answers), axis=1)
            slopes = -signs * jax.nn.sigmoid(-answers)  # of the losses, by the logits
            d_zi = jnp.matmul(slopes, zt, precision="highest")
            d_zt = jnp.matmul(zi.T, slopes, precision="highest")  # [E, n], see streamed.py
            return (strangers.max(axis=1), match, losses, slopes.sum(axis=1), d_zi), (strangers.max(axis=0), d_zt)

        def merge(one, other):
            return jnp.maximum(one[0], other[0]), *(a + b for a, b in zip(one[1:], other[1:]))

        zeros = jnp.zeros_like(zi[:, 0])
        lowest = zeros - jnp.inf
        nothing = (lowest, zeros, zeros, zeros, jnp.zeros_like(zi)), (lowest, jnp.zeros_like(zt.T))
        of_rows, of_columns = meet(visit, merge, zi, zt, nothing, block_size)
        row_max, match, losses, slopes, d_zi = of_rows
        column_max, d_zt = of_columns
        loss, d_bias = (lax.psum(jnp.sum(x), BATCH_AXES) / N for x in (losses, slopes))
        d_zi, d_zt = d_zi * scale / N, d_zt.T * scale / N
        d_scale = lax.psum(jnp.sum(zi * d_zi), BATCH_AXES)  # see streamed.py
        return (loss, share_of_matches(match, row_max, column_max)), (d_zi, d_zt, d_scale, d_bias)

    return rows(zi, zt, logit_scale, logit_bias)


def _backward(mesh, block_size, gradients, cotangents):
    return tuple(cotangents[0] * gradient for gradient in gradients)


_loss.defvjp(_forward, _backward)
