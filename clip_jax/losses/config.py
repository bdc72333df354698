"""Which loss trains, from the config's section."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float

from clip_jax.losses.captions import CaptionKind, CaptionScores, caption_loss
from clip_jax.losses.contrastive import Features, Metrics, normalize, sharded_contrastive_loss
from clip_jax.losses.sigmoid import sharded_sigmoid_loss, streamed_sigmoid_loss
from clip_jax.losses.streamed import streamed_contrastive_loss
from input_pipeline.ranges import COUNT_OR_0, NOT_NEGATIVE, check_ranges

FeaturePair = tuple[Features, Features]  # of images and texts, not normalised
Loss = Callable[[Mapping[str, Any], Any], tuple[Float[Array, ""], Metrics]]
# By kind: sharded, with each device's whole rows, and streamed.
FORMS: dict[str, tuple[Callable, Callable]] = {
    "contrastive": (sharded_contrastive_loss, streamed_contrastive_loss),
    "sigmoid": (sharded_sigmoid_loss, streamed_sigmoid_loss),
}


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """What is learned from the pairs of a batch.

    Attributes:
      kind: "contrastive", the paper's softmax over rows and columns, or "sigmoid", SigLIP's, with a bias. The
        objectives that the paper compares with use each pair alone: "bag_of_words" predicts the words of the caption
        from the image, "language_model" predicts it token by token.
      block_size: 0 computes each device's rows of the logits at once, N² / devices numbers; a larger number computes
        that many rows at a time while the texts travel round the devices, with memory O(N / devices): the same loss
        for batches whose rows do not fit.
      caption_weight: of a caption loss beside it, the mean cross-entropy of a decoder's tokens; 0: none. It needs
        model.decoder_depth.

    Reference: Radford et al. 2021, sec. 2.3; Zhai et al. 2023, https://arxiv.org/abs/2303.15343, sec. 3.2.
    """

    kind: Literal["contrastive", "sigmoid", "bag_of_words", "language_model"] = "contrastive"
    block_size: Annotated[int, COUNT_OR_0] = 0
    caption_weight: Annotated[float, NOT_NEGATIVE] = 0.0

    @property
    def caption_kind(self) -> CaptionKind | None:
        """How captions are predicted; None for the losses over all pairs."""
        return None if self.kind in FORMS else self.kind  # type: ignore[return-value]

    def __post_init__(self) -> None:
        check_ranges(self, "loss.")
        if self.block_size and self.caption_kind:
            raise ValueError(
                f"loss.block_size={self.block_size} is of losses over all pairs; loss.kind={self.kind!r} looks at each "
                "pair by itself: set it to 0"
            )
        if self.caption_weight and self.caption_kind:
            raise ValueError(
                f"loss.caption_weight={self.caption_weight} is of a caption loss beside one over all pairs; "
                f"loss.kind={self.kind!r} predicts captions alone: set it to 0"
            )


def make_loss(config: LossConfig, mesh: Mesh) -> Loss:
    """(parameters, features of the global batch) -> (loss, metrics).

    Of the parameters it reads logit_scale, a logarithm, and for the sigmoid loss logit_bias. The metric chance_loss is
    the loss of the best single answer for all pairs.
    With a caption loss beside it the features are (features, CaptionScores), and metrics have caption_loss and
    caption_accuracy, too. Where captions alone are predicted, the features are CaptionScores. Their chance is
    `caption_chance`, which needs the text; it is not in chance_loss.
    """
    if config.caption_kind:
        return predict
    sharded, streamed = FORMS[config.kind]
    form, options = (streamed, {"block_size": config.block_size}) if config.block_size else (sharded, {})
    scalars = ("logit_scale", "logit_bias") if config.kind == "sigmoid" else ("logit_scale",)

    def loss(params: Mapping[str, Any], features: FeaturePair) -> tuple[Float[Array, ""], Metrics]:
        zi, zt = map(normalize, features)
        value, metrics = form(zi, zt, *(params[name] for name in scalars), mesh=mesh, **options)
        return value, {**metrics, "chance_loss": jnp.asarray(chance_loss(config.kind, len(zi)))}

    def both(params: Mapping[str, Any], outputs: tuple[FeaturePair, CaptionScores]) -> tuple[Float[Array, ""], Metrics]:
        features, scores = outputs
        value, metrics = loss(params, features)
        of_captions, tokens = caption_loss(scores)
        metrics |= {"caption_loss": of_captions, "caption_accuracy": tokens["token_accuracy"]}
        return value + config.caption_weight * of_captions, metrics

    return both if config.caption_weight else loss


def predict(params: Mapping[str, Any], scores: CaptionScores) -> tuple[Float[Array, ""], Metrics]:
    """`caption_loss` as a Loss; it has no parameters."""
    return caption_loss(scores)


def chance_loss(kind: str, N: int) -> float:
    """ln N; of the sigmoid loss ln N - (N - 1) ln(1 - 1/N), about ln N + 1: "a pair" with probability 1/N for each."""
    if kind == "contrastive" or N == 1:
        return math.log(N)
    return math.log(N) - (N - 1) * math.log1p(-1 / N)
