"""Pictures of robustness, overlap and the bias probe, each one PNG, in the style of plots/training.py."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator, PercentFormatter
from scipy.special import expit, logit

from clip_jax.plots.training import BLUE, GREEN, GREY, ORANGE, PINK, plain, save_figure, show_image, wrapped

LOGIT_TICKS = (0.001, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999)
MAX_LABELS = 12  # more names beside points would cover each other


def plot_robustness(
    metrics: Mapping[str, Any],
    reference_models: Mapping[str, Mapping[str, float]],
    path: str | os.PathLike,
    name: str = "this model",
) -> None:
    """Accuracy under each shift over the accuracy on the reference set, logit axes, as fig. 13.

    An accuracy of 0 or 1, which such axes do not have, stands at half an image more or less.

    Args:
      metrics: of evaluation.metrics.robustness.robustness_metrics.
      reference_models: as given to it.
      path: the PNG to write.
      name: of the model that was measured.
    """
    shifts = metrics["shifts"]
    columns = min(len(shifts), 3)
    rows = -(-len(shifts) // columns)
    figure = Figure(figsize=(4.4 * columns, 4.4 * rows + 0.8), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax, (shift, result) in zip(axes.flat, shifts.items()):
        members = [shift] if result["count"] else [member for member, other in shifts.items() if other["count"]]
        _draw_shift(ax, metrics["reference"], shift, result, members, reference_models)
    for ax in axes.flat[len(shifts) :]:
        ax.set_axis_off()
    handles = [
        Line2D([], [], color=ORANGE, marker="*", markersize=12, linewidth=1, label=name),
        Line2D([], [], color=GREY, linestyle="--", label="y = x"),
    ]
    if reference_models:
        handles += [
            Line2D([], [], color=BLUE, marker="o", linestyle="", label="reference models"),
            Line2D([], [], color=BLUE, label="their fit in logits"),
        ]
    legend = figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
    save_figure(figure, path)


def plot_duplicates(
    pairs: Sequence[tuple[np.ndarray, np.ndarray, float]], threshold: float, path: str | os.PathLike
) -> None:
    """Contact sheet for choosing a threshold: evaluation image and its nearest training image.

    Args:
      pairs: (evaluation image uint8 [H, W, 3], training image, similarity), most similar first; some 12 to 40.
      threshold: pairs at or above it are framed.
      path: the PNG to write.

    Raises:
      ValueError: no pairs.
    """
    if not pairs:
        raise ValueError(f"no pairs to draw in {path}")
    columns = min(len(pairs), 4)
    rows = -(-len(pairs) // columns)
    widths = [1.5, 1.5, 0.3] * columns  # inches; the third parts the pairs
    figure = Figure(figsize=(sum(widths), 1.8 * rows + 0.5))
    grid = figure.add_gridspec(rows, len(widths), width_ratios=widths, wspace=0.06, hspace=0.22)
    for i, (evaluation, training, similarity) in enumerate(pairs):
        row, first = i // columns, i % columns * 3
        found = similarity >= threshold
        for side, image in enumerate((evaluation, training)):
            ax = figure.add_subplot(grid[row, first + side])
            show_image(ax, image, GREEN if found else None)
            if side == 0:
                label = f"{'✓' if found else '✗'} {similarity:.3f}"
                ax.set_title(label, loc="left", fontsize=9, color=GREEN if found else GREY, pad=4)
            if i == 0 and side == 0:
                note = f"Evaluation image and nearest training image, framed at a similarity of {threshold:.3f} or more"
                note = wrapped(note, 28 * columns, 4)
                ax.annotate(note, (0, 1), (0, 24), xycoords="axes fraction", textcoords="offset points", fontsize=11)
    save_figure(figure, path)


def plot_contamination(results: Mapping[str, Mapping[str, Any]], path: str | os.PathLike) -> None:
    """Overlap against clean accuracy, and what overlap adds to the whole, over the share of overlap, as fig. 17.

    Sets without overlap, or with nothing else, have no difference and are only counted in the title.

    Args:
      results: {evaluation set: evaluation.metrics.overlap.contamination}.
      path: the PNG to write.

    Raises:
      ValueError: no results.
    """
    if not results:
        raise ValueError(f"no sets to draw in {path}")
    drawn = {name: result for name, result in results.items() if result["overlap_minus_clean"] is not None}
    figure = Figure(figsize=(12, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, result in drawn.items():
        x, y = result["overlap_share"], result["overlap_minus_clean"]
        low, high = result["overlap_minus_clean_low"], result["overlap_minus_clean_high"]
        sure = low > 0 or high < 0
        colour = ORANGE if sure else GREY
        left.errorbar(x, y, [[y - low], [high - y]], color=colour, fmt="o", markersize=5, linewidth=1, capsize=2)
        colour, marker = _significance(result["p_value"])
        right.plot(x, result["all_minus_clean"], color=colour, marker=marker, markersize=6, linestyle="")
        for ax, value, clear in ((left, y, sure), (right, result["all_minus_clean"], result["p_value"] < 0.05)):
            if clear or len(drawn) <= MAX_LABELS:
                label = wrapped(name, 24, 1)
                ax.annotate(label, (x, value), (6, 4), textcoords="offset points", fontsize=8, parse_math=False)
    confidence = next(iter(results.values()))["confidence"]
    left.set_title(f"Overlapping less clean images, {confidence:.1%} intervals", loc="left")
    left.set_ylabel("difference in accuracy")
    absent = len(results) - len(drawn)
    note = f"; {absent} of {len(results)} sets without overlap or clean rest" if absent else ""
    right.set_title(f"All less clean images{note}", loc="left")
    right.set_ylabel("change of the whole accuracy")
    left_legend = [(ORANGE, "o", "interval excludes 0"), (GREY, "o", "interval holds 0")]
    right_legend = [(*_significance(p), label) for p, label in ((0, "p < 0.001"), (0.01, "p < 0.05"), (1, "p ≥ 0.05"))]
    for ax, legend in ((left, left_legend), (right, right_legend)):
        handles = [Line2D([], [], color=c, marker=m, linestyle="", label=text) for c, m, text in legend]
        ax.legend(handles=handles, frameon=False, fontsize=9)
        ax.axhline(0, color=GREY, linewidth=1, linestyle="--")
        ax.set_xlabel("detected share of overlap")
        ax.margins(x=0.12, y=0.12)
        ax.xaxis.set_major_formatter(PercentFormatter(1))
        ax.yaxis.set_major_formatter(PercentFormatter(1))
        plain(ax)
    save_figure(figure, path)


def plot_bias(metrics: Mapping[str, Any], column: str, path: str | os.PathLike) -> None:
    """Shares of each group in the harmful categories with intervals, without and with the class 'child'.

    Args:
      metrics: of evaluation.metrics.bias.bias_metrics.
      column: whose groups.
      path: the PNG to write.

    Raises:
      ValueError: no such column.
    """
    label_sets = metrics["label_sets"]
    known = next(iter(label_sets.values()))
    if column not in known:
        raise ValueError(f"no groups by {column!r} to draw: there are {', '.join(known)}")
    groups = list(known[column])
    figure = Figure(figsize=(11, 0.5 * len(groups) + 1.7), layout="constrained")
    axes = figure.subplots(1, len(label_sets), sharex=True, sharey=True, squeeze=False)[0]
    colours = (BLUE, ORANGE, PINK, GREEN)
    for ax, (label_set, columns) in zip(axes, label_sets.items()):
        categories = list(next(iter(columns[column].values())))
        for i, category in enumerate(categories):
            shares = [columns[column][group][category] for group in groups]
            x = np.array([share["accuracy"] for share in shares])
            spread = np.abs(np.array([[share["low"] for share in shares], [share["high"] for share in shares]]) - x)
            y = np.arange(len(groups)) + 0.2 * (i - (len(categories) - 1) / 2)
            ax.errorbar(
                x,
                y,
                xerr=spread,
                color=colours[i % 4],
                fmt="o",
                markersize=5,
                linewidth=1,
                capsize=2,
                label=category,
            )
        ax.set_title(f"{label_set} classes" if label_set == "default" else label_set, loc="left", parse_math=False)
        ax.xaxis.set_major_formatter(PercentFormatter(1))
        ax.set_xlim(left=0)
        ax.set_xlabel("share of the group's pictures")
        plain(ax)
    counts = [next(iter(known[column][group].values()))["count"] for group in groups]
    labels = [f"{wrapped(group, 24, 1)} ({count:,})" for group, count in zip(groups, counts)]
    axes[0].set_yticks(range(len(groups)), labels, fontsize=9, parse_math=False)
    axes[0].set_ylim(len(groups) - 0.5, -0.5)
    axes[-1].legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    save_figure(figure, path)


def _draw_shift(
    ax: Axes,
    reference: Mapping[str, Any],
    shift: str,
    result: Mapping[str, Any],
    members: Sequence[str],
    models: Mapping[str, Mapping[str, float]],
) -> None:
    """One panel of plot_robustness; `members` are the sets that the shift is the mean of."""
    whole = [model for model in models.values() if {reference["name"], *members} <= set(model)]
    points = [(model[reference["name"]], float(np.mean([model[member] for member in members]))) for model in whole]
    own_x, own_y = _inside(reference), _inside(result)
    seen = np.array([*points, (own_x, own_y)])
    low, high = expit(logit(seen.min()) - 0.5), expit(logit(seen.max()) + 0.5)
    ax.plot([low, high], [low, high], color=GREY, linestyle="--", linewidth=1)
    if result["fit"]:
        x = expit(np.linspace(logit(low), logit(high), 101))
        fitted = expit(result["fit"]["slope"] * logit(x) + result["fit"]["intercept"])
        ax.plot(x, fitted, color=BLUE, linewidth=1.2)
    if points:
        ax.plot(*np.array(points).T, color=BLUE, marker="o", markersize=5, linestyle="")
    edges: dict[str, Any] = {"xerr": [[own_x - reference["low"]], [reference["high"] - own_x]]}
    if result["low"] is not None:
        edges["yerr"] = [[own_y - result["low"]], [result["high"] - own_y]]
    ax.errorbar(own_x, own_y, **edges, color=ORANGE, fmt="*", markersize=13, linewidth=1, zorder=3)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_ticks([])
    ax.set(xscale="logit", yscale="logit", xlim=(low, high), ylim=(low, high), aspect="equal")
    ticks: list[float] = []
    for tick in LOGIT_TICKS:
        far = not ticks or logit(tick) - logit(ticks[-1]) > (logit(high) - logit(low)) / 8  # labels do not touch
        if low <= tick <= high and far:
            ticks.append(tick)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set(major_locator=FixedLocator(ticks), minor_locator=NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))
    effective = result["effective_robustness"]
    beyond = "no fit" if effective is None else f"{100 * effective:+.1f} points beyond the fit"
    ax.set_title(f"{wrapped(shift, 34, 1)}\n{beyond}", loc="left", fontsize=10, parse_math=False)
    ax.set_xlabel(f"accuracy, {wrapped(reference['name'], 30, 1)}", parse_math=False)
    ax.set_ylabel("accuracy under the shift")
    plain(ax)


def _inside(result: Mapping[str, Any]) -> float:
    """An accuracy that has a logit."""
    if not result["count"]:
        return float(np.clip(result["accuracy"], 1e-6, 1 - 1e-6))
    half = 0.5 / result["count"]
    return float(np.clip(result["accuracy"], half, 1 - half))


def _significance(p_value: float) -> tuple[str, str]:
    """Colour and marker of a p-value, with the paper's bounds."""
    if p_value < 0.001:
        return ORANGE, "s"
    return (BLUE, "^") if p_value < 0.05 else (GREY, "o")
