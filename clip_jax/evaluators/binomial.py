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
    raise NotImplementedError


def p_greater(right: int, count: int, null: float) -> float:
    """One-tailed p-value: how likely at least `right` of `count` would be if the true share were `null`."""
    raise NotImplementedError
