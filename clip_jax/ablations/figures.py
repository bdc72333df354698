"""figure.png of an ablation, in the form of the paper's, with the paper's points beside ours where published."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter

from clip_jax.ablations.findings import number
from clip_jax.ablations.observations import Observation, by_seed, distinct, select
from clip_jax.ablations.spec import Ablation, FigureSpec, Paper
from clip_jax.ablations.statistics import ERRORS, log_fit, summary
from clip_jax.plots.training import BLUE, GOLD, GREEN, GREY, ORANGE, PINK, SKY, save_figure, wrapped

COLOURS = [BLUE, ORANGE, GREEN, PINK, SKY, GOLD, "black"]
MARKERS = "osD^vP*"
OURS, THEIRS = 6.2, 5.0  # inches, of a panel
BETWEEN = 0.8  # of a place on an axis of names, what several series share
Series = list[tuple[str, Mapping[str, Any]]]


def draw(ablation: Ablation, observations: Sequence[Observation], path: str | os.PathLike) -> None:
    """Writes the PNG: means over seeds with two standard errors either way, each seed a faint point.

    Raises ValueError where there is nothing to draw.
    """
    paper = ablation.paper
    panels = [(spec, series_of(spec, observations)) for spec in (ablation.figure, ablation.second) if spec]
    if not any(select(observations, where) for _, series in panels for _, where in series):
        raise ValueError(f"{ablation.name} has no observations to draw")
    widths = [*(OURS for _ in panels), *([THEIRS] if paper.series else [])]
    rows = len(distinct(observations, "set"))
    bars = max(len(series) if spec.kind == "bars" else 0 for spec, series in panels)
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


def series_of(spec: FigureSpec, observations: Sequence[Observation]) -> Series:
    """Labels with what they select; "{key}" has become one for each value of the key."""
    series: Series = []
    for label, where in spec.series:
        if label.startswith("{"):
            key = label.strip("{}")
            series += [(str(value), {**where, key: value}) for value in distinct(select(observations, where), key)]
        else:
            series.append((label, where))
    return series


def _shown(spec: FigureSpec, value: float) -> float:
    return 1 - value if spec.error else value


def _draw_cell(ax: Axes, spec: FigureSpec, x: float, of_seed: Mapping[int, float], colour: str, marker: str) -> float:
    """Seeds, mean and error at a place; returns the height of the mean."""
    values = [_shown(spec, value) for value in of_seed.values()]
    found = summary(values)
    ax.plot([x] * len(values), values, linestyle="", marker=".", markersize=5, color=colour, alpha=0.4)
    error = ERRORS * (found["standard_error"] or 0.0)
    ax.errorbar(x, found["mean"], yerr=error, color=colour, marker=marker, markersize=6, capsize=3, linestyle="")
    return found["mean"]


def _draw_arms(ax: Axes, spec: FigureSpec, observations: Sequence[Observation], series: Series) -> None:
    arms = distinct(observations, "arm")
    for place, (label, where) in enumerate(series):
        colour, marker = _look(place)
        shift = BETWEEN * ((place + 0.5) / len(series) - 0.5)
        for i, arm in enumerate(arms):
            if of_seed := by_seed(observations, {**where, "arm": arm}):
                mean = _draw_cell(ax, spec, i + shift, of_seed, colour, marker)
                words = number(mean, "percent" if spec.unit == "percent" else "number", bare=True)
                offset = (10, 0) if len(series) == 1 else (5, 7)
                ax.annotate(words, (i + shift, mean), offset, textcoords="offset points", fontsize=8, color=colour)
        ax.plot([], [], color=colour, marker=marker, linestyle="", label=label)
    ax.set_xticks(range(len(arms)), [wrapped(arm, 14, 2) for arm in arms], parse_math=False)
    ax.set_xlim(-0.6, len(arms) - 0.4)
    _y_axis(ax, spec)
    _legend(ax, len(series))


def _draw_lines(ax: Axes, spec: FigureSpec, observations: Sequence[Observation], series: Series) -> None:
    for place, (label, where) in enumerate(series):
        colour, marker = _look(place)
        chosen = select(observations, where)
        xs = sorted(distinct(chosen, spec.x)) or [np.nan]
        if spec.x not in (chosen or [{}])[0]:  # what does not depend on x, as zero-shot on shots, is a level
            found = summary([_shown(spec, value) for value in by_seed(chosen, {}).values()])
            if found["mean"] is not None:
                ax.axhline(found["mean"], color=colour, linestyle="--", label=label)
            continue
        means = [_draw_cell(ax, spec, x, by_seed(chosen, {spec.x: x}), colour, marker) for x in xs]
        if spec.error and spec.log_x and spec.log_y:
            _draw_fit(ax, observations, where, spec.x, np.array(xs, float), colour)
        else:
            ax.plot(xs, means, color=colour, linewidth=1.2)
        ax.plot([], [], color=colour, marker=marker, label=label)
    if spec.log_x:
        ax.set_xscale("log")
    _number_axis(ax, spec, distinct(observations, spec.x))
    _y_axis(ax, spec)
    _legend(ax, len(series))


def _draw_fit(
    ax: Axes,
    observations: Sequence[Observation],
    where: Mapping[str, Any],
    x: str,
    xs: np.ndarray,
    colour: str,
) -> None:
    fits = list(log_fit(observations, where, x).values())
    if fits:
        slope, intercept = np.mean([fit.slope for fit in fits]), np.mean([fit.intercept for fit in fits])
        ends = np.array([xs.min(), xs.max()])
        words = f"fit: slope {slope:.3f}, R² {np.mean([fit.rvalue**2 for fit in fits]):.2f}"
        ax.plot(ends, 10 ** (intercept + slope * np.log10(ends)), color=colour, linewidth=1, label=words)


def _number_axis(ax: Axes, spec: FigureSpec, values: Sequence[Any]) -> None:
    """Few values stand at the axis themselves; many leave it to powers of ten."""
    if 1 < len(values) <= 8 and spec.x not in ("samples_seen", "far_compute"):
        formatter = EngFormatter(places=1, sep="") if max(values) >= 10_000 else None
        places = _apart(sorted(values)) if spec.log_x else values
        ax.set_xticks(places, [formatter(value) if formatter else f"{value:g}" for value in places])
        ax.xaxis.set_minor_locator(NullLocator())
    else:
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


def _draw_scatter(ax: Axes, spec: FigureSpec, observations: Sequence[Observation], series: Series) -> None:
    (_, on_x), (_, on_y) = series
    both = [distinct(select(observations, where), "set") for where in (on_x, on_y)]
    names = [name for name in both[0] if name in both[1]]
    for place, name in enumerate(names):
        x, y = (summary(list(by_seed(observations, {**where, "set": name}).values())) for where in (on_x, on_y))
        colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place // len(COLOURS) % len(MARKERS)]
        errors: dict[str, Any] = {
            side: ERRORS * (of["standard_error"] or 0.0) for side, of in (("xerr", x), ("yerr", y))
        }
        shown = name.removeprefix("scenes/")
        look: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 6, "linestyle": "", "capsize": 2}
        ax.errorbar(x["mean"], y["mean"], label=shown, **errors, **look)
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


def _draw_bars(ax: Axes, spec: FigureSpec, observations: Sequence[Observation], series: Series) -> None:
    def of_set(where: Mapping[str, Any], name: str) -> dict[int, float]:
        own = by_seed(observations, {**where, "set": name})
        if not spec.minus:
            return own
        less = by_seed(observations, {**where, **spec.minus, "set": name})
        return {seed: own[seed] - less[seed] for seed in own if seed in less}

    def first_mean(name: str) -> float | None:
        found = (summary(list(of_set(where, name).values()))["mean"] for _, where in series)
        return next((mean for mean in found if mean is not None), None)

    means = {name: mean for name in distinct(observations, "set") if (mean := first_mean(name)) is not None}
    names = sorted(means, key=means.__getitem__)
    thick = BETWEEN / len(series)
    for place, (label, where) in enumerate(series):
        colour, _ = _look(place)
        found = [summary(list(of_set(where, name).values())) for name in names]
        places = np.arange(len(names)) - BETWEEN / 2 + thick * (len(series) - place - 0.5)
        for y in (y for y, of in zip(places, found) if of["mean"] is None):
            side = ax.get_yaxis_transform()  # x from 0 at the left end: an axis of logarithms has no 0
            ax.text(0.01, y, "not measured", transform=side, va="center", fontsize=7, color=GREY)
        there = [(y, of) for y, of in zip(places, found) if of["mean"] is not None]
        at, heights = [y for y, _ in there], [of["mean"] for _, of in there]
        errors = [ERRORS * (of["standard_error"] or 0.0) for _, of in there]
        ax.barh(at, heights, thick, color=colour, xerr=errors, ecolor="#444444", label=label)
        for y, height, error in zip(at, heights, errors):
            ax.annotate(
                number(height, spec.unit, bare=True),
                (height + np.sign(height or 1) * error, y),
                (3 * np.sign(height or 1), 0),
                textcoords="offset points",
                ha="left" if height >= 0 else "right",
                va="center",
                fontsize=7,
            )
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
    """Lines, points of named places, or bars, by what x is."""
    are_names = isinstance(paper.series[0][1][0][0], str)
    for place, (label, points) in enumerate(paper.series):
        colour, marker = _look(place)
        xs, ys = [point[0] for point in points], [point[1] for point in points]
        if are_names:
            at = np.arange(len(xs)) + BETWEEN * ((place + 0.5) / len(paper.series) - 0.5)
            ax.barh(at, ys, BETWEEN / len(paper.series), color=colour, label=label)
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
        places = _apart(every) if spec.log_x else every
        ax.set_xticks(places, [f"{x:g}" for x in places])
        ax.xaxis.set_minor_locator(NullLocator())
        _y_axis(ax, spec)
    _legend(ax, len(paper.series), below=are_names)


def _look(place: int) -> tuple[str, str]:
    return COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]


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
    ax.grid(color="#e6e6e6")
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


_KINDS: dict[str, Callable[[Axes, FigureSpec, Sequence[Observation], Series], None]] = {
    "arms": _draw_arms,
    "lines": _draw_lines,
    "scatter": _draw_scatter,
    "bars": _draw_bars,
}
