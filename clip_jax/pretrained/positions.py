"""Interpolates learned position embeddings to another resolution or context length."""

import dataclasses
from typing import Any

import jax
import numpy as np

from clip_jax.models import ModelConfig, VisionConfig
from clip_jax.models.variables import Variables


def resize_positions(
    variables: Variables, config: ModelConfig, image_size: int | None = None, context_length: int | None = None
) -> tuple[Variables, ModelConfig]:
    """The model at another image_size, in pixels, or context_length; None keeps the present one.

    Positions of images are interpolated bicubically with antialiasing, as in open_clip (transformers has no
    antialiasing and another kernel), those of text linearly.
    """
    vision, text = config.vision, config.text
    if image_size is not None and image_size != vision.image_size:
        vision = dataclasses.replace(vision, image_size=image_size)
        path = ("visual",) if isinstance(vision, VisionConfig) else ("visual", "attention_pool")
        table = _table(variables, path)  # [prefix + grid², D]
        old, new = config.vision.grid_size, vision.grid_size
        prefix, grid = np.split(table, [len(table) - old * old])  # the class token or the mean comes first
        grid = _resize(grid.reshape(old, old, -1), (new, new, table.shape[1]), "cubic").reshape(new * new, -1)
        variables = _with(variables, path, np.concatenate([prefix, grid]))
    if context_length is not None and context_length != text.context_length:
        text = dataclasses.replace(text, context_length=context_length)
        table = _table(variables, ("text",))  # [L, D]
        variables = _with(variables, ("text",), _resize(table, (context_length, table.shape[1]), "linear"))
    return variables, dataclasses.replace(config, vision=vision, text=text)


def _resize(x: np.ndarray, shape: tuple[int, ...], method: str) -> np.ndarray:
    wide = x.astype(np.promote_types(x.dtype, np.float32))
    return np.asarray(jax.image.resize(wide, shape, method, antialias=method == "cubic")).astype(x.dtype)


def _table(variables: Any, path: tuple[str, ...]) -> np.ndarray:
    for name in path:
        variables = variables[name]
    return np.asarray(variables["positional_embedding"])


def _with(variables: Any, path: tuple[str, ...], table: np.ndarray) -> Any:
    """The variables with another positional embedding in the module at the path."""
    if not path:
        return {**variables, "positional_embedding": table}
    return {**variables, path[0]: _with(variables[path[0]], path[1:], table)}
