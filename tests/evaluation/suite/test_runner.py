"""A suite from pictures to report, with a model of known answers."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from absl import flags
from absl.testing import flagsaver
from PIL import Image
from rigged import LOGIT_SCALE, NAMES, rigged_model, save_picture

from clip_jax.cli import evaluate
from clip_jax.evaluation.metrics.statistics import eleven_point_map
from clip_jax.evaluation.suite import measures, runner
from clip_jax.evaluation.suite.config import make_suite_config
from clip_jax.evaluation.suite.results import Report, SetResults, to_json
from clip_jax.evaluation.suite.runner import as_table, problems, run_suite
from configs.suites import folder, paper, scenes

# (label, classes by how well they fit): 7 classes, 17 pictures, so that batches of 4 leave an uneven last one.
PICTURES = (
    (0, (0, 1, 2, 3, 4, 5)), (0, (0, 2, 1, 3, 4, 5)), (0, (1, 0, 2, 3, 4, 5)), (0, (6, 5, 4, 3, 2, 0)),
    (1, (1, 2, 3, 4, 5, 6)), (1, (2, 3, 4, 5, 1, 6)), (1, (2, 3, 4, 5, 6, 1)),
    (2, (2, 1, 0, 3, 4, 5)), (3, (3, 1, 0, 2, 4, 5)), (3, (3, 0, 1, 2, 4, 5)), (3, (4, 3, 1, 2, 0, 5)),
    (3, (3, 4, 1, 2, 0, 5)), (3, (5, 4, 1, 2, 0, 3)), (4, (4, 5, 6, 0, 1, 2)), (5, (0, 4, 6, 5, 1, 2)),
    (6, (6, 5, 4, 0, 1, 2)), (6, (2, 5, 4, 0, 1, 6)),
)  # fmt: skip
RANKS = np.array([order.index(label) for label, order in PICTURES])
LABELS = np.array([label for label, _ in PICTURES])
TOP1, TOP5 = float(np.mean(RANKS == 0)), float(np.mean(RANKS < 5))
MEAN_PER_CLASS = float(np.mean([np.mean(RANKS[c == LABELS] == 0) for c in range(7)]))


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    for i, (label, order) in enumerate(PICTURES):
        save_picture(root / NAMES[label] / f"{i:02d}.png", order)
    return root


def config_of(*datasets: str, measures=("zero_shot",), base=folder, **changes):
    sections = base.get_config().to_dict()
    sections["suite"] |= {"datasets": tuple(datasets), "measures": measures}
    sections["zero_shot"] |= {"prompts": ("bare", "one", "own"), "headline": "bare", "num_resamples": 200}
    for key, value in changes.items():
        section, name = key.split("__")
        sections[section][name] = value
    return make_suite_config(sections)


def report_of(*arguments, **options) -> dict:
    """What run_suite returns, as report.json holds it."""
    return to_json(run_suite(*arguments, **options))


pytestmark = pytest.mark.usefixtures("compile_once")


@pytest.fixture
def rigged(monkeypatch):
    """Makes run_suite load the rigged model; counts the pictures that are encoded. Plots are of one pixel."""
    encoded = []

    def load(name, **_):
        new = rigged_model.__wrapped__ if "damaged" in str(name) else rigged_model
        model, preprocess, tokenizer = new(4, 8 if "8 devices" in str(name) else 1)
        if "damaged" in str(name):
            kernel = model.variables["visual_projection"]["kernel"]
            model.variables["visual_projection"]["kernel"] = kernel * (np.nan if "nan" in str(name) else -1)

        def counting(images):
            def counted():
                for image in images:
                    encoded.append(1)
                    yield image

            return type(model.encoder).pooled_images(model.encoder, counted())

        monkeypatch.setattr(model.encoder, "pooled_images", counting)
        return model, preprocess, tokenizer

    monkeypatch.setattr(runner, "load", load)
    draw_one_pixel(monkeypatch)
    return encoded


def draw_one_pixel(monkeypatch) -> None:
    def one_pixel(what, *rest):
        Image.new("RGB", (1, 1)).save(next(argument for argument in rest if isinstance(argument, Path)))

    monkeypatch.setattr(measures, "plot_confusion", one_pixel)
    monkeypatch.setattr(measures, "plot_reliability", one_pixel)


@pytest.fixture(scope="module")
def finished(photos, tmp_path_factory) -> Path:
    """The output of a finished run, to be copied."""
    output = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "load", lambda name, **_: rigged_model())
        draw_one_pixel(patch)
        report_of(config_of(f"folder:{photos}"), "model", output)
    return output


@pytest.fixture
def output(finished, tmp_path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(finished, tmp_path / "output"))


@pytest.mark.parametrize("name", [pytest.param("model", marks=pytest.mark.nightly), "model on 8 devices"])
def test_a_rigged_model_gets_the_known_numbers(name, photos, tmp_path, rigged):
    report = report_of(config_of(f"folder:{photos}"), name, tmp_path)
    found = report["sets"][0]["zero_shot"]
    assert (found["metric"], found["count"], found["num_skipped"]) == ("accuracy", 17, 0)
    assert found["value"] == found["top1"]["value"] == pytest.approx(TOP1)
    assert found["top5"]["value"] == pytest.approx(TOP5)
    assert found["mean_per_class"]["value"] == pytest.approx(MEAN_PER_CLASS)
    assert found["per_class"] == {name: pytest.approx(np.mean(RANKS[c == LABELS] == 0)) for c, name in enumerate(NAMES)}
    assert found["chance"] == 1 / 7
    assert found["low"] <= TOP1 <= found["high"]
    assert (found["low"], found["high"]) != (TOP1, TOP1)
    # "a photo of a" means the next class, and of those none is right but by chance.
    next_right = np.mean([order[0] == (label + 1) % 7 for label, order in PICTURES])
    scores = {name: prompt["value"] for name, prompt in found["prompts"].items()}
    assert scores == {"bare": pytest.approx(TOP1), "one": pytest.approx(next_right), "own": pytest.approx(next_right)}
    # Confidence is the softmax at the model's scale; the worst mistakes come first.
    assert [mistake["label"] for mistake in found["mistakes"]] != []
    confidences = [mistake["confidence"] for mistake in found["mistakes"]]
    assert confidences == sorted(confidences, reverse=True)
    assert len(found["mistakes"]) == np.sum(RANKS > 0)
    assert report["model"]["logit_scale"] == pytest.approx(LOGIT_SCALE, rel=1e-6)


def test_the_predictions_are_a_table_of_every_picture(photos, output):
    rows = pd.read_parquet(output / sets_of(output)[0]["zero_shot"]["files"]["predictions"])
    assert list(rows) == ["id", "path", "label", "prediction", "probability"]
    expected = {
        f"{NAMES[label]}/{i:02d}.png": (NAMES[label], NAMES[order[0]]) for i, (label, order) in enumerate(PICTURES)
    }
    assert {row.id: (row.label, row.prediction) for row in rows.itertuples()} == expected
    assert (rows.path == rows.id).all()
    assert rows.probability.between(1 / 7, 1).all()


@pytest.mark.parametrize(
    ("metric", "value", "chance"),
    [("mean_per_class", MEAN_PER_CLASS, 1 / 7), ("mean_top1_top5", (TOP1 + TOP5) / 2, (1 / 7 + 5 / 7) / 2)],
)
def test_the_headline_is_the_sets_own_metric(metric, value, chance, photos, tmp_path, rigged, monkeypatch):
    open_set = runner.open_labelled_set
    monkeypatch.setattr(runner, "open_labelled_set", lambda *a: dataclasses.replace(open_set(*a), metric=metric))
    found = report_of(config_of(f"folder:{photos}"), "model", tmp_path)["sets"][0]["zero_shot"]
    assert (found["metric"], found["value"]) == (metric, pytest.approx(value))
    assert found["chance"] == pytest.approx(chance)
    assert found["low"] <= value <= found["high"]


def test_own_templates_are_those_of_the_config_where_the_set_has_none(photos, output, rigged):
    config = config_of(f"folder:{photos}", zero_shot__templates=("the {} . again", "{}"))
    prompts = report_of(config, "model", output)["sets"][0]["zero_shot"]["prompts"]
    assert prompts["own"] == {**prompts["bare"], "templates": 2}


class OtherLabels:
    """The photos with other labels in their records: label + shift, or several an image."""

    def __init__(self, source, shift=0, several=False):
        self.source, self.shift, self.several = source, shift, several
        self.broken, self.class_names = source.broken, source.class_names

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        record = self.source[index]
        label = record.pop("label") + self.shift
        return record | ({"labels": (label,), "difficult": ((label + 1) % 7,)} if self.several else {"label": label})

    def fingerprint(self):
        return {**self.source.fingerprint(), "shift": self.shift, "several": self.several}


def change_labels(monkeypatch, **changes):
    open_set = runner.open_labelled_set

    def changed(*arguments):
        found = open_set(*arguments)
        splits = {split: OtherLabels(source, **changes) for split, source in found.splits.items()}
        several = changes.get("several", False)
        metric = "eleven_point_map" if several else "accuracy"
        return dataclasses.replace(found, splits=splits, multi_label=several, metric=metric)

    monkeypatch.setattr(runner, "open_labelled_set", changed)


def test_a_label_outside_the_names_is_reported(photos, tmp_path, rigged, monkeypatch):
    change_labels(monkeypatch, shift=1)
    row = report_of(config_of(f"folder:{photos}"), "model", tmp_path)["sets"][0]
    assert row["reason"] == (
        f"zero_shot: label 7 of record 15 of folder:{photos} is outside 0..6, the range of its 7 labels"
    )


def test_several_labels_an_image_are_measured_by_mean_average_precision(photos, tmp_path, rigged, monkeypatch):
    change_labels(monkeypatch, several=True)
    found = report_of(config_of(f"folder:{photos}"), "model", tmp_path)["sets"][0]["zero_shot"]
    model, preprocess, _ = rigged_model()
    files = sorted(photos.rglob("*.png"), key=lambda file: file.relative_to(photos).as_posix())
    embeddings = np.asarray(model.encode_image(np.stack([preprocess(file) for file in files])))
    scores = (embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True))[:, :7]
    labels = np.array([NAMES.index(file.parent.name) for file in files])
    relevant, difficult = np.eye(7, dtype=bool)[labels], np.eye(7, dtype=bool)[(labels + 1) % 7]
    assert found["value"] == pytest.approx(eleven_point_map(scores, relevant, ignored=difficult))
    assert found["value"] != pytest.approx(eleven_point_map(scores, relevant))
    assert (found["metric"], found["count"]) == ("eleven_point_map", 17)
    rows = pd.read_parquet(tmp_path / found["files"]["predictions"])
    assert [row.tolist() for row in rows.label] == [[NAMES[label]] for label in labels]
    assert rows.prediction.tolist() == [NAMES[c] for c in scores.argmax(axis=1)]
    assert rows.similarity.to_numpy() == pytest.approx(scores.max(axis=1))


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((folder / "results").iterdir())}


def sets_of(output: Path) -> list:
    return json.loads((output / "report.json").read_text())["sets"]


def test_a_second_run_encodes_nothing_and_says_so(photos, output, rigged):
    lines: list[str] = []
    first = sets_of(output)
    again = report_of(config_of(f"folder:{photos}"), "model", output, say=lines.append)
    assert len(rigged) == 0
    assert again["sets"] == first
    assert lines == ["1 result of the same weights, data and settings found, not computed again"]


def test_other_settings_measure_anew_without_encoding_and_other_data_encodes(photos, output, rigged):
    other = report_of(config_of(f"folder:{photos}", zero_shot__headline="one"), "model", output)
    assert other["sets"][0]["zero_shot"]["value"] != pytest.approx(TOP1)
    assert len(rigged) == 0
    fewer = report_of(config_of(f"folder:{photos}", suite__num_examples=5), "model", output)
    assert fewer["sets"][0]["zero_shot"]["count"] == 5
    # Spread evenly over a source whose order is that of its classes: places 0, 3, 6, 10, 13.
    assert fewer["sets"][0]["zero_shot"]["images_per_class"] == [2, 1, 0, 1, 1, 0, 0]
    assert len(rigged) == 5


def test_the_report_has_a_hash_of_each_splits_data_and_of_the_names_and_prompts(photos, output, rigged):
    first = sets_of(output)[0]["hashes"]
    assert set(first) == {"test", "names and prompts"}
    other = config_of(f"folder:{photos}", zero_shot__templates=("the {}",))
    found = report_of(other, "model", output)["sets"][0]["hashes"]
    assert found["test"] == first["test"]
    assert found["names and prompts"] != first["names and prompts"]
    html = (output / "report.html").read_text()
    assert f"names and prompts&#34;: &#34;{found['names and prompts']}" in html


def test_other_weights_measure_anew(photos, output, rigged):
    other = report_of(config_of(f"folder:{photos}"), "damaged model", output)
    assert len(rigged) == 17
    assert other["model"]["weights"] != rigged_model()[0].fingerprint
    assert other["sets"][0]["zero_shot"]["value"] == 0


@pytest.mark.parametrize(
    ("what", "damage"),
    [
        ("features/images-*.npz", "flip"),
        ("results/*.json", "cut"),
        ("pictures/*.png", "empty"),
        *(
            pytest.param(what, damage, marks=pytest.mark.nightly)
            for what, damages in (
                ("features/images-*.npz", ("cut", "empty")),
                ("features/classes-*.npz", ("cut", "flip", "empty")),
                ("results/*.json", ("flip", "empty")),
                ("pictures/*.png", ("cut", "flip")),
            )
            for damage in damages
        ),
    ],
)
def test_what_is_damaged_is_reported_and_computed_again(what, damage, photos, output, rigged):
    lines: list[str] = []
    first, file = sets_of(output), sorted(output.glob(what))[0]
    data = file.read_bytes()
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    file.write_bytes({"cut": data[: len(data) // 2], "flip": bytes(flipped), "empty": b""}[damage])
    if what.startswith("features"):
        for result in (output / "results").iterdir():
            result.unlink()  # or the features would not be read at all
    again = report_of(config_of(f"folder:{photos}"), "model", output, say=lines.append)
    damaged = [line for line in lines if "damaged" in line]
    assert len(damaged) == 1
    assert damaged[0].endswith("computing it again")
    assert again["sets"] == first
    assert file.read_bytes() == data


def test_whole_files_of_other_numbers_are_reported_too(photos, output, rigged):
    lines: list[str] = []
    first = sets_of(output)
    (features,) = output.glob("features/images-*.npz")
    arrays = dict(np.load(features))
    np.savez(features, **{**arrays, "embeddings": arrays["embeddings"][::-1]})
    (result,) = output.glob("results/*.json")
    stored = json.loads(result.read_text())
    stored["result"]["value"] = 1.0
    result.write_text(json.dumps(stored))
    again = report_of(config_of(f"folder:{photos}"), "model", output, say=lines.append)
    assert again["sets"] == first
    assert lines == [
        f"the result {result.name} is damaged (its checksum does not match): computing it again",
        f"the cache {features.name} of folder:{photos} is damaged (its checksum does not match): computing it again",
    ]


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import test_runner
test_runner.run_and_die({photos!r}, {output!r})
"""


def run_and_die(photos: str, output: str) -> None:
    """Two sets with the rigged model; SIGKILL once the second one's features are on the disk."""
    write = runner.FeatureStore.cached
    patch = pytest.MonkeyPatch()
    patch.setattr(runner, "load", lambda name, **_: rigged_model())
    draw_one_pixel(patch)

    def cached(self, kind, key, title, make):
        arrays = write(self, kind, key, title, make)
        if kind == "images" and "again" in title:
            os.kill(os.getpid(), signal.SIGKILL)
        return arrays

    patch.setattr(runner.FeatureStore, "cached", cached)
    report_of(config_of(f"folder:{photos}", f"folder:{photos}/../again"), "model", Path(output))


def test_killed_it_continues_where_it_stopped_with_the_same_numbers(photos, tmp_path, rigged):
    again = photos.parent / "again"
    if not again.exists():
        for i, (label, order) in enumerate(PICTURES):
            save_picture(again / NAMES[label] / f"{i:02d}.png", order)
    code = KILLED.format(tests=str(Path(__file__).parent), photos=str(photos), output=str(tmp_path / "killed"))
    ran = subprocess.run([sys.executable, "-c", code], check=False, timeout=100, cwd=Path(__file__).parents[2])
    assert ran.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "report.json").exists()
    assert len(list((tmp_path / "killed" / "results").iterdir())) == 1
    config = config_of(f"folder:{photos}", f"folder:{photos}/../again")
    resumed = report_of(config, "model", tmp_path / "killed")
    assert len(rigged) == 0  # all was encoded before the kill
    whole = report_of(config, "model", tmp_path / "whole")
    assert len(rigged) == 34
    assert resumed["sets"] == whole["sets"]
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_a_set_that_is_not_there_is_reported_and_the_others_are_measured(photos, tmp_path, rigged):
    lines: list[str] = []
    config = config_of("cifar10", f"folder:{photos}", "birdsnap", suite__data_dir=str(tmp_path / "data"))
    found = run_suite(config, "model", tmp_path / "out", say=lines.append)
    report = to_json(found)
    assert [row["state"] for row in report["sets"]] == ["absent", "done", "absent"]
    assert problems(found) == {"absent": ["cifar10", "birdsnap"], "failed": []}
    cifar, birds = report["sets"][0]["reason"], report["sets"][2]["reason"]
    assert "tfds.builder('cifar10', data_dir='" in cifar
    assert f"put its pictures into {tmp_path}/data/birdsnap/test/CLASS/" in birds
    assert lines == [f"ABSENT: CIFAR-10: {cifar}", f"ABSENT: Birdsnap: {birds}"]
    table = as_table(found)
    assert f"ABSENT: CIFAR-10: {cifar}" in table
    html = (tmp_path / "out" / "report.html").read_text()
    assert "Of 3 data sets 2 absent: see below." in html
    assert "tfds.builder(&#39;cifar10&#39;" in html


def test_a_picture_that_does_not_decode_is_counted_and_the_rest_measured(photos, tmp_path, rigged):
    broken = tmp_path / "broken"
    for i, (label, order) in enumerate(PICTURES):
        save_picture(broken / NAMES[label] / f"{i:02d}.png", order)
    (broken / "ant" / "00.png").write_bytes(b"no picture")
    (broken / "cow" / "zz.png").write_bytes(b"")
    found = report_of(config_of(f"folder:{broken}"), "model", tmp_path / "out")["sets"][0]["zero_shot"]
    assert (found["count"], found["num_skipped"]) == (16, 2)
    assert [name for name, _ in found["first_skipped"]] == ["ant/00.png", "cow/zz.png"]
    assert found["value"] == pytest.approx(np.mean(RANKS[1:] == 0))
    html = (tmp_path / "out" / "report.html").read_text()
    assert "16 images of 7 classes; 2 more could not be decoded and are not counted" in html
    assert "ant/00.png: " in html


def test_a_folder_without_pictures_is_no_class_and_is_named(photos, tmp_path, rigged):
    data = shutil.copytree(photos, tmp_path / "photos")
    shutil.rmtree(data / "bee")
    (data / "bee").mkdir()
    found = report_of(config_of(f"folder:{data}"), "model", tmp_path / "out")["sets"][0]["zero_shot"]
    assert "bee" not in found["per_class"]
    assert (len(found["per_class"]), found["count"], found["chance"]) == (6, 14, 1 / 6)
    assert "the folder bee holds no picture, so it is no class" in (tmp_path / "out" / "report.html").read_text()


def test_a_set_that_fails_is_reported_and_the_others_are_measured(photos, tmp_path, rigged, monkeypatch):
    lines: list[str] = []
    nothing = tmp_path / "nothing"
    for name in NAMES[:2]:
        (nothing / name).mkdir(parents=True)
        (nothing / name / "a.png").write_bytes(b"no picture")
    report = report_of(config_of(f"folder:{nothing}", f"folder:{photos}"), "model", tmp_path / "out", say=lines.append)
    assert [row["state"] for row in report["sets"]] == ["failed", "done"]
    assert report["sets"][0]["reason"].startswith(
        f"zero_shot: none of the 2 pictures of folder:{nothing} can be used; the first is"
    )
    assert lines[0] == f"FAILED: folder:{nothing}: {report['sets'][0]['reason']}"


def test_features_that_are_not_finite_are_refused_with_the_first_picture(photos, tmp_path, rigged):
    row = report_of(config_of(f"folder:{photos}"), "damaged model of nan", tmp_path)["sets"][0]
    assert row["state"] == "failed"
    assert row["reason"] == (
        "zero_shot: "
        f"features of 17 of the 17 pictures of folder:{photos} are not finite, the first those of ant/00.png: its "
        "weights are damaged, or compute_dtype is too narrow for them"
    )


@pytest.mark.parametrize(
    ("states", "strict", "code"),
    [
        (["done"], True, 0),
        (["done", "absent"], False, 0),
        (["done", "absent"], True, 1),
        (["failed", "done"], False, 1),
    ],
)
def test_the_command_says_what_is_missing_and_its_exit_code_what_failed(
    states, strict, code, tmp_path, monkeypatch, capsys
):
    given = {}

    def measured(config, name, output, **options):
        given.update(config=config, name=name, output=output, **options)
        sets = [SetResults(name=f"set{i}", title=f"Set {i}", state=of, reason="why") for i, of in enumerate(states)]
        return Report(title="Sets", model={}, environment={}, settings={}, sets=sets)

    monkeypatch.setattr(evaluate, "run_suite", measured)
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    values = {"model": "some model", "output": str(tmp_path), "data_dir": "prepared", "strict": strict}
    with flagsaver.flagsaver(**values, config=folder.get_config()):
        assert evaluate.main() == code
    assert (given["name"], given["is_run"], given["config"].suite.data_dir) == ("some model", False, "prepared")
    printed = capsys.readouterr()
    assert printed.out.endswith(f"report.html, report.json and pictures are in {tmp_path}\n")
    for i, state in enumerate(states):
        if state != "done":
            assert f"{state.upper()}: Set {i}: why" in printed.out
            assert f"set{i}" in printed.err


class Elements(HTMLParser):
    """Which elements there are, what they load, and whether every one is closed in its turn."""

    VOID = ("meta", "img", "br", "line", "circle")

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.counts: Counter[str] = Counter()
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.counts[tag] += 1
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_the_report_is_whole_and_needs_no_network(photos, output, rigged):
    report_of(config_of(f"folder:{photos}"), "model <b>", output)
    html = (output / "report.html").read_text()
    page = Elements(html)
    assert page.open == []
    assert page.counts["link"] == page.counts["iframe"] == 0
    assert html.count("<script>") == page.counts["script"] == 1  # sorts tables; nothing else is loaded
    assert not re.search(r"fetch\(|XMLHttpRequest|import\(", html)
    assert "@import" not in html
    assert "url(" not in html
    assert page.loaded
    found = sets_of(output)[0]["zero_shot"]
    beside = {"report.json", *found["files"].values()}
    assert all(place.startswith(("data:image/", "#")) or place in beside for place in page.loaded)
    assert page.counts["img"] == 2 + len(found["mistakes"])
    assert f"{100 * found['value']:.1f} %" in html
    assert f"{100 * found['low']:.1f} to {100 * found['high']:.1f}" in html
    assert "model &lt;b&gt;" in html
    assert "model <b>" not in html
    assert found["mistakes"][0]["predicted"] in html
    assert rigged_model()[0].fingerprint in html


def test_the_papers_number_stands_beside_that_of_the_same_model_alone(photos, output, rigged, monkeypatch):
    monkeypatch.setattr(
        "clip_jax.evaluation.report.sections.paper_scores", lambda: {f"folder:{photos}": {"ViT-B/32": 0.632}}
    )
    report_of(config_of(f"folder:{photos}"), "ViT-B/32", output)
    assert "63.2 %" in (output / "report.html").read_text()
    report_of(config_of(f"folder:{photos}"), "other", output)
    html = (output / "report.html").read_text()
    assert "63.2 %" not in html
    assert "The paper has no number for this model on these sets." in html


def test_every_shipped_suite_is_valid_and_the_papers_has_all_27_sets():
    for module in (paper, scenes, folder):
        make_suite_config(module.get_config().to_dict())
    assert len(make_suite_config(paper.get_config().to_dict()).suite.datasets) == 27


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"suite__datasets": ("mnist", "dtd", "mnist")}, "suite.datasets names mnist twice"),
        ({"suite__measures": ()}, "suite.measures is empty: name some of zero_shot, linear_probe, few_shot"),
        (
            {"suite__measures": ("zeroshot",)},
            r"suite.measures\[0\]='zeroshot' must be one of 'zero_shot', 'linear_probe'",
        ),
        ({"suite__measures": ("few_shot",)}, "'few_shot', which compares with zero-shot: add 'zero_shot'"),
        ({"suite__num_examples": -1}, "suite.num_examples=-1 must be at least 0"),
        ({"zero_shot__prompts": ("bare", "two")}, "zero_shot.prompts has 'two': choose from own, bare, cifar10"),
        ({"zero_shot__headline": "imagenet7"}, "zero_shot.headline='imagenet7' is not one of zero_shot.prompts="),
        (
            {"zero_shot__templates": ("{} here", "a photo")},
            r"zero_shot.templates has 'a photo': each needs exactly one \{\}",
        ),
        ({"zero_shot__confidence": 1.0}, r"zero_shot.confidence=1.0 must lie in \(0, 1\)"),
        ({"few_shot__shots": (4, 2)}, r"few_shot.shots=\(4, 2\) must be numbers of at least 1, ascending"),
        ({"linear_probe__num_parallel": 0}, "linear_probe.num_parallel=0 must be at least 1"),
        ({"overlap__threshold": 2.0}, r"overlap.threshold=2.0 must lie in \[-1, 1\]"),
        ({"suite__measures": ("bias",)}, "'bias' needs bias.people, a CSV of pictures of people and their groups"),
        (
            {"suite__measures": ("zero_shot", "robustness")},
            "robustness compares '', which is not one of suite.datasets",
        ),
        (
            {"suite__sed": 1},
            r"unknown suite.sed \(did you mean seed\?\); suite has batch_size, compute_dtype",
        ),
    ],
)
def test_a_config_with_a_mistake_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        config_of("mnist", **changes)
