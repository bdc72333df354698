"""Losses over all pairs of a batch, dense, sharded and streamed; and losses of predicted captions."""

from clip_jax.losses.captions import (
    CaptionScores,
    caption_chance,
    caption_loss,
    caption_scores,
    caption_targets,
    token_scores,
)
from clip_jax.losses.config import LossConfig, make_loss
from clip_jax.losses.contrastive import contrastive_loss, normalize, sharded_contrastive_loss
from clip_jax.losses.sigmoid import sharded_sigmoid_loss, sigmoid_loss, streamed_sigmoid_loss
from clip_jax.losses.streamed import streamed_contrastive_loss

__all__ = [
    "CaptionScores",
    "LossConfig",
    "caption_chance",
    "caption_loss",
    "caption_scores",
    "caption_targets",
    "contrastive_loss",
    "make_loss",
    "normalize",
    "sharded_contrastive_loss",
    "sharded_sigmoid_loss",
    "sigmoid_loss",
    "streamed_contrastive_loss",
    "streamed_sigmoid_loss",
    "token_scores",
]
