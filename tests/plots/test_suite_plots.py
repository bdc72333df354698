"""What a picture shows is read off the figure just before it is written."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from clip_jax.plots import probes as evaluation_plots
from clip_jax.plots.probes import plot_few_shot, plot_reliability, plot_sweep

CALIBRATION = {"error": 0.123, "count": [3, 0, 1], "confidence": [0.2, None, 0.9], "accuracy": [0.5, None, 1.0]}
SHOTS = [
    {"labels_per_class": 1, "score": 0.3, "low": 0.2, "high": 0.4, "scores": [0.25, 0.35]},
    {"labels_per_class": 4, "score": 0.5, "low": 0.45, "high": 0.55, "scores": [0.48, 0.52]},
]


@pytest.fixture
def drawn(monkeypatch):
    figures: list[Figure] = []
    save = evaluation_plots.save_figure
    monkeypatch.setattr(
        evaluation_plots, "save_figure", lambda figure, path: figures.append(figure) or save(figure, path)
    )
    return figures


def size(file):
    with Image.open(file) as image:
        return image.size


def test_reliability_shows_accuracy_over_confidence_and_counts(drawn, tmp_path):
    plot_reliability(CALIBRATION, tmp_path / "a.png", "a set")
    above, below = drawn[0].axes
    np.testing.assert_allclose([bar.get_height() for bar in above.patches], [0.5, 1.0])  # the empty bin has no bar
    np.testing.assert_allclose([bar.get_x() for bar in above.patches], [0, 2 / 3], atol=1e-9)
    np.testing.assert_allclose([bar.get_height() for bar in below.patches], [0.75, 0, 0.25])
    assert "a set\nexpected calibration error 12.3%" in above.get_title(loc="left")
    assert min(size(tmp_path / "a.png")) > 300


def test_few_shot_shows_the_curve_beside_zero_shot_and_all_labels(drawn, tmp_path):
    plot_few_shot(SHOTS, 0.42, (50.0, 0.8), tmp_path / "a.png", "a set")
    (ax,) = drawn[0].axes
    lines = {line.get_label(): line for line in ax.lines}
    np.testing.assert_allclose(lines["few-shot probe, 95 %"].get_xydata(), [[1, 0.3], [4, 0.5]])
    np.testing.assert_allclose(lines["probe on all labels"].get_xydata(), [[50, 0.8]])
    assert set(lines["zero-shot"].get_ydata()) == {0.42}
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1", "4", "all"]
    plot_few_shot(SHOTS, None, None, tmp_path / "b.png", "a set")
    assert [label.get_text() for label in drawn[1].axes[0].get_xticklabels()] == ["1", "4"]


def test_sweep_shows_what_was_tried_and_chosen(drawn, tmp_path):
    sweep = [{"strength": 0.1, "validation_score": 0.5}, {"strength": 10.0, "validation_score": 0.7}]
    plot_sweep(sweep, 10.0, tmp_path / "a.png", "a set")
    (ax,) = drawn[0].axes
    np.testing.assert_allclose(ax.lines[0].get_xydata(), [[0.1, 0.5], [10, 0.7]])
    assert ax.lines[1].get_label() == "chosen, 10"
    assert ax.get_xscale() == "log"
