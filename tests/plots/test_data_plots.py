import numpy as np
import pytest

from clip_jax.plots import data as plots
from clip_jax.plots.data import MAX_LINES, Tile
from clip_jax.plots.training import ORANGE

NAMES = ("captions", "characters", "words", "width", "height", "sizes", "num_bytes", "forms", "labels")


@pytest.fixture
def drawn(monkeypatch):
    """The figures in place of the files."""
    figures = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: figures.append(figure))
    return figures


def draw(drawn, **counts):
    plots.plot_statistics({**{name: {} for name in NAMES}, **counts}, "statistics.png")
    return {ax.get_title(loc="left"): ax for ax in drawn[-1].axes}


def heights(ax):
    return {round(bar.get_x() + bar.get_width() / 2, 6): bar.get_height() for bar in ax.patches if bar.get_height()}


def test_bars_count_every_value(drawn):
    axes = draw(drawn, words={3: 5, 4: 11, 9: 2}, forms={"JPEG": 7, "PNG": 9}, captions={5: 16})
    assert list(axes) == ["Captions, words", "Captions of a record", "Formats", ""]
    assert heights(axes["Captions, words"]) == {3: 5, 4: 11, 9: 2}
    assert axes["Captions, words"].texts[0].get_text() == "median 4"
    bars = [bar.get_width() for bar in axes["Formats"].patches]
    assert (bars, [label.get_text() for label in axes["Formats"].get_yticklabels()]) == ([7, 9], ["JPEG", "PNG"])


def test_many_values_share_bars_of_equal_whole_width(drawn):
    counts = {value: 1 + value % 3 for value in range(100, 350)}
    bars = draw(drawn, characters=counts)["Captions, characters"].patches
    assert {bar.get_width() for bar in bars} == {7}
    assert sum(bar.get_height() for bar in bars) == sum(counts.values())
    assert bars[0].get_x() == 99.5
    assert bars[0].get_height() == sum(counts[value] for value in range(100, 107))


def test_a_long_tail_is_in_the_last_bar_and_noted(drawn):
    ax = draw(drawn, characters={10: 600, 20: 396, 10_000: 4})["Captions, characters"]
    assert heights(ax) == {10: 600, 20: 400}
    assert ax.texts[0].get_text() == "median 10; 0.4% beyond, to 10k"


def test_sizes_are_points_by_their_number(drawn):
    ax = draw(drawn, sizes={"500x375": 30, "375x500": 10})["Width and height, pixels"]
    assert ax.collections[0].get_offsets().tolist() == [[500, 375], [375, 500]]
    assert ax.collections[0].get_sizes().tolist() == [156, 56]
    assert ax.texts[0].get_text() == "75% 500x375, 2 sizes"


def test_labels_have_names_when_they_are_few(drawn):
    few, many = {"cat": 3, "dog": 5}, {label: 100 - label for label in range(50)}
    ax = draw(drawn, labels=few)["Records of a label"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["cat", "dog"]
    ax = draw(drawn, labels=many)["Records of a label"]
    assert ax.get_xlabel() == "50 labels, most frequent first"
    assert (ax.get_xlim(), ax.get_ylim()) == ((0, 50), (0, 105))


def test_what_has_no_captions_has_no_histogram_of_them(drawn):
    assert list(draw(drawn, captions={0: 9}, forms={"PNG": 9})) == ["Formats"]
    with pytest.raises(ValueError, match=r"no records to draw in statistics\.png"):
        draw(drawn)


def test_a_sheet_shows_pictures_ids_captions_and_what_is_broken(drawn):
    picture = np.arange(8 * 10 * 3, dtype=np.uint8).reshape(8, 10, 3)
    tiles = [Tile(record_id=f"id{i}", image=picture + i, texts=(f"caption {i}",)) for i in range(7)]
    tiles.append(Tile(record_id="bad", image=None, texts=(), reason="image too large"))
    plots.plot_contact_sheet(tiles, "sheet.png", "some data")
    (figure,) = drawn
    assert len(figure.axes) == 8
    for i, ax in enumerate(figure.axes[:7]):
        np.testing.assert_array_equal(ax.images[0].get_array(), picture + i)
    assert [text.get_text() for text in figure.axes[7].texts] == ["broken", "image too large"]
    assert figure.axes[7].patches[0].get_edgecolor() == plots.Rectangle((0, 0), 1, 1, edgecolor=ORANGE).get_edgecolor()
    texts = [text.get_text() for text in figure.texts]
    assert texts[:5] == ["some data", "id0", "caption 0", "id1", "caption 1"]
    # Nothing covers what stands in another row: tops and bottoms in the order of the rows, captions between them.
    first, second = figure.axes[0].get_position(), figure.axes[6].get_position()
    caption = next(text for text in figure.texts if text.get_text() == "caption 0")
    assert first.y0 > caption.get_position()[1] > second.y1
    with pytest.raises(ValueError, match=r"no records to draw in sheet\.png"):
        plots.plot_contact_sheet([], "sheet.png", "nothing")


@pytest.mark.parametrize(
    ("texts", "lines"),
    [
        (("a cat",), ["a cat"]),
        (("one", "two  \n words"), ["· one", "· two words"]),
        (("word " * 90,), 6),
        (("word " * 90, "word " * 90, "c", "d"), 6),
        (tuple("abcdefghij"), ["· a", "· b", "· c", "· d", "· e", "and 5 more"]),
        (tuple("abcdef"), ["· a", "· b", "· c", "· d", "· e", "· f"]),
        (("猫" * 40,), ["猫" * 16, "猫" * 16, "猫" * 8]),
    ],
)
def test_captions_are_wrapped_and_cut(texts, lines):
    found = plots._lines(Tile(record_id="x", image=None, texts=texts))
    if isinstance(lines, int):
        assert len(found) <= lines == MAX_LINES
        assert any(line.endswith("…") for line in found)
    else:
        assert found == lines


def test_what_cannot_be_printed_is_left_out():
    assert plots._printable("a\x00b\x1b[0m\n c‮d") == "a b [0m c d"
    assert plots._shortened("x" * 99) == "…" + "x" * 37
