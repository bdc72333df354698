"""Two models that predict an image's caption, with the image encoder of CLIP: baselines of the contrastive objective.

Both read the image features that `encode_image` gives, so that the image encoder is the same.

Reference: Radford et al. 2021, sec. 2.3 and fig. 2.
"""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from clip_jax.distributed.sharding import constrain_batch
from clip_jax.models.clip import ImageEncoder
from clip_jax.models.config import ModelConfig
from clip_jax.models.text_transformer import Text, TextTransformer

# Of the output layer's kernel, as of the token embedding: at first all words are about equally probable.
OUTPUT_STD = 0.02


class BagOfWords(ImageEncoder):
    """One linear layer from the image features to the vocabulary.

    Reference: Joulin et al. 2016, https://arxiv.org/abs/1511.02251.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.config = config
        self.visual = self._make_visual(rngs)
        self.visual_projection = self._make_visual_projection(rngs)
        init = nnx.initializers.normal(OUTPUT_STD)
        self.word_logits = nnx.Linear(
            config.embed_dim,
            config.text.vocab_size,
            kernel_init=init,
            precision="highest",
            rngs=rngs,
            param_dtype=config.dtypes["param_dtype"],
            dtype=jnp.promote_types(config.dtypes["dtype"], jnp.float32),  # a small part of a step
        )

    def caption_logits(self, image_features: Float[Array, "B E"], text: Text | None) -> Float[Array, "B V"]:
        """Of each word of the vocabulary, at least float32; text is not read."""
        return constrain_batch(self.word_logits(image_features))


class LanguageModel(ImageEncoder):
    """A causal transformer, of the text tower's sizes, that predicts the caption from the image.

    The image is one position before the caption: its features, linearly projected to the text width. Unlike
    cross-attention to patches this leaves the text tower as it is, and every image tower ends in one vector, as for the
    other objectives; an image is encoded once for any number of captions.

    Reference: Desai & Johnson 2021, https://arxiv.org/abs/2006.06666 (VirTex), which attends to a grid of features and
    predicts in both directions; the paper's has one direction.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.config = config
        self.visual = self._make_visual(rngs)
        self.visual_projection = self._make_visual_projection(rngs)
        self.text = TextTransformer(config, rngs)
        init = nnx.initializers.normal(config.embed_dim**-0.5)
        self.prefix_projection = nnx.Linear(
            config.embed_dim, config.text.width, kernel_init=init, rngs=rngs, **config.dtypes
        )

    def caption_logits(self, image_features: Float[Array, "B E"], text: Text) -> Float[Array, "B L-1 V"]:
        """Of each token of the vocabulary at text[:, 1:], given those before it, at least float32."""
        return self.text.next_token_logits(self.prefix_projection(image_features), constrain_batch(text))
