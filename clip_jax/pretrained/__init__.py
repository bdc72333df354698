"""Loads published weights and saves ours in their formats. See README.md in this folder."""

from clip_jax.pretrained.files import find_vocabulary
from clip_jax.pretrained.model import Pretrained
from clip_jax.pretrained.names import NAMED
from clip_jax.pretrained.positions import resize_positions
from clip_jax.pretrained.read import load_pretrained
from clip_jax.pretrained.transform import ImageTransform
from clip_jax.pretrained.write import FORMATS, Format, save_pretrained

__all__ = [
    "FORMATS",
    "NAMED",
    "Format",
    "ImageTransform",
    "Pretrained",
    "find_vocabulary",
    "load_pretrained",
    "resize_positions",
    "save_pretrained",
]
