"""Image-text retrieval: recall at k both ways, and the best matches for a picture of them.

Queries go in chunks, so the N×M similarity is never held whole.

Reference: Radford et al. 2021, sec. 3.1 and appendix E.1 (Flickr30k, MSCOCO).
"""

from collections.abc import Callable, Iterator, Sequence
from math import comb

import numpy as np


def caption_embeddings(
    encode_texts: Callable[[np.ndarray], np.ndarray],
    tokenize: Callable[[Sequence[str]], np.ndarray],
    captions: Sequence[str],
    prompt_prefix: str = "",
) -> np.ndarray:
    """Embeddings of captions, each with a prompt before it if one is given.

    Args:
      encode_texts: int32 [M, L] tokens to [M, E] embeddings; called once.
      tokenize: M strings to int32 [M, L].
      captions: M strings.
      prompt_prefix: goes before each caption with one space between; the paper's is "a photo of".

    Returns:
      float32 [M, E], as encode_texts gives them.

    Reference: Radford et al. 2021, appendix E.1 (the prefix gave R@1 one to two points more).
    """
    if prompt_prefix:
        captions = [f"{prompt_prefix.strip()} {caption}" for caption in captions]
    return np.asarray(encode_texts(tokenize(captions)), np.float32)


def recall_at_k(
    image_embeddings: np.ndarray,
    text_embeddings: np.ndarray,
    image_of_text: np.ndarray,
    ks: Sequence[int] = (1, 5, 10),
    chunk_size: int = 256,
) -> dict[str, float]:
    """Share of queries whose own counterpart is among the k best, both ways, beside the level of chance.

    An image with several captions is a hit when any of them is in the top k. The rank of a query is the number of
    candidates not its own that score at least as high as its best own one: ties (identical captions of two images
    among them) and NaN count against the model, so a collapsed model never passes chance. With k candidates or
    fewer all of them are in the top k: recall and chance are both 1.

    Args:
      image_embeddings: [N, E], L2-normalised.
      text_embeddings: [M, E], L2-normalised.
      image_of_text: int [M], the image each text belongs to, in any order; each image has at least one text.
      ks: cut-offs, each at least 1.
      chunk_size: queries scored at once.

    Returns:
      For each k `image_to_text_r@k`, `text_to_image_r@k` and both with `_chance` behind, in [0, 1]. Chance is that
      of a random order: 1 - C(M - c, k) / C(M, k) for an image with c texts, k / N for a text.

    Raises:
      ValueError: shapes that do not match, an index out of range, an image without text, k or chunk_size below 1.
    """
    image_embeddings = np.asarray(image_embeddings, np.float32)
    text_embeddings = np.asarray(text_embeddings, np.float32)
    image_of_text = np.asarray(image_of_text)
    N, M = len(image_embeddings), len(text_embeddings)
    _check_pairs(image_of_text, N, M)
    if not ks or min(ks) < 1:
        raise ValueError(f"recall at k needs k of at least 1, got ks={tuple(ks)}")

    image_rank = np.empty(N, np.int64)
    for rows, scores in _chunked_scores(image_embeddings, text_embeddings, chunk_size):  # [n, M]
        own = image_of_text == np.arange(N)[rows, None]  # [n, M]
        best_own = np.max(scores, axis=1, keepdims=True, where=own, initial=-np.inf)  # [n, 1]
        # "not below" instead of "at or above", so that NaN counts against the model too.
        image_rank[rows] = np.sum(~(scores < best_own) & ~own, axis=1)
    text_rank = np.empty(M, np.int64)
    for rows, scores in _chunked_scores(text_embeddings, image_embeddings, chunk_size):  # [m, N]
        own_score = np.take_along_axis(scores, image_of_text[rows, None], axis=1)  # [m, 1]
        text_rank[rows] = np.sum(~(scores < own_score), axis=1) - 1  # less the own image itself

    captions = np.bincount(image_of_text, minlength=N).tolist()
    metrics = {}
    for k in ks:
        metrics[f"image_to_text_r@{k}"] = float(np.mean(image_rank < k))
        metrics[f"image_to_text_r@{k}_chance"] = _image_to_text_chance(captions, k)
        metrics[f"text_to_image_r@{k}"] = float(np.mean(text_rank < k))
        metrics[f"text_to_image_r@{k}_chance"] = min(1.0, k / N)
    return metrics


def top_matches(
    queries: np.ndarray, candidates: np.ndarray, k: int, chunk_size: int = 256
) -> tuple[np.ndarray, np.ndarray]:
    """The k best candidates of each query, best first; for looking at, not for metrics (ties go to the lower index).

    Args:
      queries: [Q, E], L2-normalised.
      candidates: [M, E], L2-normalised.
      k: at least 1; with fewer candidates all are returned.
      chunk_size: queries scored at once.

    Returns:
      Indices into candidates, int64 [Q, min(k, M)], and their cosine similarities, float32 of that shape.
    """
    if k < 1:
        raise ValueError(f"top_matches needs k of at least 1, got {k}")
    queries, candidates = np.asarray(queries, np.float32), np.asarray(candidates, np.float32)
    indices = np.empty((len(queries), min(k, len(candidates))), np.int64)
    best = np.empty(indices.shape, np.float32)
    for rows, scores in _chunked_scores(queries, candidates, chunk_size):
        indices[rows] = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        best[rows] = np.take_along_axis(scores, indices[rows], axis=1)
    return indices, best


def _chunked_scores(queries: np.ndarray, candidates: np.ndarray, chunk_size: int) -> Iterator[tuple[slice, np.ndarray]]:
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    if queries.shape[1:] != candidates.shape[1:]:
        raise ValueError(f"embeddings of different sizes: {queries.shape} and {candidates.shape}")
    for start in range(0, len(queries), chunk_size):
        rows = slice(start, start + chunk_size)
        yield rows, queries[rows] @ candidates.T


def _check_pairs(image_of_text: np.ndarray, N: int, M: int) -> None:
    if image_of_text.shape != (M,):
        raise ValueError(f"image_of_text has shape {image_of_text.shape} for {M} texts, expected ({M},)")
    if not np.issubdtype(image_of_text.dtype, np.integer):
        raise ValueError(f"image_of_text must be integers, got {image_of_text.dtype}")
    if N == 0:
        raise ValueError("no images to retrieve: the evaluation set is empty")
    if (outside := np.flatnonzero((image_of_text < 0) | (image_of_text >= N))).size:
        i = outside[0]
        raise ValueError(f"text {i} belongs to image {image_of_text[i]}, outside 0..{N - 1}")
    if (bare := np.flatnonzero(np.bincount(image_of_text, minlength=N) == 0)).size:
        raise ValueError(f"image {bare[0]} has no text; leave the {bare.size} images without text out of retrieval")


def _image_to_text_chance(captions: Sequence[int], k: int) -> float:
    """Mean over images of the chance that one of their c captions is among k drawn from all of them."""
    M = sum(captions)
    if k >= M:
        return 1.0
    miss = {c: comb(M - c, k) / comb(M, k) for c in set(captions)}
    return 1 - sum(miss[c] for c in captions) / len(captions)
