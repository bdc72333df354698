"""What both config formats share: the image transform, and values that both towers must have in common."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from clip_jax.models import ModelConfig


@dataclass(frozen=True, kw_only=True)
class ImageTransform:
    """How a picture becomes square: "shortest" resizes the shorter side and crops the centre, "squash" resizes both."""

    resize_mode: Literal["shortest", "squash"] = "shortest"


def only(values: set[Any], what: str) -> Any:
    """The only value of a set; raises ValueError if the towers differ."""
    if len(values) != 1:
        raise ValueError(f"the two towers differ in {what}, {sorted(values)}; clip_jax has one for both")
    return values.pop()


def mean_std(
    images: Mapping[str, Any], mean: str, std: str, default: tuple[float, ...] | None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of pixels in [0, 1], under these keys; a default of None is the released models'."""
    given = [images.get(key, default) for key in (mean, std)]
    released = (ModelConfig.image_mean, ModelConfig.image_std)
    first, second = (tuple(values or fallback) for values, fallback in zip(given, released))
    return first, second
