"""Linear probe: logistic regression on frozen features, its strength chosen on a validation split.

Reference: Radford et al. 2021, sec. 3.2 and appendix A.3.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float32, Shaped

from clip_jax.evaluation.metrics.logistic_regression import (
    Split,
    check_split,
    computing,
    fit_problem,
    logits_of,
    make_problem,
    one_device,
)

# 96 steps of an eighth of a decade from 1e-6 to 1e6.
STRENGTHS = tuple(10.0 ** (step / 8 - 6) for step in range(97))
FIRST_STEP = 16  # of the search over STRENGTHS: two decades, halved down to one

# labels as in `Split`, logits float32 [N, C] -> a score, higher is better.
Metric = Callable[[Shaped[np.ndarray, "N *C"], Float32[np.ndarray, "N C"]], float]


def linear_probe(
    train: Split,
    validation: Split | None,
    test: Split,
    num_classes: int,
    *,
    metric: Metric,
    full_sweep: bool = False,
    num_parallel: int = 1,
    mesh: Mesh | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """The paper's probe: the strength that is best on the validation split, refitted on train and validation.

    The search is the paper's: seven strengths from 1e-6 to 1e6, two decades apart; then the neighbours of the best one
    half as far, four times, down to `STRENGTHS`. Among equals the strongest is taken.

    Args:
      train, validation, test: splits of the same width. Without validation a fifth of train, of each class alike,
        replaces it, drawn by seed.
      num_classes: C; every class needs an image in train.
      metric: called as metric(labels, logits) with labels as in the split, int [N] or bool [N, C], and logits
        float32 [N, C] (of several labels an image: of each class alone); a float, higher is better.
      full_sweep: all of `STRENGTHS` instead of the search.
      num_parallel, mesh: as for `fit_logistic`.
      seed: of that draw.

    Returns:
      A dict ready for JSON: score and count, of test; strength; validation_score; objective, iterations and converged
      of the refit; num_train and num_validation; sweep, a row a strength tried, ascending, of strength,
      validation_score, objective, iterations, converged.

    Raises:
      ValueError: as `fit_logistic`; widths or kinds of labels that differ between splits.
    """
    check_splits({"train": train, "validation": validation, "test": test}, num_classes)
    if validation is None:
        train, validation = split_off_validation(train, seed)
        check_split(train, "train without its validation split", num_classes, trained_on=True)
    exclusive, held_out = train.labels.ndim == 1, validation
    mesh = mesh or one_device()
    sweep: dict[int, dict[str, Any]] = {}
    with computing(mesh):
        problem = make_problem(train, num_classes, mesh)

        def score(indices: Sequence[int]) -> list[float]:
            fit = fit_problem(problem, [STRENGTHS[index] for index in indices], exclusive, num_parallel)
            scores = [
                metric(held_out.labels, logits_of(weights, bias, held_out.features))
                for weights, bias in zip(fit.weights, fit.biases)
            ]
            for i, index in enumerate(indices):
                sweep[index] = {
                    "strength": STRENGTHS[index],
                    "validation_score": float(scores[i]),
                    "objective": float(fit.objective[i]),
                    "iterations": int(fit.iterations[i]),
                    "converged": bool(fit.converged[i]),
                }
            return scores

        best = search_strength(score, full_sweep)
        both = Split(*(np.concatenate(pair) for pair in zip(train, validation)))
        refit = fit_problem(make_problem(both, num_classes, mesh), [STRENGTHS[best]], exclusive)
    return {
        "score": float(metric(test.labels, logits_of(refit.weights[0], refit.biases[0], test.features))),
        "count": len(test.labels),
        "strength": STRENGTHS[best],
        "validation_score": sweep[best]["validation_score"],
        "objective": float(refit.objective[0]),
        "iterations": int(refit.iterations[0]),
        "converged": bool(refit.converged[0]),
        "num_train": len(train.labels),
        "num_validation": len(validation.labels),
        "sweep": [sweep[index] for index in sorted(sweep)],
    }


def search_strength(score: Callable[[Sequence[int]], Sequence[float]], full_sweep: bool = False) -> int:
    """The index in `STRENGTHS` of the best score, the strongest among equals, by the paper's search or of all.

    score: ascending indices to their scores; called once a round, never twice with an index.
    """
    every = range(len(STRENGTHS))
    step = 1 if full_sweep else FIRST_STEP
    scores: dict[int, float] = {}
    indices = list(every[::step])
    while True:
        scores |= zip(indices, score(indices)) if indices else {}
        best = max(scores, key=lambda index: (scores[index], index))
        if step == 1:
            return best
        step //= 2
        indices = [index for index in (best - step, best + step) if index in every and index not in scores]


def split_off_validation(train: Split, seed: int) -> tuple[Split, Split]:
    """Train less a fifth of each class (of several labels an image: of all rows), rounded down but at least one image
    of a class that has two, and that fifth.

    Raises:
      ValueError: no class has two images.
    """
    order = np.random.default_rng(seed).permutation(len(train.labels))
    groups = np.zeros(len(order), int) if train.labels.ndim == 2 else train.labels
    chosen = [
        rows[: max(len(rows) // 5, 1)] for group in np.unique(groups) if len(rows := order[groups[order] == group]) > 1
    ]
    if not chosen:
        raise ValueError("no class of train has two images to split a validation split off: give one")
    held_out = np.isin(np.arange(len(order)), np.concatenate(chosen))
    return Split(train.features[~held_out], train.labels[~held_out]), Split(
        train.features[held_out], train.labels[held_out]
    )


def check_splits(splits: dict[str, Split | None], num_classes: int) -> None:
    """Raises ValueError as `linear_probe` says; of the splits by name the first is trained on, None is passed over."""
    (first, trained), *_ = splits.items()
    assert trained is not None
    for name, split in splits.items():
        if split is None:
            continue
        check_split(split, name, num_classes, trained_on=name == first)
        if (own := split.features.shape[1]) != (width := trained.features.shape[1]):
            raise ValueError(
                f"features of {name} are {own} wide and those of {first} {width}: encode both with the same model"
            )
        if split.labels.ndim != trained.labels.ndim:
            raise ValueError(
                f"labels of {name} have shape {split.labels.shape} and those of {first} {trained.labels.shape}: "
                "one label an image, int [N], or several, bool [N, C], in all splits"
            )
