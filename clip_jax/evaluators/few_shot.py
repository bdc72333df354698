"""Few-shot linear probes: score over the number of labels a class, and how many match zero-shot.

Reference: Radford et al. 2021, sec. 3.1.5, figures 6 and 7.
"""

from collections.abc import Sequence
from typing import Any

from clip_jax.evaluators.linear_probe import Metric, Split

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
    raise NotImplementedError


def labels_to_match(target: float, labels_per_class: Sequence[float], scores: Sequence[float]) -> dict[str, Any]:
    """How many labels a class a probe needs to reach a score, as zero-shot's: the paper's fig. 7.

    Interpolated linearly over the logarithm of the labels a class, where the curve first reaches the target.

    Args:
      target: the score to reach.
      labels_per_class: above 0, ascending; the paper's are 1, 2, 4, 8, 16 and all.
      scores: of each.

    Returns:
      {"labels_per_class": a number, "relation": "equal"}; {first labels_per_class, "at most"} where the first score
      reaches it already; {the last, "more than"} where none does: beyond the range nothing is made up.
    """
    raise NotImplementedError
