import io
import os
import pickle
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from input_pipeline.examples import Examples, collate
from input_pipeline.pipeline import BatchIterator
from input_pipeline.sources import (
    ArrayRecordSource,
    BrokenRecordError,
    TableSource,
    TfdsSource,
    WebDatasetSource,
    make_source,
    opener,
    remote,
    tar_index,
    write_array_record,
)
from input_pipeline.sources.tar_index import open_index


class FaultyFileSystem(MemoryFileSystem):
    """A file system of this process whose reads hang or fail as `faults` says, one entry a read, and whose answers to
    `info` and `ls` fail as `refused` says, the number of failures by path."""

    protocol = "faulty"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    faults: ClassVar[list[float | Exception]] = []
    reads: ClassVar[list[tuple[str, int, int]]] = []
    refused: ClassVar[dict[str, int]] = {}

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("faulty://", "memory://"))

    def cat_file(self, path, start=None, end=None, **options):
        self.reads.append((path, start, end))
        if self.faults:
            fault = self.faults.pop(0)
            if isinstance(fault, Exception):
                raise fault
            time.sleep(fault)
        return super().cat_file(path, start, end)

    def info(self, path, **options):
        self._refuse(path)
        return super().info(path, **options)

    def ls(self, path, detail=True, **options):
        self._refuse(path)
        return super().ls(path, detail, **options)

    def _refuse(self, path):
        path = self._strip_protocol(path)
        if self.refused.get(path, 0) > 0:
            self.refused[path] -= 1
            raise OSError("503 slow down")


fsspec.register_implementation("faulty", FaultyFileSystem, clobber=True)


@pytest.fixture(autouse=True)
def _quick_and_elsewhere(tmp_path, monkeypatch):
    """Indices and copies go to a folder of the test; nobody waits long for a second try."""
    monkeypatch.setenv("CLIP_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(remote, "LONGEST_WAIT_S", 0.002)
    FaultyFileSystem.store.clear()
    FaultyFileSystem.faults.clear()
    FaultyFileSystem.reads.clear()
    FaultyFileSystem.refused.clear()


def jpeg(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (11, 13, 3), np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def tar_bytes(count: int, first: int = 0) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for i in range(first, first + count):
            for name, data in ((f"k{i}.jpg", jpeg(i)), (f"k{i}.txt", f"picture {i}".encode())):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def put(name: str, data: bytes) -> str:
    FaultyFileSystem().pipe_file(f"/{name}", data)
    return f"faulty://{name}"


def read_all(source) -> list[dict]:
    return [source[i] for i in range(len(source))]


def test_a_range_is_the_same_in_every_file_system(tmp_path):
    data = bytes(range(200))
    (tmp_path / "a").write_bytes(data)
    for path in (str(tmp_path / "a"), f"file://{tmp_path}/a", put("a", data)):
        for offset, size in ((0, 200), (3, 5), (190, 50), (300, 5), (7, 0)):
            assert opener.read_range(path, offset, size) == data[offset : offset + size]
        assert opener.read_file(path) == data
        assert opener.read_file(path, 7) == data[:7]
        assert opener.file_size(path) == 200
        assert opener.is_file(path)
        assert not opener.is_folder(path)
        with opener.open_file(path) as file:
            assert (file.seek(150), file.read(10), file.read()) == (150, data[150:160], data[160:])
        with pytest.raises(FileNotFoundError):
            opener.read_range(f"{path}.none", 0, 1)


@pytest.mark.parametrize("fault", [OSError("connection reset"), RuntimeError("503"), TimeoutError()])
def test_a_read_that_fails_nine_times_in_ten_comes_through(fault):
    path = put("a", b"content")
    FaultyFileSystem.faults[:] = [fault] * 9
    before = remote.count_retries()
    assert opener.read_range(path, 0, 7) == b"content"
    assert remote.count_retries() - before == 9


def test_a_read_that_hangs_nine_times_in_ten_is_abandoned_and_asked_for_again(monkeypatch):
    monkeypatch.setattr(remote, "TRY_TIMEOUT_S", 0.05)
    path = put("a", b"content")
    FaultyFileSystem.faults[:] = [0.4] * 9
    start = time.perf_counter()
    assert opener.read_range(path, 0, 7) == b"content"
    assert 0.45 < time.perf_counter() - start < 2  # nine times 0.05 s and no time of 0.4 s, on a busy machine, too


def test_what_cannot_be_read_in_any_try_stops_with_what_was_tried(monkeypatch):
    monkeypatch.setattr(remote, "MAX_TRIES", 3)
    path = put("a.tar", tar_bytes(2))
    source = WebDatasetSource(path)
    FaultyFileSystem.faults[:] = [OSError("no route to host")] * 3
    message = "faulty://a.tar could not be read in 3 tries, .*the last error was OSError: no route to host. When it can"
    with pytest.raises(remote.UnreachableError, match=message):
        source[1]
    assert source[1]["captions"] == ("picture 1",)  # and a network that comes back leaves no trace


def test_waits_double_up_to_the_longest(monkeypatch):
    waits: list[float] = []
    monkeypatch.undo()
    monkeypatch.setattr(remote.time, "sleep", waits.append)

    def fail() -> None:
        raise OSError("busy")

    with pytest.raises(OSError, match="busy"):
        remote.with_retries(fail, remote.MAX_TRIES)
    assert waits[:7] == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0])
    assert sum(waits) == pytest.approx(6.3 + 33 * 5)  # "three minutes of waiting"


def test_a_missing_file_is_not_asked_for_twice():
    FaultyFileSystem.faults[:] = [FileNotFoundError("a"), OSError("not asked for again")]
    path = put("a", b"x")
    with pytest.raises(FileNotFoundError):
        opener.read_range(path, 0, 1)
    assert len(FaultyFileSystem.reads) == 1


def test_a_local_read_that_fails_is_tried_again_and_then_a_broken_record(tmp_path, monkeypatch):
    (tmp_path / "a.tar").write_bytes(tar_bytes(2))
    source = WebDatasetSource(str(tmp_path))
    expected = source[1]
    pread, failures = os.pread, [OSError(5, "Input/output error")] * 4

    def flaky(*arguments):
        if failures:
            raise failures.pop()
        return pread(*arguments)

    monkeypatch.setattr(os, "pread", flaky)
    assert source[1] == expected
    failures[:] = [OSError(5, "Input/output error")] * 5
    with pytest.raises(BrokenRecordError, match=r"a/k1: .*Input/output error"):
        source[1]


# Sources on another file system


def test_every_source_reads_the_same_from_a_url(tmp_path):
    records = [{"id": f"r{i}", "image": jpeg(i), "captions": (f"caption {i}",)} for i in range(5)]
    write_array_record(str(tmp_path / "data.array_record"), records)
    columns = {"image": pa.array([jpeg(i) for i in range(5)], pa.binary()), "caption": [f"c {i}" for i in range(5)]}
    pq.write_table(pa.table(columns), tmp_path / "data.parquet", row_group_size=2)
    pq.write_table(pa.table({"image": ["a.jpg"], "caption": ["c"]}), tmp_path / "paths.parquet")
    (tmp_path / "paths.csv").write_text("image,caption\na.jpg,one\n")
    (tmp_path / "a.jpg").write_bytes(jpeg(1))
    (tmp_path / "data.tar").write_bytes(tar_bytes(5))
    for file in ("data.array_record", "data.parquet", "paths.parquet", "paths.csv", "a.jpg", "data.tar"):
        put(f"bucket/{file}", (tmp_path / file).read_bytes())
    kinds = {
        "data.array_record": ArrayRecordSource,
        "data.parquet": TableSource,
        "paths.parquet": TableSource,
        "paths.csv": TableSource,
        "data.tar": WebDatasetSource,
    }
    for file, kind in kinds.items():
        local, remote = kind(str(tmp_path / file)), kind(f"faulty://bucket/{file}")
        assert read_all(remote) == read_all(local)
        assert remote.fingerprint() == local.fingerprint()
        assert read_all(pickle.loads(pickle.dumps(remote))) == read_all(local)
        assert read_all(kind(f"file://{tmp_path}/{file}")) == read_all(local)


def test_a_table_that_cannot_be_reached_is_no_broken_record(tmp_path, monkeypatch):
    columns = {"image": pa.array([jpeg(i) for i in range(5)], pa.binary()), "caption": [f"c {i}" for i in range(5)]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet", row_group_size=2)
    source = TableSource(put("a.parquet", (tmp_path / "a.parquet").read_bytes()))
    source[0]  # the footer is read
    monkeypatch.setattr(remote, "MAX_TRIES", 3)
    FaultyFileSystem.faults[:] = [OSError("no route to host")] * 3
    with pytest.raises(remote.UnreachableError, match=r"faulty://a\.parquet could not be read in 3 tries"):
        source[4]
    assert source[4]["image"] == jpeg(4)
    monkeypatch.setattr(FaultyFileSystem, "store", {})  # gone
    with pytest.raises(BrokenRecordError, match=r"^2: .*"):
        source[2]


def test_tfds_from_a_url(tmp_path):
    import tensorflow_datasets as tfds

    class Captioned(tfds.core.GeneratorBasedBuilder):
        """Three captioned pictures, in two versions."""

        VERSION = tfds.core.Version("1.10.0")

        def _info(self):
            features = {"image": tfds.features.Image(encoding_format="jpeg"), "text": tfds.features.Text()}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(), "test": self._generate_examples()}

        def _generate_examples(self):
            for i in range(3):
                yield i, {"image": io.BytesIO(jpeg(i)), "text": f"caption {i}"}

    Captioned(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    (tmp_path / "captioned" / "1.9.0").mkdir()  # an older version, though its name sorts behind
    expected = read_all(TfdsSource("captioned", "train[1:]", str(tmp_path)))
    FaultyFileSystem().makedirs("/bucket/captioned/1.9.0")
    for file in (tmp_path / "captioned" / "1.10.0").iterdir():
        put(f"bucket/captioned/1.10.0/{file.name}", file.read_bytes())
    for name in ("captioned", "captioned/1.10.0"):
        assert read_all(make_source("tfds", f"faulty://bucket/{name}", "train[1:]")) == expected
    copied = [path for path, _, _ in FaultyFileSystem.reads]
    assert not any("-test." in path for path in copied)
    assert len(copied) == len(set(copied))  # once, though it was opened twice


def test_path_forms_on_a_url():
    for i in range(3):
        put(f"bucket/{i:05d}.tar", tar_bytes(2, 2 * i))
    put("bucket/00000_stats.json", b"{}")
    expected = [f"0000{i // 2}/k{i}" for i in range(6)]
    for path in ("faulty://bucket", "faulty://bucket/*.tar", "faulty://bucket/{00000..00002}.tar"):
        assert [record["id"] for record in read_all(WebDatasetSource(path))] == expected
    with pytest.raises(ValueError, match=r"2 of 5 files do not exist, the first is faulty://bucket/00003\.tar"):
        WebDatasetSource("faulty://bucket/{00000..00004}.tar")
    with pytest.raises(ValueError, match=r"no data at 'faulty://lost/a\.tar', which does not exist"):
        WebDatasetSource("faulty://lost/a.tar")


@pytest.mark.parametrize(
    "pattern",
    [
        "b/*.tar",
        "b/s?.tar",
        "b/s[!0].tar",
        "b/*/s0.tar",
        "b/x*/*.tar",
        "b/**/*.tar",
        "b/**",
        "b/*/**/s*.tar",
        "*/s1.tar",
        "no/*.tar",
        "b/s0.tar/*",
        "b/**/**/s0.tar",
    ],
)
def test_patterns_name_what_fsspec_finds_whatever_fails(pattern, tmp_path):
    names = ["s0.tar", "s1.tar", "x/s0.tar", "x/deep/s0.tar", "xy/s1.tar", "y/deep/er/s2.tar", "x/notes.txt", "s1/a"]
    for name in names:
        put(f"b/{name}", b"x")
        (tmp_path / "b" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "b" / name).write_bytes(b"x")
    (tmp_path / "b" / "x" / "round").symlink_to(tmp_path / "b")  # followed by a name, not by **
    found = FaultyFileSystem().glob(pattern, detail=True)
    expected = [f"faulty:/{path}" for path, info in found.items() if info["type"] == "file"]
    folders = {"", "/b", *(f"/b/{Path(name).parent}" for name in names)}
    FaultyFileSystem.refused.update(dict.fromkeys(folders, 2))  # a listing each
    assert opener.matching_files(f"faulty://{pattern}") == sorted(expected)
    assert opener.matching_files(f"file://{tmp_path}/{pattern}") == [
        path.replace("faulty://", f"file://{tmp_path}/") for path in sorted(expected)
    ]


def test_a_question_that_fails_is_no_answer():
    for i in range(4):
        put(f"tars/s{i}.tar", tar_bytes(3, 3 * i))
        put(f"pictures/{i}/a.jpg", jpeg(i))
    rows = "".join(f"{i}/a.jpg,caption {i}\n" for i in range(4))
    put("pictures/a.csv", f"image,caption\n{rows}".encode())
    questions = {
        "tars": (WebDatasetSource, 12),
        "tars/s*.tar": (WebDatasetSource, 12),
        "tars/s{0..3}.tar": (WebDatasetSource, 12),
        "pictures/a.csv": (TableSource, 4),
    }
    for path, (kind, count) in questions.items():
        asked = ["/tars", "/tars/s*.tar", "/tars/s2.tar", "/pictures", "/pictures/a.csv", "/pictures/2"]
        FaultyFileSystem.refused.update(dict.fromkeys(asked, 1))
        source = kind(f"faulty://{path}")
        assert (len(source), source.broken) == (count, [])


@pytest.mark.parametrize("path", ["tars", "tars/s*.tar", "tars/s0.tar", "tars/s{0..1}.tar"])
def test_what_cannot_be_looked_for_is_not_missing(path, monkeypatch):
    monkeypatch.setattr(remote, "MAX_TRIES", 2)
    for i in range(2):
        put(f"tars/s{i}.tar", tar_bytes(1))
    FaultyFileSystem.refused.update({"/tars": 9, "/tars/s0.tar": 9})
    with pytest.raises(remote.UnreachableError, match=r"could not be read in 2 tries, .*OSError: 503 slow down"):
        WebDatasetSource(f"faulty://{path}")


@pytest.mark.parametrize(
    ("error", "raised", "message"),
    [
        (OSError("503"), remote.UnreachableError, r"^faulty://b/2 could not be read in 2 tries"),
        (
            PermissionError("not yours"),
            ValueError,
            r"a\.csv names pictures in a folder that may not be listed: not yours",
        ),
    ],
)
def test_a_folder_that_a_table_names_and_nobody_can_list_stops_it(error, raised, message, monkeypatch):
    monkeypatch.setattr(remote, "MAX_TRIES", 2)
    for i in range(3):
        put(f"b/{i}/a.jpg", jpeg(i))
    path = put("b/a.csv", b"image,caption\n0/a.jpg,a\n1/a.jpg,b\n2/a.jpg,c\n")
    listing = FaultyFileSystem.ls

    def fail(self, path, *arguments, **options):
        if path == "/b/2":
            raise error
        return listing(self, path, *arguments, **options)

    monkeypatch.setattr(FaultyFileSystem, "ls", fail)
    with pytest.raises(raised, match=message):
        TableSource(path)


def test_tries_are_counted_in_the_batches_and_change_nothing_else():
    class Words:
        def encode(self, text: str) -> tuple[np.ndarray, bool]:
            return np.array([len(text)], np.int32), False

        def fingerprint(self) -> dict[str, str]:
            return {}

    source = WebDatasetSource(put("ahead.tar", tar_bytes(5)))
    examples = Examples(source=source, tokenizer=Words(), image_size=8, min_scale=0.5, seed=0)  # type: ignore[arg-type]
    expected = collate([examples[position] for position in range(4)])
    FaultyFileSystem.faults[:] = [OSError("busy")] * 3
    with closing(BatchIterator(examples, 4)) as iterator:
        batch = next(iterator)
    assert (batch["retries"], iterator.get_state()["retries"]) == (3, 3)
    np.testing.assert_array_equal(batch["image"], expected["image"])
    assert (batch["broken"], expected["retries"]) == ([], 0)


def test_what_may_not_be_read_is_named(monkeypatch):
    def refuse(*_):
        raise PermissionError("anonymous caller")

    monkeypatch.setattr(FaultyFileSystem, "info", refuse)
    with pytest.raises(ValueError, match=r"^faulty://bucket/a\.tar may not be read: anonymous caller$"):
        WebDatasetSource("faulty://bucket/a.tar")


def test_a_remote_tar_is_indexed_by_few_reads_and_records_by_two():
    def reads() -> int:
        return sum(path == "/a.tar" for path, _, _ in FaultyFileSystem.reads)  # others may still be read ahead

    path = put("a.tar", tar_bytes(40))
    source = WebDatasetSource(path)
    indexed = reads()
    assert indexed <= 2  # of BLOCK_SIZE, not one a header
    source[7]
    assert reads() == indexed + 2  # image and caption
    WebDatasetSource(path)
    assert reads() == indexed + 2  # the index was kept


def test_a_copy_that_cannot_be_finished_leaves_nothing(tmp_path, monkeypatch):
    write_array_record(str(tmp_path / "a"), [{"id": "r", "image": jpeg(0), "captions": ("c",)}])
    path = put("bucket/a.array_record", (tmp_path / "a").read_bytes())

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        ArrayRecordSource(path)
    assert [file for file in (tmp_path / "cache").rglob("*") if file.is_file()] == []


# The index that is kept of a tar


def index_file(tar: Path) -> Path:
    return tar.with_name(f".{tar.name}.index.npz")


def make_unreadable(monkeypatch) -> None:
    monkeypatch.setattr(tar_index, "make_index", lambda *_: pytest.fail("the tar was read again"))


@pytest.fixture
def tar(tmp_path) -> Path:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.tar").write_bytes(tar_bytes(3)[:7700])  # cut off, so that something is broken, too
    return tmp_path / "data" / "a.tar"


def test_an_index_is_read_back_as_it_was_made(tar, monkeypatch):
    made = open_index(str(tar))
    fresh = WebDatasetSource(str(tar))
    assert sorted(file.name for file in tar.parent.iterdir()) == [".a.tar.index.npz", "a.tar"]
    make_unreadable(monkeypatch)
    again = open_index(str(tar))
    np.testing.assert_array_equal(again.rows, made.rows)
    assert (again.keys, again.broken) == (made.keys, made.broken)
    assert len(made.broken) == 1
    kept = WebDatasetSource(str(tar))
    assert (read_all(kept), kept.broken, kept.fingerprint()) == (read_all(fresh), fresh.broken, fresh.fingerprint())


def test_an_index_of_an_older_tar_is_made_again(tar):
    open_index(str(tar))
    before = os.stat(tar)
    tar.write_bytes(tar_bytes(3, first=5)[:7700])  # of the same size
    os.utime(tar, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert open_index(str(tar)).keys == ("k5", "k6", "k7")
    path = put("a.tar", tar_bytes(3))
    assert open_index(path).keys == ("k0", "k1", "k2")
    put("a.tar", tar_bytes(3, first=5))
    assert open_index(path).keys == ("k5", "k6", "k7")


@pytest.mark.parametrize("damage", [lambda x: b"", lambda x: x[:100], lambda x: b"\x93NUMPY" + x, lambda x: x[:-300]])
def test_a_damaged_index_is_made_again(tar, damage):
    expected = open_index(str(tar))
    file = index_file(tar)
    file.write_bytes(damage(file.read_bytes()))
    again = open_index(str(tar))
    assert again.keys == expected.keys
    np.testing.assert_array_equal(np.load(file)["rows"], expected.rows)  # and put right


def test_a_name_with_a_zero_byte_is_refused_and_its_index_is_read_back(tar, monkeypatch):
    with tarfile.open(tar, "w", format=tarfile.PAX_FORMAT) as file:
        for name in ("k0.jpg", "k0.txt", "x\0y.jpg", "x\0y.txt"):
            member = tarfile.TarInfo("passing" if "\0" in name else name)
            member.size, member.pax_headers = 1, {"path": name}
            file.addfile(member, io.BytesIO(b"c"))
    made = open_index(str(tar))
    assert made.keys == ("k0",)
    assert made.broken == tuple((f".tar/x\0y.{end}", "the name holds a zero byte") for end in ("jpg", "txt"))
    make_unreadable(monkeypatch)
    assert open_index(str(tar)).keys == ("k0",)


def test_an_index_with_fewer_keys_than_rows_is_made_again(tar):
    expected = open_index(str(tar))
    with np.load(index_file(tar)) as arrays:
        content = dict(arrays)
    np.savez(index_file(tar), **content | {"keys": content["keys"][:3]})
    assert len(open_index(str(tar)).rows) == len(open_index(str(tar)).keys) == len(expected.keys)


def test_an_index_with_a_pickle_is_never_loaded(tar):
    expected = open_index(str(tar))
    np.savez(index_file(tar), about=np.array([{}], object), rows=np.array([], object), keys=np.array([], object))
    assert open_index(str(tar)).keys == expected.keys


def test_indices_made_at_the_same_time_leave_one_whole_file(tar, monkeypatch):
    with ThreadPoolExecutor(8) as pool:
        indices = list(pool.map(open_index, [str(tar)] * 8))
    assert len({index.keys for index in indices}) == 1
    assert sorted(file.name for file in tar.parent.iterdir()) == [".a.tar.index.npz", "a.tar"]
    make_unreadable(monkeypatch)
    assert open_index(str(tar)).keys == indices[0].keys


def test_an_index_of_other_rules_or_captions_is_not_taken(tar, monkeypatch):
    open_index(str(tar))
    with pytest.raises(ValueError, match=r"no usable record in .*image without caption: no .json"):
        WebDatasetSource(str(tar), "title")
    monkeypatch.setattr(tar_index, "INDEX_VERSION", tar_index.INDEX_VERSION + 1)
    make_unreadable(monkeypatch)
    with pytest.raises(pytest.fail.Exception, match="the tar was read again"):
        open_index(str(tar))


def test_where_nothing_can_be_written_the_index_goes_to_the_cache(tar, tmp_path, monkeypatch):
    save = tar_index._save

    def refuse(file, *arguments):
        if file.parent == tar.parent:
            raise PermissionError(13, "Permission denied")
        save(file, *arguments)

    monkeypatch.setattr(tar_index, "_save", refuse)
    expected = open_index(str(tar))
    (kept,) = (tmp_path / "cache" / "indices").iterdir()
    assert kept.name.endswith(".a.tar.index.npz")
    make_unreadable(monkeypatch)
    assert open_index(str(tar)).keys == expected.keys


def test_an_index_that_cannot_be_kept_is_used_all_the_same(tar, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    assert open_index(str(tar)).keys == ("k0", "k1", "k2")
    assert [file.name for file in tmp_path.rglob("*") if file.is_file()] == ["a.tar"]


def test_a_tar_that_is_still_being_written_leaves_no_index(tar, monkeypatch):
    make = tar_index.make_index

    def make_while_it_grows(path, *settings):
        index = make(path, *settings)
        with open(path, "ab") as file:
            file.write(b"x")
        return index

    monkeypatch.setattr(tar_index, "make_index", make_while_it_grows)
    open_index(str(tar))
    assert not index_file(tar).exists()
