"""The shape of a CLIP model, as frozen dataclasses that refuse what cannot be built."""

from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """A stack of pre-norm residual blocks. Widths in channels, depth in blocks."""

    width: int
    depth: int
    num_heads: int
    mlp_dim: int

    def __post_init__(self) -> None:
        for name in ("width", "depth", "num_heads", "mlp_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.width % self.num_heads:
            raise ValueError(f"width={self.width} is not divisible by num_heads={self.num_heads}: change one of them")


@dataclass(frozen=True, kw_only=True)
class VisionConfig(TransformerConfig):
    """Vision transformer over square patches.

    image_size and patch_size are in pixels. position_init_scale multiplies the initial standard deviation of the
    position embeddings, width^-0.5; 1 is the paper's. Small models on small images learn shapes sooner with more.
    """

    image_size: int
    patch_size: int
    position_init_scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.patch_size < 1 or self.image_size < self.patch_size or self.image_size % self.patch_size:
            below = max(self.image_size // max(self.patch_size, 1), 1) * self.patch_size
            raise ValueError(
                f"vision.image_size={self.image_size} is not divisible by vision.patch_size={self.patch_size}: "
                f"use an image_size such as {below} or {below + self.patch_size}, or another patch_size"
            )


@dataclass(frozen=True, kw_only=True)
class TextConfig(TransformerConfig):
    """Causal text transformer. The text feature is taken at the first `eot_token` of each row."""

    context_length: int
    vocab_size: int
    eot_token: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.context_length < 3:
            raise ValueError(f"text.context_length={self.context_length} leaves no room for a word: use at least 3")
        if not 0 <= self.eot_token < self.vocab_size:
            raise ValueError(
                f"text.vocab_size={self.vocab_size} is smaller than the tokenizer's vocabulary "
                f"(its end token is {self.eot_token}): raise text.vocab_size"
            )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Both towers and what they share.

    Attributes:
      embed_dim: channels of the joint embedding space.
      activation: "quick_gelu", x * sigmoid(1.702 x), as in the released weights, or the exact "gelu".
      logit_scale_init: initial logit scale before the logarithm; 1 / 0.07 in the paper (sec. 2.5).
      compute_dtype: dtype of activations; softmax, layer-norm statistics and the loss are at least float32. The
        towers' matrix products use JAX's default precision, which on TPU and recent GPUs is below float32.
      param_dtype: dtype in which parameters are stored.
      remat: "none" keeps all activations of a block for the backward pass, "full" recomputes them.

    Reference: Radford et al. 2021, sec. 2.4, tables 19 and 20.
    """

    embed_dim: int
    vision: VisionConfig
    text: TextConfig
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"
    layer_norm_eps: float = 1e-5
    logit_scale_init: float = 1 / 0.07
    compute_dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    param_dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    remat: Literal["none", "full"] = "none"

    def __post_init__(self) -> None:
        if self.embed_dim < 1:
            raise ValueError(f"model.embed_dim={self.embed_dim} must be at least 1")
        if self.logit_scale_init <= 0:
            raise ValueError(
                f"model.logit_scale_init={self.logit_scale_init} must be positive: it is stored as its log"
            )

    @property
    def dtypes(self) -> dict[str, Any]:
        """The keyword arguments that every NNX layer takes."""
        return {"dtype": jnp.dtype(self.compute_dtype), "param_dtype": jnp.dtype(self.param_dtype)}
