"""Damaged records in every form: each is used, broken, left out by choice or not read, and nothing else is raised."""

import csv
import io
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from tiny_records import jpeg, write_tar

from input_pipeline.sources import BrokenRecordError, make_source, write_array_record
from input_pipeline.sources.unread import unread_of
from input_pipeline.transforms import decode_image

NUM_RECORDS = 10_000
CHUNK = 100  # records of a container
PICTURE = jpeg(0)
UNREAD = (".heic", ".xyz")  # no suffix of a picture that is read
Rng = np.random.Generator
Mutated = tuple[str, bytes, bytes]  # suffix, picture, caption


def mutate(rng: Rng) -> Mutated:
    """A record that is damaged in its picture, its caption, in both or not at all."""
    picture, caption, suffix = PICTURE, b"a cat", str(rng.choice([".jpg", ".JPG", ".jfif", ".png"]))
    position = int(rng.integers(len(picture)))
    match rng.integers(9):
        case 0:
            picture = picture[:position]
        case 1:
            picture = (
                picture[:position] + bytes([picture[position] ^ (1 << int(rng.integers(8)))]) + picture[position + 1 :]
            )
        case 2:
            picture = rng.bytes(int(rng.integers(200)))
        case 3:
            picture = b""
        case 4:
            suffix = str(rng.choice(UNREAD))
    match rng.integers(12):
        case 0:
            caption = b""
        case 1:
            caption = rng.bytes(int(rng.integers(1, 40)))
        case 2:
            caption = b" \t "
        case 3:
            caption = b'15" tyre, "new'
        case 4:
            caption = "çé \U0001f408 \u202e".encode()
        case 5:
            caption = b"x" * 70_000
        case 6:
            caption = b"two\nlines\r\n"
        case 7:
            caption = b"\xef\xbb\xbfa cat"
        case 8:
            caption = b"\x00"
    return suffix, picture, caption


def in_folder(folder: Path, records: list[Mutated], rng: Rng) -> str:
    for i, (suffix, picture, caption) in enumerate(records):
        (folder / f"{i}{suffix}").write_bytes(picture)
        if rng.integers(4):
            (folder / f"{i}.{rng.choice(['txt', 'TXT'])}").write_bytes(caption)
    return str(folder)


def in_tar(folder: Path, records: list[Mutated], rng: Rng) -> str:
    members = []
    for i, (suffix, picture, caption) in enumerate(records):
        texts = [("txt", caption), ("json", caption), ("json", b'{"caption": "a"}'), ("json", b"[1]"), ("cls", caption)]
        chosen = [texts[j] for j in rng.choice(len(texts), int(rng.integers(1, 4)), replace=False)]
        members += [(f"{i}{suffix}", picture)] + [(f"{i}.{name}", data) for name, data in dict(chosen).items()]
    return str(write_tar(folder / "a.tar", members))


def in_array_record(folder: Path, records: list[Mutated], rng: Rng) -> str:
    usable = [(picture, caption) for _, picture, caption in records[:-1]]
    write_array_record(
        str(folder / "a.array_record"),
        [{"id": str(i), "image": p, "captions": (c.decode(errors="replace"),)} for i, (p, c) in enumerate(usable)],
    )
    with closing(ArrayRecordWriter(str(folder / "b.array_record"), "group_size:1")) as writer:
        writer.write(records[-1][1] or b"?")  # no tf.train.Example
    return str(folder)


def in_text(folder: Path, records: list[Mutated], rng: Rng, separator: str) -> str:
    is_raw = bool(rng.integers(3) == 0)  # quotes that nobody escaped
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter=separator)
    writer.writerow(["image", "caption"])
    for i, (suffix, picture, caption) in enumerate(records):
        if rng.integers(6):
            (folder / f"{i}{suffix}").write_bytes(picture)
        text = caption.decode(errors="surrogateescape")
        if is_raw:
            plain = text.translate({ord(c): " " for c in f"\r\n{separator}"})
            buffer.write(f"{i}{suffix}{separator}{plain}\n")
        else:
            writer.writerow([f"{i}{suffix}", text])
    (folder / "t.csv").write_bytes(buffer.getvalue().encode(errors="surrogateescape"))
    return str(folder / "t.csv")


def in_parquet(folder: Path, records: list[Mutated], rng: Rng) -> str:
    images = [picture if rng.integers(9) else None for _, picture, _ in records]
    if rng.integers(2):
        images = pa.array(images, pa.binary())
    else:
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        images = pa.array([{"bytes": x, "path": "../x.jpg"} if rng.integers(9) else None for x in images], kind)
    captions = pa.array([caption if rng.integers(9) else None for _, _, caption in records], pa.binary())
    labels = pa.array([float(rng.integers(3)) if rng.integers(9) else None for _ in records])
    pq.write_table(pa.table({"image": images, "caption": captions, "label": labels}), folder / "t.parquet")
    return str(folder / "t.parquet")


FORMS: dict[str, tuple[str, Callable[[Path, list[Mutated], Rng], str]]] = {
    "folder": ("folder", in_folder),
    "tar": ("webdataset", in_tar),
    "array_record": ("array_record", in_array_record),
    "csv": ("table", lambda folder, records, rng: in_text(folder, records, rng, ",")),
    "tsv": ("table", lambda folder, records, rng: in_text(folder, records, rng, "\t")),
    "parquet": ("table", in_parquet),
}


def account(kind: str, path: str) -> Counter[str]:
    """How many records are used, broken, filtered and not read. Anything but the documented errors is raised."""
    source = make_source(kind, path)
    counts = Counter(broken=len(source.broken), filtered=sum(getattr(source, "filtered", {}).values()))
    counts["unread"] = sum(unread_of(source)[suffix] for suffix in UNREAD) if kind == "folder" else 0
    for index in range(len(source)):
        try:
            record = source[index]
        except BrokenRecordError:
            counts["broken"] += 1
            continue
        try:
            decode_image(record["image"])
            counts["used"] += 1
        except ValueError:
            counts["broken"] += 1
    return counts


def check_form(form: str, num_records: int, folder: Path, seed: int) -> Counter[str]:
    kind, write = FORMS[form]
    rng = np.random.default_rng(seed)
    total: Counter[str] = Counter()
    for chunk in range(-(-num_records // CHUNK)):
        records = [mutate(rng) for _ in range(min(CHUNK, num_records - chunk * CHUNK))]
        (folder / str(chunk)).mkdir()
        path = write(folder / str(chunk), records, rng)
        try:
            counts = account(kind, path)
        except ValueError as error:
            if form not in ("csv", "tsv") or "the quote opened on line" not in str(error):
                raise
            total["refused by line"] += len(records)
            continue
        assert counts.total() == len(records), (form, chunk, counts)
        total += counts
    return total


@pytest.mark.parametrize("form", FORMS)
def test_mutated_records_are_all_accounted_for(form, tmp_path, monkeypatch):
    monkeypatch.setenv("CLIP_JAX_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    assert check_form(form, 300, tmp_path / "data", 0)["used"] > 30


@pytest.mark.nightly
def test_ten_thousand_mutated_records_are_all_accounted_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CLIP_JAX_CACHE", str(tmp_path / "cache"))
    total: Counter[str] = Counter()
    for i, form in enumerate(FORMS):
        (tmp_path / form).mkdir()
        number = NUM_RECORDS // len(FORMS) + (i < NUM_RECORDS % len(FORMS))
        counts = check_form(form, number, tmp_path / form, i + 1)
        with capsys.disabled():
            print(f"\n{form}: {dict(counts)}")
        total += counts
    assert total.total() == NUM_RECORDS
    with capsys.disabled():
        print(f"\nall: {dict(total)}")


@pytest.mark.parametrize("form", FORMS)
def test_a_container_with_flipped_bytes_raises_documented_errors_alone(form, tmp_path, monkeypatch):
    monkeypatch.setenv("CLIP_JAX_CACHE", str(tmp_path / "cache"))
    kind, write = FORMS[form]
    rng = np.random.default_rng(7)
    for trial in range(8):
        (folder := tmp_path / str(trial)).mkdir()
        write(folder, [mutate(rng) for _ in range(12)], rng)
        for file in folder.iterdir():
            data = bytearray(file.read_bytes())
            for position in rng.integers(max(len(data), 1), size=6):
                if data:
                    data[position] ^= 1 << int(rng.integers(8))
            file.write_bytes(data)
        path = next(
            (str(file) for file in sorted(folder.iterdir()) if file.name.startswith(("t.", "a.tar"))), str(folder)
        )
        with suppress(ValueError):
            account(kind, path)
