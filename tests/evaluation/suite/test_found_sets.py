"""Labelled folders and tables as people have them."""

import io
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from clip_jax.evaluation.suite.labelled_sets import LabelledSet, open_labelled_set


def put_pictures(folder: Path, *names: str) -> Path:
    buffer = io.BytesIO()
    Image.new("RGB", (9, 9)).save(buffer, "PNG")
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(buffer.getvalue())
    return folder


def opened(name: str, link_root: str = "") -> LabelledSet:
    return open_labelled_set(name, Path("none"), 9, link_root=link_root)


@pytest.mark.parametrize(
    "names", [("train", "val"), ("Train", "Valid"), ("training", "validation"), ("train2014", "val2014")]
)
def test_a_validation_split_is_measured_where_there_is_no_test(tmp_path, names):
    put_pictures(tmp_path, *(f"{split}/{name}/0.png" for split in names for name in ("cat", "dog", "fox")))
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "readme.md").touch()
    found = opened(f"folder:{tmp_path}")
    assert (found.class_names, set(found.splits)) == (("cat", "dog", "fox"), {"test", "train"})
    assert found.splits["test"].fingerprint() == opened(f"folder:{tmp_path / names[1]}").splits["test"].fingerprint()
    assert found.remarks == (f"there is no test split, so {names[1]} is measured",)
    assert found.note == found.remarks[0]


def test_shards_whose_labels_have_names_are_one_undivided_set(tmp_path):
    put_pictures(tmp_path, "a.png", "b.png")
    with tarfile.open(tmp_path / "shard.tar", "w") as shard:
        for key, label in (("0", "sea_horse"), ("1", "ant")):
            (tmp_path / "label").write_text(label)
            shard.add(tmp_path / "a.png", f"{key}.png")
            shard.add(tmp_path / "label", f"{key}.cls")
    found = opened(f"webdataset:{tmp_path}/shard.tar")
    assert (found.class_names, set(found.splits), found.undivided) == (("ant", "sea horse"), {"test"}, True)
    assert [found.splits["test"][i]["label"] for i in range(2)] == [1, 0]


def test_all_three_splits_and_classes_that_are_called_as_splits(tmp_path):
    names = [f"{split}/{name}/0.png" for split in ("train", "val", "test") for name in ("cat", "dog")]
    found = opened(f"folder:{put_pictures(tmp_path / 'a', *names)}")
    assert (set(found.splits), found.remarks) == ({"train", "validation", "test"}, ())
    found = opened(f"folder:{put_pictures(tmp_path / 'b', 'train/0.png', 'bus/0.png', 'car/0.png')}")
    assert found.class_names == ("bus", "car", "train")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("train/cat/0.png", "train/dog/0.png"), "holds train alone, no split to measure"),
        (("test/cat/0.png", "cat/0.png"), "holds test, the name of a split, and cat, which has pictures, too"),
        (("val/a/0.png", "valid/a/0.png"), "holds val and valid, which are both the validation split: leave one"),
    ],
)
def test_splits_that_could_mean_two_things_are_errors(tmp_path, names, message):
    with pytest.raises(ValueError, match=message):
        opened(f"folder:{put_pictures(tmp_path, *names)}")


def test_two_tables_of_one_split_are_an_error_and_none_is_dropped(tmp_path):
    put_pictures(tmp_path, "0.png", "1.png")
    (tmp_path / "test.csv").write_text("image,label\n0.png,cat\n1.png,dog\n")
    (tmp_path / "test.tsv").write_text("image\tlabel\n0.png\tcat\n1.png\tdog\n")
    with pytest.raises(ValueError, match=r"holds test.csv and test.tsv, which are both the test split: leave one"):
        opened(f"table:{tmp_path}")


def test_hidden_pictures_and_a_systems_folders_make_no_class_of_a_split(tmp_path, monkeypatch):
    names = [f"{split}/{name}/0.png" for split in ("train", "val") for name in ("cat", "dog")]
    put_pictures(tmp_path / "data", *names, "notes/._x.png", "more/@eaDir/0.png")
    monkeypatch.setenv("HOME", str(tmp_path))
    found = opened("folder:~/data")
    assert (found.class_names, set(found.splits)) == (("cat", "dog"), {"test", "train"})


def test_a_linked_class_is_followed_where_the_user_allows_it_and_never_lost(tmp_path):
    put_pictures(tmp_path, "store/dogs/0.png", "data/cat/0.png", "data/fox/0.png")
    (tmp_path / "data" / "dog").symlink_to("../store/dogs")
    with pytest.raises(ValueError, match=r"dog is a link to a folder: --link_root=DIR, or link_root of the config's"):
        opened(f"folder:{tmp_path / 'data'}")
    assert opened(f"folder:{tmp_path / 'data'}", str(tmp_path / "store")).class_names == ("cat", "dog", "fox")
    splits = put_pictures(tmp_path / "splits", "train/cat/0.png", "train/fox/0.png")
    (splits / "val").symlink_to(tmp_path / "data")
    with pytest.raises(ValueError, match=r"the split .*val is a link to a folder"):
        opened(f"folder:{splits}")


def test_tables_of_splits_whatever_their_suffix(tmp_path):
    put_pictures(tmp_path, "a.png", "b.png")
    for name in ("train.CSV", "val.tsv"):
        separator = "\t" if name.endswith("tsv") else ","
        rows = [("image", "label"), ("a.png", "ant"), ("b.png", "bee")]
        (tmp_path / name).write_text("".join(f"{separator.join(row)}\n" for row in rows))
    found = opened(f"table:{tmp_path}")
    assert (found.class_names, set(found.splits)) == (("ant", "bee"), {"test", "train"})
    assert "there is no test split, so val.tsv is measured" in found.remarks
