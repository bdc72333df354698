"""The transformer both towers share: pre-norm blocks, stacked along a leading depth axis and scanned."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int, PyTree

from clip_jax.distributed.sharding import constrain_batch
from clip_jax.models.config import ModelConfig
from clip_jax.models.towers import TransformerConfig, VisionConfig

Segments = Int[Array, "B L"] | None
Seen = Bool[Array, "B L"] | None
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}
# What a block keeps for the backward pass, by `model.remat`; the rest is computed again.
POLICIES = jax.checkpoint_policies
NAMED = ("attention_output", "mlp_hidden", "convolution")  # what "named" keeps
SAVEABLE: dict[str, Callable[..., Any]] = {
    "full": POLICIES.nothing_saveable,
    "attention": POLICIES.save_only_these_names("attention_output"),
    "named": POLICIES.save_only_these_names(*NAMED),
    "dots": POLICIES.save_from_both_policies(
        POLICIES.dots_with_no_batch_dims_saveable, POLICIES.save_only_these_names("convolution")
    ),
}


def keep(x: Array, name: str) -> Array:
    """x, marked as one of NAMED."""
    assert name in NAMED
    return checkpoint_name(x, name)


def rematerialize(body: Callable[..., Any], remat: str) -> Callable[..., Any]:
    """A scanned block that keeps only what the policy says; "none" keeps everything."""
    if remat == "none":
        return body
    # A scan's body needs no barrier against common subexpressions, which would cost speed.
    return jax.checkpoint(body, prevent_cse=False, policy=SAVEABLE[remat])


def make_layer_norm(width: int, config: ModelConfig, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Layer norm with statistics in at least float32 and the two-pass variance, exact for large means."""
    return nnx.LayerNorm(width, epsilon=config.layer_norm_eps, use_fast_variance=False, rngs=rngs, **config.dtypes)


def rotary_angles(grid_size: int, head_dim: int, trained_grid: int = 0) -> Float[np.ndarray, "P {head_dim//2}"]:
    """The angle of each pair of channels at each patch of a square grid, row by row: the first half of the pairs turns
    with the column, the second with the row, both counted from 1; float64.

    trained_grid: patches along a side in training, to which the positions are scaled; 0: grid_size.

    Reference: Su et al. 2021, https://arxiv.org/abs/2104.09864; in two dimensions as in Bolya et al. 2025,
    https://arxiv.org/abs/2504.13181.
    """
    bands = 10_000.0 ** -(np.arange(head_dim // 4) / (head_dim // 4))
    steps = (np.arange(grid_size) + 1.0) / grid_size * (trained_grid or grid_size)
    rows, columns = np.meshgrid(steps, steps, indexing="ij")
    return np.concatenate([x.reshape(-1, 1) * bands for x in (columns, rows)], axis=1)


def rotate(x: Float[Array, "B L H K"], angles: Float[Array | np.ndarray, "P A"]) -> Float[Array, "B L H K"]:
    """x with neighbouring channels turned by the angles at the last P positions; those before keep theirs."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    prefix, turned = jnp.split(x, [x.shape[1] - len(angles)], axis=1)
    pairs = turned.reshape(*turned.shape[:-1], -1, 2).astype(wide)  # [B, P, H, A, 2]
    cos, sin = (jnp.asarray(f(angles), wide)[:, None, :] for f in (np.cos, np.sin))
    even, odd = pairs[..., 0], pairs[..., 1]
    pairs = jnp.stack([even * cos - odd * sin, odd * cos + even * sin], axis=-1)
    return jnp.concatenate([prefix, pairs.reshape(turned.shape).astype(x.dtype)], axis=1)


def attention(
    query: Float[Array, "B L H K"],
    key: Float[Array, "B M H K"],
    value: Float[Array, "B M H K"],
    causal: bool,
    segments: Int[Array, "B L"] | None = None,
    seen: Bool[Array, "B M"] | None = None,
) -> Float[Array, "B L H K"]:
    """Scaled dot-product attention; the softmax is in at least float32.

    segments: with L = M, each position sees only those of its own segment. seen: the others are seen by none.
    `jax.nn.dot_product_attention` casts its softmax down to float32 under x64, so that float64 could not be had.
    """
    weights = attention_weights(query, key, causal, segments, seen).astype(value.dtype)
    return jnp.einsum("bhlm,bmhk->blhk", weights, value)


def attention_weights(
    query: Float[Array, "B L H K"],
    key: Float[Array, "B M H K"],
    causal: bool = False,
    segments: Int[Array, "B L"] | None = None,
    seen: Bool[Array, "B M"] | None = None,
) -> Float[Array, "B H L M"]:
    """The weight of each position for each query, in at least float32; rows sum to 1."""
    logits = jnp.einsum("blhk,bmhk->bhlm", query * query.shape[-1] ** -0.5, key)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    if causal:
        visible = jnp.tril(jnp.ones(logits.shape[-2:], bool))
        logits = jnp.where(visible, logits, -jnp.inf)
    if segments is not None:
        visible = segments[:, None, :, None] == segments[:, None, None, :]  # [B, 1, L, L]
        logits = jnp.where(visible, logits, -jnp.inf)
    if seen is not None:
        logits = jnp.where(seen[:, None, None, :], logits, -jnp.inf)
    return jax.nn.softmax(logits, axis=-1)


class Attention(nnx.Module):
    """Multi-head self-attention with one fused query-key-value projection."""

    def __init__(self, config: TransformerConfig, model: ModelConfig, causal: bool, rngs: nnx.Rngs):
        head_dim = config.width // config.num_heads
        std = config.width**-0.5
        normal = nnx.initializers.normal
        self.causal = causal
        self.grid = None
        if isinstance(config, VisionConfig) and config.pooling == "perception":
            self.grid = config.grid_size, head_dim, config.rotary_grid
        self.qkv = nnx.LinearGeneral(
            config.width, (3, config.num_heads, head_dim), kernel_init=normal(std), rngs=rngs, **model.dtypes
        )
        self.out = nnx.LinearGeneral(
            (config.num_heads, head_dim),
            config.width,
            axis=(-2, -1),
            kernel_init=normal(std * (2 * config.depth) ** -0.5),
            rngs=rngs,
            **model.dtypes,
        )

    def __call__(
        self,
        x: Float[Array, "B L D"],
        segments: Int[Array, "B L"] | None = None,
        seen: Bool[Array, "B L"] | None = None,
    ) -> Float[Array, "B L D"]:
        query, key, value = self._query_key_value(x)
        return keep(self.out(attention(query, key, value, self.causal, segments, seen)), "attention_output")

    def weights(self, x: Float[Array, "B L D"]) -> Float[Array, "B H L L"]:
        """The attention weights of every position over all."""
        query, key, _ = self._query_key_value(x)
        return attention_weights(query, key, self.causal)

    def _query_key_value(self, x: Float[Array, "B L D"]) -> tuple[Array, Array, Array]:
        """[B, L, H, K] each."""
        query, key, value = jnp.moveaxis(self.qkv(x), -3, 0)
        if self.grid is None:
            return query, key, value
        angles = rotary_angles(*self.grid)
        return rotate(query, angles), rotate(key, angles), value


class MLP(nnx.Module):
    """Two linear layers around the activation."""

    def __init__(self, config: TransformerConfig, model: ModelConfig, rngs: nnx.Rngs, mlp_dim: int = 0):
        """mlp_dim: hidden channels; 0: the config's."""
        normal = nnx.initializers.normal
        width, mlp_dim = config.width, mlp_dim or config.mlp_dim
        out_std = width**-0.5 * (2 * config.depth) ** -0.5
        self.activation = ACTIVATIONS[model.activation_of(config)]
        self.fc_in = nnx.Linear(width, mlp_dim, kernel_init=normal((2 * width) ** -0.5), rngs=rngs, **model.dtypes)
        self.fc_out = nnx.Linear(mlp_dim, width, kernel_init=normal(out_std), rngs=rngs, **model.dtypes)

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        return self.fc_out(self.activation(keep(self.fc_in(x), "mlp_hidden")))


class Block(nnx.Module):
    """Pre-norm residual attention block."""

    def __init__(self, config: TransformerConfig, model: ModelConfig, causal: bool, rngs: nnx.Rngs):
        self.ln_1 = make_layer_norm(config.width, model, rngs)
        self.attn = Attention(config, model, causal, rngs)
        self.ln_2 = make_layer_norm(config.width, model, rngs)
        self.mlp = MLP(config, model, rngs)

    def __call__(
        self,
        x: Float[Array, "B L D"],
        segments: Int[Array, "B L"] | None = None,
        seen: Bool[Array, "B L"] | None = None,
    ) -> Float[Array, "B L D"]:
        x = x + self.attn(self.ln_1(x), segments, seen)
        return x + self.mlp(self.ln_2(x))


class Transformer(nnx.Module):
    """`depth` blocks whose parameters are stacked, [depth, ...], and applied by one scanned body.

    The paper initialises only the text tower by this depth-scaled rule and leaves the vision tower's blocks at the
    framework's defaults in the released code; we use the rule for both.

    Reference: Radford et al. 2021, sec. 2.4; initialisation as in GPT-2.
    """

    def __init__(self, config: TransformerConfig, model: ModelConfig, causal: bool, rngs: nnx.Rngs):
        self.remat = model.remat
        self.blocks = nnx.vmap(lambda r: Block(config, model, causal, r))(rngs.split(config.depth))

    def __call__(
        self,
        x: Float[Array, "B L D"],
        segments: Int[Array, "B L"] | None = None,
        seen: Bool[Array, "B L"] | None = None,
    ) -> Float[Array, "B L D"]:
        """Applies all blocks, in the compute dtype; segments and seen as in `attention`."""
        return self._apply(*nnx.split(self.blocks), x, segments, seen)

    def last_weights(self, x: Float[Array, "B L D"]) -> Float[Array, "B H L L"]:
        """The attention weights of the last block; x is the input of the first."""
        graphdef, stacked = nnx.split(self.blocks)
        x = self._apply(graphdef, jax.tree.map(lambda leaf: leaf[:-1], stacked), x)
        last = nnx.merge(graphdef, jax.tree.map(lambda leaf: leaf[-1], stacked))
        return last.attn.weights(last.ln_1(x))

    def _apply(
        self,
        graphdef: nnx.GraphDef[Block],
        stacked: PyTree,
        x: Array,
        segments: Segments = None,
        seen: Seen = None,
    ) -> Array:
        def body(x: Array, params: PyTree) -> tuple[Array, None]:
            # Unconstrained, XLA may split the channels of what a scan carries, as fsdp splits those of the weights.
            return constrain_batch(nnx.merge(graphdef, params)(constrain_batch(x), segments, seen)), None

        return jax.lax.scan(rematerialize(body, self.remat), x, stacked)[0]
