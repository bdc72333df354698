"""Filters, and several sources as one."""

import dataclasses
import json
import os
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tiny_records import data_config, jpeg, write_tar

from input_pipeline.data_config import MixturePart
from input_pipeline.open_data import make_sources
from input_pipeline.sources import (
    BrokenRecordError,
    FilteredSource,
    Filters,
    Mixture,
    SubsetSource,
    WebDatasetSource,
    filters,
    make_source,
)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("CLIP_JAX_CACHE", str(tmp_path_factory.mktemp("cache")))


SIZES = [(13, 11), (29, 9), (40, 40), (8, 8), (100, 10), (16, 20)]  # of the pictures, in turn


def sized_tar(path: Path, count: int = 24, name: str = "picture") -> str:
    members = []
    for i in range(count):
        members.append((f"k{i}.jpg", jpeg(i, *SIZES[i % len(SIZES)])))
        captions = [f"{name} {i}", f"a longer text about {name} {i}"] if i % 4 else ["no"]
        members.append((f"k{i}.json", json.dumps({"captions": captions}).encode()))
    return str(write_tar(path, members))


def ids(source) -> list[str]:
    return [source[i]["id"] for i in range(len(source))]


def kept(source, **keys) -> list[int]:
    chosen = FilteredSource(source, [Filters(**keys)])
    assert sum(chosen.filtered.values()) + len(chosen) == len(source)
    return [int(record_id.partition("k")[2]) for record_id in ids(chosen)]


def test_each_filter_keeps_what_it_says(tmp_path):
    source = WebDatasetSource(sized_tar(tmp_path / "a.tar"))
    every = range(24)
    assert kept(source, min_side=10) == [i for i in every if min(SIZES[i % 6]) >= 10]
    assert kept(source, max_aspect=3.0) == [i for i in every if i % 6 not in (1, 4)]
    assert kept(source, max_aspect=10.0) == [*every]  # 100 by 10 is not above
    assert kept(source, min_caption_length=3) == [i for i in every if i % 4]
    assert kept(source, max_caption_length=2) == [i for i in every if i % 4 == 0]
    assert kept(source, caption_must_match=r"picture 1\d$") == [i for i in range(10, 20) if i % 4]
    assert kept(source, caption_must_not_match=r"^(no|picture)") == [i for i in every if i % 4]
    assert kept(source, caption_must_not_match="picture", min_side=10) == [
        i for i in every if i % 4 == 0 and min(SIZES[i % 6]) >= 10
    ]


def test_captions_are_judged_one_by_one(tmp_path):
    source = WebDatasetSource(sized_tar(tmp_path / "a.tar"))
    chosen = FilteredSource(source, [Filters(caption_must_match="longer"), Filters(min_caption_length=30)])
    assert ids(chosen)[0] == "a/k10"  # the first text of 30 characters
    assert chosen[0]["captions"] == chosen.captions(0) == ("a longer text about picture 10",)
    assert chosen[0]["image"] == source[10]["image"]
    assert chosen.filtered == {"a caption that does not match 'longer'": 24 - len(chosen)}  # of the first caption
    for index in (-1, len(chosen)):
        with pytest.raises(IndexError):
            chosen[index]


def test_what_was_filtered_is_counted_by_reason_and_broken_apart_from_it(tmp_path):
    members = [
        ("k0.jpg", b"no picture"),
        ("k0.txt", b"a text"),
        ("k1.jpg", jpeg(1)),
        ("k1.txt", b"b"),
        ("k2.jpg", b"x"),
    ]
    members += [
        (f"k{i}.{end}", data) for i in (3, 4) for end, data in (("jpg", jpeg(i, 9, 30 * i)), ("txt", b"a text"))
    ]
    source = WebDatasetSource(str(write_tar(tmp_path / "a.tar", members)))
    chosen = FilteredSource(source, [Filters(min_caption_length=3), Filters(max_aspect=11.0)])
    assert ids(chosen) == ["a/k3"]
    assert chosen.filtered == {"a caption below 3 characters": 1, "an aspect above 11": 1}
    assert [record_id for record_id, _ in chosen.broken] == ["a/k2", "a/k0"]
    assert chosen.broken[1][1].startswith("no image header that can be read")
    assert SubsetSource(chosen, 0, 1).filtered == chosen.filtered
    with pytest.raises(ValueError, match="no record of 4 passes the filters: 4 had a caption below 99 characters"):
        FilteredSource(source, [Filters(min_caption_length=99)])


def test_sizes_come_from_the_header_or_the_json_and_no_picture_is_decoded(tmp_path, monkeypatch):
    members = [
        ("a.jpg", jpeg(0, 50, 40)),
        ("a.txt", b"by its header"),
        ("b.jpg", b"never looked at"),
        (
            "b.json",
            b'{"caption": "by its JSON", "width": 300, "height": 200, "original_width": 9, "original_height": 9}',
        ),
        ("c.jpg", b"\xff\xd8\xff\xe1\xff\xff" + bytes(65533) + jpeg(2, 31, 30)[2:]),  # a preview of 64 KiB in front
        ("c.json", b'{"caption": "both", "width": null, "height": 5}'),
    ]
    source = WebDatasetSource(str(write_tar(tmp_path / "a.tar", members)))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda *_: pytest.fail("decoded"))
    assert [source.find_image_size(i) for i in range(3)] == [(50, 40), (300, 200), (31, 30)]
    assert ids(FilteredSource(source, [Filters(min_side=100)])) == ["a/b"]


def test_filters_are_judged_once_and_again_for_other_data_or_filters(tmp_path, monkeypatch):
    path = sized_tar(tmp_path / "a.tar")
    first = FilteredSource(WebDatasetSource(path), [Filters(min_side=10)])
    judged = []
    judge = FilteredSource._judge
    monkeypatch.setattr(FilteredSource, "_judge", lambda self, indices: judged.append(indices) or judge(self, indices))
    again = FilteredSource(WebDatasetSource(path), [Filters(min_side=10)])
    assert judged == []
    assert ids(again) == ids(first)
    assert (again.filtered, again.broken) == (first.filtered, first.broken)
    assert again.fingerprint() == first.fingerprint()
    other = FilteredSource(WebDatasetSource(path), [Filters(min_side=11)])
    assert len(judged) == 1
    assert other.fingerprint() != first.fingerprint()
    sized_tar(tmp_path / "a.tar")  # written again: the same, but that is not known
    FilteredSource(WebDatasetSource(path), [Filters(min_side=10)])
    assert len(judged) == 2
    monkeypatch.setattr(filters, "FILTER_VERSION", 2)
    FilteredSource(WebDatasetSource(path), [Filters(min_side=10)])
    assert len(judged) == 3


def test_a_picture_that_changes_in_a_folder_is_judged_again(tmp_path):
    (tmp_path / "a.jpg").write_bytes(jpeg(0, 20, 20))
    (tmp_path / "a.txt").write_text("caption")
    assert len(FilteredSource(make_source("folder", str(tmp_path)), [Filters(max_caption_length=7)])) == 1
    (tmp_path / "a.txt").write_text("CAPTION")  # of the same size
    os.utime(tmp_path / "a.txt", ns=(1, 1))
    with pytest.raises(ValueError, match="no record of 1 passes the filters: 1 had a caption that matches 'C'"):
        FilteredSource(
            make_source("folder", str(tmp_path)), [Filters(max_caption_length=7, caption_must_not_match="C")]
        )
    source = FilteredSource(make_source("folder", str(tmp_path)), [Filters(max_caption_length=7)])
    assert source.captions(0) == ("CAPTION",)


def test_many_records_are_judged_in_chunks_in_their_order(tmp_path, monkeypatch):
    monkeypatch.setattr(filters, "CHUNK", 5)
    source = WebDatasetSource(sized_tar(tmp_path / "a.tar"))
    assert kept(source, min_side=10) == [i for i in range(24) if min(SIZES[i % 6]) >= 10]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"min_side": -1}, "data.min_side=-1 must be at least 0"),
        ({"max_aspect": 0.5}, "data.max_aspect=0.5 must be at least 1, or 0 for any"),
        (
            {"min_caption_length": 5, "max_caption_length": 4},
            "data.max_caption_length=4 is less than min_caption_length=",
        ),
        ({"caption_must_match": "a("}, "data.caption_must_match='a(' is no regular expression: missing )"),
    ],
)
def test_filters_out_of_range_are_named(keys, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        data_config(**keys)


def test_a_filtered_source_is_split_after_the_filter(tmp_path):
    path = sized_tar(tmp_path / "a.tar")
    train, validation = make_sources(data_config(path=path, min_caption_length=3, num_validation=5), image_size=8)
    expected = [f"a/k{i}" for i in range(24) if i % 4]
    assert (ids(train), ids(validation)) == (expected[:-5], expected[-5:])


# Mixtures


def part(name: str, path: str, **keys) -> MixturePart:
    return MixturePart(**{"kind": "webdataset", "name": name, "path": path} | keys)


def test_a_mixture_is_its_sources_one_after_the_other(tmp_path):
    a, b = (WebDatasetSource(sized_tar(tmp_path / f"{x}.tar", n, x)) for x, n in (("a", 3), ("b", 5)))
    mixed = Mixture({"one": a, "two": b}, [1.0, 3.0])
    assert ids(mixed) == [*(f"one/a/k{i}" for i in range(3)), *(f"two/b/k{i}" for i in range(5))]
    assert [mixed.captions(i) for i in range(8)] == [s.captions(i) for s in (a, b) for i in range(len(s))]
    assert mixed[np.int64(4)]["image"] == b[1]["image"]
    for index in (-1, 8):
        with pytest.raises(IndexError, match=f"record {index} of 8"):
            mixed[index]
    (tmp_path / "b.tar").write_bytes(b"")
    with pytest.raises(BrokenRecordError, match=r"^two/b/k1: b.tar is shorter"):
        mixed[4]
    assert Mixture({"one": a, "two": b}).weights == (3, 5)


def test_validation_is_the_end_of_each_source_in_proportion_to_its_records(tmp_path):
    parts = (
        part("one", sized_tar(tmp_path / "a.tar", 24)),
        part("two", sized_tar(tmp_path / "b.tar", 12), min_caption_length=3),
        part("tiny", sized_tar(tmp_path / "c.tar", 1)),
        MixturePart(kind="scenes", name="drawn", num_examples=24),
    )
    config = data_config(source="mixture", mixture=parts, num_validation=19)
    train, validation = make_sources(config, image_size=16)
    assert isinstance(train, Mixture)
    assert isinstance(validation, Mixture)
    assert validation.names == ("one", "two", "drawn")
    assert validation.lengths == (8, 3, 8)  # of 24, 9, 1 and 24: 7.86, 2.9, 0.3 and 7.86
    assert train.lengths == (16, 6, 1, 24)  # drawn ones come from another stream
    assert not set(ids(train)[:22]) & set(ids(validation))
    assert ids(validation)[:8] == [f"one/a/k{i}" for i in range(16, 24)]
    assert train.filtered == {"two: a caption below 3 characters": 3}


def test_a_mixture_may_name_captions_and_weights_for_each_source(tmp_path):
    members = [
        (f"k{i}.{e}", d) for i in range(4) for e, d in (("jpg", jpeg(i)), ("json", b'{"alt": "other", "caption": "c"}'))
    ]
    path = str(write_tar(tmp_path / "a.tar", members))
    parts = (part("alt", path, captions_field="alt", weight=1.0), part("usual", path, weight=2.0))
    train, _ = make_sources(data_config(source="mixture", mixture=parts, num_validation=2), image_size=8)
    assert [train.captions(0), train.captions(3)] == [("other",), ("c",)]
    fingerprint = train.fingerprint()
    assert (fingerprint["parts"]["alt"]["weight"], fingerprint["parts"]["alt"]["captions_field"]) == (1.0, "alt")
    assert "captions_field" not in fingerprint["parts"]["usual"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixture": ()}, "data.source='mixture' with 0 entries in data.mixture: a mixture needs some"),
        ({"source": "webdataset"}, "data.source='webdataset' with 2 entries in data.mixture"),
        ({"names": ("a", "a")}, "data.mixture[0].name='a' must be a name of its own"),
        (
            {"names": ("a/b", "c")},
            "data.mixture[0].name='a/b' must be a name of its own, not empty and without a slash",
        ),
        ({"weights": (1.0, 0.0)}, "data.mixture[1].weight=0.0 must be above 0"),
        (
            {"weights": (1.0, None)},
            "data.mixture[1].weight=None: give weights to all sources of data.mixture, or to none",
        ),
        ({"min_side": -2}, "data.mixture[0].min_side=-2 must be at least 0"),
    ],
)
def test_mistakes_in_a_mixture_are_named(changes, message):
    names, weights = changes.pop("names", ("a", "b")), changes.pop("weights", (None, None))
    side = changes.pop("min_side", 0)
    parts = tuple(part(name, "x.tar", weight=weight, min_side=side) for name, weight in zip(names, weights))
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        data_config(**{"source": "mixture", "mixture": parts} | changes)


def test_a_source_without_a_path_is_named():
    with pytest.raises(
        ValueError, match=r"^data.mixture\[0\].path is empty: data.mixture\[0\].kind='webdataset' needs one$"
    ):
        make_sources(data_config(source="mixture", mixture=(part("a", ""),)), image_size=8)


def test_num_validation_must_leave_something_of_each_source(tmp_path):
    parts = (part("a", sized_tar(tmp_path / "a.tar", 5)),)
    for number, message in (
        (5, "the share 5 of 'a' in data.num_validation=5 must leave"),
        (0, "data.num_validation=0 must"),
    ):
        with pytest.raises(ValueError, match=message):
            make_sources(data_config(source="mixture", mixture=parts, num_validation=number), image_size=8)


def test_broken_records_of_each_source_are_judged_by_themselves(tmp_path):
    write_tar(tmp_path / "b.tar", [("k0.jpg", b"i"), ("k1.jpg", jpeg(1)), ("k1.txt", b"c")])
    parts = (part("many", sized_tar(tmp_path / "a.tar")), part("rotten", str(tmp_path / "b.tar")))
    with pytest.raises(
        ValueError, match=r"1 of 2 records cannot be used, more than data.max_broken_share=0.1 \(b/k0: image"
    ):
        make_sources(data_config(source="mixture", mixture=parts, max_broken_share=0.1), image_size=8)


def test_a_source_below_one_sample_in_a_block_is_refused_when_the_mixture_is_opened(tmp_path):
    few, many = (
        part("few", sized_tar(tmp_path / "a.tar", 3)),
        MixturePart(kind="scenes", name="many", num_examples=4_000_000),
    )
    with pytest.raises(
        ValueError,
        match=r"^data.mixture has no weights, so its sources count by their records, {'few': 3, 'many': 4000000}, and "
        "'few' is below one sample in 10000: give weights, or leave it out$",
    ):
        make_sources(data_config(source="mixture", mixture=(few, many), num_validation=1), image_size=16)
    weighted = (dataclasses.replace(few, weight=2e-5), dataclasses.replace(many, weight=1.0))
    with pytest.raises(ValueError, match=r"^data.mixture: the weight 2e-05 of \[2e-05, 1.0\] is below one sample in"):
        make_sources(data_config(source="mixture", mixture=weighted, num_validation=1), image_size=16)
    weighted = (dataclasses.replace(few, weight=1e-4), dataclasses.replace(many, weight=1.0))
    train, _ = make_sources(data_config(source="mixture", mixture=weighted, num_validation=1), image_size=16)
    assert isinstance(train, Mixture)
    assert (train.lengths, train.weights) == ((3, 4_000_000), (1e-4, 1.0))


def test_what_filters_leave_out_is_not_held_against_the_share_of_broken_records(tmp_path):
    members = [("k0.jpg", b"i")]
    for i in range(1, 10):
        members += [(f"k{i}.jpg", jpeg(i)), (f"k{i}.txt", b"a text" if i > 7 else b"no")]
    config = data_config(path=str(write_tar(tmp_path / "a.tar", members)), num_validation=1, min_caption_length=3)
    train, _ = make_sources(dataclasses.replace(config, max_broken_share=0.1), image_size=8)  # 1 of 10, not of 3
    assert (len(train), len(train.broken)) == (1, 1)
    with pytest.raises(ValueError, match=r"1 of 10 records cannot be used, more than data.max_broken_share=0.09"):
        make_sources(dataclasses.replace(config, max_broken_share=0.09), image_size=8)


def test_defaults_of_the_keys_that_older_configs_lack_change_nothing():
    config = data_config()
    assert (config.mixture, config.captions_field) == ((), "")
    assert filters.filters_of(config) is None
    assert filters.filters_of(dataclasses.replace(config, min_side=3)) == Filters(min_side=3)


# img2dataset


IMG2DATASET = [(f"{i:09d}", i != 2) for i in range(5)]  # key, whether it could be downloaded


def metadata_row(i: int, key: str, is_there: bool) -> dict:
    """The fields that it writes of each picture, whether there or not."""
    return {
        "caption": f"caption {i}" if i != 4 else None,
        "url": f"https://example.org/{i}.jpg",
        "key": key,
        "status": "success" if is_there else "failed_to_download",
        "error_message": None if is_there else "HTTP Error 404: Not Found",
        "width": 13 if is_there else None,
        "height": 11 if is_there else None,
        "original_width": 1300 if is_there else None,
        "original_height": 1100 if is_there else None,
        "exif": "{}" if is_there else None,
        "sha256": "0" * 64 if is_there else None,
    }


@pytest.fixture
def outputs(tmp_path) -> dict[str, str]:
    """One shard in each of img2dataset's forms, with the files beside it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [metadata_row(i, key, there) for i, (key, there) in enumerate(IMG2DATASET)]
    pictures = [jpeg(i) if there else None for i, (_, there) in enumerate(IMG2DATASET)]
    folders = {form: tmp_path / form for form in ("webdataset", "parquet", "files")}
    for folder in folders.values():
        folder.mkdir()
        (folder / "00000_stats.json").write_text('{"count": 5, "successes": 4, "failed_to_download": 1}')
        pq.write_table(pa.Table.from_pylist(rows), folder / "00000.parquet")
    with_pictures = [row | {"jpg": picture} for row, picture in zip(rows, pictures)]
    pq.write_table(pa.Table.from_pylist(with_pictures), folders["parquet"] / "00000.parquet", row_group_size=2)
    members = []
    (folders["files"] / "00000").mkdir()
    for row, picture in zip(rows, pictures):
        if picture:
            text = row["caption"] or ""
            for end, data in (("jpg", picture), ("txt", text.encode()), ("json", json.dumps(row, indent=4).encode())):
                members.append((f"{row['key']}.{end}", data))
                (folders["files"] / "00000" / f"{row['key']}.{end}").write_bytes(data)
    write_tar(folders["webdataset"] / "00000.tar", members)
    return {form: str(folder) for form, folder in folders.items()}


def test_outputs_of_img2dataset_are_read_as_they_are(outputs):
    expected = {0: "caption 0", 1: "caption 1", 3: "caption 3"}
    forms = {"webdataset": ("webdataset", "00000/{:09d}"), "parquet": ("table", "{:09d}")}
    for form, (kind, record_id) in forms.items():
        source = make_source(kind, outputs[form])
        found = {source[i]["id"]: (source[i]["image"], source[i]["captions"]) for i in range(len(source))}
        assert found == {record_id.format(i): (jpeg(i), (text,)) for i, text in expected.items()}
        ((_, reason),) = source.broken  # of number 4
        assert reason.startswith("no caption, or only empty ones")
        assert [source.find_image_size(i) for i in range(3)] == [(13, 11)] * 3
    assert make_source("table", outputs["parquet"]).filtered == Counter({"status failed_to_download": 1})
    source = make_source("folder", outputs["files"])
    assert [(source[i]["id"], source[i]["captions"]) for i in range(len(source))] == [
        *((f"00000/{i:09d}.jpg", (text,)) for i, text in expected.items()),
        ("00000/000000004.jpg", ()),  # broken when it is met in training
    ]


def test_img2dataset_without_a_picture_says_why(outputs):
    import pyarrow.parquet as pq

    file = f"{outputs['parquet']}/00000.parquet"
    pq.write_table(pq.read_table(file).slice(2, 1), file)
    with pytest.raises(ValueError, match=r"no usable record in .*parquet: 1 had status failed_to_download$"):
        make_source("table", outputs["parquet"])


def test_the_parquet_beside_the_tars_of_img2dataset_is_no_table_of_pictures(outputs):
    with pytest.raises(
        ValueError, match="needs image and one of captions, caption, label; its columns are caption, url, "
    ):
        make_source("table", outputs["webdataset"])


@pytest.mark.parametrize("names", ["abc", "bca", "cab", "cba"])
def test_several_tables_need_not_have_the_same_columns(names, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "0.jpg").write_bytes(jpeg(0))
    columns = {"image": pa.array([jpeg(1)], pa.binary()), "caption": ["bytes"], "width": [7], "height": [5]}
    pq.write_table(pa.table(columns), tmp_path / f"{names[0]}.parquet")
    (tmp_path / f"{names[1]}.csv").write_text("image,caption\n0.jpg,path\n")
    (tmp_path / f"{names[2]}.csv").write_text("image,label\n0.jpg,dog\n")
    source = make_source("table", str(tmp_path))
    expected = {
        names[0]: ({"image": jpeg(1), "captions": ("bytes",)}, (7, 5)),
        names[1]: ({"image": jpeg(0), "captions": ("path",), "path": "0.jpg"}, (13, 11)),
        names[2]: ({"image": jpeg(0), "captions": (), "label": 0, "path": "0.jpg"}, (13, 11)),
    }
    assert (source.class_names, source.broken) == (("dog",), [])
    for index, name in enumerate("abc"):
        record, size = expected[name]
        assert source[index] == {"id": f"{name}/0", **record}
        assert (source.captions(index), source.find_image_size(index)) == (record["captions"], size)


def test_several_tables_are_one_source(tmp_path):
    for i in range(2):
        (tmp_path / f"{i}.jpg").write_bytes(jpeg(i))
    (tmp_path / "a.csv").write_text("image,caption,label\n0.jpg,one,dog\n1.jpg,two,cat\n")
    (tmp_path / "b.csv").write_text("image,caption,label\n1.jpg,three,ant\nlost.jpg,four,cat\n")
    source = make_source("table", str(tmp_path))
    assert source.class_names == ("ant", "cat", "dog")
    found = [source[i] for i in range(len(source))]
    assert [(r["id"], r["image"], r["captions"], r["label"]) for r in found] == [
        ("a/0", jpeg(0), ("one",), 2),
        ("a/1", jpeg(1), ("two",), 1),
        ("b/0", jpeg(1), ("three",), 0),
    ]
    assert source.broken == [("b.csv, line 3", "image 'lost.jpg' is not a file in the folder of the table")]
    assert source.fingerprint()["files"] == ["a.csv", "b.csv"]
