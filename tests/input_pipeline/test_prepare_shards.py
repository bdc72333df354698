"""Preparing whole data sets: nothing is lost, counted twice or half-written, whatever happens on the way."""

import errno
import functools
import hashlib
import io
import json
import os
import resource
import signal
import struct
import sys
import tarfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from input_pipeline.prepare import beam, manifest, workers
from input_pipeline.prepare.folder import LocalFolder
from input_pipeline.prepare.manifest import prepare
from input_pipeline.prepare.shards import ShardMaker
from input_pipeline.prepare.statistics import Statistics, quantiles, reason_kind
from input_pipeline.prepare.transform import Settings, open_record
from input_pipeline.scenes import SceneSource
from input_pipeline.sources import ArrayRecordSource, Filters, WebDatasetSource, make_source

NUM_RECORDS, SHARD_SIZE = 211, 37  # six shards, the last of 26
KEPT_OUT = "a caption that does not match '^(?!nothing)'"
SETTINGS = Settings(image_size=24, filters=Filters(caption_must_match="^(?!nothing)"))


def encode(pixels: np.ndarray, form: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def bomb() -> bytes:
    """A PNG of 45 bytes whose header says 60000x60000."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IEND", b"")


SCENES = SceneSource(0, NUM_RECORDS, 32)
WHOLE = encode(SCENES[0]["image"])
# Key -> picture, caption and what is said of it; the last three are found when the tar is indexed.
BROKEN = {
    "0013": (WHOLE[:-150], b"truncated", "truncated or broken image"),
    "0038": (b"GIF87a, or so it says", b"wrong type", "not an image of a known format"),
    "0077": (bomb(), b"bomb", "image too large"),
    "0111": (encode(np.zeros((5, 9, 3), np.uint8)), b"tiny", "image too small"),
    "0112": (b"", b"zero bytes", "empty image"),
    "0150": (WHOLE, b" \n", "no caption"),
    "0199": (WHOLE, b"\xff\xfe", "text is not valid UTF-8"),
}
FILTERED = ("0005", "0140")
COPIES = {"0050": 20, "0160": 20}  # key -> the record whose picture it repeats


@pytest.fixture(scope="module")
def tar(tmp_path_factory) -> Path:
    """Scenes as JPEGs with their captions, some of them broken in every way, two to be filtered."""
    path = tmp_path_factory.mktemp("tar") / "scenes.tar"
    with tarfile.open(path, "w") as file:
        for i in range(NUM_RECORDS):
            key = f"{i:04d}"
            data, caption = encode(SCENES[COPIES.get(key, i)]["image"]), SCENES.captions(i)[0].encode()
            if key in BROKEN:
                data, caption, _ = BROKEN[key]
            if key in FILTERED:
                caption = b"nothing to see"
            for suffix, content in (("jpg", data), ("txt", caption)):
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(content)
                file.addfile(member, io.BytesIO(content))
    return path


def make_maker(tar: Path, output: Path, **changes) -> ShardMaker:
    options = {"settings": SETTINGS, "name": "data", "shard_size": SHARD_SIZE} | changes
    return ShardMaker(source=WebDatasetSource(str(tar)), folder=LocalFolder(str(output)), **options)


def draw(statistics: Statistics, path: str) -> None:
    Path(path).write_text(f"{statistics.characters.total()} captions")


def run(tar: Path, output: Path, num_workers: int = 0, max_broken_share: float = 0.05, seen=None, **changes):
    maker = make_maker(tar, output, **changes)

    def make(shards, done):
        workers.make_shards(maker, shards, num_workers, seen or (lambda shard, count: None), done)

    return prepare(maker, make, draw, max_broken_share=max_broken_share)


def contents(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


@pytest.fixture(scope="module")
def prepared(tar, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("prepared")
    assert run(tar, output)[1] == 6
    return output


def test_every_record_is_in_a_shard_or_in_the_list_of_those_left_out(tar, prepared):
    source = ArrayRecordSource(str(prepared / "data-{00000..00005}-of-00006.array_record"))
    records = [source[i] for i in range(len(source))]
    lines = [json.loads(line) for line in (prepared / "broken.jsonl").read_text().splitlines()]
    left_out = {
        line["id"]: (line["kind"], line["reason"] if line["kind"] == "filtered" else reason_kind(line["reason"]))
        for line in lines
    }
    expected = {f"scenes/{key}": ("broken", reason) for key, (_, _, reason) in BROKEN.items()}
    expected |= {f"scenes/{key}": ("filtered", KEPT_OUT) for key in FILTERED}
    assert left_out == expected
    assert len(lines) == len(expected)
    kept = [f"scenes/{i:04d}" for i in range(NUM_RECORDS) if f"scenes/{i:04d}" not in expected]
    assert [record["id"] for record in records] == kept
    for record in records:
        index = int(record["id"][-4:])
        assert record["captions"] == SCENES.captions(index)[:1]
        assert Image.open(io.BytesIO(record["image"])).size == (24, 24)


def test_the_manifest_accounts_for_all(tar, prepared):
    content = json.loads((prepared / "manifest.json").read_text())
    shards = content["shards"]
    assert [shard["file"] for shard in shards] == [f"data-{k:05d}-of-00006.array_record" for k in range(6)]
    for shard in shards:
        data = (prepared / shard["file"]).read_bytes()
        assert (shard["bytes"], shard["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
        assert shard["records"] == len(ArrayRecordSource(str(prepared / shard["file"])))
    num_kept = NUM_RECORDS - len(BROKEN) - len(FILTERED)
    assert content["totals"] == {
        "records": num_kept,
        "captions": num_kept,
        "bytes": sum(shard["bytes"] for shard in shards),
        "broken": 7,
        "filtered": 2,
    }
    assert content["broken"]["reasons"] == {reason: 1 for _, _, reason in BROKEN.values()}
    assert sorted(key for key, _ in content["broken"]["first"]) == [f"scenes/{key}" for key in sorted(BROKEN)]
    assert content["filtered"]["reasons"] == {KEPT_OUT: 2}
    assert content["duplicates"]["exact"] == {"groups": 1, "records": 3}
    assert content["source"] == WebDatasetSource(str(tar)).fingerprint()
    assert content["settings"]["image_size"] == 24
    groups = [json.loads(line) for line in (prepared / "duplicates.jsonl").read_text().splitlines()]
    assert groups[0] == {"kind": "exact", "ids": ["scenes/0020", "scenes/0050", "scenes/0160"]}
    statistics = json.loads((prepared / "statistics.json").read_text())
    assert statistics["sizes"] == {"32x32": num_kept}  # as they lie in the source
    words = {len(SCENES.captions(i)[0].split()) for i in range(NUM_RECORDS)}
    assert set(statistics["words"]) <= {str(number) for number in words}
    assert (prepared / "statistics.png").read_text() == f"{num_kept} captions"


@pytest.mark.parametrize("num_workers", [1, 3])
def test_the_bytes_do_not_depend_on_the_workers(num_workers, tar, prepared, tmp_path):
    counts: dict[int, int] = {}
    run(tar, tmp_path, num_workers, seen=lambda shard, count: counts.__setitem__(shard, count))
    assert contents(tmp_path) == contents(prepared)
    # Three of the broken ones are no records of the source.
    assert [counts[k] for k in sorted(counts)] == [37, 37, 37, 37, 37, NUM_RECORDS - 3 - 5 * 37]


def test_a_second_run_does_nothing(tar, prepared):
    before = {file.name: file.stat().st_mtime_ns for file in prepared.iterdir()}
    content, made = run(tar, prepared)
    assert made == 0
    assert content == json.loads((prepared / "manifest.json").read_text())
    assert {file.name: file.stat().st_mtime_ns for file in prepared.iterdir()} == before


@pytest.mark.parametrize("lost", ["data-00003-of-00006.array_record", "data-00003-of-00006.json", "manifest.json"])
def test_what_was_lost_is_made_again(lost, tar, prepared, tmp_path):
    for file in prepared.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / lost).unlink()
    assert run(tar, tmp_path)[1] == (0 if lost == "manifest.json" else 1)
    assert contents(tmp_path) == contents(prepared)


@pytest.mark.parametrize("cut", ["data-00003-of-00006.array_record", "data-00003-of-00006.json"])
def test_what_was_cut_off_is_made_again(cut, tar, prepared, tmp_path):
    for file in prepared.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    os.truncate(tmp_path / cut, 1000)
    assert run(tar, tmp_path)[1] == 1
    assert contents(tmp_path) == contents(prepared)


def test_another_source_or_setting_is_refused_with_what_differs(tar, prepared, tmp_path):
    before = contents(prepared)
    with pytest.raises(ValueError, match="of another source or other settings") as caught:
        run(tar, prepared, settings=Settings(image_size=16, filters=SETTINGS.filters), shard_size=50)
    assert str(caught.value) == (
        f"{prepared} holds shards of another source or other settings: num_shards was 6, is 5; "
        "settings.image_size was 24, is 16; shard_size was 37, is 50. Use another --output"
    )
    other = tmp_path / "scenes.tar"
    other.write_bytes(tar.read_bytes() + bytes(10240))
    with pytest.raises(ValueError, match=r"settings: source\.sizes\[0\] was \d+, is \d+\. Use another --output"):
        run(other, prepared)
    assert contents(prepared) == before


def test_newer_libraries_may_not_resume_but_may_find_all_done(tar, prepared, tmp_path, monkeypatch):
    for file in prepared.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr(manifest, "version", lambda name: "99")
    assert run(tar, tmp_path)[1] == 0
    (tmp_path / "data-00002-of-00006.json").unlink()
    with pytest.raises(ValueError, match=r"libraries\.pillow was '[\d.]+', is '99'"):
        run(tar, tmp_path)


@pytest.mark.parametrize(("name", "data"), [("settings.json", b"{"), ("manifest.json", b'{"version": 0}')])
def test_damaged_descriptions_are_refused(name, data, tar, prepared, tmp_path):
    for file in prepared.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=f"^{name} in {tmp_path} is damaged"):
        run(tar, tmp_path)


def test_shards_of_unknown_origin_are_refused(tar, tmp_path):
    (tmp_path / "data-00000-of-00001.array_record").touch()
    with pytest.raises(ValueError, match=r"holds data-00000-of-00001\.array_record but no settings\.json"):
        run(tar, tmp_path)


def test_too_many_broken_records_stop_the_run(tar, tmp_path):
    with pytest.raises(ValueError, match=r"^3 of 211 records cannot be used, more than --max_broken_share=0.01"):
        run(tar, tmp_path / "a", max_broken_share=0.01)  # those that the index knows
    assert not (tmp_path / "a").exists()
    with pytest.raises(ValueError, match=r"^6 of 211 records cannot be used, more than --max_broken_share=0.025"):
        run(tar, tmp_path, max_broken_share=0.025)
    there = {file.name for file in tmp_path.iterdir()}
    assert {"data-00002-of-00006.json", "settings.json"} <= there
    assert not there & {"data-00003-of-00006.json", "manifest.json", ".lock"}
    with pytest.raises(ValueError, match=r"^6 of 211 records cannot be used"):
        run(tar, tmp_path, max_broken_share=0.025)  # those of the complete shards are remembered


def test_filters_that_leave_nothing_are_an_error(tar, tmp_path):
    with pytest.raises(ValueError, match=r"no record is left of 208: .*'a caption below 999 characters': 204"):
        run(tar, tmp_path, settings=Settings(image_size=24, filters=Filters(min_caption_length=999)))
    assert not (tmp_path / "manifest.json").exists()


def test_a_full_disk_stops_the_run_with_one_message_and_leaves_nothing_half_written(tar, prepared, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9000, hard))  # a real failure of the operating system's write
    try:
        with pytest.raises(
            OSError, match=rf"^data-00000-of-00006.array_record cannot be written to {tmp_path}: .*large"
        ):
            run(tar, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [file.name for file in tmp_path.iterdir()] == ["settings.json"]
    run(tar, tmp_path)
    assert contents(tmp_path) == contents(prepared)


def test_a_disk_that_is_full_after_the_shard_costs_only_that_shard(tar, prepared, tmp_path, monkeypatch):
    def write(self, name, data, original=LocalFolder.write, **options):
        if name == "data-00001-of-00006.json":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(self, name, data, **options)

    with monkeypatch.context() as patch:
        patch.setattr(LocalFolder, "write", write)
        with pytest.raises(OSError, match=r"^data-00001-of-00006.json cannot be written to .*No space left on device"):
            run(tar, tmp_path)
    assert run(tar, tmp_path)[1] == 5
    assert contents(tmp_path) == contents(prepared)


def test_the_shard_of_a_killed_worker_is_made_by_another(tar, prepared, tmp_path, monkeypatch):
    processes = []

    def start(maker, original=workers._start_worker):
        connection, process = original(maker)
        processes.append(process)
        if len(processes) <= 2:  # the third death of a shard would end the run
            process.kill()
        return connection, process

    monkeypatch.setattr(workers, "_start_worker", start)
    assert run(tar, tmp_path, num_workers=2)[1] == 6
    assert len(processes) == 4
    assert contents(tmp_path) == contents(prepared)
    assert all(process.poll() is not None for process in processes)


DRAWN = """
import functools, sys
from pathlib import Path
from input_pipeline.prepare import workers
from input_pipeline.prepare.folder import LocalFolder
from input_pipeline.prepare.manifest import prepare
from input_pipeline.prepare.shards import ShardMaker
from input_pipeline.prepare.transform import Settings
from input_pipeline.scenes import SceneSource

def run(output, num_workers):
    folder = LocalFolder(output)
    maker = ShardMaker(source=SceneSource(0, 240, 200), folder=folder, settings=Settings(image_size=40), name="data",
                       shard_size=20)
    make = lambda shards, done: workers.make_shards(maker, shards, num_workers, done=done)
    return prepare(maker, make, lambda statistics, path: Path(path).touch(), max_broken_share=0)

if __name__ == "__main__":
    run(sys.argv[1], 2)
"""


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> tuple[Callable, dict[str, str]]:
    """DRAWN's `run`, and what it makes when nothing disturbs it."""
    folder = tmp_path_factory.mktemp("drawn")
    module: dict[str, Any] = {"__name__": "drawn"}
    exec(DRAWN, module)
    module["run"](str(folder), 0)
    return module["run"], contents(folder)


@pytest.mark.parametrize(
    ("victim", "number", "code"),
    [
        ("run", signal.SIGKILL, -signal.SIGKILL),
        ("group", signal.SIGINT, -signal.SIGINT),  # as Ctrl-C does
        ("worker", signal.SIGKILL, 0),
    ],
)
def test_a_kill_in_the_middle_costs_nothing(victim, number, code, drawn, tmp_path, processes):
    run_drawn, expected = drawn
    command = [sys.executable, "-c", DRAWN, str(tmp_path)]
    errors = tmp_path.parent / f"{victim}.err"
    with errors.open("wb") as err:
        process = processes.start(command, stderr=err)
        wait_until(lambda: list(tmp_path.glob("*-of-00012.json")))
        children = [int(x) for x in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
        assert len(children) == 2
        if victim == "group":
            os.killpg(process.pid, number)
        else:
            os.kill(process.pid if victim == "run" else children[0], number)
        assert process.wait(30) == code
    wait_until(lambda: not any(os.path.exists(f"/proc/{child}") for child in children))  # nobody writes any more
    assert errors.read_text().count("Traceback") == (victim == "group")  # the run's own, and none of its workers
    names = {file.name for file in tmp_path.iterdir()}
    assert ("manifest.json" in names) == (victim == "worker")
    if victim != "run":
        assert not {name for name in names if name.startswith(".")}
    made = run_drawn(str(tmp_path), 0)[1]
    assert made < 12
    assert contents(tmp_path) == expected


def wait_until(condition: Callable[[], Any], timeout_s: float = 30) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.003)


def test_a_shard_that_kills_every_worker_ends_the_run(tar, tmp_path, monkeypatch):
    def start(maker, original=workers._start_worker):
        connection, process = original(maker)
        process.kill()
        return connection, process

    monkeypatch.setattr(workers, "_start_worker", start)
    with pytest.raises(
        ValueError, match=r"^3 processes died over data-0000[01]-of-00006.array_record, .* SIGKILL, perh"
    ):
        run(tar, tmp_path, num_workers=2)


def test_a_worker_s_error_is_the_run_s(tar, tmp_path):
    maker = make_maker(tar, tmp_path)
    tar_of_another_run = tmp_path / "gone.tar"
    tar_of_another_run.write_bytes(tar.read_bytes())
    (tmp_path / "file").touch()
    gone = make_maker(tar_of_another_run, tmp_path)
    gone.folder.path = tmp_path / "file" / "below"  # cannot be made
    with pytest.raises(OSError, match="file"):
        workers.make_shards(gone, [0, 1], 2)
    assert maker.missing() == list(range(6))


def test_drawn_scenes_are_a_source(tmp_path):
    source = SceneSource(0, 5, 24)
    maker = ShardMaker(
        source=source, folder=LocalFolder(str(tmp_path)), settings=Settings(), name="drawn", shard_size=3
    )
    make = functools.partial(_make_here, maker)
    assert prepare(maker, make, draw, max_broken_share=0)[0]["totals"]["captions"] == 25
    made = make_source("array_record", str(tmp_path))
    for i in range(5):
        assert (made[i]["id"], made[i]["captions"]) == (source[i]["id"], source[i]["captions"])
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(made[i]["image"]))), source[i]["image"])


def _make_here(maker, shards, done):
    workers.make_shards(maker, shards, 0, done=done)


def test_a_pipeline_of_beam_makes_the_same_bytes(tar, prepared, tmp_path):
    pytest.importorskip("apache_beam")
    maker = make_maker(tar, tmp_path)
    prepare(maker, functools.partial(beam.make_shards, maker, "DirectRunner", []), draw, max_broken_share=0.05)
    assert contents(tmp_path) == contents(prepared)


def test_a_folder_of_beam_s_file_systems_gets_the_same_files(tar, prepared, tmp_path):
    pytest.importorskip("apache_beam")
    folder = beam.RemoteFolder(f"{tmp_path}/new/")
    assert folder.sizes() == {}
    maker = ShardMaker(
        source=WebDatasetSource(str(tar)), folder=folder, settings=SETTINGS, name="data", shard_size=SHARD_SIZE
    )
    prepare(maker, functools.partial(_make_here, maker), draw, max_broken_share=0.05)
    assert contents(tmp_path / "new") == contents(prepared)


def test_a_pipeline_that_fails_says_so_in_one_message(tar, tmp_path):
    pytest.importorskip("apache_beam")
    with pytest.raises(ValueError, match=r"the pipeline of NoRunner failed; what is complete stays: .*NoRunner"):
        beam.make_shards(make_maker(tar, tmp_path), "NoRunner", [], [0], lambda shard: None)


def test_without_beam_the_message_says_how_to_get_it(tar, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(
        ValueError, match=r"^--runner=DirectRunner: Apache Beam is not installed: pip install 'jax-clip"
    ):
        beam.make_shards(make_maker(tar, tmp_path), "DirectRunner", [], [0], lambda shard: None)
    monkeypatch.setitem(sys.modules, "apache_beam.io.filesystems", None)
    with pytest.raises(ValueError, match=r"^--output=gs://b/x: Apache Beam is not installed"):
        beam.RemoteFolder("gs://b/x")


def test_statistics_of_parts_are_those_of_the_whole():
    whole, parts = Statistics(), [Statistics(), Statistics()]
    for i in range(30):
        record = {
            "id": str(i),
            "image": encode(SCENES[i]["image"][: 20 + i % 7]),
            "captions": SCENES.captions(i)[: i % 4],
        }
        record |= {"label": i % 3} if i % 5 else {}
        for statistics in (whole, parts[i % 2]):
            statistics.add(record, open_record(record)[1])
    parts[0].merge(Statistics.from_json(json.loads(json.dumps(parts[1].as_json()))))
    assert parts[0] == whole
    lengths = [len(caption) for i in range(30) for caption in SCENES.captions(i)[: i % 4]]
    assert quantiles({1: 1, 2: 1}) == [1, 1, 2]
    row = next(row for row in whole.describe() if row[0] == "characters of a caption")
    expected = np.quantile(lengths, [0.05, 0.5, 0.95], method="inverted_cdf").tolist()
    assert row[1:] == (len(lengths), np.mean(lengths), min(lengths), *expected, max(lengths))


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("image too large: 60000x60000 pixels, at most 67108864 in all", "image too large"),
        ("truncated or broken image: image file is truncated (3 bytes not processed)", "truncated or broken image"),
        ("text is not valid UTF-8", "text is not valid UTF-8"),
        ("tar cut off at byte 4711, within a.jpg", "tar cut off at byte N"),
        ("label 77 is outside [0, 10)", "label N is outside [0"),
    ],
)
def test_reasons_are_counted_without_what_differs(reason, kind):
    assert reason_kind(reason) == kind
