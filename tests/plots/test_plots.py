import subprocess
import sys

import numpy as np
import pytest
from matplotlib.colors import same_color
from matplotlib.figure import Figure
from PIL import Image

from clip_jax.plots import training


@pytest.fixture
def drawn(monkeypatch):
    """The figures in place of the files."""
    figures = []
    monkeypatch.setattr(training, "save_figure", lambda figure, path: figures.append(figure))
    return figures


def rows(count, batch=16):
    return [
        {
            "step": step,
            "samples_seen": step * batch,
            "loss": 3 / step,
            "chance_loss": float(np.log(batch)),
            "image_to_text_accuracy": 1 - 1 / step,
            "text_to_image_accuracy": 1 - 0.5 / step,
            "learning_rate": 1e-3 * step,
            "logit_scale": 14.0 + step,
            "grad_norm": 2.0 / step,
        }
        for step in range(1, count + 1)
    ]


def panel(figure, title):
    (ax,) = [ax for ax in figure.axes if ax.get_title(loc="left").startswith(title)]
    return ax


def lines(ax):
    return {line.get_label(): line for line in ax.get_lines()}


def photos(n, seed=0):
    return np.random.default_rng(seed).integers(256, size=(n, 19, 19, 3), dtype=np.uint8)


def test_curves_over_samples_seen(drawn):
    training.plot_curves(rows(7), "curves.png")
    (figure,) = drawn
    loss = lines(panel(figure, "Loss"))
    np.testing.assert_allclose(loss["loss"].get_xdata(), 16 * np.arange(1, 8))
    np.testing.assert_allclose(loss["loss"].get_ydata(), 3 / np.arange(1, 8))
    np.testing.assert_allclose(loss["chance"].get_ydata(), np.log(16))
    assert loss["chance"].get_linestyle() == "--"
    accuracy = lines(panel(figure, "In-batch accuracy"))
    np.testing.assert_allclose(accuracy["image to text"].get_ydata(), 1 - 1 / np.arange(1, 8))
    np.testing.assert_allclose(accuracy["text to image"].get_ydata(), 1 - 0.5 / np.arange(1, 8))
    for title, last in {"Learning rate": 7e-3, "Logit scale": 21, "Gradient norm": 2 / 7}.items():
        assert panel(figure, title).get_lines()[0].get_ydata()[-1] == pytest.approx(last)
    assert len(figure.axes) == 5


def test_steps_repeated_by_a_resumed_run_count_once_the_later_row_winning(drawn):
    metrics = [*rows(7), *({**row, "loss": 100.0} for row in rows(5)[3:])]
    training.plot_curves(metrics, "curves.png")
    loss = lines(panel(drawn[0], "Loss"))["loss"]
    np.testing.assert_allclose(loss.get_xdata(), 16 * np.arange(1, 8))
    np.testing.assert_allclose(loss.get_ydata(), [3, 3 / 2, 1, 100, 100, 3 / 6, 3 / 7])


def test_many_points_are_smoothed_over_the_raw_line(drawn):
    metrics = rows(350)
    for i, row in enumerate(metrics):
        row["loss"] = float(i % 7)  # a window of 7 flattens this to 3
    metrics[100]["loss"] = float("nan")
    training.plot_curves(metrics, "curves.png")
    ax = panel(drawn[0], "Loss")
    (raw,) = [line for line in ax.get_lines() if line.get_alpha() is not None]
    smooth = lines(ax)["loss"]
    np.testing.assert_array_equal(raw.get_ydata(), [row["loss"] for row in metrics])
    assert raw.get_alpha() < 0.5
    np.testing.assert_allclose(smooth.get_ydata()[3:97], 3)
    # 100 % 7 = 2 is missing from every window that holds point 100.
    np.testing.assert_allclose(smooth.get_ydata()[97:104], 19 / 6)
    np.testing.assert_allclose(smooth.get_ydata()[104:347], 3)


def test_evaluations_get_their_own_panel_with_chance(drawn):
    evaluation = {
        "evaluation/held_out/top1": 0.7,
        "evaluation/held_out/chance": 0.1,
        "evaluation/held_out/count": 500,
        "evaluation/photos/image_to_text_r@1": 0.3,
        "evaluation/photos/image_to_text_r@1_chance": 0.02,
    }
    training.plot_curves([*rows(5), {"step": 5, "samples_seen": 80, **evaluation}], "curves.png")
    ax = panel(drawn[0], "Evaluation")
    drawn_lines = lines(ax)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["held out top1", "photos image to text r@1"]
    np.testing.assert_allclose(drawn_lines["held out top1"].get_xydata(), [[80, 0.7]])
    np.testing.assert_allclose(drawn_lines["photos image to text r@1"].get_xydata(), [[80, 0.3]])
    dotted = [line.get_ydata()[0] for line in ax.get_lines() if line.get_linestyle() == ":"]
    assert dotted == [0.1, 0.02]


def test_no_rows_are_refused():
    with pytest.raises(ValueError, match=r"no metrics to draw in curves\.png"):
        training.plot_curves([], "curves.png")


def test_similarity_has_captions_as_rows_and_images_as_columns(drawn):
    similarity = np.arange(9).reshape(3, 3) / 10
    captions = ["it costs $5 or $6", "b", "word " * 60]
    training.plot_similarity(photos(3), captions, similarity, "similarity.png")
    ax = drawn[0].axes[0]
    cells = {text.get_position(): text for text in ax.texts}
    assert {cell: text.get_text() for cell, text in cells.items()} == {
        (image, caption): f"{similarity[caption, image]:.2f}" for image in range(3) for caption in range(3)
    }
    assert {cell for cell, text in cells.items() if text.get_weight() == "bold"} == {(0, 0), (1, 1), (2, 2)}
    assert [patch.get_center().tolist() for patch in ax.patches] == [[0, 0], [1, 1], [2, 2]]
    first, second, long = [label.get_text() for label in ax.get_yticklabels()]
    assert (first, second) == (captions[0], "b")
    assert long.count("\n") == 2
    assert long.endswith("…")
    np.testing.assert_array_equal(ax.images[0].get_array(), similarity)
    assert [image.get_extent()[0] for image in ax.images[1:]] == [-0.46, 0.54, 1.54]


def test_similarity_lengths_must_match():
    with pytest.raises(ValueError, match=r"3 images, 2 captions and a similarity of shape \(3, 3\) do not match"):
        training.plot_similarity(photos(3), ["a", "b"], np.eye(3), "similarity.png")


def test_retrieval_marks_what_is_right(drawn):
    images = photos(3)
    training.plot_retrieval(
        [(images[0], [("a $ cat", 0.31, False), ("a dog", 0.3, True)])],
        [("a dog", [(images[0], 0.4, True), (images[1], 0.3, False)]), ("an emu", [(images[2], 0.2, False)])],
        "retrieval.png",
    )
    texts = {text.get_text(): text for ax in drawn[0].axes for text in ax.texts}
    assert {"✗ 0.31", "a $ cat", "✓ 0.30", "a dog", "an emu"} == set(texts)
    assert same_color(texts["✓ 0.30"].get_color(), training.GREEN)
    framed = [ax for ax in drawn[0].axes if ax.images and ax.spines["left"].get_visible()]
    assert [ax.get_xlabel() for ax in framed] == ["✓ 0.40"]
    np.testing.assert_array_equal(framed[0].images[0].get_array(), images[0])
    assert sorted(ax.get_xlabel() for ax in drawn[0].axes if ax.get_xlabel()) == ["✓ 0.40", "✗ 0.20", "✗ 0.30"]


def test_retrieval_without_queries_is_refused():
    with pytest.raises(ValueError, match="no queries to draw"):
        training.plot_retrieval([], [], "retrieval.png")


def test_confusion_is_coloured_by_the_true_class_share(drawn):
    training.plot_confusion(np.array([[3, 1], [0, 0]]), ("cat", "dog"), "confusion.png", "two animals")
    ax = drawn[0].axes[0]
    np.testing.assert_allclose(ax.images[0].get_array(), [[0.75, 0.25], [0, 0]])
    assert {text.get_position(): text.get_text() for text in ax.texts} == {(0, 0): "3", (1, 0): "1"}
    assert [label.get_text() for label in ax.get_yticklabels()] == ["cat", "dog"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("predicted", "true")


def test_confusion_of_many_classes_drops_counts_then_names(drawn):
    for C in (20, 21, 80, 81):
        training.plot_confusion(np.eye(C), [str(c) for c in range(C)], "confusion.png", "many")
    assert [len(figure.axes[0].texts) for figure in drawn] == [20, 0, 0, 0]
    assert [len(figure.axes[0].get_yticks()) for figure in drawn] == [20, 21, 80, 0]


def test_confusion_shape_must_match():
    with pytest.raises(ValueError, match=r"shape \(2, 2\) for 3 class names"):
        training.plot_confusion(np.eye(2), ("a", "b", "c"), "confusion.png", "")


def test_every_picture_is_written_complete_and_nothing_else(tmp_path):
    training.plot_curves(rows(211), tmp_path / "curves.png")
    maths = "$_{$"  # would be a syntax error, were it read as TeX
    training.plot_similarity(photos(2), [maths, "b"], np.eye(2), tmp_path / "similarity.png")
    training.plot_retrieval([(photos(1)[0], [(maths, 0.1, True)])], [(maths, [])], str(tmp_path / "retrieval.png"))
    training.plot_confusion(np.eye(3), ("a", maths, "c"), tmp_path / "confusion.png", maths)
    names = ["confusion.png", "curves.png", "retrieval.png", "similarity.png"]
    assert sorted(file.name for file in tmp_path.iterdir()) == names
    for name in names:
        with Image.open(tmp_path / name) as image:
            image.load()
            assert image.format == "PNG"
            assert len(np.unique(np.asarray(image.convert("L")))) > 10  # not an empty canvas


def test_a_failed_write_leaves_the_old_picture(tmp_path, monkeypatch):
    path = tmp_path / "confusion.png"
    path.write_bytes(b"the old one")

    def fail_half_way(figure, target, **options):
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", fail_half_way)
    with pytest.raises(OSError, match="No space left"):
        training.plot_confusion(np.eye(2), ("a", "b"), path, "")
    assert [file.name for file in tmp_path.iterdir()] == ["confusion.png"]
    assert path.read_bytes() == b"the old one"


def test_pyplot_is_never_imported(tmp_path):
    script = f"""
import sys, numpy as np
from clip_jax.plots.training import plot_confusion
plot_confusion(np.eye(2), ("a", "b"), {str(tmp_path / "confusion.png")!r}, "")
sys.exit("matplotlib.pyplot" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
    assert (tmp_path / "confusion.png").exists()
