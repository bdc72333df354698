"""The text tower: a transformer, causal but for SigLIP's, whose feature is read at the end token."""

import jax
import jax.numpy as jnp
from flax import nnx

from clip_jax.models.config import ModelConfig
from clip_jax.models.transformer import Transformer, make_layer_norm


class TextTransformer(nnx.Module):
    """Tokens to the end token's feature, before the projection into the joint space.

    Reference: Radford et al. 2021, sec. 2.4 ("the activations of the highest layer of the transformer at the [EOS]
    token are treated as the feature representation of the text which is layer normalized").
    """

    def __init__(self, model: ModelConfig, rngs: nnx.Rngs):
        config = model.text
        normal = nnx.initializers.normal
        self.eot_token = config.eot_token
        self.pooling = config.pooling
        self.token_embedding = nnx.Embed(
            config.vocab_size, config.width, embedding_init=normal(0.02), rngs=rngs, **model.dtypes
        )
        self.positional_embedding = nnx.Param(
            normal(0.01)(rngs.params(), (config.context_length, config.width), model.dtypes["param_dtype"])
        )
        self.transformer = Transformer(config, model, causal=config.causal, rngs=rngs)
        self.ln_final = make_layer_norm(config.width, model, rngs)

    def __call__(self, text: jax.Array) -> jax.Array:
        """Maps token ids, int32 [B, L] with L <= context_length, to features [B, D].

        With pooling "eot" each row has an end token, and what stands after it does not matter to a causal tower: rows
        cut behind the last end token give the same features.
        """
        x = self.token_embedding(text)  # [B, L, D]
        x = x + self.positional_embedding[: text.shape[1]].astype(x.dtype)
        x = self.transformer(x)
        if self.pooling == "last":
            return self.ln_final(x[:, -1])
        end = jnp.argmax(text == self.eot_token, axis=-1)  # [B]
        # Layer norm acts on each position alone, so we norm only the one that is read.
        return self.ln_final(jnp.take_along_axis(x, end[:, None, None], axis=1)[:, 0])
