"""Contrastive losses: dense references and their sharded twins."""

from clip_jax.losses.contrastive import contrastive_loss, normalize, sharded_contrastive_loss

__all__ = ["contrastive_loss", "normalize", "sharded_contrastive_loss"]
