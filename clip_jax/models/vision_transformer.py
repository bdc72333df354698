"""The image tower: a vision transformer with one more layer norm before its blocks."""

import jax
import jax.numpy as jnp
from flax import nnx

from clip_jax.models.config import ModelConfig
from clip_jax.models.transformer import Transformer, make_layer_norm


class VisionTransformer(nnx.Module):
    """Images to the class token's feature, before the projection into the joint space.

    Reference: Radford et al. 2021, sec. 2.4 ("an additional layer normalization to the combined patch and position
    embeddings before the transformer").
    """

    def __init__(self, model: ModelConfig, rngs: nnx.Rngs):
        config = model.vision
        self.patch_size = config.patch_size
        self.image_size = config.image_size
        num_patches = (config.image_size // config.patch_size) ** 2
        patch_dim = 3 * config.patch_size**2
        scale = config.width**-0.5
        normal = nnx.initializers.normal
        param_dtype = model.dtypes["param_dtype"]
        # The released code leaves its patch convolution at PyTorch's default, of this standard deviation.
        position_init = normal(config.position_init_scale * scale)
        patch_init = normal((3 * patch_dim) ** -0.5)
        self.patch_embedding = nnx.Linear(
            patch_dim, config.width, use_bias=False, kernel_init=patch_init, rngs=rngs, **model.dtypes
        )
        self.class_embedding = nnx.Param(normal(scale)(rngs.params(), (config.width,), param_dtype))
        self.positional_embedding = nnx.Param(
            position_init(rngs.params(), (num_patches + 1, config.width), param_dtype)
        )
        self.ln_pre = make_layer_norm(config.width, model, rngs)
        self.transformer = Transformer(config, model, causal=False, rngs=rngs)
        self.ln_post = make_layer_norm(config.width, model, rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps normalised images [B, H, W, 3] to features [B, D].

        H and W must be the config's image_size: the position embeddings are learned for that grid.
        """
        B, H, W, _ = images.shape
        p = self.patch_size
        if not H == W == self.image_size:
            raise ValueError(f"images are {H}x{W} pixels, the model's image_size is {self.image_size}: resize them")
        patches = images.reshape(B, H // p, p, W // p, p, 3).swapaxes(2, 3).reshape(B, -1, p * p * 3)
        x = self.patch_embedding(patches)  # [B, P, D]
        class_token = jnp.broadcast_to(self.class_embedding[...].astype(x.dtype), (B, 1, x.shape[-1]))
        x = jnp.concatenate([class_token, x], axis=1)  # [B, P + 1, D]
        x = x + self.positional_embedding[...].astype(x.dtype)
        x = self.transformer(self.ln_pre(x))
        return self.ln_post(x[:, 0])
