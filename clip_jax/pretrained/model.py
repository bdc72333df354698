"""A model with its weights, as it is loaded or saved."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from clip_jax.models import ModelConfig
from clip_jax.models.variables import Variables
from clip_jax.pretrained.layouts import LayoutName
from clip_jax.pretrained.transform import ImageTransform


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What a model was read from. settings: its JSON files by name, as bytes, which say config and transform."""

    layout: LayoutName
    settings: Mapping[str, bytes]
    config: ModelConfig
    transform: ImageTransform


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A model as it is loaded or saved. variables: NumPy arrays. folder: of its files. assumed: what none of them says,
    in a sentence, which `load_pretrained` prints. origin: None for a model of clip_jax's own."""

    config: ModelConfig
    variables: Variables
    transform: ImageTransform
    folder: Path
    assumed: str = ""
    origin: Origin | None = None
