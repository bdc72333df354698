"""Retrieval over captioned pictures: recall in both directions, and pictures of queries with their matches."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clip_jax.evaluation.metrics.retrieval import caption_embeddings, recall_at_k, top_matches
from clip_jax.evaluation.pictures import thumbnail
from clip_jax.plots.training import plot_retrieval, plot_similarity
from clip_jax.tables import format_table
from input_pipeline.sources import Source

QUERIES_DRAWN, MATCHES_DRAWN, PAIRS_DRAWN, THUMBNAIL = 6, 3, 10, 128


def measure_retrieval(
    source: Source,
    index: np.ndarray,
    captions_of: Sequence[Sequence[str]],
    images: np.ndarray,
    encode_texts: Callable[[np.ndarray], np.ndarray],
    tokenize: Callable[[Sequence[str]], np.ndarray],
    *,
    prompt_prefix: str = "",
    pictures: Path | None = None,
) -> dict[str, Any]:
    """Recall of N captioned pictures, ready for JSON: what `recall_at_k` returns, and counts of images and captions.

    Args:
      source: of the pictures; index: int [N], their positions in it.
      captions_of: of each picture, at least one.
      images: [N, E], L2-normalised.
      encode_texts, tokenize, prompt_prefix: see `caption_embeddings`.
      pictures: folder of similarity.png, the matrix of the first pairs, and retrieval.png, queries spread over the set
        with their matches.
    """
    captions = [caption for captions in captions_of for caption in captions]
    image_of_text = np.repeat(np.arange(len(images)), [len(captions) for captions in captions_of])
    texts = caption_embeddings(encode_texts, tokenize, captions, prompt_prefix)
    if pictures:
        _draw(source, index, captions, image_of_text, images, texts, pictures)
    return {**recall_at_k(images, texts, image_of_text), "images": len(images), "captions": len(captions)}


def _draw(
    source: Source,
    index: np.ndarray,
    captions: Sequence[str],
    image_of_text: np.ndarray,
    images: np.ndarray,
    texts: np.ndarray,
    pictures: Path,
) -> None:
    def picture(i: int) -> np.ndarray:
        return thumbnail(source, index[i], THUMBNAIL)

    first_text = np.searchsorted(image_of_text, np.arange(len(images)))
    pairs = list(range(min(PAIRS_DRAWN, len(images))))
    plot_similarity(
        np.stack([picture(i) for i in pairs]),
        [captions[i] for i in first_text[pairs]],
        texts[first_text[pairs]] @ images[pairs].T,
        pictures / "similarity.png",
    )
    queries = np.linspace(0, len(images) - 1, min(QUERIES_DRAWN, len(images))).astype(int).tolist()
    found_texts, text_scores = top_matches(images[queries], texts, MATCHES_DRAWN)
    found_images, image_scores = top_matches(texts[first_text[queries]], images, MATCHES_DRAWN)
    plot_retrieval(
        [
            (picture(q), [(captions[t], float(s), bool(image_of_text[t] == q)) for t, s in zip(*found)])
            for q, *found in zip(queries, found_texts, text_scores)
        ],
        [
            (captions[first_text[q]], [(picture(i), float(s), bool(i == q)) for i, s in zip(*found)])
            for q, *found in zip(queries, found_images, image_scores)
        ],
        pictures / "retrieval.png",
    )


def as_table(found: Mapping[str, Any], with_chance: bool = False) -> str:
    """The recalls of `measure_retrieval` for a terminal."""
    header = [f"retrieval ({found['images']} images, {found['captions']} captions)", "R@1", "R@5", "R@10"]
    rows = [
        [f"{query} to {match}{note}", *(found[f"{query}_to_{match}_r@{k}{suffix}"] for k in (1, 5, 10))]
        for query, match in (("image", "text"), ("text", "image"))
        for note, suffix in (("", ""), (", chance", "_chance"))[: 1 + with_chance]
    ]
    return format_table(header, rows)
