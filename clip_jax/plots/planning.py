"""Picture of a device's memory by part."""

import os
from collections.abc import Mapping

from matplotlib.figure import Figure

from clip_jax.plots.training import save_figure

GIB = 2**30
PARTS = {
    "parameters": ("parameters", "#4c72b0"),
    "optimizer": ("moments and average", "#8172b3"),
    "batch": ("batch", "#64b5cd"),
    "kept": ("kept for the backward pass", "#dd8452"),
    "other": ("other temporaries", "#c7c7c7"),
}


def plot_memory(
    plans: Mapping[str, Mapping[str, int]], memory_bytes: float | None, path: str | os.PathLike, title: str
) -> None:
    """A bar a plan, stacked by part, beside the device's memory and XLA's peak, in GiB.

    plans: bytes by part (PARTS and peak), by the plan's name. memory_bytes: of a device, where it is known.
    """
    figure = Figure(figsize=(9, 1.6 + 0.5 * len(plans)))
    ax = figure.add_subplot()
    for row, memory in enumerate(plans.values()):
        left = 0.0
        for part, (label, colour) in PARTS.items():
            size = memory[part] / GIB
            ax.barh(row, size, left=left, color=colour, height=0.6, label=label if row == 0 else None)
            if size > 0.9:
                ax.text(left + size / 2, row, f"{size:.1f}", ha="center", va="center", fontsize=8)
            left += size
        ax.plot([memory["peak"] / GIB] * 2, [row - 0.38, row + 0.38], color="black", label="peak" if row == 0 else None)
    if memory_bytes:
        ax.axvline(memory_bytes / GIB, color="#c44e52", linestyle="--", label="memory of the device")
    ax.set_yticks(range(len(plans)), list(plans))
    ax.invert_yaxis()
    ax.set_title(f"{title}, GiB", loc="left", fontsize=11)
    ax.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="upper center", bbox_to_anchor=(0.5, 0), ncols=4, frameon=False, fontsize=8)
    save_figure(figure, path)
