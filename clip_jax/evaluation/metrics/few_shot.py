"""Few-shot linear probes: score over the number of labels a class, and how many match zero-shot.

Reference: Radford et al. 2021, sec. 3.1.5, figures 6 and 7.
"""

from collections.abc import Sequence
from math import exp, log
from typing import Any

import numpy as np
from scipy import stats

from clip_jax.evaluation.metrics.linear_probe import STRENGTHS, Metric, check_splits, search_strength
from clip_jax.evaluation.metrics.logistic_regression import (
    Split,
    computing,
    fit_problem,
    logits_of,
    make_problem,
    one_device,
)

SHOTS = (1, 2, 4, 8, 16)


def few_shot(
    train: Split,
    validation: Split,
    test: Split,
    num_classes: int,
    *,
    metric: Metric,
    shots: Sequence[int] = SHOTS,
    num_seeds: int = 5,
    seed: int = 0,
) -> dict[str, Any]:
    """Linear probes on a few labels a class, drawn num_seeds times; the strength is searched on the validation split,
    one for each number of shots, by the mean over draws.

    The same draw of 2 shots holds that of 1, and so on.

    Args:
      train, validation, test, num_classes, metric: as for `linear_probe`; one label an image.
      shots: labels a class, ascending.
      num_seeds: draws, at least 2.
      seed: of the first draw.

    Returns:
      A dict ready for JSON: count, of test, and shots, a row a number of shots: labels_per_class, strength, score (the
      mean over draws), low and high (its Student-t 95 % interval), scores (of each draw), converged (of all fits).

    Raises:
      ValueError: as `linear_probe`; a class of train with fewer images than the most shots.
    """
    check_splits({"train": train, "validation": validation, "test": test}, num_classes)
    if train.labels.ndim == 2:
        raise ValueError("few-shot needs one label an image, and train has several: K labels a class are not defined")
    if not shots or min(shots) < 1 or list(shots) != sorted(set(shots)):
        raise ValueError(f"shots={tuple(shots)} must be numbers of labels a class from 1 on, ascending")
    if num_seeds < 2:
        raise ValueError(f"num_seeds={num_seeds} must be at least 2: an interval needs two draws")
    images = np.bincount(train.labels, minlength=num_classes)
    if images.min() < shots[-1]:
        raise ValueError(
            f"class {images.argmin()} has {images.min()} images in train, fewer than the {shots[-1]} shots: "
            f"leave out the shots above {images.min()}"
        )
    mesh = one_device()
    orders = [np.random.default_rng(seed + draw).permutation(len(train.labels)) for draw in range(num_seeds)]
    rows = []
    with computing(mesh):
        for number in shots:
            chosen = [_first_of_each_class(train.labels, order, number) for order in orders]
            problems = [
                make_problem(
                    Split(train.features[drawn], train.labels[drawn]), num_classes, mesh, shots[-1] * num_classes
                )
                for drawn in chosen
            ]
            fits: dict[int, list[tuple[np.ndarray, np.ndarray, bool]]] = {}  # by index in STRENGTHS, of each draw

            def validation_scores(indices: Sequence[int], problems=problems, fits=fits) -> list[float]:
                of_draws = [fit_problem(problem, [STRENGTHS[i] for i in indices], True) for problem in problems]
                for i, index in enumerate(indices):
                    fits[index] = [(fit.weights[i], fit.biases[i], bool(fit.converged[i])) for fit in of_draws]
                return [float(np.mean(_scores(fits[index], validation, metric))) for index in indices]

            best = search_strength(validation_scores)
            scores = _scores(fits[best], test, metric)
            mean, low, high = student_interval(scores)
            rows.append(
                {
                    "labels_per_class": number,
                    "strength": STRENGTHS[best],
                    "score": mean,
                    "low": low,
                    "high": high,
                    "scores": scores,
                    "converged": all(converged for *_, converged in fits[best]),
                }
            )
    return {"count": len(test.labels), "shots": rows}


def _first_of_each_class(labels: np.ndarray, order: np.ndarray, number: int) -> np.ndarray:
    """The rows that come first in an order, so many of each class."""
    return np.concatenate([order[labels[order] == label][:number] for label in np.unique(labels)])


def _scores(fits: Sequence[tuple[np.ndarray, np.ndarray, bool]], split: Split, metric: Metric) -> list[float]:
    return [float(metric(split.labels, logits_of(weights, bias, split.features))) for weights, bias, _ in fits]


def student_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean, and the ends of Student's t interval for it, of at least two values."""
    mean, error = float(np.mean(values)), float(np.std(values, ddof=1) / len(values) ** 0.5)
    half = float(stats.t.ppf((1 + confidence) / 2, len(values) - 1)) * error
    return mean, mean - half, mean + half


def labels_to_match(target: float, labels_per_class: Sequence[float], scores: Sequence[float]) -> dict[str, Any]:
    """How many labels a class a probe needs to reach a score, as zero-shot's: the paper's fig. 7.

    Interpolated linearly over the logarithm of the labels a class, where the curve first reaches the target.

    Args:
      target: the score to reach.
      labels_per_class: above 0, ascending; the paper's are 1, 2, 4, 8, 16 and all.
      scores: of each.

    Returns:
      {"labels_per_class": a number, "relation": "equal"}; {first labels_per_class, "at most"} where the first score
      reaches it already; {the last, "more than"} where none does: nothing is extrapolated.

    Raises:
      ValueError: no scores, lengths that differ, labels_per_class that are not above 0 and ascending.
    """
    counts = list(labels_per_class)
    if not counts or len(counts) != len(scores) or counts[0] <= 0 or counts != sorted(set(counts)):
        raise ValueError(
            f"labels_per_class={counts} must be above 0, ascending, and as many as the {len(scores)} scores"
        )
    if scores[0] >= target:
        return {"labels_per_class": float(counts[0]), "relation": "equal" if scores[0] == target else "at most"}
    reached = next((i for i, score in enumerate(scores) if score >= target), None)
    if reached is None:
        return {"labels_per_class": float(counts[-1]), "relation": "more than"}
    below, above = scores[reached - 1], scores[reached]
    share = (target - below) / (above - below)
    labels = exp(log(counts[reached - 1]) * (1 - share) + log(counts[reached]) * share)
    return {"labels_per_class": labels, "relation": "equal"}
