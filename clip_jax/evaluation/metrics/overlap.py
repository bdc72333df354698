"""Overlap of training and evaluation images: near-duplicates, and how much they change an accuracy.

1. Embed both sets (any model's features, or `perceptual_embedding`, which needs no model) and find each evaluation
   image's nearest training image: `nearest_images`.
2. Inspect pairs around a threshold (`pairs_around`, drawn by plots.robustness.plot_duplicates) and set it so that
   nearly all pairs above it are the same picture.
3. `contamination`: accuracy over all, over what is above the threshold (overlap) and below (clean).

Reference: Radford et al. 2021, sec. 5 and appendix C.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Float32, Int, Shaped
from PIL import Image
from scipy.fft import dctn

from clip_jax.evaluation.metrics.binomial import p_greater, share

SIDE, FREQUENCIES = 32, 8  # pixels that the picture is reduced to; lowest frequencies kept on each axis
PERCEPTUAL_SIZE = 3 * (FREQUENCIES**2 - 1)
CHUNK_SIZE = 1024  # a tile of float32 similarities is 4 MB


def perceptual_embedding(image: Shaped[np.ndarray, "H W 3"]) -> Float32[np.ndarray, "E"]:
    """A perceptual hash as a vector: near-duplicates have a high cosine similarity.

    The lowest frequencies of the cosine transform of brightness and colour, of the picture reduced to 32×32, without
    their means; each is multiplied by its distance from the origin, as natural pictures have the less of a frequency
    the higher it is. It is the perceptual hash, with colour and not rounded to bits. It ignores resizing, another
    aspect ratio, recompression, other colours and brightness, slight turns, and crops that leave 90 % of the area; not
    mirroring (compare `image[:, ::-1]` too) and not crops that leave 80 % or less (use a model's features); measured by
    `python tests/benchmarks/duplicates.py`.

    Args:
      image: uint8 [H, W, 3], any H and W.

    Returns:
      float32 [PERCEPTUAL_SIZE], L2-normalised. A picture of one colour (a standard deviation below one grey level)
      gives zeros: similar to nothing.

    Raises:
      ValueError: another shape or dtype.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise ValueError(f"a picture must be uint8 [H, W, 3], got {image.dtype} {list(image.shape)}")
    small = Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BOX).convert("YCbCr")
    pixels = np.asarray(small, np.float32)
    if pixels.std(axis=(0, 1)).max() < 1:
        return np.zeros(PERCEPTUAL_SIZE, np.float32)
    frequencies = dctn(pixels, axes=(0, 1), norm="ortho")[:FREQUENCIES, :FREQUENCIES]  # [8, 8, 3]
    weighted = frequencies * np.hypot(*np.mgrid[:FREQUENCIES, :FREQUENCIES])[..., None]
    kept = weighted.reshape(-1, 3)[1:].ravel()
    return (kept / max(np.linalg.norm(kept), np.finfo(np.float32).tiny)).astype(np.float32)


def nearest_images(
    evaluation: Float[np.ndarray, "N E"], training: Float[np.ndarray, "M E"], chunk_size: int = CHUNK_SIZE
) -> tuple[Int[np.ndarray, "N"], Float32[np.ndarray, "N"]]:
    """The training image most similar to each evaluation image; neither N×M matrix nor copies of `training` are held.

    Args:
      evaluation: [N, E], L2-normalised or zero; JAX's default device holds it.
      training: [M, E], L2-normalised or zero; a memory-mapped array is read in chunks, twice.
      chunk_size: rows of each side compared at once.

    Returns:
      Indices into training, int64 [N] (the lowest of equals), and cosine similarities, float32 [N].

    Raises:
      ValueError: shapes that do not match, an empty side, a chunk_size below 1, an embedding that is not normalised or
        not finite (named by its row).
    """
    if evaluation.ndim != 2 or training.ndim != 2 or evaluation.shape[1] != training.shape[1]:
        raise ValueError(
            f"evaluation embeddings {list(evaluation.shape)} and training embeddings {list(training.shape)} do not "
            "match: expected [N, E] and [M, E]"
        )
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    for name, embeddings in (("evaluation", evaluation), ("training", training)):
        _check_normalized(name, embeddings, chunk_size)

    N, M = len(evaluation), len(training)
    n, m = min(chunk_size, N), min(chunk_size, M)
    tiles = jnp.asarray(_padded(np.asarray(evaluation, np.float32), n).reshape(-1, n, evaluation.shape[1]))  # [T, n, E]
    index, best = np.zeros(N, np.int64), np.full(N, -np.inf, np.float32)
    for start in range(0, M, m):
        chunk = np.asarray(training[start : start + m], np.float32)
        found, similarity = (np.asarray(x).ravel()[:N] for x in _nearest(tiles, _padded(chunk, m), len(chunk)))
        better = similarity > best
        index[better], best[better] = start + found[better], similarity[better]
    return index, best


@jax.jit
def _nearest(
    tiles: Float32[jax.Array, "T n E"], chunk: Float32[jax.Array | np.ndarray, "m E"], count: Int[ArrayLike, ""]
) -> tuple[Int[jax.Array, "T n"], Float32[jax.Array, "T n"]]:
    """Index and similarity of the nearest of the first `count` rows of the chunk."""
    positions = jnp.arange(len(chunk), dtype=jnp.int32)

    def nearest(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
        similarity = jnp.matmul(rows, chunk.T, precision=jax.lax.Precision.HIGHEST)  # [n, m]
        similarity = jnp.where(positions < count, similarity, -jnp.inf)
        best = jnp.max(similarity, axis=1, keepdims=True)
        # Not argmax, which XLA on CPU does one number at a time.
        index = jnp.min(jnp.where(similarity == best, positions, len(chunk)), axis=1)
        return index, best[:, 0]

    return jax.lax.map(nearest, tiles)


def pairs_around(similarity: Float[np.ndarray, "N"], threshold: float, count: int = 12) -> Int[np.ndarray, "K"]:
    """The evaluation images to inspect when choosing a threshold: half at or above it, half below, the nearest to it.

    Args:
      similarity: [N], as `nearest_images` returns.
      threshold: pairs at or above it are called duplicates.
      count: at most so many; if one side has too few, the other gives more.

    Returns:
      Indices int64 [min(count, N)], the most similar pair first.

    Raises:
      ValueError: NaN, or count below 1.
    """
    similarity = np.asarray(similarity)
    _check_similarity(similarity, threshold)
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    order = np.argsort(-similarity, kind="stable")
    above = int(np.sum(similarity >= threshold))
    first = int(np.clip(above - count // 2, 0, max(len(order) - count, 0)))
    return order[first : first + count]


def contamination(
    correct: Shaped[np.ndarray, "N"], similarity: Float[np.ndarray, "N"], threshold: float, confidence: float = 0.995
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
    correct, similarity = np.asarray(correct), np.asarray(similarity)
    if correct.dtype != bool:
        raise ValueError(f"correct must be bool, one an image, got {correct.dtype}")
    if correct.shape != similarity.shape or correct.ndim != 1:
        raise ValueError(
            f"correct {list(correct.shape)} and similarity {list(similarity.shape)} do not match: expected [N] each"
        )
    if not correct.size:
        raise ValueError("no images to compare: the evaluation set is empty")
    _check_similarity(similarity, threshold)
    overlaps = similarity >= threshold
    parts = {"all": correct, "overlap": correct[overlaps], "clean": correct[~overlaps]}
    shares: dict[str, Any] = {name: share(int(part.sum()), len(part), confidence) for name, part in parts.items()}
    names = ("overlap_minus_clean", "overlap_minus_clean_low", "overlap_minus_clean_high")
    differences: dict[str, Any] = dict.fromkeys([*names, "all_minus_clean", "p_value"])
    clean, overlap = shares["clean"]["accuracy"], shares["overlap"]
    if clean is not None:
        differences["all_minus_clean"] = shares["all"]["accuracy"] - clean
    if clean is not None and overlap["count"]:
        differences |= {name: overlap[key] - clean for name, key in zip(names, ("accuracy", "low", "high"))}
        differences["p_value"] = p_greater(overlap["right"], overlap["count"], clean)
    overlap_share = float(np.mean(overlaps))
    return {"threshold": threshold, "confidence": confidence, **shares, "overlap_share": overlap_share, **differences}


def _check_normalized(name: str, embeddings: np.ndarray, chunk_size: int) -> None:
    if not len(embeddings):
        raise ValueError(f"no {name} images to compare: their embeddings are empty")
    for start in range(0, len(embeddings), chunk_size):
        norms = np.linalg.norm(np.asarray(embeddings[start : start + chunk_size], np.float32), axis=1)
        wrong = np.flatnonzero(~((np.abs(norms - 1) < 1e-3) | (norms == 0)))  # 1e-3: float16 features
        if wrong.size:
            raise ValueError(
                f"{name} embedding {start + wrong[0]} has norm {norms[wrong[0]]:g}, expected 1, or 0 for a picture "
                "without features: divide by the norm, and leave out what is not finite"
            )


def _check_similarity(similarity: np.ndarray, threshold: float) -> None:
    if np.isnan(threshold):
        raise ValueError("the threshold is not a number")
    if (missing := np.flatnonzero(np.isnan(similarity))).size:
        raise ValueError(f"similarity of image {missing[0]} is not a number: its features are broken")


def _padded(x: np.ndarray, size: int) -> np.ndarray:
    """x with rows of zeros added up to a multiple of `size`."""
    rows = -len(x) % size
    return np.concatenate([x, np.zeros((rows, *x.shape[1:]), x.dtype)]) if rows else x
