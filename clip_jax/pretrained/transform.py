"""What a model's files say about pictures and about both towers at once."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from clip_jax.models import ModelConfig


@dataclass(frozen=True, kw_only=True)
class ImageTransform:
    """How a picture becomes the model's square: its shorter side resized and the centre cut, or squashed (SigLIP)."""

    resize_mode: Literal["shortest", "squash"] = "shortest"


def only(values: set[Any], what: str) -> Any:
    """The one value of a set; ValueError when the towers do not share it."""
    if len(values) != 1:
        raise ValueError(f"the two towers differ in {what}, {sorted(values)}; clip_jax has one for both")
    return values.pop()


def mean_std(
    images: Mapping[str, Any], mean: str, std: str, default: tuple[float, ...] | None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Of pixels in [0, 1], under these two keys; `default` stands for both, None for the released models'."""
    given = [images.get(key, default) for key in (mean, std)]
    released = (ModelConfig.image_mean, ModelConfig.image_std)
    first, second = (tuple(values or fallback) for values, fallback in zip(given, released))
    return first, second
