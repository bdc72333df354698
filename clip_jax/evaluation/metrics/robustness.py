"""Accuracy under distribution shift, and how much of it the accuracy without shift does not explain.

Effective robustness is the accuracy under a shift less what reference models of the same accuracy on the reference set
have there: a line, fitted by least squares to reference models' accuracies after the logit transform. Relative
robustness is the accuracy under the shift less that of a named baseline. Only both together say that a model is more
robust: a worse model can gain the first alone.

Reference: Taori et al. 2020 (arXiv:2007.00644), sec. 3; Radford et al. 2021, sec. 3.3 and fig. 13.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import expit, logit

from clip_jax.evaluation.metrics.binomial import share

MEAN = "mean of shifts"


def robustness_metrics(
    reference: str,
    scores: Mapping[str, tuple[int, int]],
    reference_models: Mapping[str, Mapping[str, float]],
    baseline: str = "",
    confidence: float = 0.95,
) -> dict[str, Any]:
    """Accuracies with intervals, effective and relative robustness of one model under each shift.

    Args:
      reference: the key in `scores` of the set without shift; all other keys are shifts of it.
      scores: {set: (images right, images)}, of the model that is measured.
      reference_models: {model: {set: accuracy strictly between 0 and 1}}; a model counts for a shift if it has both the
        reference's accuracy and the shift's. The same classes must have been used for both (the paper takes subsets of
        ImageNet's classes where a shift has fewer).
      baseline: the one of reference_models that relative robustness is measured against; "" for none.
      confidence: of the Clopper-Pearson intervals.

    Returns:
      A dict ready for JSON:
        reference: {name, right, count, accuracy, low, high}
        shifts: {set: {right, count, accuracy, low, high, fit: {slope, intercept, models} or None,
          predicted, effective_robustness, effective_robustness_low, effective_robustness_high, relative_robustness,
          note}}; None where there is no fit or no baseline, and `note` then says why. With several shifts there is
          also `mean of shifts`, over the models that have all of them; it has no counts and no interval.
        confidence, baseline.
      The interval of effective robustness is that of the accuracy under the shift: the fit and the accuracy on the
      reference set are taken as given. An accuracy of 0 or 1 on the reference set, where the logit has no value, enters
      the prediction as half an image more or less.

    Raises:
      ValueError: unknown reference or baseline, no shifts, counts that make no share, no images, a reference model's
        accuracy outside (0, 1).
    """
    shifts = [name for name in scores if name != reference]
    _check(reference, scores, shifts, reference_models, baseline)
    shares = {name: share(*scores[name], confidence) for name in scores}
    half = 0.5 / shares[reference]["count"]
    accuracy = float(np.clip(shares[reference]["accuracy"], half, 1 - half))
    results: dict[str, Any] = {}
    groups = {name: [name] for name in shifts} | ({MEAN: shifts} if len(shifts) > 1 else {})
    for name, members in groups.items():
        mean = float(np.mean([shares[member]["accuracy"] for member in members]))
        result = shares.get(name, {"right": None, "count": None, "accuracy": mean, "low": None, "high": None})
        fitted = _beyond_fit(result, accuracy, _points(reference, members, reference_models))
        related = _beyond_baseline(mean, members, baseline, reference_models.get(baseline, {}))
        notes = filter(None, [fitted.pop("note"), related.pop("note")])
        results[name] = {**result, **fitted, **related, "note": "; ".join(notes)}
    return {
        "reference": {"name": reference, **shares[reference]},
        "shifts": results,
        "confidence": confidence,
        "baseline": baseline,
    }


def fit_logits(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Slope and intercept of the least-squares line through (reference, shifted) accuracies, after the logit of both.

    Raises:
      ValueError: fewer than two different accuracies on the reference set.
    """
    x, y = logit(np.asarray(points, np.float64).reshape(-1, 2)).T
    if (different := len(set(x.tolist()))) < 2:
        raise ValueError(
            f"a fit needs reference models of two different accuracies on the reference set, got {different}"
        )
    x_mean, y_mean = x.mean(), y.mean()
    slope = float(np.sum((x - x_mean) * (y - y_mean)) / np.sum((x - x_mean) ** 2))
    return slope, float(y_mean - slope * x_mean)


def _beyond_fit(shifted: Mapping[str, Any], accuracy: float, points: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """The entries that come from the fit, and a note; `accuracy` is that on the reference set."""
    names = ("predicted", "effective_robustness", "effective_robustness_low", "effective_robustness_high")
    try:
        slope, intercept = fit_logits(points)
    except ValueError as error:
        return {"fit": None, **dict.fromkeys(names), "note": str(error)}
    predicted = float(expit(slope * logit(accuracy) + intercept))
    beyond = [None if shifted[key] is None else shifted[key] - predicted for key in ("accuracy", "low", "high")]
    fit = {"slope": slope, "intercept": intercept, "models": len(points)}
    return {"fit": fit, **dict(zip(names, [predicted, *beyond])), "note": ""}


def _beyond_baseline(
    accuracy: float, names: Sequence[str], baseline: str, accuracies: Mapping[str, float]
) -> dict[str, Any]:
    """relative_robustness and a note of the accuracies that the baseline lacks for it."""
    if not baseline:
        return {"relative_robustness": None, "note": ""}
    if missing := [name for name in names if name not in accuracies]:
        note = f"baseline {baseline!r} has no accuracy on {', '.join(missing)}"
        return {"relative_robustness": None, "note": note}
    return {"relative_robustness": accuracy - float(np.mean([accuracies[name] for name in names])), "note": ""}


def _points(
    reference: str, names: Sequence[str], models: Mapping[str, Mapping[str, float]]
) -> list[tuple[float, float]]:
    """(reference, mean shifted) accuracies of the models that have all of them."""
    return [
        (float(model[reference]), float(np.mean([model[name] for name in names])))
        for model in models.values()
        if {reference, *names} <= set(model)
    ]


def _check(
    reference: str,
    scores: Mapping[str, tuple[int, int]],
    shifts: Sequence[str],
    models: Mapping[str, Mapping[str, float]],
    baseline: str,
) -> None:
    if reference not in scores:
        raise ValueError(f"the reference set {reference!r} has no score: there are {', '.join(map(repr, scores))}")
    if not shifts:
        raise ValueError(f"no shifts to measure: only the reference set {reference!r} has a score")
    if MEAN in scores:
        raise ValueError(f"a set is named {MEAN!r}, which is the name of the mean: rename it")
    for name, (_, count) in scores.items():
        if count == 0:
            raise ValueError(f"set {name!r} has no images: leave it out of robustness")
    check_reference_models(models, baseline)


def check_reference_models(models: Mapping[str, Mapping[str, float]], baseline: str) -> None:
    """Raises ValueError for an unknown baseline, or an accuracy outside (0, 1)."""
    if baseline and baseline not in models:
        raise ValueError(
            f"baseline {baseline!r} is not among the reference models: {', '.join(models) or 'none given'}"
        )
    for model, accuracies in models.items():
        for name, value in accuracies.items():
            if not 0 < value < 1:
                raise ValueError(
                    f"reference model {model!r} has accuracy {value} on {name!r}: expected a share strictly between 0 "
                    "and 1 (percent divided by 100), where the logit has a value"
                )
