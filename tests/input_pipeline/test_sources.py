import contextlib
import io
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds
from tiny_records import jpeg, write_tar

from input_pipeline.sources import (
    ArrayRecordSource,
    BrokenRecordError,
    SubsetSource,
    TableSource,
    TfdsSource,
    WebDatasetSource,
    make_source,
    opener,
    write_array_record,
)
from input_pipeline.sources.base import PerProcess


def record_members(key: str, seed: int) -> list[tuple[str, bytes]]:
    captions = json.dumps({"captions": [f"{key} one", f" {key} two\n"]}).encode()
    return [(f"{key}.jpg", jpeg(seed)), (f"{key}.txt", f"{key} text".encode()), (f"{key}.json", captions)]


def write_shards(folder: Path, sizes: tuple[int, ...] = (3, 5)) -> Path:
    folder.mkdir(exist_ok=True)
    for shard, size in enumerate(sizes):
        members = [m for i in range(size) for m in record_members(f"k{shard}{i}", 10 * shard + i)]
        write_tar(folder / f"{shard:05d}.tar", members)
    return folder


def write_csv(folder: Path, text: str) -> str:
    (folder / "a.jpg").write_bytes(jpeg(0))
    (folder / "b.jpg").write_bytes(jpeg(1))
    (folder / "table.csv").write_bytes(text.encode("latin-1"))
    return str(folder / "table.csv")


class RandomPixels(tfds.core.GeneratorBasedBuilder):
    """Random pictures with labels and COCO's form of captions; of "test" one has no label, one only empty captions."""

    VERSION = tfds.core.Version("1.2.3")
    captions_feature = tfds.features.Sequence({"text": tfds.features.Text(), "id": np.int64})

    def _info(self):
        features = {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(names=["ant", "bee", "cow"]),
            "captions": self.captions_feature,
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(range(7)), "test": self._generate_examples([7, 8])}

    def _generate_examples(self, numbers):
        for i in numbers:
            text = [f"caption {i}", "  second "] if i < 8 else ["", " "]
            captions = {"text": text, "id": list(range(len(text)))}
            yield i, {"image": io.BytesIO(jpeg(i)), "label": -1 if i == 7 else i % 3, "captions": captions}


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory) -> str:
    folder = str(tmp_path_factory.mktemp("tfds"))
    RandomPixels(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


@pytest.fixture
def every_source(tmp_path, tfds_dir):
    records = [{"id": f"r{i}", "image": jpeg(i), "captions": (f"caption {i}",)} for i in range(5)]
    write_array_record(str(tmp_path / "data.array_record"), records)
    image = pa.array([jpeg(i) for i in range(5)], pa.binary())
    table = pa.table({"image": image, "caption": [f"caption {i}" for i in range(5)]})
    pq.write_table(table, tmp_path / "data.parquet", row_group_size=2)
    return [
        WebDatasetSource(str(write_shards(tmp_path / "shards"))),
        ArrayRecordSource(str(tmp_path / "data.array_record")),
        TableSource(str(tmp_path / "data.parquet")),
        TableSource(write_csv(tmp_path, "image,caption\na.jpg,one\nb.jpg,two\n")),
        TfdsSource("random_pixels", "train[2:6]", tfds_dir),
    ]


def read_all(source) -> list[dict]:
    return [source[i] for i in range(len(source))]


def _read_in_child(source, queue):
    queue.put(read_all(source))


# What all sources have in common.


def test_sources_survive_pickling_threads_and_forks(every_source):
    for source in every_source:
        expected = read_all(source)  # opens the files here first
        again = pickle.loads(pickle.dumps(source))
        assert read_all(again) == expected
        assert again.fingerprint() == source.fingerprint()
        with ThreadPoolExecutor(8) as pool:
            indices = list(range(len(source))) * 20
            assert list(pool.map(source.__getitem__, indices)) == expected * 20
        context = multiprocessing.get_context("fork")
        queue = context.Queue()
        process = context.Process(target=_read_in_child, args=(source, queue))
        process.start()
        assert queue.get(timeout=20) == expected
        process.join()


def test_each_process_makes_its_own_reader():
    reader = PerProcess(os.getpid)
    assert reader.get() == os.getpid()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=lambda: queue.put((reader.get(), os.getpid())))
    process.start()
    made_by, child = queue.get(timeout=20)
    process.join()
    assert made_by == child != os.getpid()


def test_what_readers_are_made_from_never_opens_a_file(every_source):
    # Otherwise each process would copy a reader whose threads stayed behind in its parent.
    for source, files in ((every_source[1], lambda x: x), (every_source[4], lambda x: x.data_source)):
        read_all(source)
        assert files(source._reader._make.args[0])._readers == [None]
        assert None not in files(source._reader.get())._readers


def test_captions_and_numpy_indices_agree_with_records(every_source):
    for source in every_source:
        for i in range(len(source)):
            record = source[np.int64(i)]
            assert isinstance(record["image"], bytes)
            assert source.captions(i) == source.captions(np.int64(i)) == record["captions"] != ()


def test_an_index_outside_is_an_index_error(every_source):
    for source in every_source:
        for index in (-1, len(source)):
            with pytest.raises(IndexError, match=f"record {index} of {len(source)}"):
                source[index]
            with pytest.raises(IndexError):
                source.captions(index)


def test_fingerprints_are_json_and_name_no_absolute_path(every_source, tmp_path, tfds_dir):
    for source in every_source:
        text = json.dumps(source.fingerprint())
        assert str(tmp_path) not in text
        assert tfds_dir not in text
        assert source.fingerprint()["length"] == len(source)


def test_broken_record_error_keeps_both_parts_when_pickled():
    error = pickle.loads(pickle.dumps(BrokenRecordError("shard/key", "no image")))
    assert (error.record_id, error.reason, str(error)) == ("shard/key", "no image", "shard/key: no image")


def test_no_tensorflow_and_no_jax_are_imported(tfds_dir):
    code = (
        "import sys; from input_pipeline.sources import TfdsSource; import input_pipeline.transforms\n"
        f"TfdsSource('random_pixels', 'train', {tfds_dir!r})[0]\n"
        "assert not {'tensorflow', 'jax', 'torch', 'clip_jax'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


# WebDataset


def test_webdataset_records_in_order(tmp_path):
    source = WebDatasetSource(str(write_shards(tmp_path)))
    assert len(source) == 8
    assert source.broken == []
    record = source[4]
    assert record == {"id": "00001/k11", "image": jpeg(11), "captions": ("k11 one", "k11 two")}


def test_webdataset_path_forms_agree(tmp_path, monkeypatch):
    folder = write_shards(tmp_path / "x", (2, 3, 1))
    (folder / "readme.txt").write_text("no shard")
    (folder / "._00000.tar").write_bytes(b"left by another system")
    source = WebDatasetSource(str(folder))
    assert source.broken == []
    expected = read_all(source)
    assert len(expected) == 6
    for path in (f"{folder}/*.tar", f"{folder}/0000[0-2].tar", f"{folder}/{{00000..00002}}.tar"):
        assert read_all(WebDatasetSource(path)) == expected
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read_all(WebDatasetSource("~/x")) == expected
    assert read_all(WebDatasetSource(f"{folder}/{{00001..00001}}.tar")) == expected[2:5]
    assert read_all(WebDatasetSource(str(folder / "00001.tar"))) == expected[2:5]


def test_webdataset_caption_rules(tmp_path):
    image = jpeg(0)
    members = [
        ("./folder/a.JPG", image),
        ("./folder/a.txt", b"  spaces around \n"),
        ("b.png", image),
        ("b.json", b'{"caption": "single"}'),
        ("c.webp", image),
        ("c.txt", b"text wins where the JSON has none"),
        ("c.json", b'{"width": 3, "captions": ["", " "]}'),
        ("d.jpeg", image),
        ("d.txt", b"not this"),
        ("d.json", '{"captions": ["", " é ", "x"]}'.encode()),
        ("notes.md", b"not part of any record"),
    ]
    source = WebDatasetSource(str(write_tar(tmp_path / "s.tar", members)))
    assert [(r["id"], r["captions"]) for r in read_all(source)] == [
        ("s/folder/a", ("spaces around",)),
        ("s/b", ("single",)),
        ("s/c", ("text wins where the JSON has none",)),
        ("s/d", ("é", "x")),
    ]
    assert source.broken == []


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([("x.jpg", b"i")], "image without caption"),
        ([("x.txt", b"caption")], "caption without image"),
        ([("x.jpg", b"i"), ("x.txt", b" \n")], "no caption, or only empty ones"),
        ([("x.jpg", b"i"), ("x.json", b'{"captions": ["", " "]}')], "no caption, or only empty ones"),
        ([("x.jpg", b""), ("x.txt", b"caption")], "empty image"),
        ([("x.jpg", b"i"), ("x.txt", b"\xff\xfe caption")], "text is not valid UTF-8"),
        ([("x.jpg", b"i"), ("x.json", b'{"captions": ["\\ud800"]}')], "text is not valid UTF-8"),
        ([("x.jpg", b"i"), ("x.json", b"{")], "captions are not valid JSON"),
        ([("x.jpg", b"i"), ("x.json", b"[" * 100_000)], "captions are not valid JSON"),
        ([("x.jpg", b"i"), ("x.json", b"[1]")], "the JSON is a list, not an object"),
        ([("x.jpg", b"i"), ("x.json", b'{"captions": [3]}')], "expected text, found int"),
        ([("x.jpg", b"i"), ("x.json", b'{"captions": 3}')], "captions are a int, not strings"),
        ([("x.jpg", b"i"), ("x.txt", b"a" * (2**20 + 1))], ".txt of 1048577 bytes, at most 1048576"),
    ],
)
def test_webdataset_broken_records_are_listed(tmp_path, members, reason):
    good = record_members("good", 0)
    source = WebDatasetSource(str(write_tar(tmp_path / "s.tar", [*good, *members, *record_members("last", 1)])))
    assert [record["id"] for record in read_all(source)] == ["s/good", "s/last"]
    ((record_id, found),) = source.broken
    assert record_id == "s/x"
    assert found.startswith(reason)


def test_webdataset_keys_with_dots_are_counted_once_a_record_and_other_images_of_a_record_never(tmp_path):
    members = [("v1.5/0.5.jpg", b"i"), ("v1.5/0.5.PNG", b"i"), ("v1.5/0.5.txt", b"c"), ("0.25.webp", b"i")]
    members += [("k.jpg", jpeg(0)), ("k.mask.png", b"m"), ("k.txt", b"c"), ("k.1.jpg", b"i"), ("k.1.json", b"{}")]
    members += [("x.y.txt", b"no image of it"), ("x.tar.gz", b"of no record"), ("._k.jpg", b"of macOS")]
    source = WebDatasetSource(str(write_tar(tmp_path / "s.tar", members)))
    assert [record["id"] for record in read_all(source)] == ["s/k"]
    dotted = "a dot in the key, which ends at the first one: write another character for it"
    assert source.broken == [("s/v1.5/0.5", dotted), ("s/0.25", dotted), ("s/k.1", dotted)]


def test_webdataset_refuses_links_and_names_that_lead_out(tmp_path):
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for name, data in record_members("good", 0):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        for name, kind in (
            ("link.jpg", tarfile.SYMTYPE),
            ("hard.jpg", tarfile.LNKTYPE),
            ("pipe.jpg", tarfile.FIFOTYPE),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
        for name in ("../out.jpg", "/root.jpg", "a/../../b.jpg", "good.jpg"):
            member = tarfile.TarInfo(name)
            member.size = 1
            tar.addfile(member, io.BytesIO(b"x"))
    source = WebDatasetSource(str(tmp_path / "s.tar"))
    assert [record["image"] for record in read_all(source)] == [jpeg(0)]
    not_plain, leads_out = "a link, a sparse or a special file, not a plain one", "the name leads out of the tar"
    assert source.broken == [
        ("s.tar/link.jpg", not_plain),
        ("s.tar/hard.jpg", not_plain),
        ("s.tar/pipe.jpg", not_plain),
        ("s.tar/../out.jpg", leads_out),
        ("s.tar//root.jpg", leads_out),
        ("s.tar/a/../../b.jpg", leads_out),
        ("s.tar/good.jpg", "occurs twice in the tar"),
    ]


def test_webdataset_keeps_the_complete_records_of_a_cut_tar_wherever_it_is_cut(tmp_path):
    whole = write_shards(tmp_path / "whole", (3,)) / "00000.tar"
    data = whole.read_bytes()
    with tarfile.open(whole) as tar:
        ends = [m.offset_data + m.size for m in tar if m.name.endswith(".json")]
    write_shards(tmp_path / "cut", (2, 2))
    for size in [*range(ends[0], ends[2] + 1024, 256), ends[1] - 1, ends[1], ends[1] + 1]:
        (tmp_path / "cut" / "00001.tar").write_bytes(data[:size])
        source = WebDatasetSource(str(tmp_path / "cut"))
        complete = sum(end <= size for end in ends)
        assert [record["id"] for record in read_all(source)] == [
            *("00000/k00", "00000/k01"),
            *(f"00001/k0{i}" for i in range(complete)),
        ]
        ((shard, reason),) = source.broken
        assert shard == "00001.tar"
        assert reason.startswith("tar cut off")
        assert str(size) in reason


@pytest.mark.parametrize("content", [b"", b"no tar at all" * 100, b"\x1f\x8b" + bytes(2000)])
def test_webdataset_shard_that_is_no_tar(tmp_path, content):
    write_shards(tmp_path, (2,))
    (tmp_path / "bad.tar").write_bytes(content)
    source = WebDatasetSource(str(tmp_path))
    assert len(source) == 2
    ((shard, reason),) = source.broken
    assert shard == "bad.tar"
    assert reason.startswith("not an uncompressed tar")
    with pytest.raises(ValueError, match=r"no usable record in .*bad.tar: not an uncompressed tar"):
        WebDatasetSource(str(tmp_path / "bad.tar"))


def test_webdataset_damage_within_the_tar_is_not_taken_for_its_end(tmp_path):
    whole = write_shards(tmp_path, (3,)) / "00000.tar"
    data = bytearray(whole.read_bytes())
    with tarfile.open(whole) as tar:
        offset = tar.getmember("k01.jpg").offset
    data[offset : offset + 512] = b"\x55" * 512
    whole.write_bytes(data)
    source = WebDatasetSource(str(whole))
    assert [record["id"] for record in read_all(source)] == ["00000/k00"]
    assert source.broken == [("00000.tar", f"tar cut off or damaged at byte {offset} of {len(data)}")]


def test_webdataset_shard_that_shrinks_or_goes_after_indexing(tmp_path):
    shard = write_shards(tmp_path, (2,)) / "00000.tar"
    source = WebDatasetSource(str(tmp_path))
    again = pickle.loads(pickle.dumps(source))
    shard.write_bytes(shard.read_bytes()[:600])
    with pytest.raises(BrokenRecordError, match=r"00000/k01: 00000.tar is shorter than when it was indexed"):
        source[1]
    shard.unlink()
    with pytest.raises(BrokenRecordError, match=r"00000/k01: .*No such file"):
        again[1]


def test_webdataset_fingerprints_of_other_data_differ(tmp_path):
    first = WebDatasetSource(str(write_shards(tmp_path / "a"))).fingerprint()
    assert WebDatasetSource(str(write_shards(tmp_path / "b"))).fingerprint() == first
    assert first["files"] == ["00000.tar", "00001.tar"]
    renamed = [m for i in (0, 2, 1) for m in record_members(f"k0{i}", i)]
    write_tar(tmp_path / "b" / "00000.tar", renamed)  # the same records in another order
    assert WebDatasetSource(str(tmp_path / "b")).fingerprint() != first


def test_webdataset_index_is_small_when_pickled(tmp_path):
    count = 2003
    members = [m for i in range(count) for m in ((f"{i:09d}.jpg", b"x" * 600), (f"{i:09d}.txt", b"caption " * 50))]
    source = WebDatasetSource(str(write_tar(tmp_path / "s.tar", members)))
    source[0]
    # 48 bytes of offsets, a key of 9 and 4 of overhead a record; neither images nor captions.
    assert len(pickle.dumps(source)) < 64 * count + 1000


def test_webdataset_reads_more_shards_than_it_keeps_open(tmp_path, monkeypatch):
    monkeypatch.setattr(opener, "MAX_OPEN_FILES", 2)
    source = WebDatasetSource(str(write_shards(tmp_path, (1, 1, 1, 1, 1))))
    assert [record["image"] for record in read_all(source)] == [jpeg(10 * i) for i in range(5)]
    assert len(source._opener._descriptors) == 2


# ArrayRecord


def test_array_record_round_trip(tmp_path):
    path = str(tmp_path / "a.array_record")
    records: list[dict[str, Any]] = [
        {"id": "é1", "image": jpeg(1), "captions": ("one", "two")},
        {"id": "r2", "image": jpeg(2), "captions": ("three",), "label": 5},
        {"id": "r3", "image": jpeg(3), "captions": (), "label": 0},
    ]
    assert write_array_record(path, iter(records)) == 3
    source = ArrayRecordSource(path)
    assert read_all(source) == records
    write_array_record(str(tmp_path / "b.array_record"), records[:1])
    assert read_all(ArrayRecordSource(str(tmp_path))) == [*records, records[0]]
    assert ArrayRecordSource(str(tmp_path)).fingerprint()["files"] == ["a.array_record", "b.array_record"]


def test_array_record_broken_records_are_reported_when_read(tmp_path):
    path = str(tmp_path / "a.array_record")
    records = [
        {"id": "empty", "image": jpeg(1), "captions": ("", " ")},
        {"id": "good", "image": jpeg(2), "captions": ("fine",)},
        {"id": "none", "image": jpeg(3), "captions": ()},
    ]
    write_array_record(path, records)
    source = ArrayRecordSource(path)
    assert source[1] == records[1]
    for index, name in ((0, "empty"), (2, "none")):
        with pytest.raises(BrokenRecordError, match=f"{name}: no caption, or only empty ones"):
            source[index]


def test_array_record_that_holds_something_else(tmp_path):
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_pb2

    example = tf_example_pb2.Example()
    example.features.feature["jpg"].bytes_list.value.append(b"image under another name")
    writer = ArrayRecordWriter(str(tmp_path / "a.array_record"), "group_size:1")
    writer.write(example.SerializeToString())
    writer.write(b"\xff no protobuf")
    writer.close()
    source = ArrayRecordSource(str(tmp_path))
    with pytest.raises(BrokenRecordError, match="0: expected one image, not 0; the features are jpg"):
        source[0]
    with pytest.raises(BrokenRecordError, match="1: "):
        source[1]


def test_array_record_damage_in_one_record_leaves_the_others(tmp_path):
    path = tmp_path / "a.array_record"
    records = [{"id": f"r{i}", "image": jpeg(i), "captions": ("c",)} for i in range(7)]
    write_array_record(str(path), records)
    data = bytearray(path.read_bytes())
    at = data.index(jpeg(3)[-40:])  # stored as it is, for it does not compress
    data[at : at + 20] = bytes(20)
    path.write_bytes(data)
    source = ArrayRecordSource(str(path))
    assert [source[i] for i in (0, 1, 2, 4, 5, 6)] == records[:3] + records[4:]
    with pytest.raises(BrokenRecordError, match="3: Corrupted"):
        source[3]


@pytest.mark.parametrize("keep", [0, 5, 70_000])
def test_array_record_file_cut_off_is_named_at_once(tmp_path, keep):
    path = tmp_path / "a.array_record"
    write_array_record(str(path), [{"id": "r", "image": b"x" * 90_000, "captions": ("c",)} for _ in range(3)])
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"a\.array_record is cut off or not an ArrayRecord file: "):
        ArrayRecordSource(str(tmp_path))


def test_array_record_files_k_of_n_have_to_be_all_there_unless_some_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [name for k in range(4) for name in (f"a/data-0000{k}-of-00004.array_record", f"a/x.array_record-{k}-of-4")]
    (tmp_path / "a").mkdir()
    for name in names:
        write_array_record(name, [{"id": name, "image": jpeg(0), "captions": ("c",)}])
    for path in ("a", f"{tmp_path}/a/", "a/data-*.array_record", "a/*"):
        assert len(ArrayRecordSource(path)) == (4 if "data" in path else 8)
    Path(names[4]).unlink()
    Path(names[7]).unlink()
    message = r"a/data-00002-of-00004.array_record is missing, one of 4 files: finish making them, or name those to "
    for path in ("a", f"{tmp_path}/a/", "a/data-*", "a/*"):
        with pytest.raises(ValueError, match=message):
            ArrayRecordSource(path)
    with pytest.raises(ValueError, match=r"^a/x.array_record-3-of-4 is missing, one of 4 files"):
        ArrayRecordSource("a/x*")
    some = {names[0]: 1, "a/data-0000[013]-of-*": 3, "a/data-{00000..00001}-of-00004.array_record": 2}
    for path, count in some.items():
        assert len(ArrayRecordSource(path)) == count


def test_array_record_write_that_fails_leaves_no_file(tmp_path):
    records: list[dict[str, Any]] = [
        {"id": "r0", "image": jpeg(0), "captions": ("c",)},
        {"id": "r1", "image": None, "captions": ("c",)},
    ]
    with pytest.raises(ValueError, match="record r1: the image must be encoded bytes"):
        write_array_record(str(tmp_path / "a.array_record"), records)
    assert list(tmp_path.iterdir()) == []
    write_array_record(str(tmp_path / "a.array_record"), [])
    with pytest.raises(ValueError, match=r"no usable record in .*expected tf.train.Example"):
        ArrayRecordSource(str(tmp_path / "a.array_record"))


# TFDS


def test_tfds_records(tfds_dir):
    source = TfdsSource("random_pixels", "train", tfds_dir)
    assert len(source) == 7
    assert source.class_names == ("ant", "bee", "cow")
    numbers = []
    for index, record in enumerate(read_all(source)):
        numbers.append(number := int(record["captions"][0].removeprefix("caption ")))  # preparing shuffles
        assert record == {
            "id": f"random_pixels/1.2.3/train/{index}",
            "image": jpeg(number),
            "captions": (f"caption {number}", "second"),
            "label": number % 3,
        }
    assert sorted(numbers) == list(range(7))


def test_tfds_slices(tfds_dir):
    whole, part = TfdsSource("random_pixels", "train", tfds_dir), TfdsSource("random_pixels", "train[2:6]", tfds_dir)
    assert [record["image"] for record in read_all(part)] == [whole[i]["image"] for i in range(2, 6)]
    assert part.fingerprint() != whole.fingerprint()


def test_tfds_broken_records_are_reported_when_read(tfds_dir):
    source = TfdsSource("random_pixels", "test", tfds_dir)
    found = set()
    for index in range(2):
        with pytest.raises(BrokenRecordError) as error:
            source[index]
        assert error.value.record_id == f"random_pixels/1.2.3/test/{index}"
        found.add(error.value.reason)
    assert found == {"label -1 is outside [0, 3)", "no caption, or only empty ones"}
    for_pictures, captions = make_source("tfds", f"{tfds_dir}/random_pixels", "test", require_captions=False), []
    for index in range(2):
        with contextlib.suppress(BrokenRecordError):
            captions.append(for_pictures[index]["captions"])
    assert captions == [()]


def test_tfds_several_labels_an_image(tmp_path):
    names = ["ant", "bee", "cow"]

    class SeveralLabels(tfds.core.GeneratorBasedBuilder):
        """As VOC: all labels, and those that are not difficult."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            labels = tfds.features.Sequence(tfds.features.ClassLabel(names=names))
            features = {
                "image": tfds.features.Image(encoding_format="jpeg"),
                "labels": labels,
                "labels_no_difficult": labels,
                "image/filename": tfds.features.Text(),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"test": self._generate_examples()}

        def _generate_examples(self):
            for i, (every, sure) in enumerate([([0, 2], [2]), ([1], [1]), ([], [])]):
                image = io.BytesIO(jpeg(i))
                names = {"image/filename": f"{len(every)}.jpg"}
                yield i, {"image": image, "labels": every, "labels_no_difficult": sure, **names}

    SeveralLabels(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    source = TfdsSource("several_labels", "test", str(tmp_path))
    assert (source.class_names, source.multi_label) == (tuple(names), True)
    records = [source[i] for i in range(3)]
    found = {(record["labels"], record["difficult"]) for record in records}
    assert found == {((2,), (0,)), ((1,), ()), ((), ())}
    assert all("label" not in record and record["captions"] == () for record in records)
    assert all(record["path"] == f"{len(record['labels'] + record['difficult'])}.jpg" for record in records)


def test_tfds_errors_name_the_fix(tfds_dir, tmp_path):
    with pytest.raises(ValueError, match=r"no prepared dataset 'cifar10' in .*download_and_prepare"):
        TfdsSource("cifar10", "train", tfds_dir)
    with pytest.raises(ValueError, match=r"no prepared dataset 'cifar10' in .*tfds.builder.'cifar10', data_dir="):
        make_source("tfds", str(tmp_path / "missing" / "cifar10"), "train")
    with pytest.raises(ValueError, match=r"has no split 'val'; it has (train, test|test, train)"):
        TfdsSource("random_pixels", "val", tfds_dir)
    with pytest.raises(ValueError, match="tfds needs a path and a split"):
        make_source("tfds", f"{tfds_dir}/random_pixels")


def test_tfds_lost_shard_other_format_and_missing_features(tmp_path):
    class OnlyText(RandomPixels):
        name = "only_text"

        def _info(self):
            features = tfds.features.FeaturesDict({"sentence": tfds.features.Text()})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _generate_examples(self, numbers):
            for i in numbers:
                yield i, {"sentence": "text"}

    OnlyText(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    with pytest.raises(ValueError, match=r"'only_text' needs image and one of captions, .*it has sentence"):
        TfdsSource("only_text", "train", str(tmp_path))
    folder = tmp_path / "only_text" / "1.2.3"
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    with pytest.raises(ValueError, match="is not in the array_record format; prepare it with"):
        TfdsSource("only_text", "train", str(tmp_path))
    info.write_text(info.read_text().replace('"tfrecord"', '"array_record"'))
    next(folder.glob("*train*")).unlink()
    with pytest.raises(ValueError, match=r"lacks 1 file.s., the first .*train"):
        TfdsSource("only_text", "train", str(tmp_path))


def test_tfds_by_folder_and_version_agree(tfds_dir):
    expected = TfdsSource("random_pixels", "train[2:]", tfds_dir).fingerprint()
    assert make_source("tfds", f"{tfds_dir}/random_pixels/", "train[2:]").fingerprint() == expected
    assert make_source("tfds", f"{tfds_dir}/random_pixels/1.2.3", "train[2:]").fingerprint() == expected


# Tables


def test_csv_records(tmp_path):
    text = 'id,image,caption,width\n007,a.jpg," 12, with ""quotes"" and\na line ",3\n008,b.jpg,42,4\n'
    source = TableSource(write_csv(tmp_path, text))
    assert read_all(source) == [
        {"id": "007", "image": jpeg(0), "captions": ('12, with "quotes" and\na line',), "path": "a.jpg"},
        {"id": "008", "image": jpeg(1), "captions": ("42",), "path": "b.jpg"},
    ]
    assert source.class_names is None


def test_csv_captions_as_json_and_named_labels(tmp_path):
    text = 'image,captions,label\na.jpg,"[""one"", "" two ""]",dog\nb.jpg,"[""x""]",cat\n'
    source = TableSource(write_csv(tmp_path, text))
    assert source.class_names == ("cat", "dog")
    assert [(r["captions"], r["label"]) for r in read_all(source)] == [(("one", "two"), 1), (("x",), 0)]
    numbered = TableSource(write_csv(tmp_path, "image,label\na.jpg,11\nb.jpg,2\n"))
    assert numbered.class_names is None
    assert [(r["captions"], r["label"]) for r in read_all(numbered)] == [((), 11), ((), 2)]


def test_csv_broken_rows_are_listed(tmp_path):
    rows = ["a.jpg,fine,0", "a.jpg,,0", "lost.jpg,c,0", ",c,0", "a.jpg,\xff,0", "a.jpg,c,", "a.jpg,c,-1", "a.jpg,x,y,0"]
    source = TableSource(write_csv(tmp_path, "\n".join(["image,caption,label", *rows])))
    assert [record["captions"] for record in read_all(source)] == [("fine",)]
    assert source.broken == [
        ("table.csv, line 9", "4 columns, not 3"),
        ("table.csv, line 3", "no caption, or only empty ones"),
        ("table.csv, line 4", "image 'lost.jpg' is not a file in the folder of the table"),
        ("table.csv, line 5", "image '' is not a file in the folder of the table"),
        ("table.csv, line 6", "text is not valid UTF-8"),
        ("table.csv, line 7", "label is missing"),
        ("table.csv, line 8", "label is -1"),
    ]
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(BrokenRecordError, match=r"0: .*No such file"):
        source[0]


def test_parquet_with_paths_equals_csv(tmp_path):
    expected = read_all(TableSource(write_csv(tmp_path, 'image,captions\na.jpg,"[""one""]"\nb.jpg,"[""two""]"\n')))
    table = pa.table({"image": pa.array(["a.jpg", "b.jpg"]).dictionary_encode(), "captions": [["one"], ["two"]]})
    pq.write_table(table, tmp_path / "t.parquet")
    assert read_all(TableSource(str(tmp_path / "t.parquet"))) == expected


def test_parquet_image_bytes_across_row_groups_and_broken_rows(tmp_path):
    image = pa.array([jpeg(0), jpeg(1), b"", jpeg(3), jpeg(4)], pa.binary())
    table = pa.table({"id": [10, 11, 12, 13, 14], "image": image, "caption": ["a", None, "c", "d", "e"]})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=2)
    source = TableSource(str(tmp_path / "t.parquet"))
    assert source.broken == [("11", "no caption, or only empty ones (t.parquet, row 1)")]
    for index, (number, record_id) in {3: (4, "14"), 0: (0, "10"), 2: (3, "13")}.items():
        assert (source[index]["image"], source[index]["id"]) == (jpeg(number), record_id)
    with pytest.raises(BrokenRecordError, match="12: empty image"):
        source[1]
    assert jpeg(3) not in pickle.dumps(source)  # though its row group is at hand
    assert jpeg(3) in source._cached_group[2].to_pylist()


@pytest.mark.parametrize(
    ("columns", "size"),
    [
        ({"status": ["published", "draft"], "key": ["x", "y"]}, (13, 11)),
        ({"status": [1, 2], "key": [0.5, 1.5], "error_message": ["", ""]}, (13, 11)),
        ({"width": [7.0, 7.5], "height": [5.0, 5.0]}, (13, 11)),
        ({"width": [7, 7], "height": ["5", "high"]}, (13, 11)),
        ({"width": [7, 7], "height": [5, 5]}, (7, 5)),
    ],
)
def test_a_table_may_have_columns_of_its_own(tmp_path, columns, size):
    rows = zip(*({"image": ["a.jpg", "b.jpg"], "caption": ["one", "two"]} | columns).values())
    text = "\n".join(",".join(map(str, row)) for row in [("image", "caption", *columns), *rows])
    image = pa.array([jpeg(0), jpeg(1)], pa.binary())
    for name in ("image", "jpg"):
        pq.write_table(pa.table({name: image, "caption": ["one", "two"], **columns}), tmp_path / f"{name}.parquet")
    for path in (write_csv(tmp_path, text), *(str(tmp_path / f"{name}.parquet") for name in ("image", "jpg"))):
        source = TableSource(path)
        assert [(r["id"], r["captions"]) for r in read_all(source)] == [("0", ("one",)), ("1", ("two",))]
        assert (source.broken, source.filtered, source.find_image_size(0)) == ([], {}, size)
        if isinstance(columns.get("status", [0])[0], str):
            assert TableSource(path, "status").captions(1) == ("draft",)


def test_table_errors(tmp_path):
    with pytest.raises(
        ValueError, match="needs image and one of captions, caption, label; its columns are file, title"
    ):
        TableSource(write_csv(tmp_path, "file,title\na.jpg,one\n"))
    with pytest.raises(ValueError, match="its columns are image, title"):
        TableSource(write_csv(tmp_path, "image,title\na.jpg,one\n"), "about")
    for text in ("", "image,caption"):
        with pytest.raises(
            ValueError, match=r"is not a readable CSV or Parquet file|no usable record in .*expected rows"
        ):
            TableSource(write_csv(tmp_path, text))
    with pytest.raises(ValueError, match=r"no usable record in .*'lost.jpg' is not a file"):
        TableSource(write_csv(tmp_path, "image,caption\nlost.jpg,one\n"))
    (tmp_path / "t.parquet").write_bytes(b"PAR1 cut off")
    with pytest.raises(ValueError, match=r"t.parquet is not a readable CSV or Parquet file"):
        TableSource(str(tmp_path / "t.parquet"))


# Subsets and choosing a source


def test_subset_is_a_view_of_the_range(tmp_path):
    whole = WebDatasetSource(str(write_shards(tmp_path)))
    part = SubsetSource(whole, 2, 7)
    assert read_all(part) == read_all(whole)[2:7]
    assert [part.captions(i) for i in range(5)] == [whole.captions(i) for i in range(2, 7)]
    for index in (-1, 5):
        with pytest.raises(IndexError):
            part[index]
        with pytest.raises(IndexError):
            part.captions(index)
    assert part.fingerprint() == {**whole.fingerprint(), "start": 2, "stop": 7, "length": 5}
    nested = SubsetSource(part, 1, 3)
    assert read_all(nested) == read_all(whole)[3:5]
    assert nested.fingerprint() == SubsetSource(whole, 3, 5).fingerprint()
    for start, stop in ((-1, 3), (3, 3), (4, 2), (0, 9)):
        with pytest.raises(ValueError, match=rf"the range \[{start}, {stop}\) .* 8 records"):
            SubsetSource(whole, start, stop)


def test_make_source_makes_each_kind(tmp_path, tfds_dir):
    write_array_record(str(tmp_path / "a.array_record"), [{"id": "r", "image": jpeg(0), "captions": ("c",)}])
    table = write_csv(tmp_path, "image,caption\na.jpg,one\n")
    assert len(make_source("webdataset", str(write_shards(tmp_path / "shards")))) == 8
    assert len(make_source("array_record", str(tmp_path))) == 1
    assert len(make_source("table", table)) == 1
    assert len(make_source("tfds", f"{tfds_dir}/random_pixels", "train")) == 7


@pytest.mark.parametrize("kind", ["webdataset", "array_record", "table"])
def test_make_source_names_a_path_without_data(tmp_path, kind):
    (tmp_path / "empty").mkdir()
    for path in ("", str(tmp_path / "lost"), str(tmp_path / "*.none"), str(tmp_path / "{3..5}.none")):
        with pytest.raises(ValueError, match=r"no data at .*, which does not exist: expected ") as error:
            make_source(kind, path)
        assert repr(path) in str(error.value)
    with pytest.raises(ValueError, match=r"no data in the folder .*empty': expected "):
        make_source(kind, str(tmp_path / "empty"))
    with pytest.raises(ValueError, match="nowhere://bucket/x cannot be opened: Protocol not known: nowhere"):
        make_source(kind, "nowhere://bucket/x")


def test_make_source_other_errors(tmp_path):
    with pytest.raises(ValueError, match="unknown kind of data 'hdf5'; known: webdataset, array_record, table, tfds"):
        make_source("hdf5", str(tmp_path))
    with pytest.raises(ValueError, match=r"nowhere://bucket/cifar10/.* cannot be opened: Protocol not known"):
        make_source("tfds", "nowhere://bucket/cifar10", "train")
    with pytest.raises(ValueError, match="nowhere://bucket/photos is remote, and a folder of pictures must be local"):
        make_source("folder", "nowhere://bucket/photos")
    folder = write_shards(tmp_path / "shards")
    with pytest.raises(ValueError, match=r"2 of 4 files do not exist, the first is .*00002\.tar"):
        make_source("webdataset", f"{folder}/{{00000..00003}}.tar")
