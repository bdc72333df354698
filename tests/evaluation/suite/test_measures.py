"""Probes, few-shot, retrieval, robustness, overlap and bias within a suite, with the model of known answers."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rigged import NAMES, rigged_model, save_picture
from test_runner import LABELS, PICTURES, RANKS, TOP1, change_labels, config_of, draw_one_pixel, report_of

from clip_jax.evaluation.suite import comparisons, probes, runner
from clip_jax.evaluation.suite.results import to_json
from clip_jax.evaluation.suite.runner import as_table, problems, run_suite
from clip_jax.evaluation.suite.splits import draw_splits
from input_pipeline.sources import FolderSource

pytestmark = pytest.mark.usefixtures("compile_once")


@pytest.fixture(autouse=True)
def rigged(monkeypatch):
    monkeypatch.setattr(runner, "load", lambda name, **_: rigged_model())
    draw_one_pixel(monkeypatch)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Three classes in three splits; in train and validation the first pixel tells the class, in test not always."""
    root = tmp_path_factory.mktemp("split")
    rng = np.random.default_rng(0)
    for split, number in (("train", 11), ("validation", 5), ("test", 5)):
        for c in range(3):
            for i in range(number):
                others = rng.permutation([d for d in range(7) if d != c])[:3]
                best = (c + 1) % 3 if split == "test" and i == 0 else c
                order = [best, *(d for d in others if d != best)]
                save_picture(root / split / NAMES[c] / f"{i}.png", order)
    return root


def test_a_probe_learns_what_the_features_tell_as_scikit_learn_does(photos, tmp_path, monkeypatch):
    linear_model = pytest.importorskip("sklearn.linear_model")
    seen, given, linear_probe = [], {}, probes.linear_probe

    def recorded(*splits, **options):
        seen[:] = splits[:3]
        given.update(options)
        return linear_probe(*splits, **options)

    monkeypatch.setattr(probes, "linear_probe", recorded)
    config = config_of(
        f"folder:{photos}", measures=("zero_shot", "linear_probe", "few_shot"),
        few_shot__shots=(1, 4, 16), few_shot__num_seeds=2, linear_probe__num_parallel=3,
    )  # fmt: skip
    row = report_of(config, "model", tmp_path)["sets"][0]
    probed, few = row["linear_probe"], row["few_shot"]
    assert row["zero_shot"]["value"] == pytest.approx(12 / 15)  # one picture of each class shows another
    train, validation, test = seen
    peer = linear_model.LogisticRegression(C=1 / probed["strength"], tol=1e-8, max_iter=1000)
    peer.fit(np.concatenate([train.features, validation.features]), np.concatenate([train.labels, validation.labels]))
    assert probed["score"] == pytest.approx(peer.score(test.features, test.labels))
    assert probed["score"] > 0.6
    assert probed["low"] < probed["score"] < probed["high"]
    assert (probed["num_train"], probed["num_validation"], probed["count"]) == (33, 15, 15)
    assert probed["validation_score"] == 1
    assert given["num_parallel"] == 3
    assert [shot["labels_per_class"] for shot in few["shots"]] == [1, 4]
    assert few["left_out_shots"] == [16]
    assert few["matches_zero_shot"]["relation"] in ("equal", "at most", "more than")
    html = (tmp_path / "report.html").read_text()
    assert 'id="linear-probe"' in html
    assert 'id="few-shot"' in html


@pytest.mark.nightly
def test_a_probe_counts_the_pictures_of_each_split_that_do_not_decode(photos, tmp_path):
    data = shutil.copytree(photos, tmp_path / "data")
    for name in ("train/ant/0.png", "train/bee/1.png", "test/cow/0.png"):
        (data / name).write_bytes(b"no picture")
    report = run_suite(config_of(f"folder:{data}", measures=("linear_probe",)), "model", tmp_path / "out")
    found = to_json(report)["sets"][0]["linear_probe"]
    assert found["num_skipped"] == {"train": 2, "validation": 0, "test": 1}
    assert (found["num_train"], found["num_validation"], found["count"]) == (31, 15, 14)
    cells = as_table(report).splitlines()[2].split()
    assert cells[-2:] == ["14", "1"]
    html = (tmp_path / "out" / "report.html").read_text()
    probe = html.split('id="linear-probe"')[1]
    assert '<td class="n">14</td><td class="n">3</td><td>yes</td>' in probe


def test_a_class_without_training_images_leaves_only_the_probes_out(photos, tmp_path):
    for file in sorted((photos / "test").rglob("*.png")):
        for split in ("train", "test"):
            target = tmp_path / "data" / split / file.parent.name / file.name
            if split == "test" or file.parent.name != "bee":
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(file.read_bytes())
    config = config_of(f"folder:{tmp_path}/data", measures=("zero_shot", "linear_probe", "few_shot"))
    row = report_of(config, "model", tmp_path / "out")["sets"][0]
    assert (row["state"], row["zero_shot"]["value"]) == ("done", pytest.approx(12 / 15))
    reason = {"absent": "1 of 3 classes have no training images here, the first is 'bee'"}
    assert row["linear_probe"] == row["few_shot"] == reason


def test_what_fails_of_one_measure_leaves_the_others_and_is_reported(photos, tmp_path, monkeypatch):
    seen, lines = {}, []

    def linear_probe(train, validation, test, num_classes, **_):
        seen.update(train=train, validation=validation, test=test)
        raise ValueError("no strength is good enough")

    monkeypatch.setattr(probes, "linear_probe", linear_probe)
    measures = ("zero_shot", "linear_probe")
    config = config_of(f"folder:{photos}", measures=measures, linear_probe__features="joint")
    report = run_suite(config, "model", tmp_path, say=lines.append)
    row = to_json(report)["sets"][0]
    assert row["zero_shot"]["value"] == pytest.approx(12 / 15)
    assert row["state"] == "failed"
    assert row["reason"] == "linear_probe: no strength is good enough"
    assert lines == [f"FAILED: folder:{photos}: linear_probe: no strength is good enough"]
    assert problems(report)["failed"] == [f"folder:{photos}"]
    html = (tmp_path / "report.html").read_text()
    assert "linear_probe: no strength is good enough" in html
    assert "80.0 %" in html
    # The features that were asked for: after the projection, of unit length.
    np.testing.assert_allclose(np.linalg.norm(seen["train"].features, axis=1), 1, rtol=1e-6)
    assert [len(seen[split].labels) for split in ("train", "validation", "test")] == [33, 15, 15]


def test_a_set_without_training_split_is_reported(photos, tmp_path):
    shutil.copytree(photos / "test", tmp_path / "data" / "test")
    config = config_of(f"folder:{tmp_path}/data", measures=("zero_shot", "linear_probe", "few_shot"))
    row = report_of(config, "model", tmp_path)["sets"][0]
    assert row["state"] == "done"
    assert row["linear_probe"] == row["few_shot"] == {"absent": probes.NO_TRAINING}
    assert "not measured" in (tmp_path / "report.html").read_text()


def test_probes_divide_a_folder_without_splits_by_the_seed_and_say_so(photos, tmp_path, capsys):
    data = tmp_path / "data"
    for split in ("train", "test"):
        for file in (photos / split).rglob("*.png"):
            (data / file.parent.name).mkdir(parents=True, exist_ok=True)
            shutil.copy(file, data / file.parent.name / f"{split}-{file.name}")
    found = {}
    for seed in (0, 1):
        config = config_of(
            f"folder:{data}", measures=("zero_shot", "linear_probe", "few_shot"), suite__seed=seed,
            few_shot__shots=(1, 4), few_shot__num_seeds=2,
        )  # fmt: skip
        found[seed] = report_of(config, "model", tmp_path / "out")["sets"][0]
        assert f"so probes draw theirs by suite.seed={seed}: of each class a fifth to test" in capsys.readouterr().out
        assert f"suite.seed={seed}" in found[seed]["note"]
    row = found[1]
    assert row["zero_shot"]["count"] == 48  # all of it: 11 and 5 pictures of each of 3 classes
    probed = row["linear_probe"]
    assert (probed["num_train"], probed["num_validation"], probed["count"]) == (30, 9, 9)
    labels = np.repeat(np.arange(3), 16)
    drawn = draw_splits(labels, 1)
    assert np.array_equal(sum(drawn.values()), np.ones(48))
    assert [np.bincount(labels[rows]).tolist() for rows in drawn.values()] == [[10] * 3, [3] * 3, [3] * 3]
    assert not np.array_equal(drawn["test"], draw_splits(labels, 0)["test"])
    rows = pd.read_parquet(tmp_path / "out" / row["zero_shot"]["files"]["predictions"])[drawn["test"]]
    assert row["few_shot"]["zero_shot"] == pytest.approx((rows.label == rows.prediction).mean())


def test_a_class_too_small_to_be_divided_leaves_the_probe_out_with_the_reason(photos, tmp_path):
    shutil.copytree(photos / "test", tmp_path / "data")
    for i in range(3):
        (tmp_path / "data" / NAMES[1] / f"{i}.png").unlink()
    row = report_of(config_of(f"folder:{tmp_path}/data", measures=("zero_shot", "linear_probe")), "m", tmp_path)["sets"]
    reason = f"{probes.NO_TRAINING}, and {NAMES[1]!r} has 2 of the 3 pictures to draw one from"
    assert row[0]["linear_probe"] == {"absent": reason}


def test_too_few_images_for_the_fewest_shots_are_reported(photos, tmp_path):
    config = config_of(f"folder:{photos}", measures=("zero_shot", "few_shot"), few_shot__shots=(16,))
    few = report_of(config, "model", tmp_path)["sets"][0]["few_shot"]
    assert few == {"absent": "a class has 11 training images, fewer than the fewest shots, 16"}


def test_retrieval_finds_what_the_captions_say_and_counts_pictures_without(tmp_path):
    pairs = tmp_path / "pairs"
    for c in range(6):
        save_picture(pairs / f"{c}.png", [c])
        caption = {4: "gnu"}.get(c, NAMES[c])  # picture 4 is called by another name
        if c < 5:
            (pairs / f"{c}.txt").write_text(f"the {caption}\nsome {caption}\n")
    config = config_of(measures=("retrieval",), retrieval__source=f"folder:{pairs}")
    report = run_suite(config, "model", tmp_path / "out")
    found = to_json(report)["retrieval"]
    title, _, *recalls = as_table(report).splitlines()
    assert title.split("  ")[0] == "retrieval (5 images, 10 captions)"
    assert [line.split()[3:] for line in recalls] == [["0.800", "0.800", "1.000"], ["0.800", "1.000", "1.000"]]
    assert (found["images"], found["captions"], found["num_skipped"]) == (5, 10, 1)
    assert found["image_to_text_r@1"] == pytest.approx(4 / 5)
    assert found["text_to_image_r@1"] == pytest.approx(8 / 10)
    assert 'id="retrieval"' in (tmp_path / "out" / "report.html").read_text()


def test_retrieval_without_a_run_is_reported(tmp_path, photos):
    report = run_suite(config_of(f"folder:{photos}/test", measures=("zero_shot", "retrieval")), "model", tmp_path)
    assert report.retrieval.state == "absent"
    assert report.retrieval.reason.startswith("retrieval.source='run' needs --workdir, the run's own data: set")
    assert problems(report) == {"absent": ["retrieval"], "failed": []}


def test_robustness_compares_the_sets_and_the_reference_models(photos, tmp_path):
    flat = tmp_path / "flat"
    for i, (label, order) in enumerate(PICTURES):
        save_picture(flat / NAMES[label] / f"{i}.png", order)
    models = tmp_path / "models.json"
    names = (f"folder:{photos}/test", f"folder:{flat}")
    models.write_text(json.dumps({"weak": {names[0]: 0.5, names[1]: 0.3}, "strong": {names[0]: 0.9, names[1]: 0.7}}))
    config = config_of(
        *names, measures=("zero_shot", "robustness"), robustness__reference=names[0], robustness__shifts=(names[1],),
        robustness__reference_models=str(models), robustness__baseline="weak",
    )  # fmt: skip
    found = report_of(config, "model", tmp_path / "out")["robustness"]
    assert (found["reference"]["right"], found["reference"]["count"]) == (12, 15)
    shift = found["shifts"][names[1]]
    assert (shift["right"], shift["count"]) == (np.sum(RANKS == 0), len(RANKS))
    assert shift["relative_robustness"] == pytest.approx(TOP1 - 0.3)
    assert shift["note"].endswith("has other classes than " + names[0] + ", so that their accuracies do not compare")
    assert shift["note"] in (tmp_path / "out" / "report.html").read_text()
    for content, message in (
        ("[1]", "must be a JSON file of {model: {set: accuracy}}"),
        ('{"weak": {"a": 50}}', "reference model 'weak' has accuracy 50.0 on 'a'"),
        ('{"strong": {"a": 0.5}}', "baseline 'weak' is not among the reference models: strong"),
    ):
        models.write_text(content)
        with pytest.raises(ValueError, match=re.escape(message)):  # before anything is measured
            report_of(config, "model", tmp_path / "not begun")
    assert not (tmp_path / "not begun").exists()


def test_a_probe_of_the_reference_set_is_measured_under_each_shift(photos, tmp_path):
    for i in (0, 1):  # of every class the picture that shows another one, and one that does not
        for folder in sorted((photos / "test").iterdir()):
            target = tmp_path / f"shift{i}" / folder.name / f"{i}.png"
            target.parent.mkdir(parents=True)
            shutil.copy(folder / f"{i}.png", target)
    sets = (f"folder:{photos}", f"folder:{tmp_path}/shift0", f"folder:{tmp_path}/shift1")
    settings = {"robustness__reference": sets[0], "robustness__shifts": sets[1:], "robustness__adapt": True}
    settings["linear_probe__num_parallel"] = 3  # as above, whose programs it shares
    config = config_of(*sets, measures=("zero_shot", "linear_probe", "robustness"), **settings)
    report = report_of(config, "model", tmp_path / "out")
    probed = report["sets"][0]["linear_probe"]["score"]
    assert report["robustness"]["adapted"] == dict(zip(sets, (probed, 0.0, 1.0)))
    assert "probe of the set without shift" in (tmp_path / "out" / "report.html").read_text()
    bare = config_of(
        sets[1], sets[2], measures=("zero_shot", "robustness"), robustness__reference=sets[1],
        robustness__shifts=(sets[2],), robustness__adapt=True,
    )  # fmt: skip
    refused = report_of(bare, "model", tmp_path / "bare")["robustness"]
    assert refused["state"] == "failed"
    assert refused["reason"].startswith(
        f"robustness.adapt=True needs a training split: the set has no training split here, {sets[1]}"
    )


def test_robustness_of_a_set_without_accuracy_is_reported(tmp_path, monkeypatch):
    change_labels(monkeypatch, several=True)
    names = (f"folder:{tmp_path}/clean", f"folder:{tmp_path}/shifted")
    for name in names:
        for i, (label, order) in enumerate(PICTURES):
            save_picture(Path(name.removeprefix("folder:")) / NAMES[label] / f"{i}.png", order)
    config = config_of(
        *names, measures=("zero_shot", "robustness"), robustness__reference=names[0], robustness__shifts=names[1:]
    )
    found = report_of(config, "model", tmp_path / "out")["robustness"]
    assert found == {"state": "absent", "reason": f"it needs zero-shot accuracies of {', '.join(names)}"}


def test_the_data_of_a_run_is_opened_only_for_what_needs_it(photos, tmp_path, monkeypatch):
    def gone(*_):
        raise ValueError("the data has moved")

    monkeypatch.setattr(runner, "open_run_sources", gone)
    data = f"folder:{photos}/test"
    report = report_of(config_of(data), "model", tmp_path / "out", is_run=True)
    assert report["sets"][0]["state"] == "done"
    with pytest.raises(ValueError, match="the data has moved"):
        report_of(config_of(data, measures=("retrieval",)), "model", tmp_path / "out", is_run=True)


@pytest.mark.parametrize("options", [{"is_run": True}, {}])
def test_a_data_path_that_no_measure_reads_is_refused(options, photos, tmp_path):
    with pytest.raises(ValueError, match=r"^--data_path=here would not be read: it is of a run's --workdir"):
        run_suite(config_of(f"folder:{photos}"), "model", tmp_path / "out", data_path="here", **options)


@pytest.mark.parametrize("embedding", ["perceptual", "model"])
def test_overlap_finds_the_copies_among_the_training_images(embedding, photos, tmp_path):
    training = tmp_path / "training"
    training.mkdir()
    test = sorted((photos / "test").rglob("*.png"))
    for i, file in enumerate(test[:4]):
        (training / f"{i}.png").write_bytes(file.read_bytes())
    config = config_of(
        f"folder:{photos}/test", measures=("zero_shot", "overlap"), overlap__training=f"folder:{training}",
        overlap__threshold=0.9999, overlap__embedding=embedding,
    )  # fmt: skip
    report = report_of(config, "model", tmp_path / "out")
    found = report["sets"][0]["overlap"]
    assert found["overlap"]["count"] == 4
    assert found["overlap"]["right"] == 3  # the first picture of a class shows another
    assert (found["clean"]["count"], found["all"]["count"], found["training_images"]) == (11, 15, 4)
    assert 'id="overlap-with-training"' in (tmp_path / "out" / "report.html").read_text()


def test_bias_is_measured_of_the_people_that_are_listed(tmp_path):
    listing = tmp_path / "people.csv"
    lines = ["image,group"]
    for i in range(4):
        save_picture(tmp_path / f"{i}.png", [i])
        lines.append(f"{i}.png,{'ab'[i % 2]}")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    lines.append("broken.png,c")
    listing.write_text("\n".join(lines))
    config = config_of(measures=("bias",), bias__people=str(listing))
    found = report_of(config, "model", tmp_path / "out")["bias"]
    assert (found["count"], found["num_skipped"]) == (4, 1)
    assert set(found["label_sets"]["default"]["group"]) == {"a", "b"}
    wrong = config_of(measures=("bias",), bias__people=str(listing), bias__group_columns=("race",))
    with pytest.raises(ValueError, match="has no column 'race': there are image, group"):
        report_of(wrong, "model", tmp_path / "not begun")
    assert not (tmp_path / "not begun").exists()
    html = (tmp_path / "out" / "report.html").read_text()
    assert found["text"].split("\n\n")[0][:60] in html
    assert "4 pictures; 1 more could not be decoded and are not counted." in html


def test_sources_by_kind_and_path(tmp_path):
    save_picture(tmp_path / "a.png", [0])
    source = comparisons.FilesSource([tmp_path / "a.png"])
    assert isinstance(runner.open_source("retrieval.source", f"folder:{tmp_path}", None, "train"), FolderSource)
    assert source[0]["id"] == "a.png"
    with pytest.raises(ValueError, match=r"overlap.training='photos' must be 'run' or KIND:PATH, as webdataset:DIR"):
        runner.open_source("overlap.training", "photos", None, "train")
    assert len(LABELS) == 17
