"""Pictures of a data set, each one PNG, in the style of plots.py: histograms, and a sheet of records."""

import os
import unicodedata
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.patches import Rectangle
from matplotlib.ticker import EngFormatter, MaxNLocator

from clip_jax.plots.training import BLUE, GREY, ORANGE, save_figure, wrapped
from input_pipeline.prepare.sample import Tile

MAX_BARS = 40
MAX_NAMED = 12  # distinct values with a bar and a name each
MAX_SIZES = 2000  # of pictures, drawn as points
TAIL = 0.005  # of the values, drawn in the last bar
TILES_ACROSS = 6
TILE_INCHES = 2.2
CHARACTERS_ACROSS = 33  # that fit under a tile
MAX_LINES = 6
BULLET = "· "
# Tried in this order for a letter that matplotlib's own font lacks, where they are installed.
FALLBACK_FONTS = ("Noto Sans", "Noto Sans CJK JP", "Noto Sans CJK SC", "WenQuanYi Zen Hei", "Unifont")


def plot_statistics(counts: Mapping[str, Mapping[Any, int]], path: str | os.PathLike) -> None:
    """Histograms of captions and pictures, as many as there is something to count for.

    Args:
      counts: value -> how often, under the names of the attributes of `input_pipeline.prepare.statistics.Statistics`.
      path: the PNG to write.

    Raises:
      ValueError: nothing is counted.
    """
    panels: list[Callable[[Axes], None]] = []
    for name, title, unit in (
        ("characters", "Captions, characters", ""),
        ("words", "Captions, words", ""),
        ("captions", "Captions of a record", ""),
        ("labels", "Records of a label", ""),
        ("sizes", "Width and height, pixels", ""),
        ("num_bytes", "Encoded pictures", "B"),
        ("forms", "Formats", ""),
    ):
        found = counts[name]
        if not found or (name == "captions" and max(found) == 0):
            continue
        if name == "sizes":
            panels.append(lambda ax, found=found: _draw_sizes(ax, found))  # type: ignore[misc]
        elif name == "forms" or (name in ("labels", "captions") and len(found) <= MAX_NAMED):
            panels.append(lambda ax, found=found: _draw_shares(ax, found))  # type: ignore[misc]
        elif name == "labels":
            panels.append(lambda ax, found=found: _draw_labels(ax, found))  # type: ignore[misc]
        else:
            panels.append(lambda ax, found=found, unit=unit: _draw_histogram(ax, found, unit))  # type: ignore[misc]
        panels[-1] = _titled(panels[-1], title)
    if not panels:
        raise ValueError(f"no records to draw in {path}")
    columns = 3 if len(panels) > 4 else 2 if len(panels) > 1 else 1
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.1 * rows), layout="constrained")
    for ax, draw in zip(figure.subplots(rows, columns, squeeze=False).flat, panels):
        draw(ax)
        ax.spines[["top", "right"]].set_visible(False)
        ax.set_axisbelow(True)
    for ax in figure.axes[len(panels) :]:
        ax.set_axis_off()
    save_figure(figure, path)


def _titled(draw: Callable[[Axes], None], title: str) -> Callable[[Axes], None]:
    def titled(ax: Axes) -> None:
        ax.set_title(title, loc="left", fontsize=11)
        draw(ax)

    return titled


def _draw_histogram(ax: Axes, counts: Mapping[int, int], unit: str) -> None:
    """Bars of a numeric value; the rare largest ones stand together in the last bar, which is said."""
    values = np.array(sorted(counts))
    number = np.array([counts[value] for value in values.tolist()])
    # The value that all but TAIL of them stay at or below.
    end = values[np.searchsorted(np.cumsum(number), (1 - TAIL) * number.sum())]
    tail = number[values > end].sum()
    clipped = np.minimum(values, end)
    width = int(np.ptp(clipped)) // MAX_BARS + 1  # whole, or some bars would gather more values than others
    edges = np.arange(clipped.min() - 0.5, end + width, width).tolist()
    ax.hist(clipped, edges, weights=number, color=BLUE)
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    median = values[np.searchsorted(np.cumsum(number), number.sum() / 2)]
    ax.axvline(median, color=ORANGE, linewidth=1.5)
    shown = EngFormatter(unit, places=1 if unit else 0, sep=" " if unit else "")
    note = f"median {shown(median)}" + (f"; {tail / number.sum():.1%} beyond, to {shown(values[-1])}" if tail else "")
    ax.text(1, 1.02, note, color=ORANGE, fontsize=8, transform=ax.transAxes, ha="right", va="bottom")
    ax.yaxis.set_major_formatter(EngFormatter(sep=""))
    ax.xaxis.set_major_formatter(EngFormatter(unit, sep=" " if unit else ""))
    ax.grid(axis="y", color="#e6e6e6")


def _draw_sizes(ax: Axes, counts: Mapping[str, int]) -> None:
    """A point a size, its area by how many pictures have it."""
    frequent = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:MAX_SIZES]
    width, height = np.array([[int(side) for side in size.split("x")] for size, _ in frequent]).T
    share = np.array([count for _, count in frequent]) / frequent[0][1]
    ax.scatter(width, height, s=6 + 150 * share, color=BLUE, alpha=0.35, linewidths=0)
    largest = 1.08 * max(width.max(), height.max())
    ax.plot([0, largest], [0, largest], color=GREY, linestyle=":", linewidth=1)
    ax.set(xlim=(0, largest), ylim=(0, largest))
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    (size, count), total = frequent[0], sum(counts.values())
    note = f"{count / total:.0%} {size}" + (f", {len(counts)} sizes" if len(counts) > 1 else "")
    ax.text(1, 1.02, note, color=ORANGE, fontsize=8, transform=ax.transAxes, ha="right", va="bottom")
    ax.grid(color="#e6e6e6")


def _draw_shares(ax: Axes, counts: Mapping[Any, int]) -> None:
    """A bar for each of a few names, with its count."""
    names = sorted(counts, key=lambda name: (-counts[name], str(name)))[::-1]
    ax.barh(range(len(names)), [counts[name] for name in names], color=BLUE, height=0.65)
    ax.set_yticks(range(len(names)), [str(name) for name in names], fontsize=9, parse_math=False)
    for place, name in enumerate(names):
        ax.text(counts[name], place, f" {counts[name]:,}", va="center", fontsize=8)
    ax.set_xlim(0, 1.2 * max(counts.values()))
    middle, reach = (len(names) - 1) / 2, max(len(names), 4) / 2
    ax.set_ylim(middle - reach, middle + reach)
    ax.tick_params(axis="y", length=0)
    ax.set_xticks([])


def _draw_labels(ax: Axes, counts: Mapping[int, int]) -> None:
    """Many labels, from the most to the least frequent."""
    number = sorted(counts.values(), reverse=True)
    ax.fill_between(range(len(number) + 1), [*number, number[-1]], step="post", color=BLUE)
    ax.set(xlim=(0, len(number)), ylim=(0, 1.05 * number[0]))
    ax.set_xlabel(f"{len(number)} labels, most frequent first", fontsize=9)
    ax.yaxis.set_major_formatter(EngFormatter(sep=""))
    ax.grid(axis="y", color="#e6e6e6")


def plot_contact_sheet(tiles: Sequence[Tile], path: str | os.PathLike, title: str) -> None:
    """Pictures in rows, each above its id and its captions, wrapped, cut after MAX_LINES lines; broken ones are marked.

    Letters that no installed font has are drawn as boxes.

    Raises:
      ValueError: no tiles.
    """
    if not tiles:
        raise ValueError(f"no records to draw in {path}")
    columns = min(TILES_ACROSS, len(tiles))
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    texts = [[_lines(tile) for tile in row] for row in rows]
    line = 0.135  # inches
    heights = [TILE_INCHES + line * (max(map(len, row)) + 2.4) for row in texts]
    width, height = columns * TILE_INCHES, sum(heights) + 0.45
    figure = Figure(figsize=(width, height))
    figure.text(0.04 / width, 1 - 0.12 / height, _printable(title), fontsize=12, va="top", parse_math=False)
    family = ["DejaVu Sans", *(font for font in FALLBACK_FONTS if font in {f.name for f in fontManager.ttflist})]
    top = height - 0.45
    for row, row_texts, row_height in zip(rows, texts, heights):
        for place, (tile, lines) in enumerate(zip(row, row_texts)):
            inside = TILE_INCHES - 0.12
            left, bottom = place * TILE_INCHES + 0.06, top - inside
            ax = figure.add_axes((left / width, bottom / height, inside / width, inside / height))
            ax.set_axis_off()
            if tile.image is None:
                _draw_broken(ax, tile.reason)
            else:
                ax.imshow(tile.image, interpolation="antialiased" if max(tile.image.shape) > 200 else "nearest")
                ax.set_anchor("SW")
            below: dict[str, Any] = {"va": "top", "family": family, "parse_math": False, "linespacing": 1.2}
            x, y = left / width, (bottom - 0.05) / height
            figure.text(x, y, _shortened(tile.record_id), fontsize=6.5, color=GREY, **below)
            figure.text(x, y - line / height, "\n".join(lines), fontsize=7.5, **below)
        top -= row_height
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"(?s).*Glyph .* missing from font")
        warnings.filterwarnings("ignore", message=".*Matplotlib currently does not support .* natively")
        save_figure(figure, path)


def _draw_broken(ax: Axes, reason: str) -> None:
    ax.set(xlim=(0, 1), ylim=(0, 1))
    ax.add_patch(Rectangle((0.01, 0.01), 0.98, 0.98, facecolor="#fbeee6", edgecolor=ORANGE, linewidth=2))
    ax.text(0.5, 0.8, "broken", ha="center", va="center", color=ORANGE, fontsize=12, weight="bold")
    ax.text(0.5, 0.66, wrapped(_printable(reason), 30, 7), ha="center", va="top", fontsize=8, parse_math=False)


def _lines(tile: Tile) -> list[str]:
    """The captions, each wrapped, as many lines as fit; the rest is counted."""
    lines: list[str] = []
    for number, text in enumerate(tile.texts):
        text = _printable(text)
        wide = any(unicodedata.east_asian_width(letter) in "WF" for letter in text)
        several, last = len(tile.texts) > 1, number == len(tile.texts) - 1
        width = (CHARACTERS_ACROSS - len(BULLET) * several) // (2 if wide else 1)
        found = wrapped(text, width, 3 if several else MAX_LINES).split("\n")
        if several:
            found = [f"{'  ' if place else BULLET}{line}" for place, line in enumerate(found)]
        if len(lines) + len(found) > MAX_LINES - (not last):
            return [*lines, f"and {len(tile.texts) - number} more"]
        lines += found
    return lines


def _printable(text: str) -> str:
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def _shortened(record_id: str) -> str:
    record_id = _printable(record_id)
    return record_id if len(record_id) <= CHARACTERS_ACROSS + 5 else f"…{record_id[-CHARACTERS_ACROSS - 4 :]}"
