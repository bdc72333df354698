import io
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from PIL import Image

from clip_jax.cli import inspect as inspect_module
from input_pipeline.prepare import workers
from input_pipeline.prepare.folder import LocalFolder
from input_pipeline.prepare.manifest import prepare
from input_pipeline.prepare.sample import MAX_BROKEN_TILES, sample_source, spread
from input_pipeline.prepare.shards import ShardMaker
from input_pipeline.prepare.transform import Settings
from input_pipeline.scenes import SceneSource
from input_pipeline.sources import BrokenRecordError, FolderSource
from input_pipeline.sources.guess import guess_kind


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


class EveryThirdBroken:
    """Pictures whose number is their brightness; labels in place of captions."""

    class_names = ("even", "odd")

    def __init__(self, length: int, num_broken_in_index: int = 2):
        self.length = length
        self.broken = [(f"lost {i}", "caption without image") for i in range(num_broken_in_index)]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int):
        if index % 3 == 2:
            raise BrokenRecordError(str(index), "no reason")
        image = png(np.full((10, 12, 3), index, np.uint8))
        return {"id": str(index), "image": image, "captions": (), "label": index % 2}


def run(path: str, output: Path | None, **changes) -> int:
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver(**changes, output=None if output is None else str(output)):
        return inspect_module.main([path])


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        (["a.tar", "b.json"], "webdataset"),
        (["a-00000-of-00002.array_record", "manifest.json"], "array_record"),
        (["d-train.array_record-00000-of-00001", "dataset_info.json"], "tfds"),
        (["1.0.0/dataset_info.json"], "tfds"),
        (["a.jpg", "index.csv"], "folder"),
        (["index.csv", "images/a.jpg"], "table"),
        (["a.parquet", "b.parquet", "a_stats.json"], "table"),
        (["00000.tar", "00000.parquet"], "webdataset"),  # img2dataset's forms: tars and ...
        (["00000.parquet", "00000_stats.json", "00000/000000000.jpg"], "folder"),  # ... files
        ([], "folder"),
    ],
)
def test_the_form_of_a_folder_is_guessed_from_its_files(files, kind, tmp_path):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert guess_kind(str(tmp_path)) == kind


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("tars/{00000..00011}.tar", "webdataset"),
        ("x/*.array_record", "array_record"),
        ("x/d.array_record-00000-of-00001", "array_record"),
        ("a.parquet", "table"),
        ("a.csv", "table"),
        ("scenes", "scenes"),
    ],
)
def test_the_form_of_a_path_is_guessed_from_its_name(path, kind):
    assert guess_kind(path) == kind


def test_where_nothing_is_the_message_says_so():
    with pytest.raises(ValueError, match=r"^no data at 'nowhere': give a folder, tars, ArrayRecord files"):
        guess_kind("nowhere")


def test_places_are_spread_evenly():
    assert spread(10, 4) == [0, 2, 5, 7]
    assert spread(3, 7) == [0, 1, 2]
    assert spread(0, 7) == []
    gaps = np.diff(spread(10_007, 1000))
    assert set(gaps.tolist()) == {10, 11}


def test_a_sample_counts_what_it_saw_and_shows_what_is_broken():
    sample = sample_source(EveryThirdBroken(30), 1000, 12)
    assert sample.num_records == 30
    assert sample.broken == [(str(i), "no reason") for i in range(2, 30, 3)]
    assert dict(sample.statistics.labels) == {0: 10, 1: 10}
    assert dict(sample.statistics.sizes) == {"12x10": 20}
    shown = [tile for tile in sample.tiles if tile.image is not None]
    marked = [tile for tile in sample.tiles if tile.image is None]
    assert [(tile.record_id, tile.reason) for tile in marked[:2]] == [("2", "no reason"), ("8", "no reason")]
    assert marked[-1].record_id == "lost 0"  # of those in the index
    assert (len(marked), len(shown)) == (MAX_BROKEN_TILES, 6)
    for tile in shown:
        assert tile.texts == (("even", "odd")[int(tile.record_id) % 2],)
        assert (tile.image == int(tile.record_id)).all()


def test_a_sample_of_a_large_source_reads_no_more_than_it_shows():
    read = []

    class Counted(EveryThirdBroken):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index % 2)

    assert sample_source(Counted(10**6, 0), 50, 5).num_records == 50
    assert sorted(read) == [i * 20_000 for i in range(50)]


def test_inspect_a_folder(tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    captions = [
        "a cat",
        "un café à la crème",
        "猫が座っている" * 20,
        "قطة",
        "from $5_{ to $6",
        "🐈 " * 30,
        "a\tb\x00\x1bc",
    ]
    for i, caption in enumerate(captions):
        (tmp_path / "photos" / f"{i}.png").write_bytes(png(SceneSource(0, 9, 32)[i]["image"]))
        (tmp_path / "photos" / f"{i}.txt").write_text(caption, encoding="utf-8")
    (tmp_path / "photos" / "x.jpg").write_bytes(b"no picture")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run(str(tmp_path / "photos"), tmp_path / "out") == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "folder, 8 records, 8 looked at"
    rows = {line[:24].strip(): line[24:].split() for line in out}
    assert rows["characters of a caption"][0] == "7"
    assert rows["width"] == ["7", "32.0", "32", "32", "32", "32", "32"]
    assert "formats: 7 PNG" in out
    assert "broken of those looked at: 1 times not an image of a known format" in out
    assert out[-1] == f"contact_sheet.png, statistics.png and statistics.json are in {tmp_path / 'out'}"
    report = json.loads((tmp_path / "out" / "statistics.json").read_text())
    assert report["broken"][0][0] == "x.jpg"
    assert report["statistics"]["sizes"] == {"32x32": 7}
    assert report["source"] == FolderSource(str(tmp_path / "photos")).fingerprint()
    assert Image.open(tmp_path / "out" / "contact_sheet.png").width > 1000


def test_inspect_a_prepared_folder_shows_its_manifest(tmp_path, capsys, monkeypatch):
    source = SceneSource(0, 30, 32)
    folder = LocalFolder(str(tmp_path / "prepared"))
    maker = ShardMaker(source=source, folder=folder, settings=Settings(), name="data", shard_size=20)
    prepare(
        maker,
        lambda shards, done: workers.make_shards(maker, shards, 0, done=done),
        lambda statistics, path: Path(path).touch(),
        max_broken_share=0,
    )
    monkeypatch.chdir(tmp_path)
    assert run("prepared", None, num_records=10) == 0
    out = capsys.readouterr().out
    assert out.startswith("array_record, 30 records, 10 looked at\n")
    size = sum(file.stat().st_size for file in (tmp_path / "prepared").glob("*.array_record")) / 1e6
    expected = f"prepared from scenes at image_size=256: 30 records, {size:.1f} MB in 2 shards; 0 broken, 0 filtered"
    assert f"\n{expected}; duplicates: 0 exact, 0 near\n" in out
    assert {file.name for file in (tmp_path / "inspect-prepared").iterdir()} == {
        *("contact_sheet.png", "statistics.png", "statistics.json")
    }


def test_inspect_reads_captions_where_it_is_told_to_and_names_its_guess(tmp_path, capsys):
    (tmp_path / "data").mkdir()
    for i in range(3):
        (tmp_path / "data" / f"{i}.PIC").write_bytes(png(np.full((10, 12, 3), i, np.uint8)))
    (tmp_path / "data" / "a.csv").write_text("image,alt\n" + "".join(f"{i}.PIC,about {i}\n" for i in range(3)))
    assert run(str(tmp_path / "data"), tmp_path / "out", captions_field="alt") == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "table, 3 records, 3 looked at"
    assert [line.split()[-7:] for line in out if line.startswith("characters of")] == [["3", "7.0", *"77777"]]
    guess = "It was taken for table: if it is something else, name it by --source; --nocaptions needs none"
    with pytest.raises(ValueError, match=rf"needs image and one of captions, .*\. {guess}$"):
        run(str(tmp_path / "data"), tmp_path / "out")
    with pytest.raises(ValueError, match=r"columns are image, alt \("):
        run(str(tmp_path / "data"), tmp_path / "out", source="table")
    assert run(str(tmp_path / "data"), tmp_path / "out", captions=False) == 0
    assert "characters of" not in capsys.readouterr().out


def test_inspect_counts_what_it_does_not_read(tmp_path, capsys):
    for name in ("0.png", "1.jfif", "a.pdf", "b.PDF", "c.xmp"):
        (tmp_path / name).write_bytes(png(np.full((10, 12, 3), 9, np.uint8)))
    assert run(str(tmp_path), tmp_path / "out") == 0
    assert "not read: 2 .pdf, 1 .xmp" in capsys.readouterr().out.splitlines()
    report = json.loads((tmp_path / "out" / "statistics.json").read_text())
    assert (report["records"], report["unread"]) == (2, {".pdf": 2, ".xmp": 1})


def test_inspect_reads_the_columns_and_the_separator_that_it_is_told(tmp_path, capsys):
    (tmp_path / "0.png").write_bytes(png(np.full((10, 12, 3), 9, np.uint8)))
    (tmp_path / "a.csv").write_text("where#about\n0.png#a cat\n")
    changes = {"image_field": "where", "captions_field": "about", "separator": "#"}
    assert run(str(tmp_path / "a.csv"), tmp_path / "out", **changes) == 0
    assert "a.csv: its separator is '#'" in capsys.readouterr().out.splitlines()


def test_inspect_wants_one_data_set():
    with pytest.raises(ValueError, match="give one data set, not 0: for instance clip-jax inspect photos"):
        inspect_module.main([])
