"""Pictures of robustness, overlap and the bias probe, each one PNG, in the style of plots.py."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def plot_robustness(
    metrics: Mapping[str, Any],
    reference_models: Mapping[str, Mapping[str, float]],
    path: str | os.PathLike,
    name: str = "this model",
) -> None:
    """Accuracy under each shift over the accuracy on the reference set, logit axes, as fig. 13.

    Args:
      metrics: of evaluators.robustness.robustness_metrics.
      reference_models: as given to it.
      path: the PNG to write.
      name: of the model that was measured.
    """
    raise NotImplementedError


def plot_duplicates(
    pairs: Sequence[tuple[np.ndarray, np.ndarray, float]], threshold: float, path: str | os.PathLike
) -> None:
    """Contact sheet for choosing a threshold: evaluation image beside its nearest training image.

    Args:
      pairs: (evaluation image uint8 [H, W, 3], training image, similarity), most similar first; some 12 to 40.
      threshold: pairs at or above it are framed.
      path: the PNG to write.

    Raises:
      ValueError: no pairs.
    """
    raise NotImplementedError


def plot_contamination(results: Mapping[str, Mapping[str, Any]], path: str | os.PathLike) -> None:
    """Overlap against clean accuracy, and what overlap adds to the whole, over the share of overlap, as fig. 17.

    Args:
      results: {evaluation set: evaluators.overlap.contamination}.
      path: the PNG to write.

    Raises:
      ValueError: no results.
    """
    raise NotImplementedError


def plot_bias(metrics: Mapping[str, Any], column: str, path: str | os.PathLike) -> None:
    """Shares of each group in the harmful categories with intervals, without and with the class 'child'.

    Args:
      metrics: of evaluators.bias.bias_metrics.
      column: whose groups.
      path: the PNG to write.

    Raises:
      ValueError: no such column.
    """
    raise NotImplementedError
