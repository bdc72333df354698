import errno
import hashlib
import json
import os
import threading

import numpy as np
import pytest

from input_pipeline import storage
from input_pipeline.prepare.folder import LocalFolder
from input_pipeline.storage import Difference, atomic_path, check_unchanged, claim, differences


def test_a_failed_write_leaves_the_old_file_and_no_partial_one(tmp_path):
    file = tmp_path / "a"
    file.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_path(file) as partial:
        (partial.write_text("half"), partial.with_name(f"{partial.name}.of_a_library").write_text("half"), 1 / 0)
    assert (file.read_text(), os.listdir(tmp_path)) == ("old", ["a"])


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_is_renamed_when_the_block_ends(tmp_path, durable):
    file = tmp_path / "a"
    file.write_text("old")
    with atomic_path(file, durable=durable) as partial:
        partial.write_text("new")
        inode = partial.stat().st_ino
        assert file.read_text() == "old"
    assert (file.read_text(), file.stat().st_ino, os.listdir(tmp_path)) == ("new", inode, ["a"])


def test_a_durable_file_is_flushed_before_it_gets_its_name(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: flushed.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    storage.write_bytes(tmp_path / "a", b"", durable=True)
    assert [os.path.basename(path).split(".")[1] for path in flushed[:1]] == ["a"]
    assert flushed[0].endswith(".partial")
    assert flushed[1:] == [str(tmp_path)]


def test_two_writers_of_one_process_do_not_meet(tmp_path):
    with atomic_path(tmp_path / "a") as first:
        first.write_text("first")
        with atomic_path(tmp_path / "a") as second:
            second.write_text("second")
        assert (tmp_path / "a").read_text() == "second"
    assert ((tmp_path / "a").read_text(), os.listdir(tmp_path)) == ("first", ["a"])


def test_without_replacement_the_first_writer_wins(tmp_path, monkeypatch):
    storage.write_bytes(tmp_path / "a", b"first", replace=False)
    storage.write_bytes(tmp_path / "a", b"second", replace=False)
    assert ((tmp_path / "a").read_bytes(), os.listdir(tmp_path)) == (b"first", ["a"])

    def refuse(*_):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    storage.write_bytes(tmp_path / "b", b"written", replace=False)
    assert ((tmp_path / "b").read_bytes(), sorted(os.listdir(tmp_path))) == (b"written", ["a", "b"])


def test_text_and_json_have_fixed_bytes(tmp_path):
    storage.write_text(tmp_path / "a", "é\n")
    storage.write_json(tmp_path / "b", {"b": [1], "a": "é"})
    assert (tmp_path / "a").read_bytes() == b"\xc3\xa9\n"
    assert (tmp_path / "b").read_bytes() == b'{\n  "b": [\n    1\n  ],\n  "a": "\\u00e9"\n}\n'


def test_checksums_and_digests_are_sha256(tmp_path):
    whole = hashlib.sha256(b"ab\0c").hexdigest()
    (tmp_path / "a").write_bytes(b"ab\0c")
    assert storage.checksum([b"ab", np.frombuffer(b"\0c", np.uint8).data]) == whole
    assert storage.checksum_file(tmp_path / "a") == whole
    assert storage.digest(b"ab", b"c") == whole[:16]
    canonical = hashlib.sha256(b'{"a": [1, null], "b": 2}').hexdigest()
    assert storage.checksum_json({"b": 2, "a": (1, None)}) == canonical
    assert storage.digest_json({"b": 2, "a": (1, None)}) == canonical[:16]


def test_differences_are_named_by_their_path():
    old = {"b": {"x": 1, "gone": 2}, "a": [1, {"y": 2}, 3], "same": {}, "kind": {"z": 1}}
    new = {"b": {"x": 1, "new": None}, "a": (1, {"y": 5}), "same": {}, "kind": 7}
    found = differences(old, new)
    assert list(map(str, found)) == [
        "a[1].y was 2, is 5",
        "a[2] was 3, is missing",
        "b.gone was 2, is missing",
        "b.new was missing, is None",
        "kind was {'z': 1}, is 7",
    ]
    assert [name for name, _, _ in differences(old, new, None)] == ["a[1].y", "a[2]", "b.gone", "kind"]
    assert differences(old, old) == []
    assert list(map(str, differences([1], [1, None], None))) == ["[1] was missing, is None"]
    assert str(Difference("a", "x" * 300, 1)) == f"a was '{'x' * 199}, is 1"


def test_a_long_list_is_cut_and_counted():
    assert storage.listed([1, 2, 3], most=3) == "1; 2; 3"
    assert storage.listed([1, 2, 3], most=2) == "1; 2; and 1 more"
    many = storage.listed(differences({"a": list(range(30))}, {"a": list(range(1, 31))}))
    assert many.startswith("a[0] was 0, is 1; ")
    assert many.endswith("a[11] was 11, is 12; and 18 more")


def test_only_what_may_change_changes():
    old, new = {"size": 1, "versions": {"a": 1}}, {"size": 1, "versions": {"a": 2}}
    check_unchanged(old, new, holds="x", fix="y", may_change=("versions.",))
    with pytest.raises(ValueError, match=r"^out holds shards of another run: versions\.a was 1, is 2\. Use another$"):
        check_unchanged(old, new, holds="out holds shards of another run", fix="Use another")


OPTIONS = {"holds": "shards of another run", "products": r"\.npy$", "fix": "use another --output"}


def test_a_folder_is_claimed_by_the_first_record_and_continued_by_an_equal_one(tmp_path):
    folder = LocalFolder(str(tmp_path / "out"))
    claim(folder, "record.json", b'{"size": 1}', **OPTIONS)
    folder.write("0.npy", b"")
    claim(folder, "record.json", b'{ "size": 1 }', **OPTIONS)
    assert folder.read("record.json") == b'{"size": 1}'
    message = r"out holds shards of another run: size was 1, is 2; x was None, is 3\. Use another --output$"
    with pytest.raises(ValueError, match=message):
        claim(folder, "record.json", b'{"size": 2, "x": 3}', **OPTIONS)
    claim(folder, "record.json", b'{"size": 2}', **OPTIONS, may_change=("size",))
    assert folder.read("record.json") == b'{"size": 1}'


def test_a_damaged_or_missing_record_is_refused(tmp_path):
    folder = LocalFolder(str(tmp_path))
    for damaged in (b"{", b"[]", b"\xff"):
        folder.write("record.json", damaged)
        with pytest.raises(ValueError, match=r"^record\.json in .* is damaged: use another --output$"):
            claim(folder, "record.json", b"{}", **OPTIONS)
    (tmp_path / "record.json").unlink()
    folder.write("b.npy", b"")
    folder.write("a.npy", b"")
    with pytest.raises(ValueError, match=r"holds a\.npy but no record\.json: use another --output$"):
        claim(folder, "record.json", b"{}", **OPTIONS)


def test_of_claims_at_the_same_time_one_wins(tmp_path):
    barrier, refused = threading.Barrier(8), []

    def work(number: int) -> None:
        barrier.wait()
        try:
            claim(LocalFolder(str(tmp_path)), "record.json", json.dumps({"x": number % 2}).encode(), **OPTIONS)
        except ValueError:
            refused.append(number % 2)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winner = json.loads((tmp_path / "record.json").read_text())["x"]
    assert refused == [1 - winner] * 4
