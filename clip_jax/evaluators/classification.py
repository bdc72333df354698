"""Scores to the numbers of a report: the metric the paper has for a set, its interval, calibration, what went wrong.

Images go in chunks, so the N×C scores are never held whole unless the metric ranks images (ROC AUC, mAP).

Reference: Radford et al. 2021, sec. 3.1 and table 9.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clip_jax.evaluators import metrics
from clip_jax.evaluators.datasets import MetricName

CHUNK = 2048  # images scored at once


@dataclass(frozen=True, kw_only=True)
class Classified:
    """What a classifier made of N images of C classes with one label each.

    rank: int [N], the classes that score at least as high as the own one, others counted. predicted: int [N], the best
    class; where the own class ties for it, another one. confidence: float64 [N], its probability. margin: float64 [N],
    with two classes how much higher the second one scores, else zeros.
    """

    labels: np.ndarray
    rank: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray
    margin: np.ndarray
    num_classes: int


def classify(
    image_embeddings: np.ndarray,
    labels: np.ndarray,
    class_embeddings: np.ndarray,
    logit_scale: float,
    logit_bias: float | None = None,
) -> Classified:
    """Scores images against classes.

    Args:
      image_embeddings: [N, E], L2-normalised.
      labels: int [N], each in [0, C).
      class_embeddings: [C, E], L2-normalised.
      logit_scale: what similarities are multiplied by before the softmax over the classes.
      logit_bias: of a model of the sigmoid loss, whose probabilities are sigmoids, each class on its own.

    Raises:
      ValueError: no images, shapes that do not match, a label out of range.
    """
    images, classes = np.asarray(image_embeddings, np.float32), np.asarray(class_embeddings, np.float32)
    labels, N, C = np.asarray(labels), len(images), len(classes)
    metrics.check_labels(labels, N, C)
    if images.shape[1:] != classes.shape[1:]:
        raise ValueError(f"image embeddings {images.shape} and class embeddings {classes.shape} differ in size")
    rank, predicted = np.empty(N, np.int64), np.empty(N, np.int64)
    confidence, margin = np.empty(N), np.zeros(N)
    for start in range(0, N, CHUNK):
        rows = slice(start, start + CHUNK)
        scores = images[rows] @ classes.T  # [n, C]
        rank[rows] = metrics.ranks(scores, labels[rows])
        best = scores.argmax(axis=1)
        missed = np.flatnonzero(rank[rows] > 0)
        others = scores[missed]  # a tie for the best is another class's
        others[np.arange(len(missed)), labels[rows][missed]] = -np.inf
        best[missed] = others.argmax(axis=1)
        predicted[rows] = best
        logits = scores * np.float32(logit_scale) + np.float32(logit_bias or 0)
        if logit_bias is None:
            logits -= logits.max(axis=1, keepdims=True)
            np.exp(logits, out=logits)
            logits /= logits.sum(axis=1, keepdims=True)
        else:
            logits = 1 / (1 + np.exp(-logits))
        confidence[rows] = logits[np.arange(len(logits)), best]
        if C == 2:
            margin[rows] = scores[:, 1] - scores[:, 0]
    return Classified(
        labels=labels, rank=rank, predicted=predicted, confidence=confidence, margin=margin, num_classes=C
    )


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
    C, N = found.num_classes, len(found.labels)
    resampling = resampling or {}
    right = found.rank == 0
    images = np.bincount(found.labels, minlength=C)
    rights = np.bincount(found.labels, weights=right, minlength=C)
    result: dict[str, Any] = {}
    for k in (1, 5) if C > 5 else (1,):
        result[f"top{k}"] = _with_interval(
            np.mean(found.rank < k), lambda w: w[:, 0] / N, _two_kinds(found.rank < k), resampling
        )
    kinds = np.concatenate([rights, images - rights]).astype(np.int64)
    is_right, of_class = np.repeat([True, False], C), np.tile(np.arange(C), 2)
    result["mean_per_class"] = _with_interval(
        metrics.mean_per_class(right, found.labels),
        lambda w: metrics.mean_per_class(is_right, of_class, w),
        kinds,
        resampling,
    )
    headline, chance = _headline(found, metric, result, resampling)
    calibrated = metrics.calibration(np.clip(found.confidence, 0, 1), right)
    return {
        "metric": metric,
        **headline,
        "chance": chance,
        **result,
        "per_class": dict(zip(class_names, (float(r / n) if n else None for r, n in zip(rights, images)))),
        "images_per_class": images.tolist(),
        "calibration": {
            "error": calibrated.error,
            "count": calibrated.count.tolist(),
            "confidence": [None if np.isnan(x) else float(x) for x in calibrated.confidence],
            "accuracy": [None if np.isnan(x) else float(x) for x in calibrated.accuracy],
        },
        "count": N,
    }


def _headline(
    found: Classified, metric: MetricName, result: dict[str, Any], resampling: dict[str, Any]
) -> tuple[dict[str, float], float]:
    """The metric's {value, low, high}, and what chance gives."""
    C, N = found.num_classes, len(found.labels)
    if metric == "accuracy":
        return result["top1"], 1 / C
    if metric == "mean_per_class":
        return result["mean_per_class"], 1 / C
    if metric == "mean_top1_top5":
        kinds = np.array(
            [np.sum(found.rank < 1), np.sum((found.rank >= 1) & (found.rank < 5)), np.sum(found.rank >= 5)]
        )
        value = (kinds[0] + kinds[1] / 2) / N
        return _with_interval(value, lambda w: (w[:, 0] + w[:, 1] / 2) / N, kinds, resampling), (
            1 / C + min(1.0, 5 / C)
        ) / 2
    if metric == "roc_auc" and C == 2:
        positive = found.labels == 1
        value = metrics.roc_auc(found.margin, positive)
        return _with_interval(value, lambda w: metrics.roc_auc(found.margin, positive, w), N, resampling), 0.5
    raise ValueError(f"the metric {metric!r} is not one of a set of {C} classes with one label an image")


def multi_label_metrics(
    scores: np.ndarray,
    labels: np.ndarray,
    difficult: np.ndarray | None,
    class_names: Sequence[str],
    resampling: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Numbers of a set with any number of labels an image: mean average precision, as of VOC 2007.

    Args:
      scores: [N, C], higher is likelier.
      labels, difficult: bool [N, C]; what is difficult counts neither way.
      class_names, resampling: as for `single_label_metrics`.

    Returns:
      As `single_label_metrics`, per_class being average precisions, without top1, top5, mean_per_class, calibration.
      Chance is the mean share of images that a class is in, the precision of a random order.
    """
    each = metrics.average_precisions(scores, labels, ignored=difficult)

    def statistic(weights: np.ndarray) -> np.ndarray:
        return metrics.eleven_point_map(scores, labels, weights, difficult)

    counted = np.ones_like(labels) if difficult is None else ~difficult
    images = labels.sum(axis=0)
    return {
        "metric": "eleven_point_map",
        **_with_interval(np.nanmean(each), statistic, len(scores), resampling or {}),
        "chance": float(np.mean((images / counted.sum(axis=0))[images > 0])),
        "per_class": dict(zip(class_names, (None if np.isnan(ap) else float(ap) for ap in each))),
        "images_per_class": images.tolist(),
        "count": len(scores),
    }


def confident_mistakes(found: Classified, count: int) -> np.ndarray:
    """Indices of the images that are wrong with the highest confidence, the worst first, int64 [at most count]."""
    wrong = np.flatnonzero(found.rank > 0)
    return wrong[np.argsort(-found.confidence[wrong], kind="stable")][:count]


def confusion(found: Classified) -> np.ndarray:
    """Counts int64 [C, C]: row the true class, column the predicted one; its trace over N is top-1."""
    C = found.num_classes
    return np.bincount(found.labels * C + found.predicted, minlength=C * C).reshape(C, C)


def _two_kinds(right: np.ndarray) -> np.ndarray:
    return np.array([np.sum(right), np.sum(~right)])


def _with_interval(
    value: Any, statistic: Any, examples: int | np.ndarray, resampling: dict[str, Any]
) -> dict[str, float]:
    low, high = metrics.bootstrap_interval(statistic, examples, **resampling)
    return {"value": float(value), "low": low, "high": high}


def metric_score(metric: MetricName, labels: np.ndarray, scores: np.ndarray) -> float:
    """A metric alone, in [0, 1], as a probe's sweep wants it.

    labels: int [N], or bool [N, C] for mean average precision. scores: [N, C], higher is likelier.
    """
    if metric == "eleven_point_map":
        return float(metrics.eleven_point_map(scores, labels))
    if metric == "roc_auc":
        return float(metrics.roc_auc(scores[:, 1] - scores[:, 0], labels == 1))
    rank = metrics.ranks(scores, labels)
    if metric == "mean_per_class":
        return float(metrics.mean_per_class(rank == 0, labels))
    if metric == "mean_top1_top5":
        return float((np.mean(rank < 1) + np.mean(rank < 5)) / 2)
    return float(np.mean(rank < 1))
