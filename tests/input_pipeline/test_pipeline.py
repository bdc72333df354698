import dataclasses
import io
import itertools
import json
import multiprocessing
import os
import re
import signal
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_records import write_tar

from input_pipeline import pipeline
from input_pipeline.data_config import DataConfig
from input_pipeline.examples import MAX_BROKEN_IN_A_ROW, Batch, Examples, collate
from input_pipeline.jpeg import libraries
from input_pipeline.open_data import check_broken_share, make_sources
from input_pipeline.pipeline import BatchIterator
from input_pipeline.scenes import SceneSource
from input_pipeline.sources import BrokenRecordError, Record, Source, WebDatasetSource

NUM_RECORDS = 23
BATCH_SIZE = 8


class Words:
    """A tokenizer of one token a caption, its hash; captions with "long" in them count as truncated."""

    vocab_size, context_length, sot_token, eot_token = 512, 3, 1, 2

    def encode(self, text: str) -> tuple[np.ndarray, bool]:
        return np.array([1, 3 + sum(text.encode()) % 509, 2], np.int32), "long" in text

    def fingerprint(self) -> dict[str, str]:
        return {"kind": "words"}


class NumberedSource:
    """Record i is a 9x9 picture of the grey level i with three captions; the records in `unusable` are broken."""

    class_names: tuple[str, ...] | None = None

    def __init__(self, length: int = NUM_RECORDS, unusable: tuple[int, ...] = (), long: bool = False):
        self.broken: list[tuple[str, str]] = []
        self.length, self.unusable, self.long = length, unusable, long

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Record:
        if index in self.unusable:
            raise BrokenRecordError(f"record{index}", "of no use")
        return {"id": f"record{index}", "image": np.full((9, 9, 3), index, np.uint8), "captions": self.captions(index)}

    def captions(self, index: int) -> tuple[str, ...]:
        return tuple(f"{'long ' * (self.long and index % 2)}{index} {letter}" for letter in "abc")

    def fingerprint(self) -> dict[str, int]:
        return {"length": self.length}


def make_examples(source: Source | None = None, seed: int = 5) -> Examples:
    return Examples(source=source or NumberedSource(), tokenizer=Words(), image_size=8, min_scale=0.5, seed=seed)  # type: ignore[arg-type]


def take(count: int, examples: Examples | None = None, **options) -> list[Batch]:
    iterator = BatchIterator(examples or make_examples(), BATCH_SIZE, **options)
    try:
        return [next(iterator) for _ in range(count)]
    finally:
        iterator.close()


def assert_equal_batches(left: list[Batch], right: list[Batch]) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right):
        for name in ("image", "text", "index"):
            assert a[name].dtype == b[name].dtype
            np.testing.assert_array_equal(a[name], b[name])
        assert (a["truncated"], a["broken"]) == (b["truncated"], b["broken"])


def jpeg(grey: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (13, 11), (grey, grey, grey)).save(buffer, "JPEG")
    return buffer.getvalue()


def tar_of(path: Path, count: int = 11, truncated: tuple[int, ...] = (), uncaptioned: tuple[int, ...] = ()) -> Path:
    members: list[tuple[str, bytes]] = []
    for i in range(count):
        members.append((f"k{i}.jpg", jpeg(10 * i)[: 200 if i in truncated else None]))
        if i not in uncaptioned:
            members.append((f"k{i}.txt", f"picture {i}".encode()))
    return write_tar(path, members)


def data_config(**changes) -> DataConfig:
    config = DataConfig(
        source="webdataset",
        path="",
        split="",
        num_examples=17,
        scene_kinds=(),
        num_validation=3,
        min_crop_scale=1.0,
        decode="fast",
        pack_text=False,
        tokenizer="sentencepiece",
        tokenizer_file="",
        num_workers=0,
        max_broken_share=0.0,
        seed=0,
    )
    return dataclasses.replace(config, **changes)


def test_an_example_is_a_function_of_its_position_alone():
    first, second = make_examples(), make_examples()
    for position in (40, 3, 40, 10**12):
        a, b = first[position], second[position]
        np.testing.assert_array_equal(a["image"], b["image"])
        np.testing.assert_array_equal(a["text"], b["text"])
        assert a["index"] == b["index"]
    assert [first[i]["index"] for i in range(9)] != [make_examples(seed=6)[i]["index"] for i in range(9)]


def test_every_epoch_visits_every_record_once_in_another_order():
    examples = make_examples()
    epochs = [[examples[epoch * NUM_RECORDS + i]["index"] for i in range(NUM_RECORDS)] for epoch in range(4)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(NUM_RECORDS))
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_the_image_and_the_caption_belong_to_the_index():
    for position in range(NUM_RECORDS):
        example = make_examples()[position]
        index = example["index"]
        assert example["image"].shape == (8, 8, 3)
        assert np.all(example["image"] == index)
        assert example["text"][1] in {Words().encode(caption)[0][1] for caption in NumberedSource().captions(index)}


def test_captions_and_crops_are_drawn_again_each_epoch_and_each_caption_equally_often():
    source = NumberedSource(1)
    examples = make_examples(source)
    captions = [int(examples[epoch]["text"][1]) for epoch in range(600)]
    counts = Counter(captions)
    assert set(counts) == {Words().encode(caption)[0][1] for caption in source.captions(0)}
    # 200 expected each, with a standard deviation of 11.5.
    assert all(160 < count < 240 for count in counts.values())

    gradient = np.arange(33 * 33 * 3, dtype=np.uint32).reshape(33, 33, 3).astype(np.uint8)

    class OnePicture(NumberedSource):
        def __getitem__(self, index: int) -> Record:
            return {**super().__getitem__(index), "image": gradient}

    crops = {make_examples(OnePicture(1))[epoch]["image"].tobytes() for epoch in range(20)}
    assert len(crops) == 20


def test_a_source_of_one_record():
    batches = take(3, make_examples(NumberedSource(1)))
    assert all(batch["index"].tolist() == [0] * BATCH_SIZE for batch in batches)


def test_a_batch_holds_rows_of_the_documented_types():
    batch = take(1)[0]
    assert (batch["image"].shape, batch["image"].dtype) == ((BATCH_SIZE, 8, 8, 3), np.uint8)
    assert (batch["text"].shape, batch["text"].dtype) == ((BATCH_SIZE, 3), np.int32)
    assert (batch["index"].shape, batch["index"].dtype) == ((BATCH_SIZE,), np.int64)
    examples = make_examples()
    assert_equal_batches([batch], [collate([examples[i] for i in range(BATCH_SIZE)])])


def test_the_batches_do_not_depend_on_the_number_of_workers():
    examples = make_examples(NumberedSource(unusable=(3, 11), long=True))
    expected = take(7, examples, max_broken_share=0.5)
    assert sum(len(batch["broken"]) for batch in expected) > 2
    for num_workers in (1, 2):
        assert_equal_batches(take(7, examples, num_workers=num_workers, max_broken_share=0.5), expected)


@pytest.mark.parametrize("parts", [[[0, 1, 2, 3], [4, 5, 6, 7]], [[0, 5], [1, 4], [2, 3], [6, 7]], [[0, 2, 7]]])
def test_each_process_makes_its_rows_of_the_same_batches(parts):
    expected = take(5)
    for rows in parts:
        for batch, whole in zip(take(5, rows=np.array(rows)), expected):
            for name in ("image", "text", "index"):
                np.testing.assert_array_equal(batch[name], whole[name][rows])


@pytest.mark.parametrize("rows", [[], [3, 8], [-1]])
def test_rows_outside_of_the_batch_are_refused(rows):
    with pytest.raises(ValueError, match=r"rows=\[.*\] must be rows of a batch of global_batch_size=8"):
        BatchIterator(make_examples(), BATCH_SIZE, rows=np.array(rows, int))


def test_the_state_of_all_processes_together_is_that_of_one():
    examples = make_examples(NumberedSource(unusable=(3, 11), long=True))
    whole = BatchIterator(examples, BATCH_SIZE, max_broken_share=0.5)
    for _ in range(3):
        next(whole)
    state = whole.get_state()
    options = {"state": state, "max_broken_share": 0.5}
    parts = [BatchIterator(examples, BATCH_SIZE, **options, rows=rows) for rows in np.split(np.arange(8), 4)]
    for _ in range(4):
        for iterator in (whole, *parts):
            next(iterator)
    counts = [part.progress for part in parts]
    together, expected = parts[2].get_state(lambda own: counts), whole.get_state()
    assert together.pop("first_broken") != []
    assert expected.pop("first_broken")[:2] == state["first_broken"][:2]
    assert together == expected
    assert expected["broken"] > state["broken"] > 0


@pytest.mark.parametrize("num_workers", [0, 2])
def test_it_resumes_from_a_state_in_the_middle_of_an_epoch(num_workers):
    examples = make_examples(NumberedSource(unusable=(3, 11), long=True))
    expected = take(9, examples, max_broken_share=0.5)
    before = BatchIterator(examples, BATCH_SIZE, num_workers=num_workers, max_broken_share=0.5)
    for _ in range(4):  # 32 rows: into the second epoch of 23
        next(before)
    state = json.loads(json.dumps(before.get_state()))  # as a checkpoint keeps it
    before.close()
    after = BatchIterator(examples, BATCH_SIZE, state=state, num_workers=num_workers, max_broken_share=0.5)
    assert_equal_batches([next(after) for _ in range(5)], expected[4:])
    assert after.get_state()["next_batch"] == 9
    assert after.get_state()["broken"] == sum(len(batch["broken"]) for batch in expected)
    assert after.get_state()["truncated"] == sum(batch["truncated"] for batch in expected)
    after.close()


def test_a_state_of_other_data_is_refused_with_the_differences():
    state = BatchIterator(make_examples(), BATCH_SIZE).get_state()
    other = make_examples(NumberedSource(29), seed=7)
    message = (
        "the data is not what the checkpoint was made with: global_batch_size was 8, is 16; "
        "seed was 5, is 7; source.length was 23, is 29"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        BatchIterator(other, 16, state=state)


def test_a_state_from_before_fingerprints_had_a_version_resumes():
    state = BatchIterator(make_examples(), BATCH_SIZE).get_state()
    del state["fingerprint"]["version"], state["retries"]
    assert BatchIterator(make_examples(), BATCH_SIZE, state=state).get_state()["fingerprint"]["version"] == 1


def test_broken_records_are_counted_at_their_position_and_replaced_by_the_next():
    unusable = (3, 11, 12)
    batches = take(23, make_examples(NumberedSource(unusable=unusable)), max_broken_share=0.5)  # eight epochs
    usable = take(23)
    met: Counter[str] = Counter()
    for batch, whole in zip(batches, usable):
        bad = np.isin(whole["index"], unusable)
        np.testing.assert_array_equal(batch["index"][~bad], whole["index"][~bad])
        assert not np.isin(batch["index"], unusable).any()
        assert batch["broken"] == [(f"record{i}", "of no use") for i in whole["index"][bad]]
        met.update(record_id for record_id, _ in batch["broken"])
    assert met == {f"record{i}": 8 for i in unusable}


def test_the_replacement_is_the_next_record_of_the_epoch():
    order = [make_examples()[i]["index"] for i in range(NUM_RECORDS)]
    examples = make_examples(NumberedSource(unusable=(order[4], order[5], order[NUM_RECORDS - 1])))
    assert [examples[i]["index"] for i in (4, 5, NUM_RECORDS - 1)] == [order[6], order[6], order[0]]


def test_the_state_counts_and_remembers_the_first_broken_records():
    unusable = (3, 11)
    iterator = BatchIterator(make_examples(NumberedSource(unusable=unusable)), BATCH_SIZE, max_broken_share=0.5)
    met = [pair for _ in range(92) for pair in next(iterator)["broken"]]  # 32 epochs
    state = iterator.get_state()
    assert state["broken"] == len(met) == 64
    assert state["first_broken"] == [list(pair) for pair in met[:20]]
    assert state["truncated"] == 0


@pytest.mark.parametrize("num_workers", [0, 1])
def test_too_many_broken_records_stop_the_run_and_are_named(num_workers):
    examples = make_examples(NumberedSource(unusable=(3, 11)))
    expected = take(5, examples, max_broken_share=0.1)  # 2 of 23 are 8.7 %
    names = [record_id for batch in expected for record_id, _ in batch["broken"]]
    message = (
        "2 of 23 records cannot be used, more than data.max_broken_share=0.08 "
        f"({names[0]}: of no use; {names[1]}: of no use): fix the data or raise data.max_broken_share"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        take(6, examples, num_workers=num_workers, max_broken_share=0.08)


def test_without_a_share_the_first_broken_record_stops_the_run():
    with pytest.raises(ValueError, match=r"1 of 23 records cannot be used, more than .*=0.0 \(record7: of no use\)"):
        take(3, make_examples(NumberedSource(unusable=(7,))))


def test_the_share_is_judged_on_all_records_read():
    check_broken_share(5, 100, [], 0.05)
    with pytest.raises(ValueError, match="6 of 100 records cannot be used"):
        check_broken_share(6, 100, [("a", "b")], 0.05)


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("length", [1, 7, 223])
def test_data_of_which_nothing_can_be_used_stops_with_one_message(length, num_workers):
    examples = make_examples(NumberedSource(length, unusable=tuple(range(length))))
    message = rf"^{MAX_BROKEN_IN_A_ROW} records in a row cannot be used; the first is record\d+: of no use"
    with pytest.raises(ValueError, match=message):
        take(1, examples, max_broken_share=1.0, num_workers=num_workers)


def test_a_record_without_caption_is_broken():
    class Labelled(NumberedSource):
        def captions(self, index: int) -> tuple[str, ...]:
            return () if index == 4 else super().captions(index)

    batches = take(3, make_examples(Labelled()), max_broken_share=0.1)
    assert ("record4", "no caption") in [pair for batch in batches for pair in batch["broken"]]


def test_truncated_captions_are_counted():
    iterator = BatchIterator(make_examples(NumberedSource(long=True)), BATCH_SIZE)
    truncated = 0
    for _ in range(5):
        batch = next(iterator)
        assert batch["truncated"] == np.sum(batch["index"] % 2)
        truncated += batch["truncated"]
    assert iterator.get_state()["truncated"] == truncated > 0


def test_close_leaves_no_process_behind():
    before = set(multiprocessing.active_children())
    iterator = BatchIterator(make_examples(), BATCH_SIZE, num_workers=2)
    next(iterator)
    workers = set(multiprocessing.active_children()) - before
    assert len(workers) == 2
    iterator.close()
    assert not any(worker.is_alive() for worker in workers)
    iterator.close()  # harmless


def test_scenes_are_drawn_without_a_path():
    train, validation = make_sources(data_config(source="scenes"), image_size=16)
    assert isinstance(train, SceneSource)
    assert isinstance(validation, SceneSource)
    assert (len(train), len(validation)) == (17, 3)
    assert train.fingerprint() != validation.fingerprint()
    batches = take(3, make_examples(train), num_workers=1)
    assert_equal_batches(batches, take(3, make_examples(train)))
    assert sorted(np.concatenate([b["index"] for b in batches])[:17].tolist()) == list(range(17))


def test_a_tar_is_split_read_and_its_broken_pictures_replaced(tmp_path):
    path = tar_of(tmp_path / "a.tar", 11, truncated=(2, 9), uncaptioned=(5,))
    config = data_config(path=str(path), max_broken_share=0.2)
    train, validation = make_sources(config, image_size=8)
    assert [train[i]["id"] for i in range(len(train))] == [f"a/k{i}" for i in (0, 1, 2, 3, 4, 6, 7)]
    assert [validation[i]["id"] for i in range(len(validation))] == ["a/k8", "a/k9", "a/k10"]
    assert train.broken == [("a/k5", "image without caption: no .txt and no .json")]

    batches = take(7, make_examples(train), num_workers=1, max_broken_share=0.2)  # 56 rows: eight epochs of 7
    broken = [pair for batch in batches for pair in batch["broken"]]
    assert {record_id for record_id, _ in broken} == {"a/k2"}
    assert len(broken) == 8
    assert "truncated or broken image" in broken[0][1]
    greys = np.array([0, 10, 20, 30, 40, 60, 70])
    for batch in batches:
        assert 2 not in batch["index"]
        levels = greys[batch["index"]][:, None, None, None]
        assert np.all(np.abs(batch["image"].astype(int) - levels) <= 2)  # what JPEG changes


def test_records_broken_in_the_index_count_towards_the_share(tmp_path):
    path = tar_of(tmp_path / "a.tar", 11, uncaptioned=(5, 7))
    with pytest.raises(ValueError, match=r"2 of 11 records cannot be used, .*=0.1 \(a/k5: image without caption"):
        make_sources(data_config(path=str(path), max_broken_share=0.1), image_size=8)
    make_sources(data_config(path=str(path), max_broken_share=0.2), image_size=8)


@pytest.mark.parametrize("num_validation", [0, 11, 12])
def test_both_parts_of_a_split_need_records(tmp_path, num_validation):
    path = tar_of(tmp_path / "a.tar")
    with pytest.raises(ValueError, match=rf"data.num_validation={num_validation} must leave something on both sides"):
        make_sources(data_config(path=str(path), num_validation=num_validation), image_size=8)


def test_pictures_of_any_form_become_rgb_or_are_broken(tmp_path):
    forms = {
        "cmyk.jpg": (Image.new("CMYK", (9, 9), (0, 255, 255, 0)), "JPEG"),
        "deep.png": (Image.fromarray(np.full((9, 9), 128 * 257, np.uint16)), "PNG"),
        "alpha.png": (Image.new("LA", (9, 9), (77, 255)), "PNG"),
        "dot.png": (Image.new("RGB", (1, 1)), "PNG"),
        "last.jpg": (Image.new("RGB", (9, 9), (1, 1, 1)), "JPEG"),
    }
    members = []
    for name, (image, format_name) in forms.items():
        buffer = io.BytesIO()
        image.save(buffer, format_name)
        members += [(name, buffer.getvalue()), (f"{name[:-4]}.txt", b"c")]
    source = WebDatasetSource(str(write_tar(tmp_path / "a.tar", members)))
    examples = make_examples(source)
    images: dict[int, np.ndarray] = {}
    broken = []
    for position in range(len(source)):
        example = examples[position]
        images[example["index"]] = example["image"]
        broken += example["broken"]
    assert [(record_id, reason.split(":")[0]) for record_id, reason in broken] == [("a/dot", "image too small")]
    assert {i: image[4, 4].tolist() for i, image in images.items() if i in (1, 2)} == {1: [128] * 3, 2: [77] * 3}
    red, green, blue = images[0][4, 4].tolist()
    assert red > 200
    assert max(green, blue) < 60


@pytest.mark.parametrize(
    ("key", "value"), [("num_workers", -1), ("min_crop_scale", 0.0), ("min_crop_scale", 1.5), ("max_broken_share", 2.0)]
)
def test_settings_out_of_range_are_named(key, value):
    with pytest.raises(ValueError, match=f"data.{key}={value} must"):
        data_config(**{key: value})


def test_scene_kinds_reach_the_source():
    train, _ = make_sources(data_config(source="scenes", scene_kinds=("digit",)), image_size=16)
    other, _ = make_sources(data_config(source="scenes"), image_size=16)
    assert train.fingerprint() != other.fingerprint()


def test_both_decoders_make_the_same_batches_but_for_the_pixels(tmp_path):
    source = make_sources(data_config(path=str(tar_of(tmp_path / "a.tar", truncated=(4,))), max_broken_share=0.5), 8)[0]
    exact = make_examples(source)
    fast = dataclasses.replace(exact, decode="fast")
    for position in range(2 * len(source)):
        a, b = exact[position], fast[position]
        np.testing.assert_allclose(a["image"].astype(int), b["image"], atol=1, rtol=0)  # of one grey; rounding
        np.testing.assert_array_equal(a["text"], b["text"])
        assert (a["index"], a["broken"]) == (b["index"], b["broken"])
    assert sum(len(fast[position]["broken"]) for position in range(len(source))) == 1
    decode = fast.fingerprint()["decode"]
    assert decode["path"] == "fast"
    assert set(decode) == {"path", "pillow", *libraries()}
    state = {"next_batch": 0, "truncated": 0, "broken": 0, "first_broken": []}
    state["fingerprint"] = BatchIterator(exact, BATCH_SIZE).get_state()["fingerprint"]
    with pytest.raises(ValueError, match=r"decode\.path was 'exact', is 'fast'; decode\.simple"):
        BatchIterator(fast, BATCH_SIZE, state=state)


def test_a_killed_worker_changes_no_batch(monkeypatch, capfd):
    monkeypatch.setattr(pipeline, "MAX_RESTARTS", 1)
    examples = make_examples(NumberedSource(unusable=(3, 11)))
    expected = take(30, examples, max_broken_share=0.5)  # more than are ever made ahead
    state = BatchIterator(examples, BATCH_SIZE, max_broken_share=0.5)
    for _ in range(2):
        next(state)
    iterator = BatchIterator(examples, BATCH_SIZE, state=state.get_state(), max_broken_share=0.5, num_workers=2)
    batches = [next(iterator), next(iterator)]
    kill_a_worker()
    while iterator.progress["restarts"] == 0:  # those that were made before it died come first
        batches.append(next(iterator))
    assert_equal_batches(batches, expected[2 : 2 + len(batches)])
    at = 2 + len(batches) - 1
    assert f"a data worker died; the workers start again at batch {at}, time 1 of 1" in capfd.readouterr().err
    assert iterator.get_state()["next_batch"] == at + 1
    assert iterator.get_state()["broken"] == sum(len(batch["broken"]) for batch in expected[: at + 1])
    kill_a_worker()
    with pytest.raises(ValueError, match=r"a data worker died, and 1 times before, .*lower data.num_workers=2"):
        list(itertools.islice(iterator, 30))
    iterator.close()
    assert multiprocessing.active_children() == []


def kill_a_worker() -> None:
    worker = multiprocessing.active_children()[0]
    worker.kill()
    worker.join()


def test_the_state_is_that_of_the_batch_last_used_when_others_were_read_ahead():
    examples = make_examples(NumberedSource(unusable=(3, 11), long=True))
    iterator = BatchIterator(examples, BATCH_SIZE, max_broken_share=0.5)
    states, progress = [iterator.get_state()], [iterator.progress]
    for _ in range(5):
        next(iterator)
        states.append(iterator.get_state())
        progress.append(iterator.progress)
    assert [iterator.get_state(progress=each) for each in progress] == states
    assert states[5]["broken"] > states[1]["broken"]


def test_a_batch_has_the_seconds_of_its_stages(monkeypatch):
    class SlowSource(NumberedSource):
        def __getitem__(self, index: int) -> Record:
            time.sleep(0.002)
            return super().__getitem__(index)

    batch = take(1, make_examples(SlowSource(unusable=(3,))), max_broken_share=0.5)[0]
    read, decode, tokenise = batch["seconds"]
    assert 0.002 * BATCH_SIZE <= read < 1
    assert 0 < tokenise < decode < 0.5 * read  # a crop of 9 x 9 pixels, and a sum of letters


@pytest.mark.skipif(not pipeline.SHARED_MEMORY.is_dir(), reason="no /dev/shm")
def test_a_stuck_worker_does_not_hold_up_the_end_and_its_memory_is_freed(monkeypatch):
    monkeypatch.setattr(pipeline, "CLOSE_S", 0.3)
    iterator = BatchIterator(make_examples(), BATCH_SIZE, num_workers=1)
    kept = next(iterator)["image"]
    expected = np.array(kept)
    time.sleep(0.3)
    (worker,) = set(multiprocessing.active_children()) - iterator._before
    assert list(pipeline.SHARED_MEMORY.glob(f"{iterator._prefix}*"))
    os.kill(worker.pid, signal.SIGSTOP)
    start = time.monotonic()
    iterator.close()
    assert time.monotonic() - start < 3
    assert not worker.is_alive()
    assert list(pipeline.SHARED_MEMORY.glob(f"{iterator._prefix}*")) == []
    np.testing.assert_array_equal(kept, expected)  # a batch in use stays as it is
