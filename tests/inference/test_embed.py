import errno
import io
import json
import os
import re
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from absl import flags
from absl.testing import flagsaver
from PIL import Image

from clip_jax.cli import embed as embed_command
from clip_jax.cli.embed import describe, parse_part
from clip_jax.inference import api
from clip_jax.inference.api import Preprocess
from clip_jax.inference.embed import Summary, embed
from clip_jax.inference.embedding_shards import Shards
from clip_jax.pretrained import ImageTransform
from input_pipeline import open_data
from input_pipeline.prefetch import load_ahead
from input_pipeline.prepare.folder import LocalFolder
from input_pipeline.sources import FolderSource
from input_pipeline.transforms import decode_image, resize_and_center_crop

IMAGE_SIZE, EMBED_DIM, CONTEXT_LENGTH = 8, 5, 7
NUM_RECORDS, SHARD_SIZE, BATCH_SIZE = 23, 5, 3  # shards of 5, 5, 5, 5 and 3 records in batches of 3 and 2
TOLERANCE = 1e-6  # float32 sums of other batch sizes, in another order; 1.2e-7 was seen


class StubModel:
    """Random projections of pixels and of token counts."""

    embed_dim, image_size = EMBED_DIM, IMAGE_SIZE

    def __init__(self, seed: int = 0):
        rng = np.random.default_rng(seed)
        self.fingerprint = f"weights {seed}"
        self.image = rng.standard_normal((IMAGE_SIZE * IMAGE_SIZE * 3, EMBED_DIM)).astype(np.float32)
        self.text = rng.standard_normal((CONTEXT_LENGTH, EMBED_DIM)).astype(np.float32)
        self.batches: list[int] = []

    def encode_image(self, images: np.ndarray) -> np.ndarray:
        assert (images.dtype, images.shape[1:]) == (np.uint8, (IMAGE_SIZE, IMAGE_SIZE, 3))
        self.batches.append(len(images))
        return images.reshape(len(images), -1).astype(np.float32) @ self.image

    def encode_text(self, text: np.ndarray) -> np.ndarray:
        assert (text.dtype, text.shape[1:]) == (np.int32, (CONTEXT_LENGTH,))
        return text.astype(np.float32) @ self.text


class CompanyModel(StubModel):
    """An image's features depend on its whole batch, as in the last bits of a real model they may."""

    def encode_image(self, images: np.ndarray) -> np.ndarray:
        features = super().encode_image(images)
        return features + features.mean(0)


class StubTokenize:
    def fingerprint(self):
        return {"kind": "stub"}

    def __init__(self) -> None:
        self.num_truncated = 0

    def __call__(self, texts):
        assert len(texts)
        self.num_truncated += sum(len(text) > CONTEXT_LENGTH for text in texts)
        return np.array([[*text.encode()[:CONTEXT_LENGTH].ljust(CONTEXT_LENGTH, b"\0")] for text in texts], np.int32)


def preprocess(image) -> np.ndarray:
    return resize_and_center_crop(image, IMAGE_SIZE)


def picture(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (11, 13, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def photos(tmp_path) -> Path:
    """00.png to 22.png; number i has i % 3 captions."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(NUM_RECORDS):
        (folder / f"{i:02d}.png").write_bytes(picture(i))
        if i % 3:
            (folder / f"{i:02d}.txt").write_text("".join(f"{i} cat{'s' * k}\n" for k in range(i % 3)))
    return folder


def run(source, output: Path, model=None, tokenize=None, **settings) -> Summary:
    source = FolderSource(str(source)) if isinstance(source, Path) else source
    settings = {"shard_size": SHARD_SIZE, "batch_size": BATCH_SIZE, **settings}
    prepare = settings.pop("preprocess", preprocess)
    return embed(model or StubModel(), prepare, tokenize or StubTokenize(), source, output, **settings)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def direct(photos: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """id -> normalised image embedding, caption -> normalised text embedding, each encoded by itself."""
    model, tokenize, source = StubModel(), StubTokenize(), FolderSource(str(photos))

    def normalise(features):
        return features[0] / np.sqrt(np.sum(features[0] ** 2))

    records = [source[i] for i in range(len(source))]
    images = {r["id"]: normalise(model.encode_image(preprocess(decode_image(r["image"]))[None])) for r in records}
    captions = {caption for record in records for caption in record["captions"]}
    return images, {caption: normalise(model.encode_text(tokenize([caption]))) for caption in captions}


def test_parquet_holds_what_encoding_one_by_one_gives(photos, tmp_path):
    output = tmp_path / "deep" / "output"
    tokenize = StubTokenize()
    summary = run(photos, output, tokenize=tokenize)
    names = [f"part-0000{i}-of-00005.parquet" for i in range(5)]
    assert sorted(path.name for path in output.iterdir()) == ["_manifest.json", *names]
    assert summary.files == [output / name for name in names]
    tables = [pq.read_table(output / name) for name in names]
    assert [len(table) for table in tables] == [5, 5, 5, 5, 3]
    vector = pa.list_(pa.float32(), EMBED_DIM)
    for table in tables:
        assert dict(zip(table.column_names, table.schema.types)) == {
            "id": pa.string(),
            "path": pa.string(),
            "image_embedding": vector,
            "captions": pa.list_(pa.string()),
            "label": pa.int64(),
            "text_embeddings": pa.list_(vector),
        }
    images, texts = direct(photos)
    rows = pa.concat_tables(tables).to_pylist()
    assert [row["id"] for row in rows] == [f"{i:02d}.png" for i in range(NUM_RECORDS)]
    for i, row in enumerate(rows):
        np.testing.assert_allclose(row["image_embedding"], images[row["id"]], rtol=0, atol=TOLERANCE)
        assert row["captions"] == [f"{i} cat", f"{i} cats"][: i % 3]
        assert len(row["text_embeddings"]) == i % 3
        for caption, embedding in zip(row["captions"], row["text_embeddings"]):
            np.testing.assert_allclose(embedding, texts[caption], rtol=0, atol=TOLERANCE)
        assert row["label"] is None
    assert (summary.images, summary.captions, summary.broken) == (23, 8 + 2 * 7, [])
    assert summary.truncated == tokenize.num_truncated == 0


def test_npy_holds_the_same_and_says_which_caption_belongs_where(photos, tmp_path):
    run(photos, tmp_path / "parquet")
    run(photos, tmp_path / "npy", file_format="npy")
    names = {path.name for path in (tmp_path / "npy").iterdir()}
    kinds = ("image_embeddings-0000{}-of-00005.npy", "text_embeddings-0000{}-of-00005.npy", "ids-0000{}-of-00005.jsonl")
    assert names == {"_manifest.json"} | {kind.format(i) for kind in kinds for i in range(5)}
    for i in range(5):
        image, text = (np.load(tmp_path / "npy" / kind.format(i)) for kind in kinds[:2])
        lines = [json.loads(line) for line in (tmp_path / "npy" / kinds[2].format(i)).read_text().splitlines()]
        rows = pq.read_table(tmp_path / "parquet" / f"part-0000{i}-of-00005.parquet").to_pylist()
        assert (image.dtype, text.dtype) == (np.float32, np.float32)
        assert image.tolist() == [row["image_embedding"] for row in rows]
        assert [line["id"] for line in lines] == [row["id"] for row in rows]
        assert [line["captions"] for line in lines] == [row["captions"] for row in rows]
        assert [text[slice(*line["texts"])].tolist() for line in lines] == [row["text_embeddings"] for row in rows]
        assert len(text) == lines[-1]["texts"][1]


@pytest.mark.parametrize("file_format", ["parquet", "npy"])
def test_without_texts_no_text_is_encoded(photos, tmp_path, file_format):
    tokenize = StubTokenize()
    summary = run(photos, tmp_path / "out", tokenize=tokenize, texts=False, file_format=file_format)
    assert summary.captions == 0
    if file_format == "parquet":
        table = pq.read_table(tmp_path / "out" / "part-00001-of-00005.parquet")
        assert table.column_names == ["id", "path", "image_embedding", "captions", "label"]
    else:
        line = json.loads((tmp_path / "out" / "ids-00001-of-00005.jsonl").read_text().splitlines()[0])
        assert line == {"id": "05.png", "path": "05.png", "captions": ["5 cat", "5 cats"]}
        assert not list((tmp_path / "out").glob("text*"))


def test_float16_is_the_rounded_float32(photos, tmp_path):
    for dtype in ("float32", "float16"):
        run(photos, tmp_path / dtype, file_format="npy", dtype=dtype)
        run(photos, tmp_path / f"{dtype} table", dtype=dtype)
    for kind in ("image_embeddings", "text_embeddings"):
        full, half = (np.load(tmp_path / x / f"{kind}-00001-of-00005.npy") for x in ("float32", "float16"))
        assert half.dtype == np.float16
        np.testing.assert_array_equal(half, full.astype(np.float16))
    table = pq.read_table(tmp_path / "float16 table" / "part-00001-of-00005.parquet")
    assert table.schema.field("image_embedding").type == pa.list_(pa.float16(), EMBED_DIM)
    half = np.load(tmp_path / "float16" / "image_embeddings-00001-of-00005.npy")
    assert table["image_embedding"].to_pylist() == half.tolist()


def test_labels_and_class_names(photos, tmp_path):
    for i in range(NUM_RECORDS):
        folder = photos / ("odd" if i % 2 else "even")
        folder.mkdir(exist_ok=True)
        (photos / f"{i:02d}.png").rename(folder / f"{i:02d}.png")
    source = FolderSource(str(photos), class_folders=True)
    run(source, tmp_path / "table")
    run(source, tmp_path / "npy", file_format="npy")
    rows = [row for file in sorted((tmp_path / "table").glob("part*")) for row in pq.read_table(file).to_pylist()]
    assert [row["label"] for row in rows] == [0] * 12 + [1] * 11
    assert json.loads((tmp_path / "table" / "_manifest.json").read_text())["class_names"] == ["even", "odd"]
    line = json.loads((tmp_path / "npy" / "ids-00004-of-00005.jsonl").read_text().splitlines()[0])
    assert line == {"id": "odd/17.png", "path": "odd/17.png", "captions": [], "label": 1, "texts": [0, 0]}


@pytest.mark.parametrize("file_format", ["parquet", "npy"])
def test_parts_together_are_one_run(photos, tmp_path, file_format):
    (photos / "07.png").write_bytes(picture(7)[:99])
    settings = {"file_format": file_format, "model": CompanyModel(), "max_broken_share": 0.2}
    whole = run(photos, tmp_path / "whole", **settings)
    for count in (2, 7):  # of 7 two have nothing to do
        parts = [run(photos, tmp_path / f"{count}", part=(i, count), **settings) for i in reversed(range(count))]
        assert contents(tmp_path / f"{count}") == contents(tmp_path / "whole")
        assert sum(part.images for part in parts) == whole.images == 22
        assert sum(part.captions for part in parts) == whole.captions
        assert [part.shards_skipped for part in parts] == [0] * count
    part = run(photos, tmp_path / "part", part=(1, 2), **settings)
    assert [file.name[-25:] for file in part.files if "im" in file.name or "part" in file.name] == [
        file.name[-25:] for file in whole.files if "im" in file.name or "part" in file.name
    ][1::2]


@pytest.mark.parametrize(
    ("file_format", "lost"),
    [
        ("parquet", ["part-00001-of-00005.parquet", "part-00004-of-00005.parquet"]),
        ("npy", ["image_embeddings-00001-of-00005.npy", "ids-00004-of-00005.jsonl"]),
        ("npy", ["text_embeddings-00001-of-00005.npy", "text_embeddings-00004-of-00005.npy"]),
    ],
)
def test_missing_shards_are_made_again_and_no_others(photos, tmp_path, file_format, lost):
    output = tmp_path / "out"
    run(photos, output, CompanyModel(), file_format=file_format)
    before = contents(output)
    kept = {file: file.stat().st_mtime_ns for file in output.iterdir() if "00001-of" not in file.name}
    kept = {file: stamp for file, stamp in kept.items() if "00004-of" not in file.name}
    for name in lost:
        (output / name).unlink()
    model = CompanyModel()
    summary = run(photos, output, model, file_format=file_format)
    assert contents(output) == before
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    assert model.batches == [3, 2, 3]  # of a shard of 5 and one of 3
    assert (summary.images, summary.shards_skipped) == (8, 3)
    again = run(photos, output, model, file_format=file_format)
    assert (again.images, again.files, again.shards_skipped, model.batches) == (0, [], 5, [3, 2, 3])


@pytest.mark.parametrize("file_format", ["parquet", "npy"])
@pytest.mark.parametrize("where", ["model", "writing"])
def test_an_interrupted_run_leaves_whole_shards_and_resumes(photos, tmp_path, monkeypatch, file_format, where):
    run(photos, tmp_path / "whole", CompanyModel(), file_format=file_format)
    output = tmp_path / "out"
    model = CompanyModel()
    with monkeypatch.context() as patch:
        if where == "model":
            encode = model.encode_image
            patch.setattr(
                model,
                "encode_image",
                lambda images: encode(images) if len(model.batches) < 5 else (_ for _ in ()).throw(KeyboardInterrupt),
            )
        else:
            writes = []

            def cut_short(write, position):
                def wrapped(*arguments, **settings):
                    writes.append(0)
                    if len(writes) == (3 if file_format == "parquet" else 5):  # within the third shard
                        arguments[position].write(b"half")
                        raise KeyboardInterrupt
                    return write(*arguments, **settings)

                return wrapped

            patch.setattr(pq, "write_table", cut_short(pq.write_table, 1))
            patch.setattr(np, "save", cut_short(np.save, 0))
        with pytest.raises(KeyboardInterrupt):
            run(photos, output, model, file_format=file_format)
    whole, found = contents(tmp_path / "whole"), contents(output)
    assert "_manifest.json" in found
    assert 2 < len(found) < len(whole)
    assert found == {name: whole[name] for name in found}
    summary = run(photos, output, CompanyModel(), file_format=file_format)
    assert summary.shards_skipped == 2
    assert contents(output) == whole


def test_the_folder_is_read_as_one_table_and_names_model_and_data(photos, tmp_path):
    run(photos, tmp_path / "out", about={"model": "ViT-B/32", "data": "photos"})
    table = pandas.read_parquet(tmp_path / "out")
    assert len(table) == 23
    assert json.loads((tmp_path / "out" / "_manifest.json").read_text())["about"]["model"] == "ViT-B/32"
    again = run(photos, tmp_path / "out", about={"model": "weights", "data": "moved"})
    assert again.shards_skipped == 5


def test_a_folder_of_an_earlier_version_is_continued(photos, tmp_path):
    output = tmp_path / "out"
    run(photos, output)
    (output / "_manifest.json").rename(output / "manifest.json")
    assert run(photos, output).shards_skipped == 5
    assert (output / "_manifest.json").exists()


def test_a_broken_record_is_left_out_and_reported(photos, tmp_path):
    whole = run(photos, tmp_path / "whole")
    (photos / "07.png").write_bytes(b"no picture")
    (photos / "08.png").write_bytes(picture(8)[:99])
    (photos / "21.txt").write_bytes(b"\xff")
    (photos / "outside.png").symlink_to(tmp_path / "elsewhere.png")
    output = tmp_path / "out"
    summary = run(photos, output, max_broken_share=0.2)
    assert (whole.images, summary.images) == (23, 20)
    assert [record_id for record_id, _ in summary.broken] == ["07.png", "08.png", "21.png"]
    assert summary.broken[0][1].startswith("not an image of a known format")
    assert summary.broken[2][1] == "text is not valid UTF-8"
    table = pq.read_table(output / "part-00001-of-00005.parquet")
    assert table["id"].to_pylist() == ["05.png", "06.png", "09.png"]
    assert json.loads((output / "_broken-00001-of-00005.json").read_text()) == [list(x) for x in summary.broken[:2]]
    assert json.loads((output / "_broken-00004-of-00005.json").read_text()) == [list(summary.broken[2])]
    assert len(list(output.glob("_broken*"))) == 2
    manifest = json.loads((output / "_manifest.json").read_text())
    assert manifest["num_broken_in_index"] == 1
    ((name, reason),) = manifest["first_broken_in_index"]
    assert (name, reason.partition(":")[0]) == ("outside.png", "outside.png is a link that leads out of the folder")
    untouched = pq.read_table(output / "part-00000-of-00005.parquet")
    assert untouched.equals(pq.read_table(tmp_path / "whole" / "part-00000-of-00005.parquet"))


@pytest.mark.parametrize("file_format", ["parquet", "npy"])
def test_a_shard_of_broken_records_is_empty_but_there(photos, tmp_path, file_format):
    for i in range(5, 10):
        (photos / f"{i:02d}.png").write_bytes(b"no picture")
    summary = run(photos, tmp_path / "out", max_broken_share=0.5, file_format=file_format)
    assert (summary.images, len(summary.broken)) == (18, 5)
    if file_format == "parquet":
        tables = [pq.read_table(tmp_path / "out" / f"part-0000{i}-of-00005.parquet") for i in (0, 1)]
        assert len(tables[1]) == 0
        assert tables[1].schema == tables[0].schema
    else:
        assert np.load(tmp_path / "out" / "image_embeddings-00001-of-00005.npy").shape == (0, EMBED_DIM)
        assert (tmp_path / "out" / "ids-00001-of-00005.jsonl").read_text() == ""
    assert run(photos, tmp_path / "out", max_broken_share=0.5, file_format=file_format).shards_skipped == 5


def test_too_many_broken_records_stop_the_run_also_after_a_resume(photos, tmp_path, monkeypatch):
    for i in (2, 3, 19):
        (photos / f"{i:02d}.png").write_bytes(b"no picture")
    output = tmp_path / "out"
    # 3 of 23 are 13.04 %; 2 of the first 4 are not judged by themselves.
    assert len(run(photos, tmp_path / "enough", max_broken_share=3 / 23).broken) == 3
    message = (
        r"^3 of 23 records cannot be used, more than max_broken_share=0\.13 \(02\.png: not an image of a known format "
        r".*; 19\.png: .*\): fix the data or raise max_broken_share$"
    )
    for done in (0, 3):
        model = StubModel()
        with pytest.raises(ValueError, match=message):
            run(photos, output, model, max_broken_share=0.13)
        assert sum(model.batches) == (3 + 5 + 5 + 3 if done == 0 else 3)
        assert len(list(output.glob("part*"))) == 3
    assert run(photos, output, max_broken_share=0.14).shards_skipped == 3
    monkeypatch.setattr(open_data, "FEW_RECORDS", 7)
    with pytest.raises(ValueError, match=r"^1 of 7 records"):
        run(photos, tmp_path / "few", max_broken_share=0.1)


def test_what_the_index_found_broken_is_judged_first(photos, tmp_path):
    for i in range(3):
        (photos / f"link{i}.png").symlink_to("nowhere.png")
    with pytest.raises(ValueError, match=r"^3 of 26 records cannot .* \(link0\.png: link0\.png is not a file;"):
        run(photos, tmp_path / "out", max_broken_share=0.1)
    assert not (tmp_path / "out").exists()


def test_the_manifest_says_what_the_embeddings_are(photos, tmp_path):
    run(photos, tmp_path / "out")
    source = FolderSource(str(photos)).fingerprint()
    assert json.loads((tmp_path / "out" / "_manifest.json").read_text()) == {
        "about": {},
        "model_fingerprint": "weights 0",
        "embed_dim": EMBED_DIM,
        "image_size": IMAGE_SIZE,
        "tokenizer": {"kind": "stub"},
        "source": source,
        "class_names": None,
        "num_records": 23,
        "num_shards": 5,
        "shard_size": 5,
        "format": "parquet",
        "dtype": "float32",
        "texts": True,
        "num_broken_in_index": 0,
        "first_broken_in_index": [],
    }


@pytest.mark.parametrize(
    ("settings", "difference"),
    [
        ({"model": StubModel(1)}, "model_fingerprint was 'weights 0', is 'weights 1'"),
        ({"dtype": "float16"}, "dtype was 'float32', is 'float16'"),
        ({"file_format": "npy"}, "format was 'parquet', is 'npy'"),
        ({"texts": False}, "texts was True, is False"),
        ({"shard_size": 7}, "num_shards was 5, is 4; shard_size was 5, is 7"),
        ({"dtype": "float16", "texts": False}, "dtype was 'float32', is 'float16'; texts was True, is False"),
    ],
)
def test_another_setting_in_the_same_folder_is_an_error(photos, tmp_path, settings, difference):
    output = tmp_path / "out"
    run(photos, output)
    before = contents(output)
    message = (
        f"{output} holds embeddings of another model, source or other settings: {difference}. Use another --output"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        run(photos, output, **settings)
    assert contents(output) == before


def test_pictures_prepared_in_another_way_are_other_embeddings(photos, tmp_path):
    run(photos, tmp_path / "out")
    bilinear = Preprocess(IMAGE_SIZE, ImageTransform(interpolation="bilinear"))
    with pytest.raises(ValueError, match=r"image_transform was None, is .'interpolation': 'bilinear'"):
        run(photos, tmp_path / "out", preprocess=bilinear)


def test_another_source_in_the_same_folder_is_an_error(photos, tmp_path):
    run(photos, tmp_path / "out")
    (photos / "23.png").write_bytes(picture(23))
    with pytest.raises(
        ValueError, match=r"num_records was 23, is 24; source\.digest was '\w+', is '\w+'; source\.length .* 24\."
    ):
        run(photos, tmp_path / "out")


def test_the_batch_size_may_change_when_a_run_resumes(photos, tmp_path):
    run(photos, tmp_path / "out", part=(0, 2))
    assert run(photos, tmp_path / "out", batch_size=2).shards_skipped == 3


def test_shards_without_a_readable_manifest_are_an_error(photos, tmp_path):
    output = tmp_path / "out"
    run(photos, output)
    for damage in ('{"source', "[]"):
        (output / "_manifest.json").write_text(damage)
        with pytest.raises(ValueError, match=r"^_manifest\.json in .*out is damaged: use another --output$"):
            run(photos, output)
    (output / "_manifest.json").unlink()
    with pytest.raises(ValueError, match=r"out holds part-00000-of-00005\.parquet but no _manifest\.json: use another"):
        run(photos, output)


def test_parts_that_start_at_once_agree_on_one_manifest(tmp_path, monkeypatch):
    shards = Shards(folder=LocalFolder(tmp_path), source=range(23), shard_size=5, file_format="npy", texts=True)

    def claim(manifest: dict) -> None:
        shards.claim("_manifest.json", json.dumps(manifest), holds="embeddings of other settings")

    link = os.link

    def after_another(manifest: dict):
        def wrapped(partial, file):
            Path(file).write_text(json.dumps(manifest))  # by a part that came in between
            link(partial, file)

        monkeypatch.setattr(os, "link", wrapped)

    mine, other = {"dtype": "float32", "source": {}}, {"dtype": "float16", "source": {}}
    after_another(mine)
    claim(mine)
    (tmp_path / "_manifest.json").unlink()
    after_another(other)
    with pytest.raises(ValueError, match="dtype was 'float16', is 'float32'"):
        claim(mine)
    assert json.loads((tmp_path / "_manifest.json").read_text()) == other
    (tmp_path / "_manifest.json").unlink()

    def refuse(*_):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    claim(mine)
    assert json.loads((tmp_path / "_manifest.json").read_text()) == mine
    assert [path.name for path in tmp_path.iterdir()] == ["_manifest.json"]


def test_many_parts_at_once(photos, tmp_path):
    """Threads stand for machines."""
    run(photos, tmp_path / "whole")
    barrier, failures = threading.Barrier(8), []

    def work(part: int):
        barrier.wait()
        try:
            run(photos, tmp_path / "out", part=(part % 5, 5), num_threads=1)  # three parts are started twice
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_decoding_runs_ahead_but_not_far():
    begun: list[int] = []

    def load(index: int) -> int:
        begun.append(index)
        time.sleep(0.001 * (index % 3))
        return index

    loaded = load_ahead(load, iter(range(1000)), 4, 7)
    assert [next(loaded) for _ in range(11)] == list(range(11))
    deadline = time.monotonic() + 10
    while len(begun) < 11 + 7 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.02)
    assert sorted(begun) == list(range(11 + 7))
    loaded.close()
    assert len(begun) == 11 + 7


def test_the_next_batch_is_prepared_while_the_device_is_busy(photos, tmp_path):
    tokenized = threading.Semaphore(0)

    class SlowModel(StubModel):
        waited_in_vain = 0

        def encode_image(self, images):
            if not self.batches:  # the first batch, while two more are made ready
                self.waited_in_vain += sum(not tokenized.acquire(timeout=10) for _ in range(3))
            return super().encode_image(images)

    class Tokenize(StubTokenize):
        def __call__(self, texts):
            tokenized.release()
            return super().__call__(texts)

    model = SlowModel()
    run(photos, tmp_path / "out", model, Tokenize(), shard_size=23, batch_size=5)
    assert model.waited_in_vain == 0
    assert model.batches == [5, 5, 5, 5, 3]


def test_features_that_are_not_finite_are_an_error_not_a_file(photos, tmp_path):
    model = StubModel()
    model.image[:, 2] = np.nan
    with pytest.raises(ValueError, match=r"^the model's features of '00\.png' are zero or not finite"):
        run(photos, tmp_path / "out", model)
    model = StubModel()
    model.text[:] = 0
    with pytest.raises(ValueError, match=r"^the model's features of '1 cat' are zero or not finite"):
        run(photos, tmp_path / "out", model)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["_manifest.json"]


def test_captions_that_are_cut_are_counted(photos, tmp_path):
    (photos / "04.txt").write_text("a caption that is too long\nshort\nanother long one\n")
    tokenize = StubTokenize()
    tokenize.num_truncated = 11  # from what was done with it before
    assert run(photos, tmp_path / "out", tokenize=tokenize).truncated == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shard_size": 0}, "shard_size=0 must be at least 1"),
        ({"batch_size": -1}, "batch_size=-1 must be at least 1"),
        ({"num_threads": 0}, "num_threads=0 must be at least 1"),
        ({"file_format": "csv"}, "file_format='csv' must be one of parquet, npy"),
        ({"dtype": "int8"}, "dtype='int8' must be one of float32, float16"),
        ({"max_broken_share": 1.5}, "max_broken_share=1.5 must lie in [0, 1]"),
        ({"part": (2, 2)}, "part=2/2 must be i/n with 0 <= i < n"),
        ({"part": (-1, 2)}, "part=-1/2 must be i/n with 0 <= i < n"),
    ],
)
def test_arguments_out_of_range(photos, tmp_path, settings, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        run(photos, tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_parts_as_text():
    assert parse_part("0/1") == (0, 1)
    assert parse_part("11/13") == (11, 13)
    for text in ("4/4", "1", "1/", "-1/2", "0/0", "a/b", "0/2/3", ""):
        with pytest.raises(ValueError, match=rf"^--part={text} must be i/n with 0 <= i < n"):
            parse_part(text)


def test_the_table_at_the_end(tmp_path):
    summary = Summary(images=7, captions=11, truncated=3, broken=[("a.png", "no")], seconds=0.5, files=[tmp_path] * 2)
    summary.shards_skipped = 5
    first, dashes, row, *rest = describe(summary, tmp_path / "out").splitlines()
    assert re.split(r"\s{2,}", first) == ["images", "captions", "truncated captions", "broken", "images/s", "files"]
    assert set(dashes) == {"-", " "}
    assert row.split() == ["7", "11", "3", "1", "14", "2"]
    assert rest == [
        "",
        f"the embeddings are in {tmp_path / 'out'}",
        "broken records are left out (a.png: no); all are in _broken-*.json",
        "5 shards found, not computed again",
    ]


def test_the_command(photos, tmp_path, monkeypatch, capsys):
    calls = []

    def load(name, *, activation, batch_size, mesh):
        calls.append((name, activation, batch_size, mesh.devices.tolist()))
        return StubModel(), preprocess, StubTokenize()

    monkeypatch.setattr(api, "load", load)
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    values = {"model": "some model", "path": str(photos), "output": str(tmp_path / "out"), "format": "npy"}
    values |= {"shard_size": SHARD_SIZE, "batch_size": BATCH_SIZE, "dtype": "float16"}
    with flagsaver.flagsaver(**values, part="1/2"):
        assert embed_command.main() == 0
    assert calls == [("some model", None, BATCH_SIZE, [[[device]] for device in jax.local_devices()])]
    about = {"model": "some model", "data": str(photos)}
    run(photos, tmp_path / "direct", file_format="npy", dtype="float16", part=(1, 2), about=about)
    assert contents(tmp_path / "out") == contents(tmp_path / "direct")
    printed = capsys.readouterr().out
    assert printed.splitlines()[2].split()[:4] == ["10", "9", "0", "0"]
    assert printed.endswith(f"the embeddings are in {tmp_path / 'out'}\n")

    with flagsaver.flagsaver(**{**values, "output": str(tmp_path / "all")}):  # of the only process
        assert embed_command.main() == 0
    run(photos, tmp_path / "all directly", file_format="npy", dtype="float16", about=about)
    assert contents(tmp_path / "all") == contents(tmp_path / "all directly")
