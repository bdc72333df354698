"""Compares every image row with every text in blocks, while the texts travel round the ring of devices.

What the streamed losses share, for use inside of a `shard_map`, on the arrays of one device. The rows stay; the texts
move from device to device until they are back, and the results for a text travel with it.

Reference: Zhai et al. 2023, sec. 3.3, passes the texts on in the same way, a device's whole share at once.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PyTree

from clip_jax.distributed.sharding import BATCH_AXES

Results = tuple[PyTree, PyTree]  # for rows and for texts
BLOCK_SIZE = 256  # among 128, 256 and 512 the fastest on CPU; see clip_jax/benchmarks/loss.py


def check_block_size(block_size: int) -> int:
    """Raises ValueError for less than one row."""
    if block_size < 1:
        raise ValueError(f"block_size={block_size} must be at least 1: it is how many rows are computed at once")
    return block_size


def scan_blocks(
    block_fn: Callable[[PyTree, PyTree, Int[Array, "b"], Bool[Array, "b"]], Results],
    combine: Callable[[PyTree, PyTree], PyTree],
    rows: PyTree[Float[Array, "n ..."]],
    texts: PyTree[Float[Array, "n ..."]],
    identity: Results,
    block_size: int,
) -> Results:
    """The combined results of all blocks for the n rows and the n texts of this device.

    Args:
      block_fn: (b rows, n texts, match_index, is_real) -> results. match_index is a row's own text among these texts,
        or n where it is not among them. Rows that pad the last block are zeros and not is_real.
      combine: joins the results of two blocks, either for rows or for texts.
      identity: the results that change nothing in a combination; those for rows are led by n.
      block_size: rows computed at once, at most; blocks are of equal size.
    """
    n = len(jax.tree.leaves(rows)[0])
    num_blocks = -(-n // block_size)
    b = -(-n // num_blocks)
    num_devices = lax.axis_size(BATCH_AXES)

    def pad(x: Array) -> Array:
        return jnp.pad(x, [(0, num_blocks * b - n)] + [(0, 0)] * (x.ndim - 1))

    def pass_on(tree: PyTree) -> PyTree:
        return lax.ppermute(tree, BATCH_AXES, [(i, (i + 1) % num_devices) for i in range(num_devices)])

    rows, row_results = jax.tree.map(pad, (rows, identity[0]))

    def ring_step(carry: tuple[PyTree, PyTree, PyTree], step: Array) -> tuple[tuple[PyTree, PyTree, PyTree], None]:
        row_results, texts, last_results = carry
        # Both are sent before the computation and do not wait for it: these texts, and the results for the last ones.
        next_texts, earlier_results = pass_on((texts, last_results))

        def block(carry: Results, start: Array) -> tuple[Results, None]:
            row_results, text_results = carry
            index = start + jnp.arange(b)
            is_real = index < n
            match_index = jnp.where(is_real & (step == 0), index, n)
            block_rows, old = jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, start, b), (rows, row_results))
            new, new_text_results = block_fn(block_rows, texts, match_index, is_real)
            row_results = jax.tree.map(
                lambda x, part: lax.dynamic_update_slice_in_dim(x, part, start, axis=0), row_results, combine(old, new)
            )
            return (row_results, combine(text_results, new_text_results)), None

        (row_results, text_results), _ = lax.scan(block, (row_results, identity[1]), b * jnp.arange(num_blocks))
        return (row_results, next_texts, combine(earlier_results, text_results)), None

    carry = row_results, texts, identity[1]
    (row_results, _, text_results), _ = lax.scan(ring_step, carry, jnp.arange(num_devices))
    return jax.tree.map(lambda x: x[:n], row_results), pass_on(text_results)


def split_logits(
    logits: Float[Array, "b n"], match_index: Int[Array, "b"], is_real: Bool[Array, "b"]
) -> tuple[Float[Array, "b n"], Float[Array, "b"]]:
    """The negatives of a block, -inf elsewhere, and each row's logit with its own text, 0 where that is elsewhere."""
    n = logits.shape[1]
    negatives = jnp.where(is_real[:, None] & (match_index[:, None] != jnp.arange(n)), logits, -jnp.inf)
    match = jnp.take_along_axis(logits, jnp.minimum(match_index, n - 1)[:, None], axis=1)[:, 0]
    return negatives, jnp.where(match_index < n, match, 0)
