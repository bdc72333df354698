"""Image-text retrieval: recall at k in both directions, and the best matches for a picture of them.

The N×M similarity is never held whole: it passes in tiles that fit a processor's cache.

Reference: Radford et al. 2021, sec. 3.1 and appendix E.1 (Flickr30k, MSCOCO).
"""

from collections.abc import Callable, Sequence
from functools import partial
from math import comb

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Int, Num, Shaped

CHUNK_SIZE = 1024  # a tile of float32 scores is 4 MB
LANES = 128  # tiles of small sets are filled up to multiples of this: few shapes to compile, no ragged edges


def caption_embeddings(
    encode_texts: Callable[[np.ndarray], np.ndarray],
    tokenize: Callable[[Sequence[str]], np.ndarray],
    captions: Sequence[str],
    prompt_prefix: str = "",
) -> Float32[np.ndarray, "M E"]:
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
    image_embeddings: Num[np.ndarray, "N E"],
    text_embeddings: Num[np.ndarray, "M E"],
    image_of_text: Shaped[np.ndarray, "M"],
    ks: Sequence[int] = (1, 5, 10),
    chunk_size: int = CHUNK_SIZE,
) -> dict[str, float]:
    """Share of queries whose own counterpart is among the k best, in both directions, and the level of chance.

    An image with several captions is a hit when any of them is in the top k. The rank of a query is the number of
    candidates not its own that score at least as high as its best own one: ties (identical captions of two images
    among them) and NaN count against the model, so a collapsed model never passes chance. With k candidates or
    fewer all of them are in the top k: recall and chance are both 1.

    Every score is computed once, in tiles on JAX's default device, which holds the texts and counts both directions.

    Args:
      image_embeddings: [N, E], L2-normalised.
      text_embeddings: [M, E], L2-normalised.
      image_of_text: int [M], the image each text belongs to, in any order; each image has at least one text.
      ks: cut-offs, each at least 1.
      chunk_size: images, and texts, of a tile.

    Returns:
      For each k `image_to_text_r@k`, `text_to_image_r@k` and both with `_chance` behind, in [0, 1]. Chance is that
      of a random order: 1 - C(M - c, k) / C(M, k) for an image with c texts, k / N for a text. And
      `image_to_text_median_rank` and `text_to_image_median_rank`, where 1 is the best.

    Raises:
      ValueError: shapes that do not match, an index out of range, an image without text, k or chunk_size below 1.
    """
    image_embeddings = np.asarray(image_embeddings, np.float32)
    text_embeddings = np.asarray(text_embeddings, np.float32)
    image_of_text = np.asarray(image_of_text)
    N, M = len(image_embeddings), len(text_embeddings)
    _check_pairs(image_of_text, N, M)
    _check_chunks(image_embeddings, text_embeddings, chunk_size)
    if not ks or min(ks) < 1:
        raise ValueError(f"recall at k needs k of at least 1, got ks={tuple(ks)}")

    image_rank, text_rank = _ranks(image_embeddings, text_embeddings, image_of_text, chunk_size)
    captions = np.bincount(image_of_text, minlength=N).tolist()
    metrics = {}
    for k in ks:
        metrics[f"image_to_text_r@{k}"] = float(np.mean(image_rank < k))
        metrics[f"image_to_text_r@{k}_chance"] = _image_to_text_chance(captions, k)
        metrics[f"text_to_image_r@{k}"] = float(np.mean(text_rank < k))
        metrics[f"text_to_image_r@{k}_chance"] = min(1.0, k / N)
    metrics["image_to_text_median_rank"] = float(np.median(image_rank)) + 1
    metrics["text_to_image_median_rank"] = float(np.median(text_rank)) + 1
    return metrics


def _ranks(
    images: np.ndarray, texts: np.ndarray, image_of_text: np.ndarray, chunk_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """How many candidates not its own score at least as high as a query's best own: of images [N], of texts [M]."""
    N, M = len(images), len(texts)
    n, m = (min(chunk_size, -(-size // LANES) * LANES) for size in (N, M))  # a tile
    own_score, best_own = _own_scores(images, texts, image_of_text, n, m)

    text_tiles = jnp.asarray(_padded(texts, m, 0).reshape(-1, m, texts.shape[1]))  # [T, m, E]
    owner_tiles = jnp.asarray(_padded(image_of_text.astype(np.int32), m, -1).reshape(-1, m))
    own_score_tiles = jnp.asarray(_padded(own_score, m, 0).reshape(-1, m))
    text_rank = jnp.zeros(owner_tiles.shape, jnp.int32)
    image_rank = []
    for start in range(0, N, n):
        rows = slice(start, start + n)
        row_index = _padded(np.arange(N, dtype=np.int32)[rows], n, -1)
        chunk, best = _padded(images[rows], n, 0), _padded(best_own[rows], n, 0)
        ranks, text_rank = _count_ahead(chunk, row_index, best, text_tiles, owner_tiles, own_score_tiles, text_rank)
        image_rank.append(ranks)
    return np.concatenate(image_rank)[:N], np.asarray(text_rank).ravel()[:M]


def _own_scores(
    images: np.ndarray, texts: np.ndarray, image_of_text: np.ndarray, n: int, m: int
) -> tuple[np.ndarray, np.ndarray]:
    """Score of each text with its own image [M], and the best of each image's own [N].

    By products of the same shape as the tiles: another shape may sum in another order, and ties would be lost in the
    rounding.
    """
    order = np.argsort(image_of_text, kind="stable")
    ends = np.searchsorted(image_of_text[order], np.arange(n, len(images) + n, n))  # of each chunk of images
    own_score = np.empty(len(texts), np.float32)
    start = 0
    for chunk, end in enumerate(ends):
        block = _padded(images[chunk * n : (chunk + 1) * n], n, 0)
        for first in range(start, end, m):
            own = order[first : min(first + m, end)]
            rows = _padded((image_of_text[own] - chunk * n).astype(np.int32), m, 0)
            own_score[own] = _pick(block, _padded(texts[own], m, 0), rows)[: len(own)]
        start = end
    first_own = np.searchsorted(image_of_text[order], np.arange(len(images)))
    return own_score, np.maximum.reduceat(own_score[order], first_own)


@jax.jit
def _pick(images: jax.Array, texts: jax.Array, rows: jax.Array) -> jax.Array:
    """The score of each text with the image of its row: [n, E], [m, E], int [m] to [m]."""
    return _scores(images, texts)[rows, jnp.arange(len(texts))]


@partial(jax.jit, donate_argnames="text_rank")
def _count_ahead(
    images: jax.Array,  # [n, E]
    row_index: jax.Array,  # int [n], -1 where a row only fills up the tile
    best_own: jax.Array,  # [n]
    texts: jax.Array,  # [T, m, E]
    owners: jax.Array,  # int [T, m], -1 where a text only fills up the tile
    own_score: jax.Array,  # [T, m]
    text_rank: jax.Array,  # int [T, m], counted so far
) -> tuple[jax.Array, jax.Array]:
    """Ranks of a chunk of images among all texts, int [n], and text_rank with these images counted."""

    def tile(ranks: jax.Array, operands: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        texts, owners, own_score, text_ranks = operands
        scores = _scores(images, texts)  # [n, m]
        other = owners != row_index[:, None]
        # "not below" instead of "at or above", so that NaN counts against the model too.
        texts_ahead = ~(scores < best_own[:, None]) & other & (owners >= 0)
        images_ahead = ~(scores < own_score) & other & (row_index >= 0)[:, None]
        return (
            ranks + jnp.sum(texts_ahead, axis=1, dtype=jnp.int32),
            text_ranks + jnp.sum(images_ahead, axis=0, dtype=jnp.int32),
        )

    return jax.lax.scan(tile, jnp.zeros_like(row_index), (texts, owners, own_score, text_rank))


def _scores(images: jax.Array, texts: jax.Array) -> jax.Array:
    return jnp.matmul(images, texts.T, precision=jax.lax.Precision.HIGHEST)


def _padded(x: np.ndarray, size: int, value: float) -> np.ndarray:
    """x with rows of `value` added up to a multiple of `size`."""
    rows = -len(x) % size
    return np.concatenate([x, np.full((rows, *x.shape[1:]), value, x.dtype)]) if rows else x


def top_matches(
    queries: Num[np.ndarray, "Q E"], candidates: Num[np.ndarray, "M E"], k: int, chunk_size: int = 256
) -> tuple[Int[np.ndarray, "Q K"], Float32[np.ndarray, "Q K"]]:
    """The k best candidates of each query, best first; for pictures, not for metrics (ties go to the lower index).

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
    _check_chunks(queries, candidates, chunk_size)
    indices = np.empty((len(queries), min(k, len(candidates))), np.int64)
    best = np.empty(indices.shape, np.float32)
    for start in range(0, len(queries), chunk_size):
        rows = slice(start, start + chunk_size)
        scores = queries[rows] @ candidates.T
        indices[rows] = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        best[rows] = np.take_along_axis(scores, indices[rows], axis=1)
    return indices, best


def _check_chunks(queries: np.ndarray, candidates: np.ndarray, chunk_size: int) -> None:
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    if queries.shape[1:] != candidates.shape[1:]:
        raise ValueError(f"embeddings of different sizes: {queries.shape} and {candidates.shape}")


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
