"""Overlap of training and evaluation images: near-duplicates, and how much they change an accuracy.

1. Embed both sets (any model's features, or `perceptual_embedding`, which needs no model) and find each evaluation
   image's nearest training image: `nearest_images`.
2. Look at pairs around a threshold (`pairs_around`, drawn by robustness_plots.plot_duplicates) and set it so that nearly
   all pairs above it are the same picture.
3. `contamination`: accuracy over all, over what is above the threshold (overlap) and below (clean).

Reference: Radford et al. 2021, sec. 5 and appendix C.
"""

from typing import Any

import numpy as np

PERCEPTUAL_SIZE = 0  # to be set


def perceptual_embedding(image: np.ndarray) -> np.ndarray:
    """What a picture looks like from afar, as a vector whose cosine similarity tells near-duplicates.

    Args:
      image: uint8 [H, W, 3], any H and W.

    Returns:
      float32 [PERCEPTUAL_SIZE], L2-normalised. A picture of one colour gives zeros: similar to nothing.

    Raises:
      ValueError: another shape or dtype.
    """
    raise NotImplementedError


def nearest_images(
    evaluation: np.ndarray, training: np.ndarray, chunk_size: int = 1024
) -> tuple[np.ndarray, np.ndarray]:
    """The training image most similar to each evaluation image; neither N×M matrix nor copies of `training` are held.

    Args:
      evaluation: [N, E], L2-normalised.
      training: [M, E], L2-normalised; a memory-mapped array is read in chunks.
      chunk_size: rows of each side that meet at once.

    Returns:
      Indices into training, int64 [N] (the lowest of equals), and cosine similarities, float32 [N].

    Raises:
      ValueError: shapes that do not match, an empty side, an embedding that is not finite (named by its row).
    """
    raise NotImplementedError


def pairs_around(similarity: np.ndarray, threshold: float, count: int = 12) -> np.ndarray:
    """Which evaluation images to look at for choosing a threshold: half at or above it, half below, the nearest to it.

    Args:
      similarity: [N], as `nearest_images` returns.
      threshold: pairs at or above it are called duplicates.
      count: at most so many; if one side has too few, the other gives more.

    Returns:
      Indices int64 [min(count, N)], the most similar pair first.
    """
    raise NotImplementedError


def contamination(
    correct: np.ndarray, similarity: np.ndarray, threshold: float, confidence: float = 0.995
) -> dict[str, Any]:
    """Accuracy over all images, over those with a near-duplicate in the training data, and over the clean rest.

    Args:
      correct: bool [N], whether the model was right, ties counted against it.
      similarity: [N], to the nearest training image.
      threshold: similarity at or above it is overlap.
      confidence: of the Clopper-Pearson intervals; 99.5 % in the paper.

    Returns:
      A dict ready for JSON: threshold, confidence; all, overlap, clean, each {right, count, accuracy, low, high};
      overlap_share; overlap_minus_clean with _low and _high, the overlap's interval less the clean accuracy, which is
      taken as given; all_minus_clean, the paper's estimate of how much overlap adds to the reported accuracy;
      p_value, one-tailed binomial, of so many right in the overlap if its true accuracy were the clean one. What needs
      a part that is empty is None.

    Raises:
      ValueError: shapes that do not match, `correct` not bool, no images, NaN in similarity or threshold.
    """
    raise NotImplementedError
