"""Scores to the numbers of a report: the metric the paper has for a set, its interval, calibration, mistakes.

Images go in chunks, so the N×C scores are never held whole unless the metric ranks images (ROC AUC, mAP).

Reference: Radford et al. 2021, sec. 3.1 and table 9.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Num, Shaped

from clip_jax.evaluation.datasets import MetricName
from clip_jax.evaluation.metrics import statistics

CHUNK = 2048  # images scored at once
ARRAYS = ("labels", "rank", "predicted", "confidence", "margin")

Statistic = Callable[[np.ndarray], np.ndarray]  # weights, or counts of kinds, [r, K] to values [r]
Kind = MetricName | Literal["top5"]


@dataclass(frozen=True, kw_only=True)
class Classified:
    """What a classifier made of N images of C classes with one label each.

    rank: int [N], the classes that score at least as high as the own one, others counted. predicted: int [N], the best
    class; where the own class ties for it, another one. confidence: float64 [N], its probability. margin: float64 [N],
    with two classes how much higher the second one scores, else zeros.
    """

    labels: Int[np.ndarray, "N"]
    rank: Int[np.ndarray, "N"]
    predicted: Int[np.ndarray, "N"]
    confidence: Float64[np.ndarray, "N"]
    margin: Float64[np.ndarray, "N"]
    num_classes: int


def ranks(scores: Num[np.ndarray, "N C"], labels: Shaped[np.ndarray, "N"]) -> Int[np.ndarray, "N"]:
    """Of each example the number of other classes that score at least as high as its own, int64 [N].

    Args:
      scores: [N, C], higher is likelier.
      labels: int [N], each in [0, C).

    Raises:
      ValueError: no examples, shapes that do not match, labels that are not integers or out of range.
    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    if scores.ndim != 2:
        raise ValueError(f"scores have shape {scores.shape}, expected [N, C]")
    N, C = scores.shape
    check_labels(labels, N, C)
    own = np.take_along_axis(scores, labels[:, None], axis=1)  # [N, 1]
    # "not below" instead of "at or above", so that NaN counts against the model too.
    return C - np.count_nonzero(scores < own, axis=1) - 1  # less the own class itself


def check_labels(labels: np.ndarray, N: int, C: int) -> None:
    """ValueError unless labels are int [N] in [0, C), and N is at least 1."""
    if labels.shape != (N,):
        raise ValueError(f"labels have shape {labels.shape} for {N} examples, expected ({N},)")
    if N == 0:
        raise ValueError("no examples to measure: the evaluation set is empty")
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels must be integers, got {labels.dtype}")
    if (outside := np.flatnonzero((labels < 0) | (labels >= C))).size:
        i = outside[0]
        raise ValueError(f"label {labels[i]} of example {i} is outside 0..{C - 1}, the range of the {C} class names")


def classify(
    image_embeddings: Float[np.ndarray, "N E"],
    labels: Shaped[np.ndarray, "N"],
    class_embeddings: Float[np.ndarray, "C E"],
    logit_scale: float = 1.0,
    logit_bias: float | None = None,
) -> Classified:
    """Scores images against classes.

    Args:
      image_embeddings: [N, E], L2-normalised.
      labels: int [N], each in [0, C).
      class_embeddings: [C, E], L2-normalised.
      logit_scale, logit_bias: see `classify_scores`.

    Raises:
      ValueError: no images, shapes that do not match, a label out of range.
    """
    images, classes = np.asarray(image_embeddings, np.float32), np.asarray(class_embeddings, np.float32)
    labels, N = np.asarray(labels), len(images)
    check_labels(labels, N, len(classes))
    if images.shape[1:] != classes.shape[1:]:
        raise ValueError(f"image embeddings {images.shape} and class embeddings {classes.shape} differ in size")
    chunks = (slice(start, start + CHUNK) for start in range(0, N, CHUNK))
    parts = [classify_scores(images[rows] @ classes.T, labels[rows], logit_scale, logit_bias) for rows in chunks]
    arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in ARRAYS}
    return Classified(**arrays, num_classes=len(classes))


def classify_scores(
    scores: Float[np.ndarray, "N C"],
    labels: Shaped[np.ndarray, "N"],
    logit_scale: float = 1.0,
    logit_bias: float | None = None,
) -> Classified:
    """The images' ranks, predictions and confidences.

    Args:
      scores: [N, C], higher is likelier.
      labels: int [N], each in [0, C).
      logit_scale: multiplies the scores before the softmax over the classes.
      logit_bias: of a model of the sigmoid loss, whose probabilities are sigmoids, each class on its own.

    Raises:
      ValueError: as `classify`.
    """
    rank, best = ranks(scores, labels), scores.argmax(axis=1)
    labels = np.asarray(labels, np.int64)  # a narrower one would overflow in the confusion matrix
    missed = np.flatnonzero(rank > 0)
    others = scores[missed]  # a tie for the best is another class's
    others[np.arange(len(missed)), labels[missed]] = -np.inf
    best[missed] = others.argmax(axis=1)
    logits = scores * np.float32(logit_scale) + np.float32(logit_bias or 0)
    if logit_bias is None:
        logits -= logits.max(axis=1, keepdims=True)
        np.exp(logits, out=logits)
        logits /= logits.sum(axis=1, keepdims=True)
    else:
        logits = np.exp(-np.logaddexp(0, -logits))
    return Classified(
        labels=labels,
        rank=rank,
        predicted=best,
        confidence=logits[np.arange(len(logits)), best].astype(np.float64),
        margin=(scores[:, 1] - scores[:, 0] if scores.shape[1] == 2 else np.zeros(len(scores))).astype(np.float64),
        num_classes=scores.shape[1],
    )


def accuracies(found: Classified, class_names: Sequence[str]) -> dict[str, Any]:
    """Accuracies in [0, 1], ties counted against the model.

    Args:
      found: see `classify`.
      class_names: C names, the keys of `per_class`.

    Returns:
      A dict ready for JSON: top1; top5 if C > 5; mean_per_class, the mean over the classes that have images;
      per_class, {name: accuracy, None without images}; chance, 1 / C; count, N.

    Raises:
      ValueError: another number of class names.
    """
    C, right = found.num_classes, found.rank == 0
    if len(class_names) != C:
        raise ValueError(f"{len(class_names)} class names for the scores of {C} classes")
    images, rights = np.bincount(found.labels, minlength=C), np.bincount(found.labels, weights=right, minlength=C)
    per_class = [float(r / n) if n else None for r, n in zip(rights, images)]
    return {
        "top1": float(np.mean(right)),
        **({"top5": float(np.mean(found.rank < 5))} if C > 5 else {}),
        "mean_per_class": float(np.mean([accuracy for accuracy in per_class if accuracy is not None])),
        "per_class": dict(zip(class_names, per_class)),
        "chance": 1 / C,
        "count": len(right),
    }


def single_label_metrics(
    found: Classified, class_names: Sequence[str], metric: MetricName, resampling: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Numbers of a set with one label an image.

    Args:
      found: see `classify`.
      class_names: C strings.
      metric: the headline's: accuracy, mean_per_class, mean_top1_top5, or with two classes roc_auc.
      resampling: num_resamples, confidence and seed of `bootstrap_interval`.

    Returns:
      A dict ready for JSON: metric, value, low, high and chance (of the headline); top1, top5 if C > 5 and
      mean_per_class, each {value, low, high}; per_class, {name: accuracy, None without images}; images_per_class;
      calibration: {error, confidence, accuracy, count} by bins; count, N.

    Raises:
      ValueError: a metric that such a set does not have.
    """
    C, N, plain = found.num_classes, len(found.labels), accuracies(found, class_names)

    def measured(name: Kind) -> dict[str, float]:
        return _with_interval(*_of_ranks(name, found.rank, found.labels, C), resampling)

    kinds: dict[str, Kind] = {"top1": "accuracy", "top5": "top5", "mean_per_class": "mean_per_class"}
    chance = {"accuracy": 1 / C, "mean_per_class": 1 / C, "mean_top1_top5": (1 / C + min(1.0, 5 / C)) / 2}
    if metric == "roc_auc" and C == 2:
        positive = found.labels == 1
        headline = _with_interval(lambda w: statistics.roc_auc(found.margin, positive, w), np.ones(N), resampling)
    elif metric in chance:
        headline = measured(metric)
    else:
        raise ValueError(f"the metric {metric!r} is not one of a set of {C} classes with one label an image")
    calibrated = statistics.calibration(np.clip(found.confidence, 0, 1), found.rank == 0)
    return {
        "metric": metric,
        **headline,
        "chance": chance.get(metric, 0.5),
        **{name: measured(kind) for name, kind in kinds.items() if name in plain},
        "per_class": plain["per_class"],
        "images_per_class": np.bincount(found.labels, minlength=C).tolist(),
        "calibration": {
            "error": calibrated.error,
            "count": calibrated.count.tolist(),
            "confidence": [None if np.isnan(x) else float(x) for x in calibrated.confidence],
            "accuracy": [None if np.isnan(x) else float(x) for x in calibrated.accuracy],
        },
        "count": N,
    }


def multi_label_metrics(
    scores: Float[np.ndarray, "N C"],
    labels: Bool[np.ndarray, "N C"],
    difficult: Bool[np.ndarray, "N C"] | None,
    class_names: Sequence[str],
    resampling: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Numbers of a set with any number of labels an image: mean average precision, as of VOC 2007.

    Args:
      scores: [N, C], higher is likelier.
      labels, difficult: bool [N, C]; difficult ones are excluded.
      class_names, resampling: as for `single_label_metrics`.

    Returns:
      As `single_label_metrics`, per_class being average precisions, without top1, top5, mean_per_class, calibration.
      Chance is the mean share of images that a class is in, the precision of a random order.
    """
    each = statistics.average_precisions(scores, labels, ignored=difficult)

    def statistic(weights: np.ndarray) -> np.ndarray:
        return statistics.eleven_point_map(scores, labels, weights, difficult)

    counted = np.ones_like(labels) if difficult is None else ~difficult
    images = labels.sum(axis=0)
    return {
        "metric": "eleven_point_map",
        **_with_interval(statistic, np.ones(len(scores)), resampling),
        "chance": float(np.mean((images / counted.sum(axis=0))[images > 0])),
        "per_class": dict(zip(class_names, (None if np.isnan(ap) else float(ap) for ap in each))),
        "images_per_class": images.tolist(),
        "count": len(scores),
    }


def confident_mistakes(found: Classified, count: int) -> Int[np.ndarray, "K"]:
    """Indices of the images that are wrong with the highest confidence, the worst first, int64 [at most count]."""
    wrong = np.flatnonzero(found.rank > 0)
    return wrong[np.argsort(-found.confidence[wrong], kind="stable")][:count]


def confusion(found: Classified) -> Int[np.ndarray, "C C"]:
    """Counts int64 [C, C]: row the true class, column the predicted one; its trace over N is top-1."""
    C = found.num_classes
    return np.bincount(found.labels * C + found.predicted, minlength=C * C).reshape(C, C)


def measure_scores(
    metric: MetricName,
    labels: Shaped[np.ndarray, "N *C"],
    scores: Num[np.ndarray, "N C"],
    resampling: dict[str, Any] | None = None,
) -> dict[str, float]:
    """A metric of scores alone, {value, low, high}, as a probe's.

    labels: int [N], or bool [N, C] for mean average precision. scores: [N, C], higher is likelier.
    """
    return _with_interval(*_statistic(metric, labels, scores), resampling)


def metric_score(metric: MetricName, labels: Shaped[np.ndarray, "N *C"], scores: Num[np.ndarray, "N C"]) -> float:
    """As `measure_scores`, without the interval."""
    statistic, counts = _statistic(metric, labels, scores)
    return float(statistic(counts[None].astype(np.float64))[0])


def _statistic(metric: MetricName, labels: np.ndarray, scores: np.ndarray) -> tuple[Statistic, np.ndarray]:
    if metric == "eleven_point_map":
        return lambda w: statistics.eleven_point_map(scores, labels, w), np.ones(len(scores))
    if metric == "roc_auc":
        margin, positive = scores[:, 1] - scores[:, 0], labels == 1
        return lambda w: statistics.roc_auc(margin, positive, w), np.ones(len(scores))
    return _of_ranks(metric, ranks(scores, labels), labels, scores.shape[1])


def _of_ranks(metric: Kind, rank: np.ndarray, labels: np.ndarray, C: int) -> tuple[Statistic, np.ndarray]:
    """A metric as a function of the numbers of examples of each kind it distinguishes, [r, K], and these."""
    if metric == "mean_per_class":
        right = np.bincount(labels, weights=rank == 0, minlength=C)
        is_right, of_class = np.repeat([True, False], C), np.tile(np.arange(C), 2)
        counts = np.concatenate([right, np.bincount(labels, minlength=C) - right])
        return lambda w: statistics.mean_per_class(is_right, of_class, w), counts.astype(np.int64)
    worth = {"accuracy": (1, 0, 0), "top5": (1, 1, 0), "mean_top1_top5": (1, 0.5, 0)}[metric]
    counts = np.array([np.sum(rank < 1), np.sum((rank >= 1) & (rank < 5)), np.sum(rank >= 5)])
    return lambda w: statistics.mean_accuracy(np.array(worth), w), counts


def _with_interval(statistic: Statistic, counts: np.ndarray, resampling: dict[str, Any] | None) -> dict[str, float]:
    """The statistic of all examples, and its interval; floating-point counts are ones, examples that all differ."""
    examples = len(counts) if counts.dtype.kind == "f" else counts
    low, high = statistics.bootstrap_interval(statistic, examples, **(resampling or {}))
    return {"value": float(statistic(counts[None].astype(np.float64))[0]), "low": low, "high": high}
