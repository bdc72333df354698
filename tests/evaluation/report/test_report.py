"""Pieces of the report's HTML, and a report of results that no run here has: the paper's number, bias, failures."""

import pytest
from markupsafe import Markup
from PIL import Image

from clip_jax.evaluation.report.page import write_report
from clip_jax.evaluation.report.sections import paper_scores
from clip_jax.evaluation.report.values import Page, bar, interval, matching_labels, percent, points, table, text


@pytest.mark.parametrize(
    ("value", "html"),
    [
        ("<b> & 'c'", "&lt;b&gt; &amp; &#39;c&#39;"),
        (Markup("<b>"), "<b>"),
        (1234567, "1,234,567"),
        (None, "-"),
        (True, "True"),
        (percent(0.12345), "12.3 %"),
        (points(-0.0123), "-1.2"),
        (points(-0.0001), "0.0"),
    ],
)
def test_a_cell_is_escaped_unless_it_is_markup(value, html):
    assert text(value) == html


def test_a_table_has_a_class_for_numbers_and_for_rows():
    html = table(["a", "b"], [["<x>", percent(0.5)], ["y", None]], ["", "absent"])
    assert html == (
        '<div class="scroll"><table><tr><th>a</th><th class="n">b</th></tr>'
        '<tr><td>&lt;x&gt;</td><td class="n">50.0 %</td></tr>'
        '<tr class="absent"><td>y</td><td class="n">-</td></tr></table></div>'
    )


def test_a_table_leaves_out_columns_in_which_nothing_stands():
    assert table(["a", "b", "c"], [[1, None, None], [2, None, 0]]) == table(["a", "c"], [[1, None], [2, 0]])


def test_a_bar_has_marks_where_the_numbers_are():
    html = bar({"value": 0.5, "low": 0.25, "high": 0.75}, 0.1, 0.9)
    assert html.count("<circle") == 2
    assert 'cx="75.0"' in html  # the middle of 150 pixels
    assert 'x1="39.5" x2="110.5"' in html
    assert 'aria-label="50.0 percent"' in html
    assert bar({"value": 0.5}, None).count("<line") == 1


@pytest.mark.parametrize(("relation", "shown"), [("equal", "5.4"), ("at most", "≤ 5.4"), ("more than", "&gt; 5.4")])
def test_how_many_labels_match_zero_shot_says_when_it_is_a_bound(relation, shown):
    assert matching_labels({"matches_zero_shot": {"labels_per_class": 5.4, "relation": relation}}) == shown
    assert matching_labels({}) is None


def test_a_picture_is_within_the_page(tmp_path):
    Image.new("RGB", (3, 3)).save(tmp_path / "a.png")
    html = Page(report={}, folder=tmp_path).image("a.png", 'a "quote"')
    assert html.startswith('<img alt="a &#34;quote&#34;" src="data:image/webp;base64,')
    assert interval({"low": None}) is None


def test_the_papers_scores_are_those_of_the_nine_released_models():
    assert len(paper_scores()["imagenet"]) == 9
    assert paper_scores()["imagenet"]["ViT-L/14@336px"] == 0.762


def test_a_report_shows_the_papers_number_and_what_failed(tmp_path):
    found = {"metric": "accuracy", "value": 0.6, "low": 0.5, "high": 0.7, "chance": 0.001, "count": 9, "num_skipped": 0}
    found |= {"top1": {"value": 0.6, "low": 0.5, "high": 0.7}, "per_class": {"<i>": 0.6}, "images_per_class": [9]}
    found |= {"prompts": {"own": {"value": 0.6, "templates": 80}}, "headline": "own", "first_skipped": []}
    model = {"name": "ViT-B/32", "weights": "abc", "parameters": 5, "image_size": 224, "resize_mode": "shortest"}
    report = {
        "title": "t",
        "model": {**model, "embed_dim": 512, "logit_scale": 100.0},
        "environment": {"commit": None, "command": ["/somewhere/evaluate.py", "--x"]},
        "settings": {"suite": {"seed": 0}},
        "sets": [
            {
                "name": "imagenet",
                "title": "ImageNet",
                "state": "done",
                "metric": "accuracy",
                "note": "",
                "classes": 1000,
            }
            | {"zero_shot": found},
            {"name": "dtd", "title": "DTD", "state": "failed", "reason": "zero_shot: <b>"},
        ],
        "robustness": {"state": "failed", "reason": "no file"},
    }
    write_report(report, tmp_path)
    html = (tmp_path / "report.html").read_text()
    assert '<td class="n">63.2 %</td>' in html
    assert "Of 2 data sets 1 failed: see below." in html
    assert "zero_shot: &lt;b&gt;" in html
    assert "<td>&lt;i&gt;</td>" in html
    assert "<b>robustness</b>, failed<br><code>no file</code>" in html
    assert "evaluate.py --x" in html
    assert "/somewhere/" not in html.split("Settings and hashes")[0]
    assert not list(tmp_path.glob("*.partial"))
