"""The gradient of a batch whose activations do not fit, with the whole batch as negatives.

A sum of the microbatches' own losses would be another loss: each pair would meet the negatives of its microbatch only.
Instead the embeddings of all microbatches are computed first, with nothing kept for a backward pass; the loss and its
gradient with respect to the embeddings are taken once, over the whole batch; and each microbatch is encoded again, to
carry its embeddings' gradient on to the parameters. The gradient of every parameter is the whole batch's, for one more
forward pass, with the activations of one microbatch in memory.

Reference: Gao et al. 2021, https://arxiv.org/abs/2101.06983 ("GradCache"); Pham et al. 2021,
https://arxiv.org/abs/2111.10050 (BASIC), sec. 4.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from clip_jax.distributed.sharding import constrain_batch

Tree = Any
Encode = Callable[[Tree, Tree, Tree], tuple[Tree, Tree]]
Loss = Callable[[Tree, Tree], tuple[jax.Array, Tree]]


def loss_and_gradient(
    encode: Encode, loss: Loss, params: Tree, batch_stats: Tree, rows: Tree, num_microbatches: int
) -> tuple[tuple[jax.Array, tuple[Tree, Tree]], Tree]:
    """((loss, (metrics, batch_stats)), gradient) of `loss` over all rows, as `jax.value_and_grad` would give them.

    Batch norms normalise each microbatch by its own statistics, in both passes alike: the gradient is that of a model
    that does so. The first pass moves the running statistics, once a microbatch, in order; the second leaves them.

    Args:
      encode: (params, batch_stats, rows) -> (features, batch_stats as the rows moved them); both passes call it with
        the same rows, so what is random in it must come from them.
      loss: (params, features of all rows, in their order) -> (loss, metrics). It may read parameters, too: the
        temperature.
      params: the gradient is summed in at least float32 and has their dtypes.
      rows: arrays [N, ...], split over the devices; num_microbatches divides each device's part of N.
      num_microbatches: 1 is plain differentiation.
    """
    if num_microbatches == 1:

        def whole(params: Tree) -> tuple[jax.Array, tuple[Tree, Tree]]:
            features, moved = encode(params, batch_stats, rows)
            value, metrics = loss(params, features)
            return value, (metrics, moved)

        return jax.value_and_grad(whole, has_aux=True)(params)

    def first_pass(batch_stats: Tree, rows: Tree) -> tuple[Tree, Tree]:
        features, moved = encode(params, batch_stats, rows)
        return moved, features

    def second_pass(total: Tree, inputs: tuple[Tree, Tree]) -> tuple[Tree, None]:
        rows, feature_grads = inputs
        _, pull_back = jax.vjp(lambda params: encode(params, batch_stats, rows)[0], params)
        return jax.tree.map(jnp.add, total, _widen(pull_back(feature_grads)[0])), None

    microbatches = split_rows(rows, num_microbatches)
    moved, features = jax.lax.scan(first_pass, batch_stats, microbatches)
    gradient = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    (value, metrics), (loss_grads, feature_grads) = gradient(params, join_rows(features))
    # The loss's own gradient, the temperature's, enters once: it is what the sum starts from.
    split_grads = split_rows(feature_grads, num_microbatches)
    total, _ = jax.lax.scan(second_pass, _widen(loss_grads), (microbatches, split_grads))
    return (value, (metrics, moved)), jax.tree.map(lambda sum, leaf: sum.astype(leaf.dtype), total, params)


def split_rows(rows: Tree, num_microbatches: int) -> Tree:
    """[N, ...] to [M, N / M, ...]: microbatch m has the rows m, m + M, m + 2 M, ...

    So each device holds its share of every microbatch, and no row moves to another device.
    """

    def split(x: jax.Array) -> jax.Array:
        return constrain_batch(x.reshape(-1, num_microbatches, *x.shape[1:]).swapaxes(0, 1), axis=1)

    return jax.tree.map(split, rows)


def join_rows(microbatches: Tree) -> Tree:
    """The inverse of `split_rows`."""
    return jax.tree.map(lambda x: constrain_batch(x.swapaxes(0, 1).reshape(-1, *x.shape[2:])), microbatches)


def _widen(tree: Tree) -> Tree:
    return jax.tree.map(lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), tree)
