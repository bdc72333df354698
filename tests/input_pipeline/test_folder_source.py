import io
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from input_pipeline.image_formats import IMAGE_SUFFIXES
from input_pipeline.sources import BrokenRecordError, FilteredSource, Filters, FolderSource, make_source, remote
from input_pipeline.sources.links import FIX


def picture(seed: int, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (11, 13, 3), np.uint8)).save(buffer, form)
    return buffer.getvalue()


def write(folder: Path, files: dict[str, bytes]) -> str:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return str(folder)


def ids(source: FolderSource) -> list[str]:
    return [source[i]["id"] for i in range(len(source))]


def test_all_pictures_below_the_folder_in_order_with_the_captions_beside_them(tmp_path):
    files = {
        "b.jpg": picture(0, "JPEG"),
        "b.txt": b"first\n\n  second \r\nthird",
        "a/z.PNG": picture(1),
        "a/z.txt": b"\xef\xbb\xbfz\xc3\xa4h\n",
        "a/deep/er/c.webp": picture(2, "WEBP"),
        "c.tiff": picture(3, "TIFF"),
        "c.txt": b" \n",
        "d.gif": picture(4, "GIF"),
        "notes.txt": b"no picture",
        "table.csv": b"image,caption",
        ".hidden.png": picture(5),
        ".folder/e.png": picture(6),
    }
    source = make_source("folder", write(tmp_path, files))
    assert isinstance(source, FolderSource)
    assert [source[i] for i in range(len(source))] == [
        {"id": "a/deep/er/c.webp", "image": files["a/deep/er/c.webp"], "captions": ()},
        {"id": "a/z.PNG", "image": files["a/z.PNG"], "captions": ("zäh",)},
        {"id": "b.jpg", "image": files["b.jpg"], "captions": ("first", "second", "third")},
        {"id": "c.tiff", "image": files["c.tiff"], "captions": ()},
        {"id": "d.gif", "image": files["d.gif"], "captions": ()},
    ]
    assert [source.captions(i) for i in range(5)] == [source[i]["captions"] for i in range(5)]
    assert (source.broken, source.class_names) == ([], None)
    with pytest.raises(IndexError, match=r"^record 5 of 5$"):
        source[5]


def test_folders_as_classes(tmp_path):
    names = ["dog/1.png", "cat/2.png", "cat/young/3.png", "0.png"]
    source = FolderSource(write(tmp_path, {name: picture(7) for name in names}), class_folders=True)
    assert source.class_names == ("cat", "dog")
    assert [(source[i]["id"], source[i]["label"]) for i in range(3)] == [
        ("cat/2.png", 0),
        ("cat/young/3.png", 0),
        ("dog/1.png", 1),
    ]
    assert source.broken == [("0.png", "not in the folder of a class")]
    assert source.fingerprint() != FolderSource(str(tmp_path)).fingerprint()


def test_the_fingerprint_is_of_names_and_sizes_not_of_the_folders_path(tmp_path):
    files = {"a.png": picture(0), "b/c.png": picture(1), "a.txt": b"a cat"}

    def fingerprint(place: str, changes: dict[str, bytes]) -> dict:
        return FolderSource(write(tmp_path / place, {**files, **changes})).fingerprint()

    first = fingerprint("first", {})
    assert first == fingerprint("second", {}) == FolderSource(str(tmp_path / "first") + "/").fingerprint()
    assert set(first) == {"kind", "length", "digest"}
    others = [{"a.png": picture(0) + b"."}, {"b/d.png": picture(1)}, {"a.txt": b"a dog."}, {"b/c.txt": b"a"}]
    digests = {fingerprint(f"other{i}", changes)["digest"] for i, changes in enumerate(others)}
    assert len(digests | {first["digest"]}) == 1 + len(others)


def test_links_count_within_the_folder_and_are_refused_where_they_lead_out(tmp_path):
    root = tmp_path / "root"
    write(root, {"a/good.png": picture(0), "texts/one": b"a cat", "p.png": picture(1), "q.png": picture(2)})
    write(tmp_path, {"outside.png": picture(3), "rootless/x.png": picture(4), "outside.txt": b"private"})
    for name, target in {
        "b.png": "a/good.png",  # within
        "p.txt": "texts/one",
        "c.png": "../outside.png",
        "d.png": str(tmp_path / "rootless" / "x.png"),  # a neighbour whose name begins alike
        "e.png": "nowhere.png",
        "f.png": "c.png",  # by way of another link
        "q.txt": "../outside.txt",
        "g": "..",
        "h": "a",
    }.items():
        (root / name).symlink_to(target)
    os.mkfifo(root / "i.png")
    (tmp_path / "link").symlink_to(root)
    out = f"a link that leads out of the folder: {FIX}"
    for path in (root, tmp_path / "link"):
        source = FolderSource(str(path))
        assert sorted(source.broken) == [
            ("c.png", f"c.png is {out}"),
            ("d.png", f"d.png is {out}"),
            ("e.png", "e.png is not a file"),
            ("f.png", f"f.png is {out}"),
            ("g", f"a link to a folder: {FIX}"),
            ("h", f"a link to a folder: {FIX}"),
            ("i.png", "i.png is not a file"),
            ("q.png", f"q.txt is {out}"),
        ]
        assert len(source) == 3
        assert {source[i]["id"]: source[i]["image"] for i in range(3)} == {
            "a/good.png": picture(0),
            "b.png": picture(0),
            "p.png": picture(1),
        }
        assert source.captions(2) == ("a cat",)


def test_what_cannot_be_read_is_a_broken_record(tmp_path):
    files = {f"{name}.png": picture(0) for name in "abcdef"} | {"e.png": b""}
    files |= {"b.txt": b"\xff", "c.txt": b"x" * (2**20 + 1), "d.txt": b"x" * 2**20, "f.txt": b"gone soon"}
    source = FolderSource(write(tmp_path, files))
    assert len(source) == 6
    (tmp_path / "a.png").unlink()
    (tmp_path / "f.txt").unlink()
    reasons = {
        0: ("a.png", "a.png: No such file or directory"),
        1: ("b.png", "text is not valid UTF-8"),
        2: ("c.png", "c.txt has more than 1048576 bytes"),
        4: ("e.png", "empty image"),
        5: ("f.png", "f.txt: No such file or directory"),
    }
    for index, (record_id, reason) in reasons.items():
        with pytest.raises(BrokenRecordError) as error:
            source[index]
        assert (error.value.record_id, error.value.reason) == (record_id, reason)
    assert source[3]["captions"] == ("x" * 2**20,)


def test_a_disk_that_fails_for_a_moment_is_asked_again_and_its_failures_are_not_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIP_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "FIRST_WAIT_S", 0.001)
    files = {"a.png": picture(0), "b.png": picture(1), "c.png": picture(2)[:20], "d.png": picture(3)}
    texts = {f"{name}.txt": name.encode() for name in "abc"}
    source = FolderSource(write(tmp_path / "data", files | texts))
    pread, failures = os.pread, {"size": 4}

    def flaky(*arguments):
        if failures["size"]:
            failures["size"] -= 1
            raise OSError(5, "Input/output error")
        return pread(*arguments)

    monkeypatch.setattr(os, "pread", flaky)
    assert source[0]["image"] == files["a.png"]
    failures["size"] = 5  # the first file that is read
    filters = [Filters(min_side=1)]
    chosen = FilteredSource(source, filters)
    assert (ids(chosen), chosen.broken[0]) == (["b.png"], ("a.png", "a.txt: Input/output error"))
    again = FilteredSource(source, filters)
    assert (ids(again), [name for name, _ in again.broken]) == (["a.png", "b.png"], ["c.png", "d.png"])
    assert again.broken[1] == ("d.png", "no caption")
    failures["size"] = 99  # and what is broken for ever is kept
    kept = FilteredSource(source, filters)
    assert (kept.broken, len(kept)) == (again.broken, 2)


def test_names_that_are_not_utf8_and_folders_that_cannot_be_entered_are_listed(tmp_path, monkeypatch):
    write(tmp_path, {"a.png": picture(0), "locked/b.png": picture(1)})
    (tmp_path / os.fsdecode(b"\xff.png")).write_bytes(picture(2))
    scandir = os.scandir

    def refuse(path):
        if os.fspath(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    source = FolderSource(str(tmp_path))
    assert ids(source) == ["a.png"]
    assert sorted(source.broken) == [("?.png", "the name is not UTF-8"), ("locked", "Permission denied")]


def test_a_pickled_source_is_the_same(tmp_path):
    source = FolderSource(write(tmp_path, {"x/a.png": picture(0), "y/b.png": picture(1)}), class_folders=True)
    again = pickle.loads(pickle.dumps(source))
    assert [again[i] for i in range(2)] == [source[i] for i in range(2)]
    assert again.fingerprint() == source.fingerprint()


def test_errors_name_the_path(tmp_path):
    write(tmp_path, {"file.png": picture(0), "empty/.keep": b"", "links/text.txt": b"a"})
    (tmp_path / "links" / "a.png").symlink_to(tmp_path / "file.png")
    for path, message in {
        "missing": "no data at '{}', which does not exist: expected a folder of pictures",
        "file.png": "no data at '{}', which is not a folder: expected a folder of pictures",
        "empty": f"no usable record in {{}}: expected pictures ({', '.join(IMAGE_SUFFIXES)}); not read: 1 hidden",
        "links": "no usable record in {}: a.png: a.png is a link that leads out of the folder: ",
    }.items():
        with pytest.raises(ValueError, match=f"^{re.escape(message.format(tmp_path / path))}"):
            FolderSource(str(tmp_path / path))
    with pytest.raises(ValueError, match=r"^gs://bucket/a is remote"):
        FolderSource("gs://bucket/a")
