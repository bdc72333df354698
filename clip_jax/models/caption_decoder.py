"""A decoder that predicts the caption from all positions of the image, beside the contrastive towers.

Its blocks have the text tower's sizes and one more attention, over the image. It ends in the text tower's token
embedding, in which it also reads the caption.

Reference: Yu et al. 2022, https://arxiv.org/abs/2205.01917 (CoCa); Wan et al. 2024, https://arxiv.org/abs/2403.19596
(LocCa); Tschannen et al. 2025, https://arxiv.org/abs/2502.14786, sec. 2.2 (SigLIP 2: a decoder of half the text tower's
depth on the positions before pooling).
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from clip_jax.distributed.sharding import constrain_batch
from clip_jax.models.config import ModelConfig
from clip_jax.models.text_transformer import Text
from clip_jax.models.transformer import MLP, Attention, attention, make_layer_norm, rematerialize


class CrossAttention(nnx.Module):
    """Multi-head attention of the caption's positions over the image's."""

    def __init__(self, model: ModelConfig, rngs: nnx.Rngs):
        text, memory_width = model.text, model.vision.width
        heads = text.num_heads, text.width // text.num_heads
        normal = nnx.initializers.normal
        self.query, self.key, self.value = (
            nnx.LinearGeneral(width, heads, kernel_init=normal(width**-0.5), rngs=rngs, **model.dtypes)
            for width in (text.width, memory_width, memory_width)
        )
        std = text.width**-0.5 * (2 * text.depth) ** -0.5
        self.out = nnx.LinearGeneral(
            heads, text.width, axis=(-2, -1), kernel_init=normal(std), rngs=rngs, **model.dtypes
        )

    def __call__(self, x: Float[Array, "B L D"], memory: Float[Array, "B P M"]) -> Float[Array, "B L D"]:
        return self.out(attention(self.query(x), self.key(memory), self.value(memory), causal=False))


class DecoderBlock(nnx.Module):
    """A pre-norm residual block that attends to the caption so far, then to the image."""

    def __init__(self, model: ModelConfig, rngs: nnx.Rngs):
        config = model.text
        self.ln_1 = make_layer_norm(config.width, model, rngs)
        self.attn = Attention(config, model, True, rngs)
        self.ln_cross = make_layer_norm(config.width, model, rngs)
        self.cross = CrossAttention(model, rngs)
        self.ln_2 = make_layer_norm(config.width, model, rngs)
        self.mlp = MLP(config, model, rngs)

    def __call__(self, x: Float[Array, "B L D"], memory: Float[Array, "B P M"]) -> Float[Array, "B L D"]:
        x = x + self.attn(self.ln_1(x))
        x = x + self.cross(self.ln_cross(x), memory)
        return x + self.mlp(self.ln_2(x))


class CaptionDecoder(nnx.Module):
    """model.decoder_depth blocks, stacked and scanned as the towers' are."""

    def __init__(self, model: ModelConfig, rngs: nnx.Rngs):
        config, param_dtype = model.text, model.dtypes["param_dtype"]
        normal = nnx.initializers.normal
        self.remat = model.remat
        self.start_embedding = nnx.Param(normal(0.02)(rngs.params(), (config.width,), param_dtype))
        self.positional_embedding = nnx.Param(
            normal(0.01)(rngs.params(), (config.context_length, config.width), param_dtype)
        )
        self.ln_memory = make_layer_norm(model.vision.width, model, rngs)
        self.blocks = nnx.vmap(lambda r: DecoderBlock(model, r))(rngs.split(model.decoder_depth))
        self.ln_final = make_layer_norm(config.width, model, rngs)

    def __call__(self, memory: Float[Array, "B P M"], text: Text, token_embedding: nnx.Embed) -> Float[Array, "B L D"]:
        """Hidden states [:, i] that predict text[:, i] from the image and from text[:, :i].

        memory: the image tower's positions before pooling. token_embedding: the text tower's.
        """
        before = token_embedding(jnp.asarray(text[:, :-1]))  # [B, L - 1, D]
        start = jnp.broadcast_to(self.start_embedding[...].astype(before.dtype), (len(before), 1, before.shape[-1]))
        x = jnp.concatenate([start, before], axis=1)
        x = x + self.positional_embedding[: x.shape[1]].astype(x.dtype)
        memory = constrain_batch(self.ln_memory(memory))
        graphdef, stacked = nnx.split(self.blocks)

        def body(x: Array, params: nnx.State) -> tuple[Array, None]:
            return constrain_batch(nnx.merge(graphdef, params)(constrain_batch(x), memory)), None

        return self.ln_final(jax.lax.scan(rematerialize(body, self.remat), constrain_batch(x), stacked)[0])
