"""Interpolates learned position embeddings to another resolution or context length."""

import dataclasses

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from clip_jax.models import ModelConfig, VisionConfig
from clip_jax.models.variables import Variables


def resize_positions(
    variables: Variables, config: ModelConfig, image_size: int | None = None, context_length: int | None = None
) -> tuple[Variables, ModelConfig]:
    """The model at another image_size, in pixels, or context_length; None keeps the present one.

    Positions of images are interpolated bicubically with antialiasing, as in open_clip (transformers has no
    antialiasing and another kernel), those of text linearly.
    """
    flat, vision, text = dict(flatten_dict(variables)), config.vision, config.text
    if image_size is not None and image_size != vision.image_size:
        if isinstance(vision, VisionConfig) and vision.pooling == "perception":  # rotary positions stay in their range
            vision = dataclasses.replace(vision, rotary_grid=vision.rotary_grid or vision.grid_size)
        vision = dataclasses.replace(vision, image_size=image_size)
        tower = ("visual",) if isinstance(vision, VisionConfig) else ("visual", "attention_pool")
        path = (*tower, "positional_embedding")
        old, new = config.vision.grid_size, vision.grid_size
        table = np.asarray(flat[path])  # [prefix + grid², D]
        prefix, grid = np.split(table, [len(table) - old * old])  # the class token or the mean comes first
        grid = _resize(grid.reshape(old, old, -1), (new, new, table.shape[1]), "cubic").reshape(new * new, -1)
        flat[path] = np.concatenate([prefix, grid])
    if context_length is not None and context_length != text.context_length:
        text = dataclasses.replace(text, context_length=context_length)
        table = np.asarray(flat["text", "positional_embedding"])  # [L, D]; a class token's position comes last
        table, last = np.split(table, [config.text.context_length])
        resized = _resize(table, (context_length, table.shape[1]), "linear")
        flat["text", "positional_embedding"] = np.concatenate([resized, last])
    return unflatten_dict(flat), dataclasses.replace(config, vision=vision, text=text)


def _resize(x: np.ndarray, shape: tuple[int, ...], method: str) -> np.ndarray:
    wide = x.astype(np.promote_types(x.dtype, np.float32))
    return np.asarray(jax.image.resize(wide, shape, method, antialias=method == "cubic")).astype(x.dtype)
