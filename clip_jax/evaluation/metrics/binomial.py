"""Exact intervals and tests of shares: so many right of so many independent trials.

Reference: Clopper and Pearson 1934; Radford et al. 2021, sec. 5.
"""

from typing import Any

from scipy.stats import binomtest


def share(right: int, count: int, confidence: float = 0.95) -> dict[str, Any]:
    """A share with its Clopper-Pearson interval, ready for JSON.

    The interval covers the true share at least as often as `confidence` says, for any count.

    Args:
      right: successes, in 0..count.
      count: trials; 0 gives None for the share and the interval 0..1.
      confidence: between 0 and 1, both excluded.

    Returns:
      right, count, accuracy (right / count, in [0, 1]), low, high.

    Raises:
      ValueError: numbers outside these ranges.
    """
    if not 0 <= right <= count:
        raise ValueError(f"{right} right of {count} is no share: give counts with 0 <= right <= count")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}, expected a number between 0 and 1, such as 0.95")
    if count == 0:
        return {"right": 0, "count": 0, "accuracy": None, "low": 0.0, "high": 1.0}
    interval = binomtest(int(right), int(count)).proportion_ci(confidence, method="exact")
    low, high = float(interval.low), float(interval.high)
    return {"right": int(right), "count": int(count), "accuracy": int(right) / int(count), "low": low, "high": high}


def p_greater(right: int, count: int, null: float) -> float:
    """One-tailed p-value: how likely at least `right` of `count` would be if the true share were `null`."""
    return float(binomtest(int(right), int(count), null, alternative="greater").pvalue)
