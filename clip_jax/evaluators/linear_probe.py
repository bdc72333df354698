"""Linear probe: L2-regularised logistic regression on frozen features, its strength chosen on a validation split.

Reference: Radford et al. 2021, sec. 3.2 and appendix A.3.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

# 96 steps of an eighth of a decade from 1e-6 to 1e6.
STRENGTHS = tuple(10.0 ** (step / 8 - 6) for step in range(97))

# labels as in `Split`, logits float32 [N, C] -> a score, higher is better.
Metric = Callable[[np.ndarray, np.ndarray], float]


class Split(NamedTuple):
    """Features, float [N, D], and their labels: int [N] in 0..C-1, or of several classes an image, bool [N, C]."""

    features: np.ndarray
    labels: np.ndarray


class LogisticFit(NamedTuple):
    """S fits of S strengths: weights float32 [S, D, C], biases float32 [S, C], and for each the objective where it
    stopped, float [S], iterations, int [S], and whether the gradient came below the tolerance, bool [S]."""

    weights: np.ndarray
    biases: np.ndarray
    objective: np.ndarray
    iterations: np.ndarray
    converged: np.ndarray

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Float32 [S, N, C] of features [N, D]."""
        raise NotImplementedError


def logistic_objective(
    weights: jax.Array, bias: jax.Array, features: jax.Array, labels: jax.Array, strength: float
) -> jax.Array:
    """What is minimised, the definition: sum of cross-entropies + strength / 2 * |weights|^2, the bias free.

    That of scikit-learn's LogisticRegression with C = 1 / strength. With labels bool [N, C] the sum is over the binary
    cross-entropies of every class: a LogisticRegression a class.
    """
    raise NotImplementedError


def fit_logistic(
    split: Split,
    num_classes: int,
    strengths: Sequence[float],
    *,
    mesh: Mesh | None = None,
    max_iterations: int = 1000,
) -> LogisticFit:
    """Minimises `logistic_objective` for every strength, by L-BFGS on the device.

    Args:
      split: N images, of at least two classes.
      num_classes: C. A class without images is an error.
      strengths: S numbers above 0, in any order.
      mesh: rows are split over its devices; None is one device.
      max_iterations: of one strength.

    Raises:
      ValueError: no images, one class only, a class without images, a label outside 0..C-1, features that are not
        finite, a strength that is not above 0.
    """
    raise NotImplementedError


def linear_probe(
    train: Split,
    validation: Split | None,
    test: Split,
    num_classes: int,
    *,
    metric: Metric,
    full_sweep: bool = False,
    mesh: Mesh | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """The paper's probe: the strength that is best on the validation split, refitted on train and validation.

    The search is the paper's: seven strengths from 1e-6 to 1e6, two decades apart; then the neighbours of the best one
    half as far, four times, down to `STRENGTHS`. Among equals the strongest is taken.

    Args:
      train, validation, test: splits of the same width. Without validation a fifth of train, of each class alike,
        stands in for it, drawn by seed.
      num_classes: C; every class needs an image in train.
      metric: called as metric(labels, logits) with labels as in the split, int [N] or bool [N, C], and logits
        float32 [N, C] (of several labels an image: of each class alone); a float, higher is better.
      full_sweep: all of `STRENGTHS` instead of the search.
      mesh: as for `fit_logistic`.
      seed: of the draw that makes a validation split.

    Returns:
      A dict ready for JSON: score and count, of test; strength; validation_score; objective, iterations and converged
      of the refit; num_train and num_validation; sweep, a row a strength tried, ascending, of strength,
      validation_score, objective, iterations, converged.

    Raises:
      ValueError: as `fit_logistic`; widths or kinds of labels that differ between splits.
    """
    raise NotImplementedError
