"""The architecture of a CLIP model, as a frozen dataclass; a model that cannot be built is a ValueError."""

import dataclasses
import typing
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from clip_jax.models.towers import ResNetConfig, TextConfig, TransformerConfig, VisionConfig
from input_pipeline.ranges import COUNT_OR_0, NOT_NEGATIVE, POSITIVE, SIZE, check_ranges

# Settings that earlier versions did not have: left out of feature_config where they are as those models were.
LATER = {
    "text_activation": "",
    "vision.pool_heads": 0,
    "vision.pool_mlp_dim": 0,
    "vision.has_class_token": True,
    "vision.rotary_grid": 0,
}


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Both towers and their common settings.

    Attributes:
      embed_dim: channels of the joint embedding space.
      head: "embedding": image features are compared with text features, as in CLIP. "bag_of_words", "language_model":
        the part that predicts the caption from the image features, see `caption_models`; such a model has no text
        features. Not a key of a config: it follows from loss.kind.
      activation: "quick_gelu", x * sigmoid(1.702 x), as in the released weights, the exact "gelu", or its tanh
        approximation "gelu_tanh" (SigLIP).
      text_activation: that of the text tower where it is another one, as in some of SigLIP 2's; "": the same.
      decoder_depth: blocks of a decoder that predicts captions from all positions of the image, for
        loss.caption_weight; 0: none. SigLIP 2 has half of text.depth. Its other sizes are the text tower's.
      projection: from each tower into the joint space: "linear", the paper's, or "mlp", two linear layers around the
        activation with the tower's width between them, as in SimCLR, which the paper departs from (sec. 2.3); not for
        towers that end in attention pooling, which have no separate projection.
      logit_scale_init: initial logit scale before the logarithm; 1 / 0.07 in the paper (sec. 2.5).
      logit_bias_init: initial bias that the sigmoid loss adds to every logit; with None, the paper's, there is no such
        parameter.
      image_mean, image_std: of pixels in [0, 1], by channel; the released models' by default.
      compute_dtype: dtype of activations; softmax, layer-norm statistics and the loss are at least float32. The
        towers' matrix products use JAX's default precision, which on TPU and recent GPUs is below float32.
      param_dtype: dtype in which parameters are stored.
      remat: what a block keeps for the backward pass; the rest is computed again. "none": nothing is computed again.
        "dots": the outputs of linear layers and convolutions are kept. "named": each attention's output and each MLP's
        hidden layer before the activation (of a ResNet, each convolution's output). "attention": each attention's
        output. "full": only a block's input is kept. From first to last less memory and more time; clip_jax/README.md
        has the measurements.

    Reference: Radford et al. 2021, sec. 2.4, tables 19 and 20.
    """

    embed_dim: Annotated[int, SIZE]
    vision: VisionConfig | ResNetConfig
    text: TextConfig
    activation: Literal["quick_gelu", "gelu", "gelu_tanh"] = "quick_gelu"
    text_activation: Literal["", "quick_gelu", "gelu", "gelu_tanh"] = ""
    decoder_depth: Annotated[int, COUNT_OR_0] = 0
    layer_norm_eps: Annotated[float, NOT_NEGATIVE] = 1e-5
    projection: Literal["linear", "mlp"] = "linear"
    logit_scale_init: Annotated[float, POSITIVE] = 1 / 0.07
    logit_bias_init: float | None = None
    image_mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[Annotated[float, POSITIVE], ...] = (0.26862954, 0.26130258, 0.27577711)
    compute_dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    param_dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    remat: Literal["none", "dots", "named", "attention", "full"] = "none"
    head: Literal["embedding", "bag_of_words", "language_model"] = "embedding"

    def __post_init__(self) -> None:
        for name, expected in typing.get_type_hints(ModelConfig).items():
            if typing.get_origin(expected) is Literal and getattr(self, name) not in typing.get_args(expected):
                known = ", ".join(map(repr, typing.get_args(expected)))
                raise ValueError(f"model.{name}={getattr(self, name)!r} must be one of {known}")
        check_ranges(self, "model.")
        if len(self.image_mean) != 3 or len(self.image_std) != 3:
            raise ValueError(
                f"model.image_mean={self.image_mean} and image_std={self.image_std} must be three numbers each"
            )
        vision = self.vision
        if isinstance(vision, VisionConfig) and vision.pooling == "attention" and self.embed_dim != vision.width:
            raise ValueError(
                f"model.embed_dim={self.embed_dim} must be vision.width={vision.width}: a tower that ends in attention "
                "pooling has no projection"
            )
        if self.head == "language_model" and not self.text.ignores_padding:
            raise ValueError(
                f"text.causal={self.text.causal} with text.pooling={self.text.pooling!r}: a language model needs a "
                "causal text tower whose captions end in an end token; set causal=True and pooling='eot'"
            )
        if self.decoder_depth and (isinstance(vision, ResNetConfig) or self.head != "embedding"):
            raise ValueError(
                f"model.decoder_depth={self.decoder_depth} reads the positions of a vision transformer, beside a loss "
                "over all pairs: set it to 0"
            )
        is_projected = self.has_visual_projection and not getattr(self.vision, "is_pooled_by_query", False)
        if self.projection == "mlp" and not is_projected:
            raise ValueError(
                "model.projection='mlp' needs an image tower that a projection follows: a vision transformer with "
                "vision.pooling 'class_token', 'mean' or 'mean_then_norm'"
            )
        if isinstance(vision, VisionConfig) and vision.pooling == "coca" and self.embed_dim % vision.num_pool_heads:
            raise ValueError(
                f"vision.pool_heads={vision.num_pool_heads} does not divide model.embed_dim={self.embed_dim}, "
                "the width of the query of vision.pooling='coca'"
            )

    @property
    def has_visual_projection(self) -> bool:
        """A ResNet's attention pooling projects by itself; SigLIP's does not project."""
        return isinstance(self.vision, VisionConfig) and self.vision.pooling != "attention"

    @property
    def has_visual_projection_bias(self) -> bool:
        """Only the Perception Encoder's has one."""
        return isinstance(self.vision, VisionConfig) and self.vision.pooling == "perception"

    @property
    def pooled_width(self) -> int:
        """Channels of the image features before the projection."""
        is_coca = isinstance(self.vision, VisionConfig) and self.vision.pooling == "coca"
        return self.embed_dim if is_coca else self.vision.width

    def activation_of(self, tower: TransformerConfig) -> str:
        """The activation of the blocks of a tower."""
        return self.text_activation or self.activation if isinstance(tower, TextConfig) else self.activation

    @property
    def feature_config(self) -> dict[str, Any]:
        """The settings that change the features, by name: without precision, memory and initial values."""
        excluded = {"compute_dtype", "param_dtype", "remat", "logit_scale_init", "logit_bias_init", "head"}
        excluded |= {"decoder_depth", "vision.position_init_scale", "vision.batch_norm", "vision.patch_dropout"}
        flat = flatten_dict(dataclasses.asdict(self), sep=".") | {"has a logit bias": self.logit_bias_init is not None}
        return {
            name: value
            for name, value in flat.items()
            if name not in excluded and (name not in LATER or value != LATER[name])
        }

    def differences(self, other: "ModelConfig", towers: tuple[str, ...] = ("visual", "text")) -> list[str]:
        """Differences in feature_config, of the named towers, as "name is X, not Y"."""
        own, theirs = self.feature_config, other.feature_config
        excluded = [] if "visual" in towers else ["vision.", "image_mean", "image_std"]
        excluded += [] if "text" in towers else ["text."]
        excluded += [] if len(towers) == 2 else ["has a logit bias"]
        names = [
            name
            for name in {**own, **theirs}
            if own.get(name) != theirs.get(name) and not name.startswith(tuple(excluded))
        ]
        return [f"{name} is {own.get(name)}, not {theirs.get(name)}" for name in names]

    @property
    def dtypes(self) -> dict[str, Any]:
        """The dtype arguments of every NNX layer. Raises ValueError for float64 while JAX has it disabled."""
        if "float64" in (self.compute_dtype, self.param_dtype) and jnp.zeros(0, float).dtype != jnp.float64:
            raise ValueError("float64 needs JAX_ENABLE_X64=1 in the environment; without it JAX computes in float32")
        return {"dtype": jnp.dtype(self.compute_dtype), "param_dtype": jnp.dtype(self.param_dtype)}
