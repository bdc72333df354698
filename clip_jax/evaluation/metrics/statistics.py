"""The numbers that evaluations report, in NumPy, each in [0, 1], and their bootstrap intervals.

Ties are counted against the model, and so is NaN: an image is right at k only if fewer than k other classes score at
least as high as its own. A collapsed model thus gets 0 rather than the accuracy of argmax's habits. In the area under
the ROC curve a tie is worth one half, by definition.

`weights` is how often each example counts, float64 [..., N], by default once; the result has the leading axes. The
bootstrap is fast by it: an example drawn twice has the weight 2, and many draws are one array.

Reference: Radford et al. 2021, table 9 (which data set has which metric).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float64, Int, Num, Shaped

RESAMPLED_AT_ONCE = 2**22  # weights, 32 MB


def mean_accuracy(
    correct: Shaped[np.ndarray, "N"], weights: Num[np.ndarray, "*R N"] | None = None
) -> Float64[Any, "*R"]:
    """Weighted mean of `correct`, bool or float [N]: float64 [...]."""
    correct = np.asarray(correct, np.float64)
    weights = np.ones(len(correct)) if weights is None else weights
    return weights @ correct / weights.sum(axis=-1)


def mean_per_class(
    correct: Shaped[np.ndarray, "N"], labels: Int[np.ndarray, "N"], weights: Num[np.ndarray, "*R N"] | None = None
) -> Float64[Any, "*R"]:
    """The mean over classes of the share that is right, float64 [...]; classes without weight are excluded.

    Args:
      correct: bool [N], or a share in [0, 1].
      labels: int [N], at least 0.
      weights: see the module.
    """
    correct, labels = np.asarray(correct, np.float64), np.asarray(labels)
    weights = np.ones(len(labels)) if weights is None else weights
    order = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.diff(labels[order], prepend=-1))  # of the classes that have examples
    images = np.add.reduceat(weights[..., order], starts, axis=-1)
    right = np.add.reduceat((weights * correct)[..., order], starts, axis=-1)
    shares = np.divide(right, images, out=np.zeros_like(right), where=images > 0)
    return shares.sum(axis=-1) / np.count_nonzero(images, axis=-1)


def eleven_point_map(
    scores: Num[np.ndarray, "N C"],
    relevant: Shaped[np.ndarray, "N C"],
    weights: Num[np.ndarray, "*R N"] | None = None,
    ignored: Shaped[np.ndarray, "N C"] | None = None,
) -> Float64[Any, "*R"]:
    """Mean over classes of VOC 2007's average precision, float64 [...].

    Of each class the precision is read at the recalls 0, 0.1, ..., 1, each time the highest one at that recall or a
    higher one. Among equal scores those that are not relevant come first.

    Args:
      scores: [N, C], higher is likelier.
      relevant: bool [N, C]. Classes without a relevant example of any weight are excluded.
      weights: see the module.
      ignored: bool [N, C], examples that count neither way for a class, as "difficult" ones.

    Raises:
      ValueError: shapes that differ, scores that are not finite, no class with a relevant example.

    Reference: Everingham et al. 2010, "The PASCAL Visual Object Classes (VOC) Challenge", sec. 4.2.
    """
    return np.nanmean(average_precisions(scores, relevant, weights, ignored), axis=-1)


def average_precisions(
    scores: Num[np.ndarray, "N C"],
    relevant: Shaped[np.ndarray, "N C"],
    weights: Num[np.ndarray, "*R N"] | None = None,
    ignored: Shaped[np.ndarray, "N C"] | None = None,
) -> Float64[np.ndarray, "*R C"]:
    """Of each class, [..., C], NaN where nothing is relevant; arguments and errors as for `eleven_point_map`."""
    scores, relevant = np.asarray(scores), np.asarray(relevant, bool)
    if scores.shape != relevant.shape or scores.ndim != 2:
        raise ValueError(f"scores {scores.shape} and relevant {relevant.shape} must both be [N, C]")
    _check_finite(scores)
    weights = np.ones(len(scores)) if weights is None else weights
    kept = np.ones(scores.shape, bool) if ignored is None else ~np.asarray(ignored, bool)
    if not (relevant & kept).any():
        raise ValueError("no class has a relevant example: there is no average precision")
    of_classes = zip(scores.T, relevant.T, kept.T)
    return np.stack([_average_precision(s[k], r[k], weights[..., k]) for s, r, k in of_classes], axis=-1)


def _average_precision(scores: np.ndarray, relevant: np.ndarray, weights: np.ndarray) -> np.ndarray:
    if not relevant.any():
        return np.full(weights.shape[:-1], np.nan)
    order = np.lexsort((relevant, -scores))
    positions = np.flatnonzero(relevant[order])  # only there can the precision be highest
    weights = weights[..., order]
    found = np.cumsum(weights[..., positions], axis=-1)  # [..., R]
    seen = np.cumsum(np.add.reduceat(weights, np.append(0, positions[:-1] + 1), axis=-1), axis=-1)
    if positions[-1] + 1 < weights.shape[-1]:  # the last sum went on to the end
        seen[..., -1] -= weights[..., positions[-1] + 1 :].sum(axis=-1)
    precision = np.divide(found, seen, out=np.zeros_like(found), where=seen > 0)
    total = found[..., -1:]
    # found * 10 >= tenth * total is exact where recall >= tenth / 10 is not.
    best = [np.max(precision, axis=-1, where=found * 10 >= tenth * total, initial=0.0) for tenth in range(11)]
    return np.where(total[..., 0] > 0, np.mean(best, axis=0), np.nan)


def roc_auc(
    scores: Num[np.ndarray, "N"], positive: Shaped[np.ndarray, "N"], weights: Num[np.ndarray, "*R N"] | None = None
) -> Float64[Any, "*R"]:
    """Area under the ROC curve: the chance that a positive outscores a negative, a tie worth one half; float64 [...].

    Args:
      scores: [N], higher is likelier.
      positive: bool [N], some of both.
      weights: see the module; NaN where one kind has no weight.

    Raises:
      ValueError: shapes that differ, scores that are not finite, one kind of example only.
    """
    scores, positive = np.asarray(scores), np.asarray(positive, bool)
    if scores.shape != positive.shape or scores.ndim != 1:
        raise ValueError(f"scores {scores.shape} and positive {positive.shape} must both be [N]")
    _check_finite(scores)
    if positive.all() or not positive.any():
        kind = "positive" if positive.any() else "negative"
        raise ValueError(f"all {len(positive)} examples are {kind}: there is no ROC curve")
    weights = np.ones(len(scores)) if weights is None else weights
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))  # of the groups of equal scores
    ups = np.add.reduceat((weights * positive)[..., order], starts, axis=-1)
    downs = np.add.reduceat((weights * ~positive)[..., order], starts, axis=-1)
    below = np.cumsum(downs, axis=-1) - downs
    pairs = ups.sum(axis=-1) * downs.sum(axis=-1)
    wins = np.sum(ups * (below + downs / 2), axis=-1)
    return np.divide(wins, pairs, out=np.full_like(wins, np.nan), where=pairs > 0)


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Confidence against accuracy in B bins of equal width over [0, 1].

    error: expected calibration error, the mean over examples of |accuracy - confidence| of their bins.
    count: examples of each bin, int64 [B]. confidence, accuracy: their means in each bin, NaN in an empty one.
    """

    error: float
    count: Int[np.ndarray, "B"]
    confidence: Float[np.ndarray, "B"]
    accuracy: Float[np.ndarray, "B"]


def calibration(
    confidence: Float[np.ndarray, "N"], correct: Shaped[np.ndarray, "N"], num_bins: int = 15
) -> Calibration:
    """How far the confidence in a prediction is from how often it is right.

    Args:
      confidence: [N], the probability of the predicted class, in [0, 1].
      correct: bool [N].
      num_bins: bin b holds confidences in (b / num_bins, (b + 1) / num_bins], the first one 0 too.

    Raises:
      ValueError: shapes that differ, no examples, a confidence outside [0, 1] or NaN.

    Reference: Guo et al. 2017, arXiv 1706.04599, eq. 3.
    """
    confidence, correct = np.asarray(confidence, np.float64), np.asarray(correct, np.float64)
    if confidence.shape != correct.shape or confidence.ndim != 1 or not len(confidence):
        raise ValueError(f"confidence {confidence.shape} and correct {correct.shape} must both be [N] of N at least 1")
    if not (low := confidence.min()) >= 0 or not (high := confidence.max()) <= 1:
        raise ValueError(f"confidence must lie in [0, 1], found {low if not low >= 0 else high}")
    bins = np.clip(np.ceil(confidence * num_bins).astype(int) - 1, 0, num_bins - 1)
    count = np.bincount(bins, minlength=num_bins)
    with np.errstate(invalid="ignore"):  # 0 / 0 of an empty bin
        means = [np.bincount(bins, weights=x, minlength=num_bins) / count for x in (confidence, correct)]
    error = np.nansum(np.abs(means[1] - means[0]) * count) / len(confidence)
    return Calibration(error=float(error), count=count, confidence=means[0], accuracy=means[1])


def bootstrap_interval(
    statistic: Callable[[np.ndarray], np.ndarray],
    examples: int | np.ndarray,
    *,
    num_resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of a statistic over examples drawn with replacement, the same for the same seed.

    Args:
      statistic: weights float64 [r, K] to values [r], as `lambda w: roc_auc(scores, positive, w)`. NaN, as where a draw
        has no positive example, is left out.
      examples: N, at least 1, and K is N; or int [K], how many examples there are of each of K kinds that the statistic
        does not distinguish, such as right and wrong: the same distribution of draws, much faster.
      num_resamples: draws.
      confidence: share of the draws that lie within, in (0, 1).
      seed: of the draws.

    Returns:
      (low, high).

    Raises:
      ValueError: an argument out of its range, or a statistic that is NaN in every draw.
    """
    counts = np.asarray(examples)
    N = int(counts.sum())
    if N < 1 or counts.min() < 0 or num_resamples < 1 or not 0 < confidence < 1:
        raise ValueError(
            f"a bootstrap of {N} examples, num_resamples={num_resamples}, confidence={confidence}: the first two must "
            "be at least 1, the last within (0, 1)"
        )
    rng = np.random.default_rng(seed)
    K = counts.size if counts.ndim else N
    rows = max(1, RESAMPLED_AT_ONCE // K)
    values = np.empty(num_resamples)
    for start in range(0, num_resamples, rows):
        drawn = min(rows, num_resamples - start)
        if counts.ndim:
            weights = rng.multinomial(N, counts / N, size=drawn)
        else:
            index = rng.integers(N, size=(drawn, N)) + N * np.arange(drawn)[:, None]
            weights = np.bincount(index.ravel(), minlength=drawn * N).reshape(drawn, N)
        values[start : start + drawn] = statistic(weights.astype(np.float64))
    values = values[~np.isnan(values)]
    if not len(values):
        raise ValueError("the statistic is NaN in every draw of the bootstrap: there is no interval")
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _check_finite(scores: np.ndarray) -> None:
    if (wrong := np.argwhere(~np.isfinite(scores))).size:
        raise ValueError(
            f"{len(wrong)} of {scores.size} scores are not finite, the first at {tuple(wrong[0].tolist())}"
        )
