"""Every image row meets every text, block by block, while the texts travel round the devices of the batch axes.

What the streamed losses share, for use inside of a `shard_map`, on the arrays of one device. The rows stay; the texts
go from device to device and home again, and what the blocks say about a text follows it.

Reference: Zhai et al. 2023, sec. 3.3, passes the texts on in the same way, a device's whole share at once.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from clip_jax.distributed.sharding import BATCH_AXES

Tree = Any
BLOCK_SIZE = 256  # among 128, 256 and 512 the fastest on CPU; see clip_jax/benchmarks/loss.py


def check_block_size(block_size: int) -> int:
    """Raises ValueError for less than one row."""
    if block_size < 1:
        raise ValueError(f"block_size={block_size} must be at least 1: it is how many rows are computed at once")
    return block_size


def meet(
    visit: Callable[[Tree, Tree, jax.Array, jax.Array], tuple[Tree, Tree]],
    merge: Callable[[Tree, Tree], Tree],
    rows: Tree,
    texts: Tree,
    nothing: tuple[Tree, Tree],
    block_size: int,
) -> tuple[Tree, Tree]:
    """What all blocks together say about this device's rows and about its texts.

    Args:
      visit: (rows [b, ...], texts [n, ...], own [b], real [b]) -> (about these rows, about these texts). `own` is where
        among the texts a row's partner stands, n if elsewhere. Rows that fill up the last block are zeros, not `real`.
      merge: joins what two blocks say, of rows or of texts.
      rows, texts: trees of arrays [n, ...].
      nothing: what no block says, about rows [n, ...] and about texts; to merge it with anything changes nothing.
      block_size: rows computed at once, at most; blocks are of equal size.
    """
    n = len(jax.tree.leaves(rows)[0])
    num_blocks = -(-n // block_size)
    b = -(-n // num_blocks)
    num_devices = lax.axis_size(BATCH_AXES)

    def fill_up(x: jax.Array) -> jax.Array:
        return jnp.pad(x, [(0, num_blocks * b - n)] + [(0, 0)] * (x.ndim - 1))

    def pass_on(tree: Tree) -> Tree:
        return lax.ppermute(tree, BATCH_AXES, [(i, (i + 1) % num_devices) for i in range(num_devices)])

    rows, about_rows = jax.tree.map(fill_up, (rows, nothing[0]))

    def stop(carry: tuple[Tree, Tree, Tree], step: jax.Array) -> tuple[tuple[Tree, Tree, Tree], None]:
        about_rows, texts, about_last_texts = carry
        # Both leave before the computation and without waiting for it: these texts, and what was said of the last.
        next_texts, said_before = pass_on((texts, about_last_texts))

        def block(carry: tuple[Tree, Tree], start: jax.Array) -> tuple[tuple[Tree, Tree], None]:
            about_rows, about_texts = carry
            index = start + jnp.arange(b)
            is_real = index < n
            own = jnp.where(is_real & (step == 0), index, n)
            these, about_these = jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, start, b), (rows, about_rows))
            said_of_rows, said_of_texts = visit(these, texts, own, is_real)
            about_rows = jax.tree.map(
                lambda x, new: lax.dynamic_update_slice_in_dim(x, new, start, axis=0),
                about_rows,
                merge(about_these, said_of_rows),
            )
            return (about_rows, merge(about_texts, said_of_texts)), None

        (about_rows, about_texts), _ = lax.scan(block, (about_rows, nothing[1]), b * jnp.arange(num_blocks))
        return (about_rows, next_texts, merge(said_before, about_texts)), None

    (about_rows, _, about_texts), _ = lax.scan(stop, (about_rows, texts, nothing[1]), jnp.arange(num_devices))
    return jax.tree.map(lambda x: x[:n], about_rows), pass_on(about_texts)


def split(logits: jax.Array, own: jax.Array, real: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of a block [b, n] the logits of strangers, -inf elsewhere, and those [b] of the rows' own texts, 0 elsewhere."""
    n = logits.shape[1]
    strangers = jnp.where(real[:, None] & (own[:, None] != jnp.arange(n)), logits, -jnp.inf)
    match = jnp.take_along_axis(logits, jnp.minimum(own, n - 1)[:, None], axis=1)[:, 0]
    return strangers, jnp.where(own < n, match, 0)
