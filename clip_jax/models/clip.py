"""CLIP: two towers, a linear projection from each into the joint space, and the learned logit scale."""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8

from clip_jax.distributed.sharding import constrain_batch
from clip_jax.models.caption_decoder import CaptionDecoder
from clip_jax.models.config import ModelConfig
from clip_jax.models.modified_resnet import ModifiedResNet
from clip_jax.models.text_transformer import PackedText, Text, TextTransformer
from clip_jax.models.towers import ResNetConfig
from clip_jax.models.transformer import ACTIVATIONS
from clip_jax.models.vision_transformer import Keys, VisionTransformer

Images = UInt8[Array | np.ndarray, "B H W 3"] | Float[Array | np.ndarray, "B H W 3"]  # in 0..255, or already normalised


def normalize_images(images: UInt8[Array | np.ndarray, "*B H W 3"], config: ModelConfig) -> Float[Array, "*B H W 3"]:
    """Pixels in 0..255 to zero mean and unit variance, in the compute dtype."""
    dtype = config.dtypes["dtype"]
    wide = jnp.promote_types(dtype, jnp.float32)
    pixels = jnp.asarray(images, wide) / 255
    return ((pixels - jnp.asarray(config.image_mean, wide)) / jnp.asarray(config.image_std, wide)).astype(dtype)


class MLPProjection(nnx.Module):
    """Two linear layers around the activation, which the paper found no better than one layer."""

    def __init__(self, width: int, config: ModelConfig, rngs: nnx.Rngs):
        init = nnx.initializers.normal(width**-0.5)
        self.activation = ACTIVATIONS[config.activation]
        self.fc_in = nnx.Linear(width, width, kernel_init=init, rngs=rngs, **config.dtypes)
        self.fc_out = nnx.Linear(width, config.embed_dim, use_bias=False, kernel_init=init, rngs=rngs, **config.dtypes)

    def __call__(self, features: Float[Array, "B D"]) -> Float[Array, "B E"]:
        return self.fc_out(self.activation(self.fc_in(features)))


class ImageEncoder(nnx.Module):
    """The image side of every model: a tower and, unless the tower has its own, a projection.

    Subclasses set config, visual and visual_projection, in the order in which their parameters are drawn.
    """

    config: ModelConfig
    visual: VisionTransformer | ModifiedResNet
    visual_projection: nnx.Linear | MLPProjection | None

    def _make_visual(self, rngs: nnx.Rngs) -> VisionTransformer | ModifiedResNet:
        is_resnet = isinstance(self.config.vision, ResNetConfig)
        return ModifiedResNet(self.config, rngs) if is_resnet else VisionTransformer(self.config, rngs)

    def _make_visual_projection(self, rngs: nnx.Rngs) -> nnx.Linear | MLPProjection | None:
        return (
            self._projection(self.config.pooled_width, self.config.has_visual_projection_bias, rngs)
            if self.config.has_visual_projection
            else None
        )

    def _projection(self, width: int, use_bias: bool, rngs: nnx.Rngs) -> nnx.Linear | MLPProjection:
        if self.config.projection == "mlp":
            return MLPProjection(width, self.config, rngs)
        init = nnx.initializers.normal(width**-0.5)
        return nnx.Linear(
            width, self.config.embed_dim, use_bias=use_bias, kernel_init=init, rngs=rngs, **self.config.dtypes
        )

    def encode_image(self, images: Images, *, train: bool = False, keys: Keys | None = None) -> Float[Array, "B E"]:
        """Features, not normalised.

        images: uint8 in 0..255, or already normalised floating-point pixels.
        train: batch norms use the batch's statistics and update their running ones; patches are dropped.
        keys: one random key for each image; needed only where patches are dropped.
        """
        return self.project_image(self.pool_image(images, train=train, keys=keys))

    def pool_image(self, images: Images, *, train: bool = False, keys: Keys | None = None) -> Float[Array, "B D"]:
        """Features before the projection; of a ResNet, whose attention pool is its projection, [B, E].

        Arguments as for `encode_image`. Reference: Radford et al. 2021, appendix A (features of the linear probes).
        """
        return self.visual(self._normalized(images), train, keys)

    def attention_map(self, images: Images) -> Float[Array, "B G G"]:
        """The attention weight of each position of the image, in a grid of grid_size, mean over the heads.

        Of the last attention of the class token, or of the attention pooling. The weight of the rest (the class token
        itself, a ResNet's mean) is left out: a map sums to at most 1. images: as for `encode_image`.

        Raises:
          ValueError: features that are the mean of all patches.
        """
        weights = self.visual.pooling_weights(self._normalized(images)).mean(1)  # [B, P]
        return weights.reshape(len(weights), *[self.config.vision.grid_size] * 2)

    def _normalized(self, images: Images) -> Float[Array, "B H W 3"]:
        if images.dtype == jnp.uint8:
            images = normalize_images(images, self.config)
        return constrain_batch(jnp.asarray(images, self.config.dtypes["dtype"]))

    def project_image(self, pooled: Float[Array, "B D"]) -> Float[Array, "B E"]:
        """The output of `pool_image` to features, not normalised."""
        return constrain_batch(self.visual_projection(pooled) if self.visual_projection else pooled)


class CLIP(ImageEncoder):
    """Image and text encoders into one space. The parameter logit_scale is a logarithm, as in the released weights.

    Reference: Radford et al. 2021, fig. 3 and sec. 2.3 (linear projections, no bias, no non-linearity).
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        dtypes = config.dtypes
        self.config = config
        self.visual = self._make_visual(rngs)
        self.text = TextTransformer(config, rngs)
        self.visual_projection = self._make_visual_projection(rngs)
        self.text_projection = self._projection(config.text.width, config.text.projection_bias, rngs)
        self.logit_scale = nnx.Param(jnp.log(jnp.asarray(config.logit_scale_init, dtypes["param_dtype"])))
        bias = config.logit_bias_init
        self.logit_bias = None if bias is None else nnx.Param(jnp.asarray(bias, dtypes["param_dtype"]))
        self.decoder = CaptionDecoder(config, rngs) if config.decoder_depth else None

    def encode_text(self, text: Text | PackedText) -> Float[Array, "B E"]:
        """Features, not normalised, of token ids, or packed ones; see `TextTransformer` about both."""
        return constrain_batch(self.text_projection(self.text(constrain_batch(text))))

    def encode_image_and_decode(
        self, images: Images, text: Text, *, train: bool = False, keys: Keys | None = None
    ) -> tuple[Float[Array, "B E"], Float[Array, "B L D"]]:
        """Image features as of `encode_image`, and the decoder's hidden states for the caption of each image.

        The token embedding of the text tower makes logits of hidden states: `losses.token_scores`. Arguments as for
        `encode_image`; the model needs a decoder.
        """
        assert self.decoder is not None
        assert isinstance(self.visual, VisionTransformer)
        positions = self.visual.positions(self._normalized(images), train, keys)
        hidden = self.decoder(positions, constrain_batch(text), self.text.token_embedding)
        return self.project_image(self.visual.pool(positions)), hidden
