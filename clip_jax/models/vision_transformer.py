"""The image tower: a vision transformer with an additional layer norm before its blocks."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Key, UInt32

from clip_jax.models.config import ModelConfig
from clip_jax.models.towers import VisionConfig
from clip_jax.models.transformer import MLP, Transformer, attention, attention_weights, make_layer_norm

Keys = Key[Array, "B"] | UInt32[Array | np.ndarray, "B 2"]  # new-style and raw random keys


class AttentionHead(nnx.Module):
    """A learned query attends to all positions, and a residual MLP follows (SigLIP's "MAP head").

    Reference: Zhai et al. 2022, https://arxiv.org/abs/2106.04560, sec. 3.2.
    """

    def __init__(self, config: VisionConfig, model: ModelConfig, rngs: nnx.Rngs):
        width = config.width
        heads = config.num_pool_heads, width // config.num_pool_heads
        normal = nnx.initializers.normal(width**-0.5)
        self.probe = nnx.Param(normal(rngs.params(), (width,), model.dtypes["param_dtype"]))
        self.query, self.key, self.value = (
            nnx.LinearGeneral(width, heads, kernel_init=normal, rngs=rngs, **model.dtypes) for _ in range(3)
        )
        self.out = nnx.LinearGeneral(heads, width, axis=(-2, -1), kernel_init=normal, rngs=rngs, **model.dtypes)
        self.ln = make_layer_norm(width, model, rngs)
        self.mlp = MLP(config, model, rngs, config.pool_mlp_dim)

    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B D"]:
        pooled = self.out(attention(self._query(x), self.key(x), self.value(x), causal=False))[:, 0]
        return pooled + self.mlp(self.ln(pooled))

    def weights(self, x: Float[Array, "B L D"]) -> Float[Array, "B H L"]:
        """The attention weight of each position."""
        return attention_weights(self._query(x), self.key(x))[:, :, 0]

    def _query(self, x: Float[Array, "B L D"]) -> Float[Array, "B 1 H K"]:
        return jnp.broadcast_to(self.query(self.probe[...].astype(x.dtype)), (len(x), 1, *self.query.out_features))


class QueryPool(nnx.Module):
    """A learned query of the joint space's width attends to all positions (CoCa's contrastive one).

    open_clip's pooling has more queries, for its captioner; each attends by itself, so that they change nothing here.

    Reference: Yu et al. 2022, https://arxiv.org/abs/2205.01917, sec. 3.2; as in open_clip, where both norms differ.
    """

    def __init__(self, model: ModelConfig, rngs: nnx.Rngs):
        config, width = model.vision, model.embed_dim
        assert isinstance(config, VisionConfig)
        heads = config.num_pool_heads, width // config.num_pool_heads
        normal = nnx.initializers.normal
        self.probe = nnx.Param(normal(width**-0.5)(rngs.params(), (width,), model.dtypes["param_dtype"]))
        self.ln_query, self.ln_key = (make_layer_norm(size, model, rngs) for size in (width, config.width))
        self.query, self.key, self.value = (
            nnx.LinearGeneral(size, heads, kernel_init=normal(size**-0.5), rngs=rngs, **model.dtypes)
            for size in (width, config.width, config.width)
        )
        self.out = nnx.LinearGeneral(
            heads, width, axis=(-2, -1), kernel_init=normal(width**-0.5), rngs=rngs, **model.dtypes
        )

    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B E"]:
        x = self.ln_key(x)
        return self.out(attention(self._query(x), self.key(x), self.value(x), causal=False))[:, 0]

    def weights(self, x: Float[Array, "B L D"]) -> Float[Array, "B H L"]:
        """The attention weight of each position."""
        x = self.ln_key(x)
        return attention_weights(self._query(x), self.key(x))[:, :, 0]

    def _query(self, x: Float[Array, "B L D"]) -> Float[Array, "B 1 H K"]:
        query = self.query(self.ln_query(self.probe[...].astype(x.dtype)))
        return jnp.broadcast_to(query, (len(x), 1, *query.shape))


def choose_patches(keys: Keys, num_patches: int, num_kept: int) -> Int[Array, "B {num_kept}"]:
    """For each key a random choice of patches without repetition; all choices are equally probable."""
    noise = jax.vmap(lambda key: jax.random.uniform(key, (num_patches,)))(keys)  # [B, P]
    # Not top_k: for it XLA gathers the rows of all devices, while a sort stays on each device.
    return jnp.argsort(noise, axis=1)[:, :num_kept]


class VisionTransformer(nnx.Module):
    """Images to features before the projection into the joint space, by default of the class token.

    Reference: Radford et al. 2021, sec. 2.4 ("an additional layer normalization to the combined patch and position
    embeddings before the transformer").
    """

    def __init__(self, model: ModelConfig, rngs: nnx.Rngs):
        config = model.vision
        assert isinstance(config, VisionConfig)
        self.patch_size = config.patch_size
        self.image_size = config.image_size
        self.num_kept_patches = config.num_kept_patches
        self.pooling = config.pooling
        self.num_prefix = config.num_prefix
        num_positions = config.grid_size**2 + config.num_prefix
        patch_dim = 3 * config.patch_size**2
        scale = config.width**-0.5
        normal = nnx.initializers.normal
        param_dtype = model.dtypes["param_dtype"]
        # The released code leaves its patch convolution at PyTorch's default, of this standard deviation.
        position_init = normal(config.position_init_scale * scale)
        patch_init = normal((3 * patch_dim) ** -0.5)
        self.patch_embedding = nnx.Linear(
            patch_dim,
            config.width,
            use_bias=config.pooling == "attention",
            kernel_init=patch_init,
            rngs=rngs,
            **model.dtypes,
        )
        class_init = normal(scale)
        self.class_embedding = (
            nnx.Param(class_init(rngs.params(), (config.width,), param_dtype)) if config.num_prefix else None
        )
        self.positional_embedding = nnx.Param(position_init(rngs.params(), (num_positions, config.width), param_dtype))
        has_ln_pre = config.pooling not in ("attention", "mean_then_norm")
        self.ln_pre = make_layer_norm(config.width, model, rngs) if has_ln_pre else None
        self.transformer = Transformer(config, model, causal=False, rngs=rngs)
        self.ln_post = make_layer_norm(model.pooled_width, model, rngs)
        has_head = config.pooling in ("attention", "perception")
        self.attention_head = AttentionHead(config, model, rngs) if has_head else None
        self.attention_pool = QueryPool(model, rngs) if config.pooling == "coca" else None

    def __call__(self, images: Float[Array, "B H W 3"], train: bool, keys: Keys | None = None) -> Float[Array, "B D"]:
        """Normalised images to features.

        H and W must be the config's image_size: the position embeddings are learned for that grid. In training with
        patch dropout each image's key chooses the patches that are kept.
        """
        return self.pool(self.positions(images, train, keys))

    def positions(
        self, images: Float[Array, "B H W 3"], train: bool, keys: Keys | None = None
    ) -> Float[Array, "B L D"]:
        """The output of the blocks; arguments as for a call."""
        return self.transformer(self._embed(images, train, keys))

    def pool(self, x: Float[Array, "B L D"]) -> Float[Array, "B F"]:
        """The features of an image from the output of the blocks."""
        if self.pooling == "class_token":
            return self.ln_post(x[:, 0])
        if self.attention_head is not None:
            return self.attention_head(self.ln_post(x))
        if self.attention_pool is not None:
            return self.ln_post(self.attention_pool(x))
        if self.pooling == "mean_then_norm":
            return self.ln_post(x[:, 1:].mean(1))
        return self.ln_post(x[:, 1:]).mean(1)

    def pooling_weights(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B heads P"]:
        """The weight of each patch in the last attention of the class token, or in the attention head."""
        x = self._embed(images, train=False)
        if self.attention_head is not None:
            return self.attention_head.weights(self.ln_post(self.transformer(x)))[:, :, self.num_prefix :]
        if self.attention_pool is not None:
            return self.attention_pool.weights(self.transformer(x))[:, :, self.num_prefix :]
        if self.pooling != "class_token":
            raise ValueError(
                f"vision.pooling={self.pooling!r} weighs all patches equally: there is no attention to show"
            )
        return self.transformer.last_weights(x)[:, :, 0, 1:]

    def _embed(self, images: Float[Array, "B H W 3"], train: bool, keys: Keys | None = None) -> Float[Array, "B L D"]:
        """The input of the blocks."""
        B, H, W, _ = images.shape
        p = self.patch_size
        if not H == W == self.image_size:
            raise ValueError(f"images are {H}x{W} pixels, the model's image_size is {self.image_size}: resize them")
        images = images[:, : H // p * p, : W // p * p]  # a remainder is not seen, as by a strided convolution
        patches = images.reshape(B, H // p, p, W // p, p, 3).swapaxes(2, 3).reshape(B, -1, p * p * 3)
        positions = self.positional_embedding[...]  # [P + 1, D], without a class token [P, D]
        if train and self.num_kept_patches < patches.shape[1]:
            if keys is None:
                raise ValueError("training with vision.patch_dropout needs a random key for each image")
            # Patches are left out before they are embedded, and so cost nothing.
            kept = choose_patches(keys, patches.shape[1], self.num_kept_patches)  # [B, K]
            patches = jnp.take_along_axis(patches, kept[:, :, None], axis=1)
            if self.class_embedding is not None:
                kept = jnp.concatenate([jnp.zeros_like(kept[:, :1]), kept + 1], axis=1)
            positions = positions[kept]  # [B, K + 1, D]
        x = self.patch_embedding(patches)  # [B, P, D]
        if self.class_embedding is not None:
            class_token = jnp.broadcast_to(self.class_embedding[...].astype(x.dtype), (B, 1, x.shape[-1]))
            x = jnp.concatenate([class_token, x], axis=1)  # [B, P + 1, D]
        x = x + positions.astype(x.dtype)
        return x if self.ln_pre is None else self.ln_pre(x)
