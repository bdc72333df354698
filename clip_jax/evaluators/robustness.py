"""Accuracy under distribution shift, and how much of it the accuracy without shift does not explain.

Effective robustness is the accuracy under a shift less what reference models of the same accuracy on the reference set
have there: a line, fitted by least squares to reference models' accuracies after the logit transform. Relative
robustness is the accuracy under the shift less that of a named baseline. Only both together say that a model is more
robust: a worse model can gain the first alone.

Reference: Taori et al. 2020 (arXiv:2007.00644), sec. 3; Radford et al. 2021, sec. 3.3 and fig. 13.
"""

from collections.abc import Mapping
from typing import Any

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
      reference set are taken as given.

    Raises:
      ValueError: unknown reference or baseline, no shifts, counts that make no share, a reference accuracy outside (0, 1).
    """
    raise NotImplementedError
