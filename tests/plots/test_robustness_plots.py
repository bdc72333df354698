import numpy as np
import pytest
from matplotlib.colors import same_color
from matplotlib.container import ErrorbarContainer
from PIL import Image

from clip_jax.evaluation.metrics.bias import ANY
from clip_jax.evaluation.metrics.binomial import share
from clip_jax.evaluation.metrics.overlap import contamination
from clip_jax.evaluation.metrics.robustness import MEAN, robustness_metrics
from clip_jax.plots import robustness as plots
from clip_jax.plots.training import GREEN, GREY, ORANGE

MODELS = {
    "weak": {"plain": 0.4, "sketch": 0.2, "photo": 0.3},
    "strong": {"plain": 0.8, "sketch": 0.5, "photo": 0.7},
    "half": {"plain": 0.9},
}


@pytest.fixture
def drawn(monkeypatch):
    """The figures in place of the files."""
    figures = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: figures.append(figure))
    return figures


def robustness():
    return robustness_metrics("plain", {"plain": (60, 100), "sketch": (55, 100), "photo": (0, 50)}, MODELS)


def line(ax, **style):
    (found,) = [line for line in ax.get_lines() if all(getattr(line, f"get_{k}")() == v for k, v in style.items())]
    return found


def bars(ax, direction=0):
    """x, y and the ends of the intervals of each point; those across come before those upwards if there are both."""
    found = []
    for container in (c for c in ax.containers if isinstance(c, ErrorbarContainer)):
        data, _, segments = container.lines
        for x, y, segment in zip(*data.get_data(orig=False), segments[direction].get_segments()):
            found.append((x, y, segment.min(axis=0), segment.max(axis=0)))
    return found


def test_robustness_over_logits(drawn):
    metrics = robustness()
    plots.plot_robustness(metrics, MODELS, "robustness.png", "ours")
    (figure,) = drawn
    sketch, photo, mean = figure.axes
    for ax in figure.axes:
        assert (ax.get_xscale(), ax.get_yscale()) == ("logit", "logit")
        same = line(ax, linestyle="--")
        np.testing.assert_array_equal(same.get_xdata(), same.get_ydata())
    assert sketch.get_title(loc="left") == "sketch\n+23.1 points beyond the fit"
    np.testing.assert_allclose(line(sketch, marker="o").get_data(orig=False), [[0.4, 0.8], [0.2, 0.5]])
    np.testing.assert_allclose(line(sketch, marker="*").get_data(orig=False), [[0.6], [0.55]])
    np.testing.assert_allclose(line(photo, marker="*").get_data(orig=False), [[0.6], [0.01]])  # half an image of 50
    np.testing.assert_allclose(line(mean, marker="o").get_data(orig=False), [[0.4, 0.8], [0.25, 0.6]])
    assert mean.get_title(loc="left").startswith(MEAN)
    for direction, result in enumerate((metrics["reference"], metrics["shifts"]["sketch"])):
        ((_, _, low, high),) = bars(sketch, direction)
        assert (low[direction], high[direction]) == pytest.approx((result["low"], result["high"]))
    fit = [found for found in sketch.get_lines() if len(found.get_xdata()) == 101]
    assert np.interp(0.8, *fit[0].get_data()) == pytest.approx(0.5, abs=1e-3)  # two points: the line meets them
    assert figure.legends[0].get_texts()[0].get_text() == "ours"


def test_robustness_without_a_fit_says_so(drawn):
    plots.plot_robustness(robustness_metrics("plain", {"plain": (1, 1), "a $ b": (0, 3)}, {}), {}, "robustness.png")
    (ax,) = drawn[0].axes
    assert ax.get_title(loc="left") == "a $ b\nno fit"
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["this model", "y = x"]


def test_pairs_at_or_above_the_threshold_are_framed(drawn):
    photos = np.random.default_rng(0).integers(256, size=(4, 11, 13, 3), dtype=np.uint8)
    plots.plot_duplicates([(photos[0], photos[1], 0.75), (photos[2], photos[3], 0.5)], 0.75, "duplicates.png")
    axes = drawn[0].axes
    assert [ax.get_title(loc="left") for ax in axes] == ["✓ 0.750", "", "✗ 0.500", ""]
    assert [ax.spines["left"].get_visible() for ax in axes] == [True, True, False, False]
    for ax, photo in zip(axes, photos):
        np.testing.assert_array_equal(ax.images[0].get_array(), photo)
    assert same_color(axes[0].spines["left"].get_edgecolor(), GREEN)


def contaminated():
    similarity = np.repeat([1.0, 0.0], [200, 800])
    return {
        "inflated": contamination(np.concatenate([np.ones(200, bool), np.arange(800) < 400]), similarity, 0.5),
        "even": contamination(np.arange(1000) % 2 == 0, similarity, 0.5),
        "clean": contamination(np.ones(5, bool), np.zeros(5), 0.5),
    }


def test_contamination_over_the_share_of_overlap(drawn):
    results = contaminated()
    plots.plot_contamination(results, "contamination.png")
    left, right = drawn[0].axes
    (x, y, low, high), (_, even, _, _) = bars(left)
    assert (x, y, even) == (pytest.approx(0.2), pytest.approx(0.5), pytest.approx(0))
    assert low[1] == pytest.approx(results["inflated"]["overlap_minus_clean_low"])
    assert high[1] == pytest.approx(0.5)
    points = {text.get_text(): text.xy for text in right.texts}
    assert points == {"inflated": (0.2, pytest.approx(0.1)), "even": (0.2, pytest.approx(0))}
    np.testing.assert_allclose([found.get_ydata()[0] for found in right.get_lines()[:2]], [0.1, 0], atol=1e-12)
    colours = [found.get_color() for found in right.get_lines()[:2]]
    assert same_color(colours[0], ORANGE)
    assert same_color(colours[1], GREY)
    assert right.get_title(loc="left") == "All less clean images; 1 of 3 sets without overlap or clean rest"


def test_many_sets_are_named_only_where_there_is_something(drawn):
    even = contaminated()["even"]
    plots.plot_contamination(
        {**{f"even {i}": even for i in range(13)}, "inflated": contaminated()["inflated"]}, "c.png"
    )
    assert [[text.get_text() for text in ax.texts] for ax in drawn[0].axes] == [["inflated"], ["inflated"]]


def bias():
    def groups(harmful):
        names = ("crime-related", "non-human", ANY)
        return {
            "age": {group: {name: share(harmful, count) for name in names} for group, count in (("3-9", 10), ("$", 20))}
        }

    return {"label_sets": {"default": groups(5), "with child": groups(2)}}


def test_bias_by_group(drawn):
    plots.plot_bias(bias(), "age", "bias.png")
    for ax, harmful in zip(drawn[0].axes, (5, 2)):
        found = bars(ax)
        assert len(found) == 6
        x, y, low, high = found[0]
        assert (x, y) == (harmful / 10, pytest.approx(-0.2))
        assert (low[0], high[0]) == (
            pytest.approx(share(harmful, 10)["low"]),
            pytest.approx(share(harmful, 10)["high"]),
        )
    assert [label.get_text() for label in drawn[0].axes[0].get_yticklabels()] == ["3-9 (10)", "$ (20)"]


def test_nothing_to_draw_is_refused():
    with pytest.raises(ValueError, match=r"^no pairs to draw in d.png$"):
        plots.plot_duplicates([], 0.5, "d.png")
    with pytest.raises(ValueError, match=r"^no sets to draw in c.png$"):
        plots.plot_contamination({}, "c.png")
    with pytest.raises(ValueError, match=r"^no groups by 'race' to draw: there are age$"):
        plots.plot_bias(bias(), "race", "b.png")


def test_every_picture_is_written(tmp_path):
    photo = np.random.default_rng(0).integers(256, size=(11, 13, 3), dtype=np.uint8)
    plots.plot_robustness(robustness(), MODELS, tmp_path / "robustness.png", "$_{$")
    plots.plot_duplicates([(photo, photo, 1.0)], 0.5, tmp_path / "duplicates.png")
    plots.plot_contamination(contaminated(), tmp_path / "contamination.png")
    plots.plot_bias(bias(), "age", tmp_path / "bias.png")
    names = ["bias.png", "contamination.png", "duplicates.png", "robustness.png"]
    assert sorted(file.name for file in tmp_path.iterdir()) == names
    for name in names:
        with Image.open(tmp_path / name) as image:
            assert len(np.unique(np.asarray(image.convert("L")))) > 10
