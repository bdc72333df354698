"""Zero-shot classification: class names become text embeddings, the nearest one is the prediction.

Ties are counted against the model: an image is right at k only if fewer than k other classes score at least as
high as its own. A collapsed model, or one full of NaN, thus gets 0 rather than the accuracy of argmax's habits.

Reference: Radford et al. 2021, sec. 3.1.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from clip_jax.evaluation.metrics.statistics import check_labels, ranks


def make_prompts(
    class_names: Sequence[str | Sequence[str]], templates: Sequence[str]
) -> tuple[list[tuple[str, ...]], list[str]]:
    """The names of each class, and the prompts name after name, each with all templates.

    Arguments and errors as for `class_embeddings`.
    """
    if len(class_names) < 2:
        raise ValueError(f"zero-shot classification needs at least two class names, got {list(class_names)}")
    names = [(name,) if isinstance(name, str) else tuple(name) for name in class_names]
    if repeated := [name for name, count in Counter(itertools.chain(*names)).items() if count > 1]:
        raise ValueError(f"class names appear more than once: {', '.join(map(repr, repeated))}; rename or merge them")
    if () in names:
        raise ValueError(f"class {names.index(())} has no name")
    if not templates:
        raise ValueError("no prompt template given; '{}' alone stands for the bare class name")
    for template in templates:
        if template.count("{}") != 1:
            raise ValueError(f"prompt template {template!r} needs exactly one {{}} for the class name")

    return names, [template.replace("{}", name) for several in names for name in several for template in templates]


def class_embeddings(
    encode_texts: Callable[[np.ndarray], np.ndarray],
    tokenize: Callable[[Sequence[str]], np.ndarray],
    class_names: Sequence[str | Sequence[str]],
    templates: Sequence[str],
) -> np.ndarray:
    """One embedding a class: the normalised mean of the normalised embeddings of all its prompts.

    A class of several names, as "happy" and "smiling", has the prompts of all of them.

    Args:
      encode_texts: int32 [N, L] tokens to [N, E] embeddings, any N; called once with all prompts.
      tokenize: N strings to int32 [N, L].
      class_names: C names, at least two, or for a class several; all of them different.
      templates: T strings with exactly one `{}` each.

    Returns:
      float32 [C, E], L2-normalised.

    Raises:
      ValueError: for names or templates that break the rules above.

    Reference: Radford et al. 2021, sec. 3.1.4 (ensembling over the embedding space).
    """
    names, prompts = make_prompts(class_names, templates)
    embeddings = _normalized(encode_texts(tokenize(prompts)))  # [prompts, E]
    counts = np.array([len(several) * len(templates) for several in names])
    starts = np.append(0, np.cumsum(counts)[:-1])
    return _normalized(np.add.reduceat(embeddings, starts, axis=0) / counts[:, None])


def class_scores(
    score_prompts: Callable[[np.ndarray], np.ndarray],
    tokenize: Callable[[Sequence[str]], np.ndarray],
    class_names: Sequence[str | Sequence[str]],
    templates: Sequence[str],
) -> np.ndarray:
    """For a model that predicts captions: how well each class fits each image, the mean over its prompts, [N, C].

    score_prompts: int32 [M, T, L], T prompts of M names, to [N, M], the mean of a name's; called once.
    Other arguments and errors as for `class_embeddings`.
    """
    names, prompts = make_prompts(class_names, templates)
    tokens = tokenize(prompts)
    scores = score_prompts(tokens.reshape(-1, len(templates), tokens.shape[1]))  # [N, M]
    counts = np.array([len(several) for several in names])
    starts = np.append(0, np.cumsum(counts)[:-1])
    return np.add.reduceat(scores, starts, axis=1) / counts


def embedding_scores(image_embeddings: np.ndarray, class_embeddings: np.ndarray) -> np.ndarray:
    """Cosine similarities, float32 [N, C], of [N, E] and [C, E], L2-normalised. Raises ValueError for other shapes."""
    images, classes = np.asarray(image_embeddings, np.float32), np.asarray(class_embeddings, np.float32)
    if images.shape[1:] != classes.shape[1:]:
        raise ValueError(f"image embeddings {images.shape} and class embeddings {classes.shape} differ in size")
    return images @ classes.T


def zero_shot_metrics(
    image_embeddings: np.ndarray,
    labels: np.ndarray,
    class_embeddings: np.ndarray,
    class_names: Sequence[str],
) -> dict[str, Any]:
    """`score_metrics` of the similarities of L2-normalised embeddings, of images [N, E] and of classes [C, E]."""
    return score_metrics(embedding_scores(image_embeddings, class_embeddings), labels, class_names)


def score_metrics(scores: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> dict[str, Any]:
    """Accuracies in [0, 1], ties counted against the model.

    Args:
      scores: [N, C], higher is likelier.
      labels: int [N], each in [0, C).
      class_names: C names, the keys of `per_class`.

    Returns:
      A dict ready for JSON: top1; top5 if C > 5; mean_per_class, the mean over the classes that have images;
      per_class, {name: accuracy, None without images}; chance, 1 / C; count, N.

    Raises:
      ValueError: lengths that do not match, no images, a label out of range.
    """
    if len(class_names) != scores.shape[1]:
        raise ValueError(f"{len(class_names)} class names for the scores of {scores.shape[1]} classes")
    rank, _ = _ranks_and_predictions(scores, labels)
    labels, C = np.asarray(labels), len(class_names)
    images = np.bincount(labels, minlength=C)  # [C]
    right = np.bincount(labels, weights=rank == 0, minlength=C)  # [C]
    per_class = [float(r / n) if n else None for r, n in zip(right, images)]
    metrics: dict[str, Any] = {"top1": float(np.mean(rank == 0))}
    if C > 5:
        metrics["top5"] = float(np.mean(rank < 5))
    metrics["mean_per_class"] = float(np.mean([accuracy for accuracy in per_class if accuracy is not None]))
    metrics["per_class"] = dict(zip(class_names, per_class))
    metrics["chance"] = 1 / C
    metrics["count"] = len(rank)
    return metrics


def confusion_matrix(image_embeddings: np.ndarray, labels: np.ndarray, class_embeddings: np.ndarray) -> np.ndarray:
    """`score_confusion` of the similarities of L2-normalised embeddings; arguments as for `zero_shot_metrics`."""
    return score_confusion(embedding_scores(image_embeddings, class_embeddings), labels)


def score_confusion(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Counts int64 [C, C]: row the true class, column the predicted one; its trace over N is top1.

    Where the own class ties for the best score, the image counts for another of the tied classes.
    Arguments and errors as for `score_metrics`.
    """
    _, predicted = _ranks_and_predictions(scores, labels)
    C = scores.shape[1]
    matrix = np.zeros((C, C), np.int64)
    np.add.at(matrix, (np.asarray(labels), predicted), 1)
    return matrix


def _ranks_and_predictions(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each image the number of other classes that score at least as high as its own, and its prediction."""
    labels = np.asarray(labels)
    check_labels(labels, *scores.shape)
    rank = ranks(scores, labels)
    missed = np.flatnonzero(rank > 0)
    others = scores.copy()
    others[missed, labels[missed]] = -np.inf
    return rank, others.argmax(axis=1)


def _normalized(x: np.ndarray) -> np.ndarray:
    """x over its L2 norm along the last axis, float32; a zero vector stays zero."""
    x = np.asarray(x, np.float32)
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), np.finfo(np.float32).tiny)
