"""Labelled sets by name: that labels meet the right class names, whatever order the prepared data has."""

import re
import sys
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from clip_jax.evaluation.datasets import dataset_names, load_card
from clip_jax.evaluation.suite import labelled_sets
from clip_jax.evaluation.suite.labelled_sets import AbsentError, open_labelled_set
from input_pipeline.sources import DigitsSource


def save(file, value=0):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4, 3), value, np.uint8)).save(file)


class PreparedSource:
    """Stands for a prepared tfds set; `names` says what its labels are called, by data set."""

    names: ClassVar[dict] = {}
    opened: ClassVar[list] = []

    def __init__(self, name, split, data_dir):
        self.opened.append((name, split, data_dir))
        self.class_names = self.names[name]
        self.broken = []
        self.multi_label = name.startswith("voc")

    def __len__(self):
        return 3

    def fingerprint(self):
        return {}


@pytest.fixture
def prepared(monkeypatch):
    monkeypatch.setattr(labelled_sets, "TfdsSource", PreparedSource)
    monkeypatch.setattr(PreparedSource, "opened", [])
    names = {load_card(name).tfds: load_card(name).labels for name in dataset_names()}
    numbers = {load_card(name).tfds: len(load_card(name).class_names) for name in dataset_names()}
    monkeypatch.setattr(
        PreparedSource,
        "names",
        {k: tuple(sorted(v)) if v else tuple(map(str, range(numbers[k]))) for k, v in names.items() if k},
    )
    return PreparedSource


@pytest.mark.parametrize("name", [name for name in dataset_names() if load_card(name).tfds])
def test_labels_of_a_prepared_set_meet_their_names_in_any_order(name, prepared, tmp_path):
    card, found = load_card(name), open_labelled_set(name, tmp_path, 8)
    assert prepared.opened == [(card.tfds, split, str(tmp_path)) for split in (card.train, card.validation, card.test)]
    theirs = prepared.names[card.tfds]
    for label, c in enumerate(found.class_of["test"]):
        assert card.labels is None or card.labels[c] == theirs[label]
    assert sorted(found.class_of["test"]) == list(range(len(card.class_names)))
    assert found.multi_label == (name == "voc2007")
    assert (found.metric, found.title, found.templates) == (card.metric, card.title, card.templates)


def test_another_order_changes_the_classes_and_another_label_is_refused(prepared, tmp_path):
    prepared.names["food101"] = tuple(reversed(load_card("food101").labels))
    assert open_labelled_set("food101", tmp_path, 8).class_of["test"].tolist() == list(range(100, -1, -1))
    prepared.names["food101"] = ("haggis", *load_card("food101").labels[1:])
    with pytest.raises(ValueError, match="the labels of food101 are not those of its card: apple_pie, haggis"):
        open_labelled_set("food101", tmp_path, 8)
    prepared.names["mnist"] = tuple("012345678")
    with pytest.raises(ValueError, match="mnist has 9 labels where 10 were expected"):
        open_labelled_set("mnist", tmp_path, 8)


def test_folders_of_a_set_of_the_paper_go_by_name_or_number(tmp_path):
    for split in ("train", "test"):
        save(tmp_path / "gtsrb" / split / "00003" / "a.png")
        save(tmp_path / "gtsrb" / split / "stop" / "a.png")
    found = open_labelled_set("gtsrb", tmp_path, 8)
    assert set(found.splits) == {"train", "test"}
    stop = found.class_names.index("stop")
    assert found.class_of["test"].tolist() == [3, stop]
    save(tmp_path / "gtsrb" / "test" / f"{stop:05d}" / "a.png")
    with pytest.raises(ValueError, match="two folders of gtsrb/test are one class: 00003, 00014, stop"):
        open_labelled_set("gtsrb", tmp_path, 8)
    save(tmp_path / "kitti" / "test" / "4" / "a.png")
    with pytest.raises(ValueError, match="the folder '4' of kitti/test is neither one of its 4 class names nor"):
        open_labelled_set("kitti", tmp_path, 8)
    # A class whose name is a number goes by its name: "3" is the second one of 10, 3, 4, ...
    save(tmp_path / "clevr_counts" / "test" / "3" / "a.png")
    assert open_labelled_set("clevr_counts", tmp_path, 8).class_of["test"].tolist() == [1]


@pytest.mark.parametrize("name", [name for name in dataset_names() if not load_card(name).tfds])
def test_what_tfds_does_not_have_says_where_to_put_it(name, tmp_path):
    with pytest.raises(AbsentError, match=f"put its pictures into {tmp_path}/{name}/test/CLASS/ .*home: http"):
        open_labelled_set(name, tmp_path, 8)


def test_what_tfds_has_says_the_command(tmp_path):
    command = rf"prepare it with: python -c .*tfds.builder\('mnist', data_dir='{tmp_path}', file_format='array_record'"
    with pytest.raises(AbsentError, match=command):
        open_labelled_set("mnist", tmp_path, 8)
    (tmp_path / "voc" / "2012" / "4.0.0").mkdir(parents=True)  # another config of it
    with pytest.raises(AbsentError, match="no prepared dataset 'voc/2007'"):
        open_labelled_set("voc2007", tmp_path, 8)
    (tmp_path / "mnist" / "3.0.1").mkdir(parents=True)
    (tmp_path / "mnist" / "3.0.1" / "features.json").write_text("{}")
    (tmp_path / "mnist" / "3.0.1" / "dataset_info.json").write_text("cut")
    with pytest.raises(AbsentError, match=rf"'mnist' in '{tmp_path}' cannot be read \(.*; {command}"):
        open_labelled_set("mnist", tmp_path, 8)


def test_own_folders_and_tables(tmp_path):
    for name in ("sea_horse", "ant", "bee"):
        save(tmp_path / "own" / "train" / name / "a.png")
        if name != "bee":
            save(tmp_path / "own" / "test" / name / "a.png")
    found = open_labelled_set(f"folder:{tmp_path}/own", tmp_path, 8)
    assert found.class_names == ("ant", "bee", "sea horse")  # of both splits
    assert found.class_of["test"].tolist() == [0, 2]
    assert found.class_of["train"].tolist() == [0, 1, 2]
    whole = open_labelled_set(f"folder:{tmp_path}/own/train", tmp_path, 8)
    assert (set(whole.splits), whole.class_names) == ({"test"}, found.class_names)
    table = tmp_path / "table.csv"
    table.write_text("image,label\nown/train/ant/a.png,ant\nown/train/bee/a.png,bee\n")
    assert open_labelled_set(f"table:{table}", tmp_path, 8).class_names == ("ant", "bee")


def test_drawn_sets_have_three_disjoint_splits(tmp_path):
    found = open_labelled_set("scenes/shape", tmp_path, 32, num_examples=5)
    assert {split: source.seed for split, source in found.splits.items()} == {"test": 0, "train": 1, "validation": 2}
    assert {len(source) for source in found.splits.values()} == {5}
    assert found.class_names[0] == "a circle"


def test_digits_are_cut_in_three_and_say_what_they_need(tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    found = open_labelled_set("sklearn/digits", tmp_path, 8)
    assert {split: len(source) for split, source in found.splits.items()} == {
        "train": 1078,
        "validation": 360,
        "test": 359,
    }
    source = DigitsSource()
    assert len(source) == 1797
    record = source[0]
    assert (record["label"], record["image"].shape, record["image"].max()) == (0, (8, 8, 3), 239)  # 15 of 16
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(AbsentError, match="needs scikit-learn, which is not installed: pip install scikit-learn"):
        open_labelled_set("sklearn/digits", tmp_path, 8)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar11", "data set 'cifar11' is unknown: use a name of the paper's sets, 'scenes/NAME'"),
        ("scenes/cats", "labelled set 'cats' of the drawn scenes is unknown"),
        ("tfds/cifar10", "use 'tfds/NAME/TEST' or 'tfds/NAME/TEST/TRAIN'"),
        ("tfds/cifar10/test/train[:9]", "where TRAIN is the name of a split"),
        ("tfds/cifar10/test/train+validation", "where TRAIN is the name of a split"),
        ("tfds/cifar10/train/train", "'tfds/cifar10/train/train' trains probes on what they are tested on: name"),
        ("tfds/cifar10/test+train[90%:]/train", "name another split than 'train'"),
        ("movies:{tmp}", "unknown kind of data 'movies'; known: webdataset, "),
        ("tfds:{tmp}/cifar10:test", "no prepared dataset 'cifar10' in '{tmp}'; prepare it with: python"),
        ("tfds:{tmp}/cifar10", "tfds needs a path and a split such as train; got path '{tmp}/cifar10' and split ''"),
        ("webdataset:{tmp}/nowhere.tar", "no data at '{tmp}/nowhere.tar', which does not exist"),
        ("folder:{tmp}/nowhere", "there is no folder {tmp}/nowhere"),
        ("table:{tmp}/nowhere.csv", "there is no {tmp}/nowhere.csv"),
        ("table:{tmp}", "{tmp} has no test.csv or test.parquet; it has no tables"),
        ("folder:{tmp}/one", "folder:{tmp}/one has one class only, 'ant': a classifier needs two"),
        (
            "table:{tmp}/one/numbers.csv",
            "numbers.csv has no class names: a set to classify needs labels that are",
        ),
    ],
)
def test_what_cannot_be_opened_is_reported(name, message, tmp_path):
    save(tmp_path / "one" / "ant" / "a.png")
    (tmp_path / "one" / "numbers.csv").write_text("image,label\nant/a.png,3\n")
    with pytest.raises(ValueError, match=re.escape(message.format(tmp=tmp_path))):
        open_labelled_set(name.format(tmp=tmp_path), tmp_path, 8)
