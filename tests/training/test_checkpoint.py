import json
import random
import resource
import shutil
import signal
import struct
import zlib
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from processes import eventually

from clip_jax.config.experiment import OptimizerConfig
from clip_jax.distributed.sharding import ShardingConfig, make_mesh
from clip_jax.models import ModelConfig, TextConfig, VisionConfig
from clip_jax.training import digests
from clip_jax.training.checkpoint import Checkpointer, CheckpointError
from clip_jax.training.digests import DIGESTS, DigestsAhead, find_damage, write_digests
from clip_jax.training.optimizer import make_optimizer
from clip_jax.training.state import TrainState, abstract_state

TINY = ModelConfig(
    embed_dim=7,
    vision=VisionConfig(width=12, depth=2, num_heads=2, mlp_dim=26, image_size=10, patch_size=5),
    text=TextConfig(width=20, depth=3, num_heads=4, mlp_dim=34, context_length=11, vocab_size=997, eot_token=996),
)
OPTIMIZER = OptimizerConfig(
    learning_rate=1e-3, weight_decay=0.2, b1=0.9, b2=0.98, eps=1e-6, warmup_steps=8, max_logit_scale=100.0
)


def target_on(data, fsdp, tensor):
    mesh = make_mesh(ShardingConfig(data=data, fsdp=fsdp, tensor=tensor), jax.devices()[: data * fsdp * tensor])
    return abstract_state(TINY, make_optimizer(OPTIMIZER, optax.constant_schedule(1e-3)), mesh)


@pytest.fixture(scope="module")
def target():
    return target_on(2, 2, 2)


def some_state(target, seed=0):
    """Every leaf different, each on its devices."""
    rng = np.random.default_rng(seed)

    def draw(leaf):
        array = rng.normal(size=leaf.shape) if leaf.dtype == jnp.float32 else rng.integers(1, 1000, size=leaf.shape)
        return jax.device_put(np.asarray(array, leaf.dtype), leaf.sharding)

    return jax.tree.map(draw, target)


def data_state(step):
    """As the input pipeline gives it: nested, with strings, a large integer and a list."""
    return {"next_index": 10**12 + step, "fingerprint": {"kind": "scenes", "seed": 3}, "broken": [["a", "b"]]}


def restore(checkpointer, target) -> tuple[TrainState, dict[str, Any]]:
    restored = checkpointer.restore(target)
    assert restored is not None
    return restored


def assert_identical(state, expected):
    assert str(jax.tree.structure(state)) == str(jax.tree.structure(expected))
    for leaf, other in zip(jax.tree.leaves(state), jax.tree.leaves(expected)):
        assert leaf.dtype == other.dtype
        np.testing.assert_array_equal(leaf, other)


@pytest.fixture
def checkpointer(tmp_path):
    checkpointer = Checkpointer(tmp_path)
    yield checkpointer
    checkpointer.close()


@pytest.fixture
def saved(checkpointer, target):
    """Steps 10 and 20 on the disk."""
    for step in (10, 20):
        checkpointer.save(step, some_state(target, seed=step), data_state(step))
    checkpointer.wait()
    return checkpointer


def test_nothing_to_restore(checkpointer, target):
    assert checkpointer.steps() == []
    assert checkpointer.restore(target) is None


def test_a_saved_state_is_restored_to_the_bit(saved, target):
    state, data = restore(saved, target)
    assert_identical(state, some_state(target, seed=20))
    assert data == data_state(20)
    assert jax.tree.map(lambda leaf: leaf.sharding, state) == jax.tree.map(lambda leaf: leaf.sharding, target)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 4, 1), (8, 1, 1)])
def test_another_mesh_and_another_process_read_it(saved, target, tmp_path, shape):
    other = target_on(*shape)
    reader = Checkpointer(tmp_path)
    state, data = restore(reader, other)
    reader.close()
    assert_identical(jax.device_get(state), jax.device_get(some_state(target, seed=20)))
    assert jax.tree.map(lambda leaf: leaf.sharding, state) == jax.tree.map(lambda leaf: leaf.sharding, other)
    assert data == data_state(20)


def test_donated_steps_after_a_save_do_not_change_what_is_saved(checkpointer, target):
    step = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf + 1, state), donate_argnums=0)
    for number in range(1, 21):
        state = some_state(target, seed=number)
        expected = jax.tree.map(lambda leaf: np.array(leaf, copy=True), state)
        checkpointer.save(number, state, data_state(number))
        saved, state = state, step(state)
        # JAX copies what the save still reads at this moment instead of donating it: then another save tells.
        is_donated = all(leaf.is_deleted() for leaf in jax.tree.leaves(saved))
        for _ in range(19):
            donated, state = state, step(state)
            assert all(leaf.is_deleted() for leaf in jax.tree.leaves(donated))
        checkpointer.wait()
        assert_identical(restore(checkpointer, target)[0], expected)
        if is_donated:
            break
    assert is_donated


def test_a_second_save_of_a_step_changes_nothing(saved, target):
    saved.save(20, some_state(target, seed=99), data_state(99))
    saved.wait()
    assert restore(saved, target)[1] == data_state(20)


def test_the_newest_are_kept(tmp_path, target):
    checkpointer = Checkpointer(tmp_path, keep=2)
    for step in (1, 2, 3, 4):
        checkpointer.save(step, some_state(target), data_state(step))
    checkpointer.wait()
    assert checkpointer.steps() == [3, 4]
    checkpointer.close()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["3", "4"]


def empty_directory(step: Path):
    shutil.rmtree(step)
    step.mkdir()


def without_arrays(step: Path):
    shutil.rmtree(step / "state")


def truncated_arrays(step: Path):
    """Cuts every array file in half."""
    files = [path for path in step.rglob("*") if path.is_file() and "/d/" in path.as_posix()]
    assert files
    for path in files:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def broken_data_state(step: Path):
    file = step / "data" / "metadata"
    file.write_text(file.read_text()[:9])


def another_position(step: Path):
    """Of a checkpoint without digests, as those of earlier versions are; the data of which say next_batch."""
    (step / DIGESTS).unlink()
    file = step / "data" / "metadata"
    file.write_text(json.dumps({**json.loads(file.read_text()), "next_batch": 19}))


DAMAGES = [empty_directory, without_arrays, truncated_arrays, broken_data_state, another_position]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_step_falls_back_to_the_one_before(saved, target, tmp_path, damage, capsys):
    damage(tmp_path / "checkpoints" / "20")
    reader = Checkpointer(tmp_path)
    state, data = restore(reader, target)
    assert_identical(state, some_state(target, seed=10))
    assert data == data_state(10)
    # The run goes on from step 10 and writes step 20 again.
    (unfinished := tmp_path / "checkpoints" / "15.orbax-checkpoint-tmp").mkdir()  # as a killed save leaves it
    reader.move_newer_than(10)
    assert reader.steps() == [10]
    assert not unfinished.exists()
    assert (tmp_path / "unreadable_20").is_dir()
    moved = f"the checkpoint of step 20, which cannot be read, is now {tmp_path}/unreadable_20\n"
    assert moved in capsys.readouterr().err
    reader.save(20, some_state(target, seed=20), data_state(20))
    reader.wait()
    assert_identical(restore(reader, target)[0], some_state(target, seed=20))
    reader.close()


def files_of(step: Path) -> list[Path]:
    return sorted(path for path in step.rglob("*") if path.is_file())


def flip_bit(file: Path, bit: int) -> None:
    data = bytearray(file.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    file.write_bytes(data)


def test_one_flipped_bit_in_any_file_is_found_and_the_file_named(saved, tmp_path):
    step = tmp_path / "checkpoints" / "20"
    assert find_damage(step, 20) == ""
    files = files_of(step)
    assert len(files) > 12
    for i, file in enumerate(files):
        whole = file.read_bytes()
        flip_bit(file, random.Random(i).randrange(8 * len(whole)))
        name = file.relative_to(step).as_posix()
        found = find_damage(step, 20)
        assert found == (
            f"{DIGESTS} is damaged" if name == DIGESTS else f"{name} is not what was written, by its digest"
        )
        file.write_bytes(whole)
    assert find_damage(step, 20) == ""


def test_files_that_are_missing_cut_or_of_another_step_are_named(saved, tmp_path):
    step = tmp_path / "checkpoints" / "20"
    data = step / "data" / "metadata"
    text = data.read_text()
    data.write_text(text[:9])
    assert find_damage(step, 20) == f"data/metadata has 9 of {len(text)} bytes"
    data.unlink()
    assert find_damage(step, 20) == "data/metadata is missing"
    data.write_text(text)
    assert find_damage(step, 30) == "it holds step 20"


@pytest.mark.parametrize("num_flips", [2, pytest.param(500, marks=pytest.mark.nightly)])
def test_no_flipped_bit_is_restored(saved, target, tmp_path, caplog, num_flips):
    step, rng = tmp_path / "checkpoints" / "20", random.Random(num_flips)
    files = files_of(step)
    for i in range(num_flips):
        file = files[i % len(files)]
        whole = file.read_bytes()
        flip_bit(file, rng.randrange(8 * len(whole)))
        caplog.clear()
        reader = Checkpointer(tmp_path)
        state, data = restore(reader, target)
        reader.close()
        assert data == data_state(10)
        assert_identical(state, some_state(target, seed=10))
        assert f"checkpoint {tmp_path}/checkpoints/20 cannot be read: {file.relative_to(step)} is " in caplog.text
        file.write_bytes(whole)
    assert restore(saved, target)[1] == data_state(20)


def test_a_checkpoint_without_digests_is_restored_with_a_line_that_says_so(saved, target, tmp_path, capsys):
    (tmp_path / "checkpoints" / "20" / DIGESTS).unlink()
    state, data = restore(saved, target)
    assert_identical(state, some_state(target, seed=20))
    assert data == data_state(20)
    assert capsys.readouterr().err == (
        f"clip-jax: checkpoint {tmp_path}/checkpoints/20 carries no {DIGESTS}, as those of earlier versions: what it "
        "holds cannot be verified\n"
    )


def as_written_out(data: bytes) -> str:
    """The digest of one block, row by row in Python's integers."""
    crc = 0
    for at in range(0, len(data), 2**20):
        part = data[at : at + 2**20]
        rows = [struct.unpack("<512Q", part[i : i + 4096]) for i in range(0, len(part) - 4095, 4096)]
        for sums in ([sum(column) for column in zip(*rows)] or [0] * 512, [sum(row) for row in rows]):
            crc = zlib.crc32(struct.pack(f"<{len(sums)}Q", *(each % 2**64 for each in sums)), crc)
        crc = zlib.crc32(part[len(rows) * 4096 :], crc)
    return f"{crc:08x}"


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 2**20 + 4096 + 7])
def test_a_digest_is_that_of_the_sums_of_rows_and_columns(tmp_path, size):
    (tmp_path / "file").write_bytes(data := random.Random(size).randbytes(size))
    write_digests(tmp_path, 7)
    assert json.loads((tmp_path / DIGESTS).read_text())["files"] == {"file": [size, as_written_out(data)]}


def test_blocks_of_a_large_file_have_digests_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(digests, "BLOCK_BYTES", 10_000)
    data = random.Random(0).randbytes(25_000)
    (tmp_path / "large").write_bytes(data)
    write_digests(tmp_path, 7)
    expected = "".join(as_written_out(data[at : at + 10_000]) for at in (0, 10_000, 20_000))
    assert json.loads((tmp_path / DIGESTS).read_text())["files"] == {"large": [25_000, expected]}
    flip_bit(tmp_path / "large", 8 * 24_999)
    assert find_damage(tmp_path, 7) == "large is not what was written, by its digest"


@pytest.mark.parametrize("damage", ["zeroed", "swapped", "shifted", "repeated"])
def test_pages_that_are_lost_or_out_of_place_are_found(tmp_path, damage):
    pages = [random.Random(i).randbytes(4096) for i in range(9)]
    (tmp_path / "file").write_bytes(b"".join(pages))
    write_digests(tmp_path, 7)
    assert find_damage(tmp_path, 7) == ""
    other = {
        "zeroed": [*pages[:4], bytes(4096), *pages[5:]],
        "swapped": [pages[1], pages[0], *pages[2:]],
        "shifted": [pages[-1], *pages[:-1]],
        "repeated": [pages[0], pages[0], *pages[2:]],
    }[damage]
    (tmp_path / "file").write_bytes(b"".join(other))
    assert find_damage(tmp_path, 7) == "file is not what was written, by its digest"


def test_digests_made_ahead_of_the_end_are_used_while_the_file_stays_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(digests, "AHEAD_BYTES", 10)
    for name in "abc":
        (tmp_path / name).write_bytes(name.encode() * 100)
    (tmp_path / "small").write_bytes(b"7")
    ahead = DigestsAhead(tmp_path)
    eventually(lambda: len(ahead.found) == 3)
    ahead.end()
    ahead._thread.join()
    (tmp_path / "a").rename(tmp_path / "renamed")
    (tmp_path / "b").write_bytes(b"x" * 101)
    read = []
    digest = digests._digest
    monkeypatch.setattr(digests, "_digest", lambda file, at: read.append(file.name) or digest(file, at))
    write_digests(tmp_path, 7, ahead)
    assert sorted(read) == ["b", "small"]
    assert find_damage(tmp_path, 7) == ""
    assert sorted(read) == ["b", "b", "c", "renamed", "small", "small"]


def test_all_steps_damaged_is_an_error(saved, target, tmp_path):
    truncated_arrays(tmp_path / "checkpoints" / "10")
    empty_directory(tmp_path / "checkpoints" / "20")
    reader = Checkpointer(tmp_path)
    with pytest.raises(CheckpointError) as error:
        reader.restore(target)
    reader.close()
    message = str(error.value)
    assert message.startswith(f"no checkpoint in {tmp_path}/checkpoints can be read (step 20: ")
    assert "; step 10: " in message
    assert message.endswith("restore the folder from a copy, or start again in another --workdir")


@contextmanager
def full_disk():
    """No file may grow beyond 64 KiB, so that writing fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_save_that_fails_says_where_and_what_is_left(saved, target, tmp_path):
    with full_disk():
        saved.save(30, some_state(target), data_state(30))
        with pytest.raises(CheckpointError) as error:
            saved.wait()
    message = str(error.value)
    assert message.startswith(f"could not save a checkpoint to {tmp_path}/checkpoints: ")
    assert "File too large" in message
    assert "The newest complete checkpoint is step 20; " in message
    assert message.endswith("free space or repair the folder, then run the same command again")
    reader = Checkpointer(tmp_path)
    assert restore(reader, target)[1] == data_state(20)
    reader.close()


def test_the_error_of_a_background_save_is_raised_by_the_next_save(saved, target):
    with full_disk():
        saved.save(30, some_state(target), data_state(30))
        with pytest.raises(CheckpointError, match="newest complete checkpoint is step 20"):
            saved.save(40, some_state(target), data_state(40))


def test_a_first_save_that_fails_has_nothing_to_fall_back_to(checkpointer, target):
    with full_disk():
        checkpointer.save(1, some_state(target), data_state(1))
        with pytest.raises(CheckpointError, match="The newest complete checkpoint is none"):
            checkpointer.wait()
