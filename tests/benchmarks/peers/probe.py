"""The linear probe's sweep of 97 strengths beside scikit-learn's LogisticRegression, interleaved in one process:
`python tests/benchmarks/peers/probe.py` (needs scikit-learn, extra `test`).

Features are drawn: classes whose means lie close in a space of a falling spectrum, off the origin, as an encoder's
are. scikit-learn runs as the paper's code calls it (lbfgs, max_iter=1000, its default tolerance, float32), and in a
second form helped by what ours does: centred features, each strength from where the one before it ended. Its default
tolerance stops it short of the minimum at weak strengths, so that loss and accuracy are compared with a third, untimed
one that is run to the end (float64, tol=1e-9) at one strength a decade.
"""

import statistics
import sys
import time
import warnings
from typing import NamedTuple

import numpy as np
from absl import flags

from clip_jax.cli.common_flags import run_command
from clip_jax.evaluation.metrics.linear_probe import STRENGTHS
from clip_jax.evaluation.metrics.logistic_regression import Split, fit_logistic, logits_of
from clip_jax.tables import format_table

NUM_IMAGES = flags.DEFINE_integer("num_images", 3500, "Rows of features to fit; as many more are scored.")
WIDTH = flags.DEFINE_integer("width", 512, "Channels of the features.")
NUM_CLASSES = flags.DEFINE_integer("num_classes", 10, "Number of classes.")
NUM_RUNS = flags.DEFINE_integer("num_runs", 2, "Runs of each form, interleaved.")


class Sweep(NamedTuple):
    """Of every strength in turn: weights [S, D, C], biases [S, C]."""

    weights: np.ndarray
    biases: np.ndarray


def draw_features(num_images: int, width: int, num_classes: int, seed: int) -> Split:
    """The classes' means are the same for every seed."""
    world, rng = np.random.default_rng(0), np.random.default_rng(seed + 1)
    spectrum = np.arange(1, width + 1) ** -0.5
    rotation = np.linalg.qr(world.normal(size=(width, width)))[0]
    means = 0.2 * world.normal(size=(num_classes, width))
    labels = rng.integers(num_classes, size=num_images)
    features = (rng.normal(size=(num_images, width)) + means[labels]) * spectrum @ rotation + 0.3
    return Split(features.astype(np.float32), labels)


def sweep_ours(train: Split) -> Sweep:
    """Strongest first as the others, given back ascending."""
    fit = fit_logistic(train, NUM_CLASSES.value, STRENGTHS)
    return Sweep(fit.weights, fit.biases)


def sweep_theirs(train: Split) -> Sweep:
    """As the paper's code calls it."""
    return _sweep_theirs(train, warm_start=False)


def sweep_theirs_helped(train: Split) -> Sweep:
    """Centred features and warm starts from strong to weak."""
    mean = train.features.mean(0)
    weights, biases = _sweep_theirs(Split(train.features - mean, train.labels), warm_start=True)
    return Sweep(weights, biases - mean @ weights)


def _sweep_theirs(train: Split, warm_start: bool) -> Sweep:
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(solver="lbfgs", max_iter=1000, warm_start=warm_start)
    found = []
    for strength in STRENGTHS[::-1]:
        model.set_params(C=1 / strength).fit(train.features, train.labels)
        found.append((model.coef_.T.copy(), model.intercept_.copy()))
    return Sweep(*(np.stack(parts[::-1]) for parts in zip(*found)))


def fit_to_the_end(train: Split, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's minimum in float64; on centred features, or it would not arrive."""
    from sklearn.linear_model import LogisticRegression

    features = train.features.astype(np.float64)
    mean = features.mean(0)
    model = LogisticRegression(C=1 / strength, max_iter=100_000, tol=1e-9).fit(features - mean, train.labels)
    return model.coef_.T, model.intercept_ - mean @ model.coef_.T


def objective(weights: np.ndarray, bias: np.ndarray, split: Split, strength: float) -> float:
    """`logistic_objective` of more than two classes in float64."""
    logits = split.features.astype(np.float64) @ weights.astype(np.float64) + bias
    logits -= logits[np.arange(len(logits)), split.labels][:, None]
    return float(np.log(np.exp(logits).sum(1)).sum() + strength / 2 * (weights.astype(np.float64) ** 2).sum())


def accuracy(weights: np.ndarray, bias: np.ndarray, split: Split) -> float:
    """Share of images whose best logit is their class's."""
    return float(np.mean(logits_of(weights, bias, split.features).argmax(1) == split.labels))


def main() -> int:
    """Prints the tables; see the module's docstring."""
    warnings.filterwarnings("ignore", module="sklearn")  # of fits that did not converge
    train, test = (draw_features(NUM_IMAGES.value, WIDTH.value, NUM_CLASSES.value, seed) for seed in (0, 1))
    forms = {
        "ours": sweep_ours,
        "scikit-learn": sweep_theirs,
        "scikit-learn, centred, warm starts": sweep_theirs_helped,
    }
    start = time.perf_counter()
    sweep_ours(train)
    compiling = time.perf_counter() - start
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    sweeps: dict[str, Sweep] = {}
    for _ in range(NUM_RUNS.value):
        for name, form in forms.items():
            start = time.perf_counter()
            sweeps[name] = form(train)
            seconds[name].append(time.perf_counter() - start)
    rows = []
    for name, sweep in sweeps.items():
        ratios = [theirs / ours for theirs, ours in zip(seconds[name], seconds["ours"])]
        best = max(accuracy(w, b, test) for w, b in zip(*sweep))
        rows.append([name, f"{min(seconds[name]):.2f}", f"{statistics.median(ratios):.1f}", f"{100 * best:.2f}"])
    header = [f"{len(STRENGTHS)} strengths", "seconds, fastest", "of ours, median of pairs", "best accuracy, %"]
    print(format_table(header, rows))
    print(f"ours with compilation, the first time: {compiling:.2f} s")

    rows = []
    for i in range(0, len(STRENGTHS), 8):
        reference = fit_to_the_end(train, STRENGTHS[i])
        least, right = objective(*reference, train, STRENGTHS[i]), accuracy(*reference, test)
        cells = [f"{STRENGTHS[i]:.0e}"]
        for name in ("ours", "scikit-learn"):
            weights, bias = sweeps[name].weights[i], sweeps[name].biases[i]
            cells.append(f"{objective(weights, bias, train, STRENGTHS[i]) / least - 1:+.1e}")
            cells.append(f"{100 * (accuracy(weights, bias, test) - right):+.2f}")
        rows.append(cells)
    print("against scikit-learn run to the end: objective, relative, and accuracy on unseen images, points")
    print(format_table(["strength", "ours", "accuracy", "scikit-learn", "accuracy"], rows))
    return 0


if __name__ == "__main__":
    run_command(main, sys.argv)
