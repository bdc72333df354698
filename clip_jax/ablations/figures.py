"""figure.png of an ablation, in the form of the paper's, with the paper's points beside ours where published."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter

from clip_jax.ablations.findings import number
from clip_jax.ablations.observations import by_seed, distinct, select
from clip_jax.ablations.spec import Ablation, FigureSpec, Paper, Where
from clip_jax.ablations.statistics import less, log_fit, summarize
from clip_jax.plots.training import BLUE, GOLD, GREEN, GREY, ORANGE, PINK, SKY, plain, save_figure, wrapped

COLOURS = [BLUE, ORANGE, GREEN, PINK, SKY, GOLD, "black"]
MARKERS = "osD^vP*"
OURS, THEIRS = 6.2, 5.0  # inches, of a panel
BETWEEN = 0.8  # of a position on an axis of names, what several series share
Series = list[tuple[str, Where]]


def draw(ablation: Ablation, observations: pd.DataFrame, path: str | os.PathLike) -> None:
    """Writes the PNG: means over seeds with two standard errors either way, each seed a faint point.

    Raises ValueError where there is nothing to draw.
    """
    paper = ablation.paper
    panels = [(spec, series_of(spec, observations)) for spec in (ablation.figure, ablation.second) if spec]
    if all(select(observations, where).empty for _, series in panels for _, where in series):
        raise ValueError(f"{ablation.name} has no observations to draw")
    widths = [*(OURS for _ in panels), *([THEIRS] if paper.series else [])]
    bars = max(len(series) if spec.kind == "bars" else 0 for spec, series in panels)
    rows = len(distinct(observations, "set"))
    height = max(4.4, (0.1 + 0.14 * bars) * rows + 1.6 if bars else 0)  # inches
    figure = Figure(figsize=(sum(widths), height), layout="constrained")
    axes = figure.subplots(1, len(widths), width_ratios=widths, squeeze=False)[0]
    for ax, (spec, series) in zip(axes, panels):
        _KINDS[spec.kind](ax, spec, observations, series)
        _finish(ax, spec.x_label, spec.y_label, wrapped(ablation.about.question, 62, 3) if ax is axes[0] else "")
    if paper.series:
        _draw_paper(axes[-1], ablation.figure, paper)
        _finish(axes[-1], paper.x_label, paper.y_label, wrapped(f"The paper: {paper.source}", 48, 3))
    save_figure(figure, path)


def series_of(spec: FigureSpec, observations: pd.DataFrame) -> Series:
    """Labels with what they select; "{key}" has become one for each value of the key."""
    series: Series = []
    for label, where in spec.series:
        if label.startswith("{"):
            key = label.strip("{}")
            series += [(str(value), {**where, key: value}) for value in distinct(select(observations, where), key)]
        else:
            series.append((label, where))
    return series


def _shown(spec: FigureSpec, values: pd.Series) -> pd.Series:
    return 1 - values if spec.error else values


def _mean_and_error(values: pd.Series) -> tuple[float, float]:
    """The mean, NaN of no values, and two standard errors."""
    found = summarize(values)
    return np.nan if found.mean is None else found.mean, found.error


def _draw_seeds(ax: Axes, spec: FigureSpec, x: float, of_seed: pd.Series, colour: str, marker: str) -> float:
    """Seeds, mean and error at x; returns the height of the mean."""
    values = _shown(spec, of_seed)
    mean, error = _mean_and_error(values)
    ax.plot([x] * len(values), list(values), linestyle="", marker=".", markersize=5, color=colour, alpha=0.4)
    ax.errorbar(x, mean, yerr=error, color=colour, marker=marker, markersize=6, capsize=3, linestyle="")
    return mean


def _draw_arms(ax: Axes, spec: FigureSpec, observations: pd.DataFrame, series: Series) -> None:
    arms = distinct(observations, "arm")
    for k, (label, where) in enumerate(series):
        colour, marker = _style(k)
        shift = BETWEEN * ((k + 0.5) / len(series) - 0.5)
        for i, arm in enumerate(arms):
            of_seed = by_seed(observations, {**where, "arm": arm})
            if len(of_seed):
                mean = _draw_seeds(ax, spec, i + shift, of_seed, colour, marker)
                words = number(mean, "percent" if spec.unit == "percent" else "number", bare=True)
                offset = (10, 0) if len(series) == 1 else (5, 7)
                ax.annotate(words, (i + shift, mean), offset, textcoords="offset points", fontsize=8, color=colour)
        ax.plot([], [], color=colour, marker=marker, linestyle="", label=label)
    ax.set_xticks(range(len(arms)), [wrapped(arm, 14, 2) for arm in arms], parse_math=False)
    ax.set_xlim(-0.6, len(arms) - 0.4)
    _y_axis(ax, spec)
    _legend(ax, len(series))


def _draw_lines(ax: Axes, spec: FigureSpec, observations: pd.DataFrame, series: Series) -> None:
    for k, (label, where) in enumerate(series):
        colour, marker = _style(k)
        chosen = select(observations, where)
        xs = sorted(distinct(chosen, spec.x))
        if not xs:  # what does not depend on x, as zero-shot on shots, is a level
            if len(chosen):
                level, _ = _mean_and_error(_shown(spec, by_seed(chosen, {})))
                ax.axhline(level, color=colour, linestyle="--", label=label)
            continue
        means = [_draw_seeds(ax, spec, x, by_seed(chosen, {spec.x: x}), colour, marker) for x in xs]
        fits = log_fit(observations, where, spec.x).values() if spec.error and spec.log_x and spec.log_y else None
        if fits is None:
            ax.plot(xs, means, color=colour, linewidth=1.2)
        elif fits:
            slope, intercept = np.mean([fit.slope for fit in fits]), np.mean([fit.intercept for fit in fits])
            ends = np.array([xs[0], xs[-1]], float)
            words = f"fit: slope {slope:.3f}, R² {np.mean([fit.rvalue**2 for fit in fits]):.2f}"
            ax.plot(ends, 10 ** (intercept + slope * np.log10(ends)), color=colour, linewidth=1, label=words)
        ax.plot([], [], color=colour, marker=marker, label=label)
    if spec.log_x:
        ax.set_xscale("log")
    _number_axis(ax, spec, distinct(observations, spec.x))
    _y_axis(ax, spec)
    _legend(ax, len(series))


def _number_axis(ax: Axes, spec: FigureSpec, values: Sequence[Any]) -> None:
    """Few values stand at the axis themselves; many leave it to powers of ten."""
    if 1 < len(values) <= 8 and spec.x not in ("samples_seen", "far_compute"):
        formatter = EngFormatter(places=1, sep="") if max(values) >= 10_000 else "{:g}".format
        ticks = _apart(sorted(values)) if spec.log_x else values
        ax.set_xticks(ticks, [formatter(value) for value in ticks])
        ax.xaxis.set_minor_locator(NullLocator())
        return
    if spec.log_x:
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))


def _apart(values: Sequence[float]) -> list[float]:
    """Those of ascending values whose names have room on an axis of logarithms."""
    kept = [values[0]]
    for value in values[1:]:
        if value > kept[-1] * (values[-1] / values[0]) ** 0.1:
            kept.append(value)
    return kept


def _draw_scatter(ax: Axes, spec: FigureSpec, observations: pd.DataFrame, series: Series) -> None:
    (_, on_x), (_, on_y) = series
    on_both = distinct(select(observations, on_y), "set")
    names = [name for name in distinct(select(observations, on_x), "set") if name in on_both]
    for k, name in enumerate(names):
        x, y = (_mean_and_error(by_seed(observations, {**where, "set": name})) for where in (on_x, on_y))
        style: dict[str, Any] = {"linestyle": "", "markersize": 6, "capsize": 2, "color": COLOURS[k % len(COLOURS)]}
        style |= {"marker": MARKERS[k // len(COLOURS) % len(MARKERS)], "label": name.removeprefix("scenes/")}
        ax.errorbar(x[0], y[0], xerr=x[1], yerr=y[1], **style)
    if spec.unit == "percent":
        ax.axline((0, 0), slope=1, color=GREY, linestyle="--", linewidth=1)
    else:
        ax.axhline(0, color=GREY, linestyle="--", linewidth=1)
    if spec.log_x:
        ax.set_xscale("log")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(PercentFormatter(1))
    ax.xaxis.set_major_locator(MaxNLocator(5))
    if names:
        ax.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _draw_bars(ax: Axes, spec: FigureSpec, observations: pd.DataFrame, series: Series) -> None:
    def bar(where: Where, name: str) -> tuple[float, float]:
        values = by_seed(observations, {**where, "set": name})
        if spec.minus:
            values = less(values, by_seed(observations, {**where, **spec.minus, "set": name}))
        return _mean_and_error(values)

    bars = {name: np.array([bar(where, name) for _, where in series]) for name in distinct(observations, "set")}
    measured = {name: of_set[~np.isnan(of_set[:, 0]), 0] for name, of_set in bars.items()}
    names = sorted((name for name in bars if len(measured[name])), key=lambda name: measured[name][0])
    thick = BETWEEN / len(series)
    for k, (label, _) in enumerate(series):
        colour, _ = _style(k)
        ys = np.arange(len(names)) - BETWEEN / 2 + thick * (len(series) - k - 0.5)
        means, errors = np.array([bars[name][k] for name in names]).reshape(-1, 2).T
        for y in ys[np.isnan(means)]:
            left = ax.get_yaxis_transform()  # x from 0 at the left end: an axis of logarithms has no 0
            ax.text(0.01, y, "not measured", transform=left, va="center", fontsize=7, color=GREY)
        ys, means, errors = (values[~np.isnan(means)] for values in (ys, means, errors))
        ax.barh(ys, means, thick, color=colour, xerr=errors, ecolor="#444444", label=label)
        for y, mean, error in zip(ys, means, errors):
            sign, words = np.sign(mean or 1), number(mean, spec.unit, bare=True)
            side: dict[str, Any] = {"ha": "left" if sign > 0 else "right", "va": "center", "fontsize": 7}
            ax.annotate(words, (mean + sign * error, y), (3 * sign, 0), textcoords="offset points", **side)
    ax.set_yticks(range(len(names)), [name.removeprefix("scenes/") for name in names], parse_math=False)
    ax.margins(x=0.15)
    if spec.log_x:
        ax.set_xscale("log")
    elif spec.unit != "number":
        ax.xaxis.set_major_formatter(PercentFormatter(1))
    if spec.chance:
        ax.axvline(spec.chance, color=GREY, linestyle=":", label="chance")
    ax.set_ylim(-0.6, len(names) - 0.4)
    _legend(ax, len(series), below=True)


def _draw_paper(ax: Axes, spec: FigureSpec, paper: Paper) -> None:
    """Lines, points at named positions, or bars, by what x is."""
    are_names = isinstance(paper.series[0][1][0][0], str)
    thick = BETWEEN / len(paper.series)
    for k, (label, points) in enumerate(paper.series):
        colour, marker = _style(k)
        xs, ys = zip(*points)
        if are_names:
            at = np.arange(len(xs)) + BETWEEN * ((k + 0.5) / len(paper.series) - 0.5)
            ax.barh(at, ys, thick, color=colour, label=label)
            ax.set_yticks(range(len(xs)), xs, parse_math=False)
            for y, value in zip(at, ys):
                ax.annotate(f"{value:g}", (value, y), (3, 0), textcoords="offset points", va="center", fontsize=8)
            ax.margins(x=0.15)
        else:
            line = "" if spec.kind == "scatter" else "-"
            ax.plot(xs, ys, color=colour, marker=marker, linestyle=line, linewidth=1.2, label=label)
    if spec.log_x and (spec.kind == "bars" or not are_names):
        ax.set_xscale("log")
    if not are_names:
        every = sorted({point[0] for _, points in paper.series for point in points})
        ticks = _apart(every) if spec.log_x else every
        ax.set_xticks(ticks, [f"{x:g}" for x in ticks])
        ax.xaxis.set_minor_locator(NullLocator())
        _y_axis(ax, spec)
    _legend(ax, len(paper.series), below=are_names)


def _style(index: int) -> tuple[str, str]:
    return COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]


def _y_axis(ax: Axes, spec: FigureSpec) -> None:
    if spec.chance:
        ax.axhline(spec.chance, color=GREY, linestyle=":", linewidth=1, label="chance")
    if spec.log_y:
        ax.set_yscale("log")
    if spec.unit == "percent":
        ax.yaxis.set_major_formatter(PercentFormatter(1))
        ax.yaxis.set_minor_formatter(PercentFormatter(1))


def _legend(ax: Axes, num_series: int, below: bool = False) -> None:
    if below and num_series > 1:
        ax.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=num_series)
    elif num_series > 1 or any(label.startswith("fit") for label in ax.get_legend_handles_labels()[1]):
        ax.legend(frameon=False, fontsize=8, loc="best")


def _finish(ax: Axes, x_label: str, y_label: str, title: str) -> None:
    ax.set(xlabel=x_label, ylabel=y_label)
    ax.set_title(title, loc="left", fontsize=10, parse_math=False)
    plain(ax)


_KINDS: dict[str, Callable[[Axes, FigureSpec, pd.DataFrame, Series], None]] = {
    "arms": _draw_arms,
    "lines": _draw_lines,
    "scatter": _draw_scatter,
    "bars": _draw_bars,
}
