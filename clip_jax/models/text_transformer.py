"""The text tower: a transformer, causal except for SigLIP's, whose feature is read at the end token."""

from dataclasses import dataclass
from typing import no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from clip_jax.distributed.sharding import constrain_batch
from clip_jax.models.config import ModelConfig
from clip_jax.models.transformer import Transformer, make_layer_norm

PADDING = 0  # the id that CoCa's class token does not see
Text = Int[Array | np.ndarray, "B L"]


@no_type_check  # JAX rebuilds it with leaves that are no arrays
@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class PackedText:
    """G groups of n captions each, packed into r rows of L positions per group; all int32. Equivalent to the token ids
    [G n, L] of the same captions in the same order.

    A group's captions are in its own rows and the groups are the leading axis of every array, so that a batch split
    over devices by groups is encoded and differentiated without another device's activations.

    segments: number of the caption that a position belongs to; 0 between captions. positions: within the caption.
    rows, ends: row, within the group, and position of each caption's end token.
    """

    tokens: Int[Array, "G r L"]
    segments: Int[Array, "G r L"]
    positions: Int[Array, "G r L"]
    rows: Int[Array, "G n"]
    ends: Int[Array, "G n"]


class TextTransformer(nnx.Module):
    """Tokens to the end token's feature, before the projection into the joint space.

    Reference: Radford et al. 2021, sec. 2.4 ("the activations of the highest layer of the transformer at the [EOS]
    token are treated as the feature representation of the text which is layer normalized").
    """

    def __init__(self, model: ModelConfig, rngs: nnx.Rngs):
        config = model.text
        normal = nnx.initializers.normal
        self.config = config
        self.pooling = config.pooling
        self.ignores_padding = config.ignores_padding
        self.token_embedding = nnx.Embed(
            config.vocab_size, config.width, embedding_init=normal(0.02), rngs=rngs, **model.dtypes
        )
        has_class_token = config.pooling == "class_token"
        num_positions, param_dtype = config.context_length + has_class_token, model.dtypes["param_dtype"]
        self.positional_embedding = nnx.Param(normal(0.01)(rngs.params(), (num_positions, config.width), param_dtype))
        self.class_embedding = (
            nnx.Param(normal(0.01)(rngs.params(), (config.width,), param_dtype)) if has_class_token else None
        )
        self.transformer = Transformer(config, model, causal=config.causal, rngs=rngs)
        self.ln_final = make_layer_norm(config.width, model, rngs)

    def __call__(self, text: Text | PackedText) -> Float[Array, "B D"]:
        """Token ids, L <= context_length, or B packed captions, to features.

        With pooling "eot" each row has an end token, and what follows it does not matter to a causal tower: rows cut
        after the last end token give the same features, and so do packed ones. Only such a tower takes packed text.
        """
        if isinstance(text, PackedText):
            return self._encode_packed(text)
        x = self.token_embedding(jnp.asarray(text))  # [B, L, D]
        seen = None
        if self.class_embedding is not None:
            class_token = jnp.broadcast_to(self.class_embedding[...].astype(x.dtype), (len(x), 1, x.shape[-1]))
            x = jnp.concatenate([x, class_token], axis=1)  # [B, L + 1, D]
            # CoCa's weights were trained with the mask of padding one position too late.
            seen = jnp.pad(jnp.asarray(text) != PADDING, ((0, 0), (1, 0)), constant_values=True)
        x = x + self.positional_embedding[: x.shape[1]].astype(x.dtype)
        x = self.transformer(x, seen=seen)
        if self.pooling in ("last", "class_token"):
            return self.ln_final(x[:, -1])
        end = jnp.argmax(self.config.end_mask(text), axis=-1)  # [B]
        # Layer norm acts on each position alone, so we norm only the one that is read.
        return self.ln_final(jnp.take_along_axis(x, end[:, None, None], axis=1)[:, 0])

    def next_token_logits(self, prefix: Float[Array, "B D"], text: Text) -> Float[Array, "B L-1 V"]:
        """Logits of the token after each position, at least float32; L <= context_length.

        prefix replaces the start token, which all texts share: logits [:, i] depend on it and on text[:, 1 : i + 1],
        and predict text[:, i + 1]. The token embedding is also the output layer; products are of the compute dtype and
        their sums at least float32.
        """
        x = jnp.concatenate(
            [prefix[:, None], self.token_embedding(jnp.asarray(text[:, 1:-1]))], axis=1
        )  # [B, L - 1, D]
        x = x + self.positional_embedding[: x.shape[1]].astype(x.dtype)
        x = self.ln_final(self.transformer(x))
        embedding = self.token_embedding.embedding[...].astype(x.dtype)  # [V, D]
        wide = jnp.promote_types(x.dtype, jnp.float32)
        return constrain_batch(jnp.einsum("bld,vd->blv", x, embedding, preferred_element_type=wide))

    def _encode_packed(self, text: PackedText) -> Float[Array, "B D"]:
        if not self.ignores_padding:
            raise ValueError("packed text needs a causal tower that is read at the end token; encode its rows unpacked")
        G, _, L = text.tokens.shape
        tokens, segments, positions = (x.reshape(-1, L) for x in (text.tokens, text.segments, text.positions))
        x = self.token_embedding(tokens)  # [G r, L, D]
        x = x + self.positional_embedding[...][positions].astype(x.dtype)
        x = self.transformer(x, segments)
        x = x.reshape(G, -1, x.shape[-1])  # [G, r L, D]
        end = text.rows * L + text.ends  # [G, n], within the group: no device needs another's rows
        x = jnp.take_along_axis(x, end[:, :, None], axis=1)  # [G, n, D]
        return self.ln_final(x.reshape(-1, x.shape[-1]))
