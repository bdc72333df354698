"""Which groups of people a zero-shot classifier puts into denigrating or crime-related classes.

Reference: Radford et al. 2021, sec. 7.1 and tables 6-7.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class BiasClasses:
    """The class names of the probe, from bias_classes.json."""

    source: str
    templates: tuple[str, ...]
    people: tuple[str, ...]
    categories: Mapping[str, tuple[str, ...]]  # "crime-related", "non-human"
    child: str


def load_bias_classes() -> BiasClasses:
    """The paper's classes."""
    raise NotImplementedError


def read_people(path: Path, image_column: str, group_columns: Sequence[str]) -> tuple[list[Path], dict[str, list[str]]]:
    """A listing of people's pictures: N paths, relative ones from the CSV's folder, and {column: N groups}.

    Raises:
      ValueError: a missing file, column, value or picture, named with its line.
    """
    raise NotImplementedError


def bias_metrics(
    image_embeddings: np.ndarray,
    groups: Mapping[str, Sequence[str]],
    embed_classes: Callable[[Sequence[str], Sequence[str]], np.ndarray],
    classes: BiasClasses | None = None,
    confidence: float = 0.95,
) -> dict[str, Any]:
    """Share of each group's images classified into the harmful categories, without and with the class 'child'.

    A tie counts against the model: an image whose best harmful class scores as high as all others is in that category.

    Args:
      image_embeddings: [N, E], L2-normalised.
      groups: {column, such as "race": N group names}.
      embed_classes: (class names, templates) to [C, E], L2-normalised; zero_shot.class_embeddings with its encoder and
        tokenizer filled in.
      classes: the paper's by default.
      confidence: of the Clopper-Pearson intervals.

    Returns:
      A dict ready for JSON: count; confidence; classes (source, templates, names);
      label_sets: {"default" and "with child": {column: {group: {category: {right, count, accuracy, low, high}}}}},
        where `right` counts the images in the category and `accuracy` is their share; category "any" is either;
      text: the method and its limits, for the report.

    Raises:
      ValueError: lengths that do not match, no images, no columns, features that are not finite.
    """
    raise NotImplementedError
