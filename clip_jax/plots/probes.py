"""Pictures of an evaluation, each one PNG, as plots/training.py: reliability, few-shot curves, strengths."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator, PercentFormatter

from clip_jax.plots.training import BLUE, GREEN, GREY, ORANGE, plain, save_figure, wrapped


def plot_reliability(calibration: Mapping[str, Any], path: str | os.PathLike, title: str) -> None:
    """Accuracy over confidence by bins, with how many images each bin holds.

    Args:
      calibration: error, and by bins over [0, 1]: count, confidence, accuracy (None in an empty one).
      path: the PNG to write.
      title: what was classified.
    """
    count = np.array(calibration["count"])
    filled = count > 0
    edges = np.linspace(0, 1, len(count) + 1)
    centres, width = (edges[:-1] + edges[1:]) / 2, edges[1]
    figure = Figure(figsize=(4.4, 4.8), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    accuracy = np.array([0.0 if x is None else x for x in calibration["accuracy"]])
    confidence = np.array([np.nan if x is None else x for x in calibration["confidence"]], float)
    above.bar(centres[filled], accuracy[filled], width, color=BLUE, edgecolor="white", label="accuracy")
    above.plot([0, 1], [0, 1], color=GREY, linestyle="--", label="calibrated")
    above.plot(confidence[filled], accuracy[filled], "o", color=ORANGE, markersize=4, label="mean confidence of a bin")
    above.set(ylim=(0, 1), xlim=(0, 1), ylabel="accuracy")
    above.legend(frameon=False, fontsize=8, loc="upper left")
    above.set_title(
        f"{wrapped(title, 40, 1)}\nexpected calibration error {calibration['error']:.1%}",
        loc="left",
        fontsize=10,
        parse_math=False,
    )
    below.bar(centres, count / count.sum(), width, color=GREY, edgecolor="white")
    below.set(ylabel="images", xlabel="confidence")
    for ax in (above, below):
        ax.yaxis.set_major_formatter(PercentFormatter(1))
        ax.xaxis.set_major_formatter(PercentFormatter(1))
        ax.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)


def plot_few_shot(
    shots: Sequence[Mapping[str, Any]],
    zero_shot: float | None,
    probe: tuple[float, float] | None,
    path: str | os.PathLike,
    title: str,
) -> None:
    """Score over labels a class, with intervals, beside zero-shot and the probe on all labels.

    Args:
      shots: rows of labels_per_class, score, low, high, scores.
      zero_shot: its score.
      probe: (labels a class on average, score) of the probe on all of the training data.
      path: the PNG to write.
      title: what was classified.
    """
    x = np.array([row["labels_per_class"] for row in shots], float)
    figure = Figure(figsize=(5.2, 3.8), layout="constrained")
    ax = figure.subplots()
    ax.fill_between(
        x, [row["low"] for row in shots], [row["high"] for row in shots], color=BLUE, alpha=0.2, linewidth=0
    )
    for row in shots:
        ax.plot([row["labels_per_class"]] * len(row["scores"]), row["scores"], ".", color=BLUE, alpha=0.4, markersize=4)
    ax.plot(x, [row["score"] for row in shots], color=BLUE, marker="o", markersize=5, label="few-shot probe, 95 %")
    ticks, names = list(x), [f"{value:g}" for value in x]
    if probe:
        ax.plot(*probe, "D", color=GREEN, label="probe on all labels")
        ticks, names = [*ticks, probe[0]], [*names, "all"]
    if zero_shot is not None:
        ax.axhline(zero_shot, color=ORANGE, linestyle="--", label="zero-shot")
    ax.set_xscale("log", base=2)
    ax.xaxis.set(major_locator=FixedLocator(ticks), minor_locator=NullLocator())
    ax.xaxis.set_major_formatter(FixedFormatter(names))
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.set(xlabel="labels a class", ylabel="score")
    ax.set_title(wrapped(title, 50, 1), loc="left", parse_math=False)
    plain(ax)
    ax.legend(frameon=False, fontsize=8, loc="best")
    save_figure(figure, path)


def plot_sweep(sweep: Sequence[Mapping[str, Any]], chosen: float, path: str | os.PathLike, title: str) -> None:
    """Validation score over the strength of the regularisation.

    Args:
      sweep: rows of strength and validation_score.
      chosen: the strength that was taken.
      path: the PNG to write.
      title: what was classified.
    """
    figure = Figure(figsize=(5.2, 3.8), layout="constrained")
    ax = figure.subplots()
    ax.plot(
        [r["strength"] for r in sweep], [r["validation_score"] for r in sweep], color=BLUE, marker="o", markersize=4
    )
    ax.axvline(chosen, color=ORANGE, linestyle="--", label=f"chosen, {chosen:.3g}")
    ax.set_xscale("log")
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.set(xlabel="L2 strength", ylabel="validation score")
    ax.set_title(wrapped(title, 50, 1), loc="left", parse_math=False)
    plain(ax)
    ax.legend(frameon=False, fontsize=8)
    save_figure(figure, path)
