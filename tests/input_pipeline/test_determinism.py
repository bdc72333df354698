"""The same global batches for any number of workers and hosts, before and after a resume on other ones."""

import json
import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from tiny_records import Words, data_config, jpeg, write_tar

from input_pipeline.data_config import MixturePart
from input_pipeline.examples import Batch, Examples
from input_pipeline.open_data import make_sources
from input_pipeline.pipeline import BatchIterator

BATCH_SIZE = 16
NUM_BATCHES, RESUMED_AT = 18, 7  # 288 rows, and 112: in the middle of an epoch of each source but the smallest
MAX_BROKEN_SHARE = 0.05


def captioned_tar(path: Path, count: int, broken: tuple[int, ...] = ()) -> str:
    """Every fifth caption is short, every seventh picture narrow; the broken pictures are cut off."""
    members = []
    for i in range(count):
        picture = jpeg(i, 13, 11) if i % 7 else jpeg(i, 29, 9)
        members.append((f"k{i}.jpg", picture[: -len(picture) // 9] if i in broken else picture))
        captions = [f"{path.stem} {i}", "a longer caption of it"] if i % 5 else [f"{i}"]
        members.append((f"k{i}.json", json.dumps({"captions": captions}).encode()))
    return str(write_tar(path, members))


def single(folder: Path) -> Examples:
    return examples_of(data_config(path=captioned_tar(folder / "a.tar", 203)))


def filtered(folder: Path) -> Examples:
    """127 of 203 records pass, two of them broken."""
    path = captioned_tar(folder / "a.tar", 203, broken=(11, 102))
    return examples_of(data_config(path=path, max_aspect=2.0, min_caption_length=4))


def mixture(folder: Path) -> Examples:
    """A filtered source with broken pictures, a small one that is seen often, and drawn scenes."""
    parts = (
        MixturePart(kind="webdataset", name="photos", path=captioned_tar(folder / "a.tar", 203, (11, 102)), weight=3.0),
        MixturePart(kind="webdataset", name="few", path=captioned_tar(folder / "b.tar", 29), weight=2.0, max_aspect=3),
        MixturePart(kind="scenes", name="drawn", num_examples=1000, weight=1.0),
    )
    return examples_of(data_config(source="mixture", mixture=parts, num_validation=40, caption_must_not_match="^b 7$"))


def examples_of(config) -> Examples:
    train, _ = make_sources(config, image_size=16)
    return Examples(
        source=train,
        tokenizer=Words(),  # type: ignore[arg-type]
        image_size=16,
        min_scale=config.min_crop_scale,
        seed=config.seed,
        decode="fast",
    )


def run(examples: Examples, num_batches: int, num_hosts: int = 1, num_workers: int = 0, state: dict | None = None):
    """The global batches, put together from all hosts' rows, and the state of the run after them."""
    rows = np.split(np.arange(BATCH_SIZE), num_hosts)
    options = {"num_workers": num_workers, "max_broken_share": MAX_BROKEN_SHARE, "state": state}
    hosts = [BatchIterator(examples, BATCH_SIZE, rows=own, **options) for own in rows]  # type: ignore[arg-type]
    batches = []
    for _ in range(num_batches):
        parts = [next(host) for host in hosts]
        batches.append({name: np.concatenate([part[name] for part in parts]) for name in ("image", "text", "index")})  # type: ignore[literal-required]
        batches[-1]["broken"] = [pair for part in parts for pair in part["broken"]]
    counts = [host.progress for host in hosts]
    last = json.loads(json.dumps(hosts[-1].get_state(lambda own: counts)))  # as a checkpoint keeps it
    for host in hosts:
        with closing(host):
            pass
    return batches, last


def assert_same(left: list[Batch], right: list[Batch]) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right):
        assert a["broken"] == b["broken"]
        for name in ("image", "text", "index"):
            np.testing.assert_array_equal(a[name], b[name])  # type: ignore[literal-required]


@pytest.mark.parametrize(
    "make", [*(pytest.param(make, marks=pytest.mark.nightly) for make in (single, filtered)), mixture]
)
def test_hosts_and_resumes_change_no_batch(make: Callable[[Path], Examples], tmp_path):
    expected, whole_state = run(make(tmp_path), NUM_BATCHES)
    assert len({batch["image"].tobytes() for batch in expected}) == NUM_BATCHES
    num_broken = sum(len(batch["broken"]) for batch in expected)
    assert (num_broken > 0) == (make is not single)
    for before, after in ((1, 4), (4, 2), (2, 1)):
        first, state = run(make(tmp_path), RESUMED_AT, before)  # the sources opened anew each time
        second, last = run(make(tmp_path), NUM_BATCHES - RESUMED_AT, after, state=state)
        assert_same([*first, *second], expected)
        assert {**last, "first_broken": 0} == {**whole_state, "first_broken": 0}
        assert last["broken"] == num_broken


@pytest.mark.parametrize(
    ("make", "workers"), [(filtered, (2, 0)), pytest.param(mixture, (8, 0), marks=pytest.mark.nightly)]
)
def test_workers_change_no_batch(make: Callable[[Path], Examples], workers: tuple[int, int], tmp_path):
    examples = make(tmp_path)
    expected, _ = run(examples, NUM_BATCHES)
    first, state = run(examples, RESUMED_AT, 1, workers[0])
    second, _ = run(examples, NUM_BATCHES - RESUMED_AT, 2, workers[1], state)
    assert_same([*first, *second], expected)


@pytest.mark.nightly
def test_memory_is_flat_over_a_hundred_thousand_records(tmp_path):
    pictures = [jpeg(i, 40, 30) for i in range(50)]
    for name, count in (("many", 60_000), ("few", 5_000)):
        texts = ((f"{i:07d}.txt", b"caption %d" % i) for i in range(count))
        images = ((f"{i:07d}.jpg", pictures[i % 50]) for i in range(count))
        write_tar(tmp_path / f"{name}.tar", (member for pair in zip(images, texts) for member in pair))
    parts = tuple(
        MixturePart(
            kind="webdataset", name=name, path=str(tmp_path / f"{name}.tar"), weight=weight, min_caption_length=9
        )
        for name, weight in (("many", 3.0), ("few", 1.0))
    )
    examples = examples_of(data_config(source="mixture", mixture=parts, num_validation=100))
    with closing(BatchIterator(examples, 200)) as iterator:
        resident = {}
        for batch in range(1, 501):
            next(iterator)
            resident[batch * 200] = (
                int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20
            )
    # Measured: 0.2 MiB. A leak of 100 bytes a record would be 8.
    assert resident[100_000] - resident[20_000] < 5


def test_an_epoch_is_one_pass_over_what_is_kept(tmp_path):
    examples = filtered(tmp_path)
    length = len(examples.source)
    order = [examples._order.index(*examples._order.locate(p)) for p in range(2 * length)]
    assert sorted(order[:length]) == sorted(order[length:]) == list(range(length))
    assert examples.samples_seen(3 * length) == {"epochs": 3.0}


def test_each_source_of_a_mixture_has_its_share_and_its_own_epochs(tmp_path):
    examples = mixture(tmp_path)
    lengths = dict(zip(("photos", "few", "drawn"), examples.source.lengths))  # type: ignore[attr-defined]
    order = [examples._order.index(*examples._order.locate(position)) for position in range(600)]
    names = [examples.source[index]["id"].partition("/")[0] for index in order]
    seen = examples.samples_seen(600)
    assert {f"epochs/{name}" for name in lengths} | {f"samples_seen/{name}" for name in lengths} == set(seen)
    assert sum(seen[f"samples_seen/{name}"] for name in lengths) == 600
    for name, share in (("photos", 1 / 2), ("few", 1 / 3), ("drawn", 1 / 6)):
        # Drawn without replacement from a block of 10,000: a standard deviation below 12.3.
        assert abs(seen[f"samples_seen/{name}"] - 600 * share) < 49
        assert seen[f"epochs/{name}"] == seen[f"samples_seen/{name}"] / lengths[name]
    assert names.count("few") == seen["samples_seen/few"]
