"""Pictures of a run, each one PNG: curves, similarity matrix, retrieval, confusion.

Drawn through matplotlib's objects, never pyplot: no global state, no display, safe beside a notebook's own figures.
A PNG gets its name only when it is complete.
"""

import os
from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator, PercentFormatter

from input_pipeline.storage import atomic_path

# Okabe and Ito's palette, which colour-blind readers can distinguish.
BLUE, ORANGE, GREEN, PINK, SKY, GOLD = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"
GREY = "#767676"
SMOOTHED_ABOVE = 200  # points


def plot_curves(metrics: Sequence[Mapping[str, Any]], path: str | os.PathLike) -> None:
    """Curves of a training run over samples seen.

    Args:
      metrics: rows in any order, each with `samples_seen` and any of loss, chance_loss, image_to_text_accuracy,
        text_to_image_accuracy, token_accuracy, learning_rate, logit_scale, grad_norm, and of the evaluations'
        `evaluation/NAME/top1` and `evaluation/NAME/..._r@k` with their chance levels. Where two rows give the same
        thing at the same samples_seen (a resumed run repeats steps), the later row counts.
      path: the PNG to write.

    Raises:
      ValueError: no rows.
    """
    if not metrics:
        raise ValueError(f"no metrics to draw in {path}")
    scores = list(dict.fromkeys(key for row in metrics for key in row if _is_score(key)))
    predicts_tokens = any("token_accuracy" in row for row in metrics)  # and then there is no logit scale
    below = ["rate"] * 3 + ["norm"] * 3 if predicts_tokens else ["rate"] * 2 + ["scale"] * 2 + ["norm"] * 2
    mosaic: list[Any] = [["loss"] * 3 + ["accuracy"] * 3, below]
    if scores:
        mosaic.append(["evaluation"] * 6)
    figure = Figure(figsize=(12, 3.4 * len(mosaic)), layout="constrained")
    axes = figure.subplot_mosaic(mosaic)

    _draw_smoothed(axes["loss"], metrics, "loss", BLUE, "loss")
    axes["loss"].plot(*_series(metrics, "chance_loss"), color=GREY, linestyle="--", label="chance")
    if predicts_tokens:
        _draw_smoothed(axes["accuracy"], metrics, "token_accuracy", BLUE, "words or tokens predicted")
    else:
        _draw_smoothed(axes["accuracy"], metrics, "image_to_text_accuracy", BLUE, "image to text")
        _draw_smoothed(axes["accuracy"], metrics, "text_to_image_accuracy", ORANGE, "text to image")
        axes["scale"].plot(*_series(metrics, "logit_scale"), color=BLUE)
        axes["scale"].set_title("Logit scale", loc="left")
    axes["rate"].plot(*_series(metrics, "learning_rate"), color=BLUE)
    _draw_smoothed(axes["norm"], metrics, "grad_norm", BLUE, "gradient norm")
    norms = _series(metrics, "grad_norm")[1]
    if (norms := norms[np.isfinite(norms) & (norms > 0)]).size:
        subs = (1, 2, 5) if norms.max() < 1e3 * norms.min() else (1,)  # more would not fit
        axes["norm"].set_yscale("log")
        axes["norm"].yaxis.set(major_locator=LogLocator(subs=subs), minor_locator=NullLocator())
        axes["norm"].yaxis.set_major_formatter("{x:g}")
    accuracy = "Accuracy" if predicts_tokens else "In-batch accuracy"
    titles = {"loss": "Loss", "accuracy": accuracy, "rate": "Learning rate", "norm": "Gradient norm"}
    for name, title in titles.items():
        axes[name].set_title(title, loc="left")
    if scores:
        _draw_scores(axes["evaluation"], metrics, scores)
    for name, ax in axes.items():
        plain(ax)
        ax.xaxis.set_major_formatter(EngFormatter(sep=""))
        ax.set_xlabel("samples seen")
        if name in ("accuracy", "evaluation"):
            ax.yaxis.set_major_formatter(PercentFormatter(1))
            ax.set_ylim(bottom=0)
    for name in ("loss", "accuracy"):
        axes[name].legend(frameon=False)
    save_figure(figure, path)


def plot_similarity(
    images: np.ndarray, captions: Sequence[str], similarity: np.ndarray, path: str | os.PathLike
) -> None:
    """Image-text similarity matrix: a column an image, a row a caption, the pairs framed on the diagonal.

    Args:
      images: uint8 [n, H, W, 3].
      captions: n strings; long ones are wrapped, very long ones cut.
      similarity: [n, n], similarity[i, j] of caption i and image j, as drawn.
      path: the PNG to write. Legible up to n of about 12.

    Raises:
      ValueError: lengths that do not match.
    """
    n = len(captions)
    similarity = np.asarray(similarity)
    if len(images) != n or similarity.shape != (n, n):
        raise ValueError(
            f"{len(images)} images, {n} captions and a similarity of shape {similarity.shape} do not match"
        )
    cell = 0.75  # inches
    figure = Figure(figsize=(cell * n + 4, cell * (n + 1.2) + 0.6), layout="constrained")
    ax = figure.subplots()
    ax.imshow(similarity, cmap="Blues")
    darkness = (similarity - similarity.min()) / max(np.ptp(similarity), 1e-9)
    for i, image in enumerate(images):
        ax.imshow(image, extent=(i - 0.46, i + 0.46, -0.6, -1.52))
        for j in range(n):
            _write_in_cell(ax, i, j, f"{similarity[j, i]:.2f}", darkness[j, i], bold=i == j)
    for i in range(n):
        ax.add_patch(Rectangle((i - 0.47, i - 0.47), 0.94, 0.94, fill=False, edgecolor=ORANGE, linewidth=2.5))
    ax.set(xlim=(-0.5, n - 0.5), ylim=(n - 0.5, -1.6), xticks=[])
    ax.set_yticks(range(n), [wrapped(caption, 40, 3) for caption in captions], fontsize=9, parse_math=False)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_title("Cosine similarity of images and captions, the true pairs framed", loc="left")
    save_figure(figure, path)


def plot_retrieval(
    image_queries: Sequence[tuple[np.ndarray, Sequence[tuple[str, float, bool]]]],
    text_queries: Sequence[tuple[str, Sequence[tuple[np.ndarray, float, bool]]]],
    path: str | os.PathLike,
) -> None:
    """Queries with their best matches: image to text on the left, text to image on the right.

    Args:
      image_queries: pairs of an image, uint8 [H, W, 3], and its matches, best first: (caption, score, is right).
      text_queries: pairs of a text and its matches, best first: (image uint8 [H, W, 3], score, is right).
      path: the PNG to write; a row a query, meant for about six of three matches each.

    Raises:
      ValueError: no queries.
    """
    rows = max(len(image_queries), len(text_queries))
    if rows == 0:
        raise ValueError(f"no queries to draw in {path}")
    images = max((len(matches) for _, matches in text_queries), default=0)
    widths = [1.25, 3.9, 0.2, 2.0, *[1.25] * images]  # inches
    figure = Figure(figsize=(sum(widths) + 0.2, 1.5 * rows + 0.5), layout="constrained")
    grid = figure.add_gridspec(rows, len(widths), width_ratios=widths)

    for row, (image, captions) in enumerate(image_queries):
        show_image(figure.add_subplot(grid[row, 0]), image)
        ax = _text_axes(figure, grid[row, 1], "Image to text" if row == 0 else "")
        for position, (caption, score, right) in enumerate(captions):
            y = 1 - (position + 0.5) / len(captions)
            colour = GREEN if right else GREY
            ax.text(0.0, y, f"{'✓' if right else '✗'} {score:.2f}", color=colour, va="center", fontsize=9)
            weight = "bold" if right else "normal"
            text = wrapped(caption, 48, 2)
            ax.text(0.17, y, text, color="black", va="center", fontsize=8, weight=weight, parse_math=False)
    for row, (text, found) in enumerate(text_queries):
        ax = _text_axes(figure, grid[row, 3], "Text to image" if row == 0 else "")
        ax.text(0.0, 0.5, wrapped(text, 28, 6), va="center", fontsize=9, parse_math=False)
        for position, (image, score, right) in enumerate(found):
            ax = figure.add_subplot(grid[row, 4 + position])
            show_image(ax, image, GREEN if right else None)
            ax.set_xlabel(
                f"{'✓' if right else '✗'} {score:.2f}", color=GREEN if right else GREY, fontsize=9, labelpad=3
            )
    save_figure(figure, path)


def plot_confusion(matrix: np.ndarray, class_names: Sequence[str], path: str | os.PathLike, title: str) -> None:
    """Confusion matrix, coloured by each true class's share; counts in the cells up to 20 classes, names up to 80.

    Args:
      matrix: counts [C, C], row the true class, column the predicted one.
      class_names: C names.
      path: the PNG to write.
      title: what was classified.

    Raises:
      ValueError: lengths that do not match.
    """
    C = len(class_names)
    matrix = np.asarray(matrix)
    if matrix.shape != (C, C):
        raise ValueError(f"a confusion matrix of shape {matrix.shape} for {C} class names")
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = float(np.clip(0.45 * C, 3, 14))  # inches
    figure = Figure(figsize=(side + 3, side + 2), layout="constrained")
    ax = figure.subplots()
    shown = ax.imshow(share, cmap="Blues", vmin=0, vmax=1)
    bar = figure.colorbar(
        shown, ax=ax, shrink=0.7, aspect=30, format=PercentFormatter(1), label="share of the true class"
    )
    bar.outline.set_visible(False)
    if C <= 20:
        for row, column in np.argwhere(matrix):
            _write_in_cell(ax, column, row, str(matrix[row, column]), share[row, column], bold=row == column)
    if C <= 80:
        labels = [wrapped(name, 24, 1) for name in class_names]
        ax.set_xticks(range(C), labels, rotation=45, ha="right", rotation_mode="anchor", fontsize=8, parse_math=False)
        ax.set_yticks(range(C), labels, fontsize=8, parse_math=False)
    else:
        ax.set(xticks=[], yticks=[])
    ax.tick_params(length=0)
    ax.set(xlabel="predicted", ylabel="true")
    ax.set_title(wrapped(title, 60, 2), loc="left", parse_math=False)
    save_figure(figure, path)


def _series(metrics: Sequence[Mapping[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """samples_seen and values of the rows that have the key, by samples_seen, the later of two rows winning."""
    points = sorted({row["samples_seen"]: row[key] for row in metrics if row.get(key) is not None}.items())
    x, y = np.array(points, np.float64).reshape(-1, 2).T
    return x, y


def _draw_smoothed(ax: Axes, metrics: Sequence[Mapping[str, Any]], key: str, colour: str, label: str) -> None:
    """A line; with many points the line faint and its running mean over a fiftieth of the points on top."""
    x, y = _series(metrics, key)
    if len(x) <= SMOOTHED_ABOVE:
        ax.plot(x, y, color=colour, label=label)
        return
    ax.plot(x, y, color=colour, alpha=0.25, linewidth=0.8)
    finite = np.isfinite(y)
    window = np.ones(len(x) // 50 | 1)  # odd, so that the mean is centred
    near = np.convolve(finite, window, "same")
    total = np.convolve(np.where(finite, y, 0), window, "same")
    ax.plot(x, np.where(near > 0, total / np.maximum(near, 1), np.nan), color=colour, label=label)


def _is_score(key: str) -> bool:
    score = key.rpartition("/")[2]
    return key.startswith("evaluation/") and (score == "top1" or ("_r@" in score and not score.endswith("_chance")))


def _draw_scores(ax: Axes, metrics: Sequence[Mapping[str, Any]], scores: Sequence[str]) -> None:
    """Evaluations as points, the chance level of each dotted in its colour."""
    colours = [BLUE, ORANGE, GREEN, PINK, SKY, GOLD, "black"]
    markers = "os^Dv"
    for i, key in enumerate(scores):
        colour, marker = colours[i % len(colours)], markers[i // len(colours) % len(markers)]
        label = key.removeprefix("evaluation/").replace("/", " ").replace("_", " ")
        ax.plot(*_series(metrics, key), color=colour, marker=marker, markersize=5, linewidth=1, label=label)
        chance = f"{key.removesuffix('top1')}chance" if key.endswith("/top1") else f"{key}_chance"
        for level in _series(metrics, chance)[1][-1:]:
            ax.axhline(level, color=colour, linestyle=":")
    ax.set_title("Evaluation, chance dotted", loc="left")
    ax.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _write_in_cell(ax: Axes, x: float, y: float, text: str, darkness: float, bold: bool) -> None:
    colour = "white" if darkness > 0.55 else "black"
    ax.text(x, y, text, ha="center", va="center", fontsize=9, color=colour, weight="bold" if bold else "normal")


def plain(ax: Axes) -> None:
    """A grey grid behind what is drawn, and no line above or right of it."""
    ax.grid(color="#e6e6e6")
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def show_image(ax: Axes, image: np.ndarray, frame: str | None = None) -> None:
    ax.imshow(image)
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set(visible=frame is not None, color=frame, linewidth=4)


def _text_axes(figure: Figure, cell: Any, title: str) -> Axes:
    ax = figure.add_subplot(cell)
    ax.set(xlim=(0, 1), ylim=(0, 1))
    ax.set_axis_off()
    ax.set_title(title, loc="left", fontsize=11)
    return ax


def wrapped(text: str, width: int, max_lines: int) -> str:
    return "\n".join(wrap(text, width, max_lines=max_lines, placeholder=" …"))


def save_figure(figure: Figure, path: str | os.PathLike) -> None:
    """Writes a PNG whole or not at all."""
    with atomic_path(path) as partial:
        figure.savefig(partial, format="png", dpi=120, bbox_inches="tight", pad_inches=0.15)
