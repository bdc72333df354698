"""CLIP: two towers, a linear projection from each into the joint space, and the learned temperature."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from clip_jax.models.config import ModelConfig
from clip_jax.models.text_transformer import TextTransformer
from clip_jax.models.vision_transformer import VisionTransformer
from clip_jax.sharding import constrain_batch

IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)


class CLIPFeatures(NamedTuple):
    """What the loss needs: features [B, E], not normalised, and the logarithm of the logit scale, []."""

    image_features: jax.Array
    text_features: jax.Array
    logit_scale: jax.Array


def normalize_images(images: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """uint8 [B, H, W, 3] in 0..255 to the zero-mean, unit-variance pixels the released models were trained on."""
    wide = jnp.promote_types(dtype, jnp.float32)
    pixels = images.astype(wide) / 255
    return ((pixels - jnp.asarray(IMAGE_MEAN, wide)) / jnp.asarray(IMAGE_STD, wide)).astype(dtype)


class CLIP(nnx.Module):
    """Image and text encoders into one space.

    Reference: Radford et al. 2021, fig. 3 and sec. 2.3 (linear projections, no bias, no non-linearity).
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        normal = nnx.initializers.normal
        dtypes = config.dtypes
        self.compute_dtype = dtypes["dtype"]
        self.visual = VisionTransformer(config, rngs)
        self.text = TextTransformer(config, rngs)
        self.visual_projection = nnx.Linear(
            config.vision.width,
            config.embed_dim,
            use_bias=False,
            kernel_init=normal(config.vision.width**-0.5),
            rngs=rngs,
            **dtypes,
        )
        self.text_projection = nnx.Linear(
            config.text.width,
            config.embed_dim,
            use_bias=False,
            kernel_init=normal(config.text.width**-0.5),
            rngs=rngs,
            **dtypes,
        )
        self.logit_scale = nnx.Param(jnp.log(jnp.asarray(config.logit_scale_init, dtypes["param_dtype"])))

    def encode_image(self, images: jax.Array) -> jax.Array:
        """Features [B, E], not normalised.

        images: [B, H, W, 3], uint8 in 0..255, or already normalised floating-point pixels.
        """
        if images.dtype == jnp.uint8:
            images = normalize_images(images, self.compute_dtype)
        features = self.visual(constrain_batch(images.astype(self.compute_dtype)))
        return constrain_batch(self.visual_projection(features))

    def encode_text(self, text: jax.Array) -> jax.Array:
        """Features [B, E], not normalised, of token ids int32 [B, L]."""
        return constrain_batch(self.text_projection(self.text(constrain_batch(text))))

    def __call__(self, images: jax.Array, text: jax.Array) -> CLIPFeatures:
        return CLIPFeatures(self.encode_image(images), self.encode_text(text), self.logit_scale[...])
