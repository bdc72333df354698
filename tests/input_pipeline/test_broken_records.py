"""One record in a hundred of each kind of breakage, through every source: counted, replaced, and the run goes on."""

import io
import json
import struct
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tiny_records import Words, data_config, jpeg, write_tar

from input_pipeline.examples import Examples
from input_pipeline.open_data import make_sources
from input_pipeline.pipeline import BatchIterator

COUNT, BATCH_SIZE = 200, 5


def bomb(width: int = 50_000, height: int = 50_000) -> bytes:
    """A PNG of a few bytes that says it is 2.5 thousand million pixels large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def strip() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (9, 2000)).save(buffer, "PNG")
    return buffer.getvalue()


# Kind -> image, caption as bytes, and how the reason begins.
BREAKAGES: dict[str, tuple[bytes, bytes, str]] = {
    "truncated": (jpeg(1)[:-150], b"caption", "truncated or broken image"),
    "wrong type": (b"%PDF-1.7 no picture" * 20, b"caption", "not an image of a known format"),
    "zero bytes": (b"", b"caption", ""),
    "bomb": (bomb(), b"caption", "image too large"),
    "absurd dimensions": (strip(), b"caption", "image too narrow"),
    "missing caption": (jpeg(2), b"", "no caption"),
    "invalid UTF-8": (jpeg(3), b"\xff\xfe caption", "text is not valid UTF-8"),
}
PLACES = {name: tuple(range(2 * i + 10, COUNT, 100)) for i, name in enumerate(BREAKAGES)}  # two of 200 each
BROKEN = {i: name for name, places in PLACES.items() for i in places}


def records() -> list[tuple[bytes, bytes]]:
    return [BREAKAGES[BROKEN[i]][:2] if i in BROKEN else (jpeg(i), b"picture %d" % i) for i in range(COUNT)]


def webdataset(folder: Path) -> str:
    members = [m for i, (a, b) in enumerate(records()) for m in ((f"{i:03d}.jpg", a), (f"{i:03d}.txt", b))]
    return str(write_tar(folder / "a.tar", members))


def array_record(folder: Path) -> str:
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_pb2

    writer = ArrayRecordWriter(str(folder / "a.array_record"), "group_size:1")
    for i, (image, caption) in enumerate(records()):
        example = tf_example_pb2.Example()
        for name, value in (("id", b"%03d" % i), ("image", image), ("caption", caption)):
            example.features.feature[name].bytes_list.value.append(value)
        writer.write(example.SerializeToString())
    writer.close()
    return str(folder / "a.array_record")


def parquet(folder: Path) -> str:
    images, captions = zip(*records())
    columns = {"id": [f"{i:03d}" for i in range(COUNT)], "image": pa.array(images, pa.binary())}
    text = pa.array(captions, pa.binary()).view(pa.string())  # as some writers leave it, not checked
    pq.write_table(pa.table({**columns, "caption": text}), folder / "a.parquet", row_group_size=50)
    return str(folder / "a.parquet")


def csv(folder: Path) -> str:
    lines = [b"id,image,caption"]
    for i, (image, caption) in enumerate(records()):
        (folder / f"{i}.jpg").write_bytes(image)
        lines.append(b"%03d,%d.jpg,%s" % (i, i, caption))
    (folder / "a.csv").write_bytes(b"\n".join(lines))
    return str(folder / "a.csv")


def folder(folder: Path) -> str:
    for i, (image, caption) in enumerate(records()):
        (folder / f"{i:03d}.jpg").write_bytes(image)
        (folder / f"{i:03d}.txt").write_bytes(caption)
    return str(folder)


FORMS = [
    ("webdataset", webdataset),
    ("array_record", array_record),
    ("table", parquet),
    ("table", csv),
    ("folder", folder),
]


@pytest.mark.parametrize(("kind", "write"), FORMS)
def test_broken_records_of_every_kind_are_counted_and_replaced(kind: str, write: Callable[[Path], str], tmp_path):
    config = data_config(source=kind, path=write(tmp_path), num_validation=1, max_broken_share=0.1)
    source, _ = make_sources(config, image_size=8)
    assert len(source) + len(source.broken) == COUNT - 1
    examples = Examples(source=source, tokenizer=Words(), image_size=8, min_scale=0.5, seed=0)  # type: ignore[arg-type]
    num_batches = len(source)  # so many epochs as a batch has rows
    iterator = BatchIterator(examples, BATCH_SIZE, max_broken_share=0.1)
    batches = [next(iterator) for _ in range(num_batches)]
    met = Counter(pair for batch in batches for pair in batch["broken"])
    assert set(met.values()) == {BATCH_SIZE}  # each where it stands, once an epoch
    assert not set(met) & set(source.broken)
    found = {int(Path(record_id).stem): why for record_id, why in [*met, *source.broken]}
    assert found.keys() == BROKEN.keys()
    for i, why in found.items():
        assert BREAKAGES[BROKEN[i]][2] in why, BROKEN[i]
    usable = Counter(int(index) for batch in batches for index in batch["index"])
    assert sum(usable.values()) == num_batches * BATCH_SIZE
    assert len(usable) == COUNT - 1 - len(BROKEN)  # all that can be used are seen, and nothing else
    assert iterator.get_state()["broken"] == len(met) * BATCH_SIZE


@pytest.mark.parametrize("share", [0.05, 0.5])
def test_a_shard_that_disappears_in_mid_run_is_counted_or_stops_it(share, tmp_path):
    for shard in range(4):
        members = [m for i in range(25) for m in ((f"{i}.jpg", jpeg(i)), (f"{i}.txt", b"caption"))]
        write_tar(tmp_path / f"{shard}.tar", members)
    source, _ = make_sources(data_config(path=str(tmp_path), num_validation=1), image_size=8)
    examples = Examples(source=source, tokenizer=Words(), image_size=8, min_scale=0.5, seed=0)  # type: ignore[arg-type]
    iterator = BatchIterator(examples, 11, max_broken_share=share)
    for _ in range(2):
        assert next(iterator)["broken"] == []
    with (tmp_path / "1.tar").open("r+b") as file:
        file.truncate(1000)  # open since the first record of it was read: a file that is unlinked stays readable
    if share < 0.25:
        message = (
            r"of 99 records cannot be used, more than data.max_broken_share=0.05 \(1/\d+: 1.tar is shorter than when"
        )
        with pytest.raises(ValueError, match=message):
            [next(iterator) for _ in range(30)]
        return
    for _ in range(7):  # through the first epoch: grain was two batches ahead
        next(iterator)
    before = iterator.get_state()["broken"]
    epochs = [next(iterator) for _ in range(18)]
    lost = Counter(record_id for batch in epochs for record_id, _ in batch["broken"])
    assert lost == {f"1/{i}": 2 for i in range(25)}
    assert iterator.get_state()["broken"] == before + 50
    state = json.loads(json.dumps(iterator.get_state()))
    again, _ = make_sources(data_config(path=str(tmp_path), num_validation=1, max_broken_share=0.5), image_size=8)
    changed = Examples(source=again, tokenizer=Words(), image_size=8, min_scale=0.5, seed=0)  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=r"source.length was 99, is 74; source.sizes\[1\] was \d+, is 1000; source.stop"
    ):
        BatchIterator(changed, 11, state=state)


def test_a_run_whose_records_cannot_be_reached_stops_rather_than_leave_them_out(monkeypatch, tmp_path):
    from input_pipeline.sources import remote

    write_tar(tmp_path / "a.tar", [m for i in range(9) for m in ((f"{i}.jpg", jpeg(i)), (f"{i}.txt", b"caption"))])
    monkeypatch.setattr(remote, "MAX_TRIES", 2)
    monkeypatch.setattr(remote, "FIRST_WAIT_S", 0.001)
    source, _ = make_sources(data_config(path=f"file://{tmp_path}/a.tar"), image_size=8)

    def unreachable(path: str):
        raise ConnectionError("network is down")

    monkeypatch.setattr(remote, "_file_system", unreachable)
    examples = Examples(source=source, tokenizer=Words(), image_size=8, min_scale=0.5, seed=0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"a\.tar could not be read in 2 tries.*ConnectionError: network is down"):
        next(BatchIterator(examples, 4, max_broken_share=1.0))
