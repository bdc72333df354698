"""The sigmoid loss: every pair of a batch is a yes-or-no question of its own. The definition, and its forms that split
the rows over devices, with the whole matrix and without.

All take features as `normalize` gives them, the logarithm of the logit scale and the bias of the logits, compute in at
least float32 at the highest matrix precision, and return the loss with the metrics of `contrastive_loss`.

Reference: Zhai et al. 2023 (SigLIP), sec. 3.2; in blocks, sec. 3.3.
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
from clip_jax.losses.contrastive import (
    Features,
    Metrics,
    Scalar,
    accuracy,
    at_least_float32,
    reduced_accuracy,
    sharded_accuracy,
)

ROWS = P(BATCH_AXES)


def sigmoid_loss(
    image_features: Features, text_features: Features, log_logit_scale: Scalar, logit_bias: Scalar
) -> tuple[Float[Array, ""], Metrics]:
    """The definition, dense on one device: the sum over all pairs, divided by N."""
    zi, zt, log_logit_scale, logit_bias = at_least_float32(image_features, text_features, log_logit_scale, logit_bias)
    logits = jnp.exp(log_logit_scale) * jnp.matmul(zi, zt.T, precision="highest")  # [N, N]
    signs = 2 * jnp.eye(len(logits), dtype=logits.dtype) - 1
    loss = -jnp.sum(jax.nn.log_sigmoid(signs * (logits + logit_bias))) / len(logits)
    return loss, accuracy(logits)  # without the bias, whose rounding could make ties


def sharded_sigmoid_loss(
    image_features: Features,
    text_features: Features,
    log_logit_scale: Scalar,
    logit_bias: Scalar,
    mesh: Mesh,
) -> tuple[Float[Array, ""], Metrics]:
    """Sharded `sigmoid_loss`: same value and gradient; each device computes n = N / devices rows.

    Take the gradient outside of this function.
    """

    @partial(jax.shard_map, mesh=mesh, in_specs=(ROWS, ROWS, P(), P()), out_specs=P())
    def rows(
        zi: Float[Array, "n E"], zt: Float[Array, "n E"], log_logit_scale: Float[Array, ""], logit_bias: Array
    ) -> tuple[Float[Array, ""], Metrics]:
        all_zt = lax.all_gather(zt, BATCH_AXES, tiled=True)  # [N, E]
        n, N = len(zi), len(all_zt)
        logits = jnp.exp(log_logit_scale) * jnp.matmul(zi, all_zt.T, precision="highest")  # [n, N]
        match_index = lax.axis_index(BATCH_AXES) * n + jnp.arange(n)  # [n]
        signs = jnp.where(match_index[:, None] == jnp.arange(N), 1, -1)
        total = lax.psum(jnp.sum(jax.nn.log_sigmoid(signs * (logits + logit_bias))), BATCH_AXES)
        return -total / N, sharded_accuracy(logits)

    return rows(*at_least_float32(image_features, text_features, log_logit_scale, logit_bias))


def streamed_sigmoid_loss(
    image_features: Features,
    text_features: Features,
    log_logit_scale: Scalar,
    logit_bias: Scalar,
    mesh: Mesh,
    block_size: int = BLOCK_SIZE,
) -> tuple[Float[Array, ""], Metrics]:
    """Streamed `sigmoid_loss`: same value and gradient, in blocks of at most block_size rows and N / devices columns.

    Memory holds N / devices rows of features, never N×N logits. No pair depends on another, so the loss and its
    gradients, of first order only, come from one pass round the ring, every logit computed once. Take the gradient
    outside of this function.
    """
    scalars = log_logit_scale, logit_bias
    return _loss(*at_least_float32(image_features, text_features, *scalars), mesh, check_block_size(block_size))


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _loss(zi, zt, log_logit_scale, logit_bias, mesh, block_size):
    return _forward(zi, zt, log_logit_scale, logit_bias, mesh, block_size)[0]


def _forward(zi, zt, log_logit_scale, logit_bias, mesh, block_size):
    @partial(jax.shard_map, mesh=mesh, in_specs=(ROWS, ROWS, P(), P()), out_specs=(P(), (ROWS, ROWS, P(), P())))
    def rows(zi, zt, log_logit_scale, logit_bias):
        n, logit_scale = len(zi), jnp.exp(log_logit_scale)
        N = n * lax.axis_size(BATCH_AXES)

        def block_fn(zi, zt, match_index, is_real):
            logits = logit_scale * jnp.matmul(zi, zt.T, precision="highest")  # [b, n]
            negatives, match = split_logits(logits, match_index, is_real)
            signs = jnp.where(match_index[:, None] == jnp.arange(n), 1, -1)
            answers = signs * (logits + logit_bias)
            losses = -jnp.sum(jax.nn.log_sigmoid(answers), axis=1)
            slopes = -signs * jax.nn.sigmoid(-answers)  # of the losses, by the logits
            d_zi = jnp.matmul(slopes, zt, precision="highest")
            d_zt = jnp.matmul(zi.T, slopes, precision="highest")  # [E, n], see streamed.py
            return (negatives.max(axis=1), match, losses, slopes.sum(axis=1), d_zi), (negatives.max(axis=0), d_zt)

        def combine(one, other):
            return jnp.maximum(one[0], other[0]), *(a + b for a, b in zip(one[1:], other[1:]))

        zeros = jnp.zeros_like(zi[:, 0])
        lowest = zeros - jnp.inf
        identity = (lowest, zeros, zeros, zeros, jnp.zeros_like(zi)), (lowest, jnp.zeros_like(zt.T))
        row_results, text_results = scan_blocks(block_fn, combine, zi, zt, identity, block_size)
        row_max, match, losses, slopes, d_zi = row_results
        column_max, d_zt = text_results
        loss, d_bias = (lax.psum(jnp.sum(x), BATCH_AXES) / N for x in (losses, slopes))
        d_zi, d_zt = d_zi * logit_scale / N, d_zt.T * logit_scale / N
        d_log_scale = lax.psum(jnp.sum(zi * d_zi), BATCH_AXES)  # see streamed.py
        return (loss, reduced_accuracy(match, row_max, column_max)), (d_zi, d_zt, d_log_scale, d_bias)

    return rows(zi, zt, log_logit_scale, logit_bias)


def _backward(mesh, block_size, gradients, cotangents):
    return tuple(cotangents[0] * gradient for gradient in gradients)


_loss.defvjp(_forward, _backward)
