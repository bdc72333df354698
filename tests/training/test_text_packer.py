"""Training with packed captions: the same numbers, the same after a stop, nothing lost when a batch does not fit."""

import os
import signal

import jax
import numpy as np
import pytest

from clip_jax.distributed.sharding import ShardingConfig, make_mesh
from clip_jax.evaluation import in_training
from clip_jax.models import ModelConfig, PackedText, TextConfig, VisionConfig
from clip_jax.runs import loop
from clip_jax.runs.logging import read_metrics
from clip_jax.runs.setup import prepare_run
from clip_jax.training import text_packer
from clip_jax.training.text_packer import TextPacker, make_text_packer
from configs.tiny import get_config
from input_pipeline.packing import pack_text

pytestmark = pytest.mark.usefixtures("compile_once")

STEPS = 7
MINIATURE = {
    "model": {"embed_dim": 16, "remat": "none"},
    "vision": {"image_size": 16, "patch_size": 8, "width": 16, "depth": 1, "num_heads": 2, "mlp_dim": 32},
    "text": {"context_length": 24, "vocab_size": 300, "width": 16, "depth": 1, "num_heads": 2, "mlp_dim": 32},
    "data": {"num_examples": 101, "num_validation": 11, "num_workers": 0},
    "optimizer": {"warmup_steps": 1, "learning_rate": 1e-3},
    "train": {"global_batch_size": 40, "total_steps": STEPS, "checkpoint_every": 0, "evaluate_every": 0},
    "evaluation": {"zero_shot": (), "batch_size": 16},
}
END = 60


def miniature(pack_text: bool) -> dict:
    sections = get_config().to_dict()
    for section, keys in MINIATURE.items():
        sections[section] |= keys
    sections["data"]["pack_text"] = pack_text
    return sections


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr(in_training, "plot_confusion", lambda *args: None)
    for name in ("plot_similarity", "plot_retrieval"):
        monkeypatch.setattr(in_training.retrieval, name, lambda *args: None)
    monkeypatch.setattr(loop, "plot_curves", lambda *args: None)


@pytest.fixture
def shapes(monkeypatch):
    """Of the text's arrays, as the train step gets them."""
    shapes: list[list[tuple[int, ...]]] = []
    place_batch = loop.place_batch

    def place_and_note(batch, mesh):
        shapes.append([leaf.shape for leaf in jax.tree.leaves(batch["text"])])
        return place_batch(batch, mesh)

    monkeypatch.setattr(loop, "place_batch", place_and_note)
    return shapes


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """The rows of a run that does not pack."""
    workdir = tmp_path_factory.mktemp("runs") / "unpacked"
    with pytest.MonkeyPatch.context() as patch:
        for name in ("plot_similarity", "plot_retrieval"):
            patch.setattr(in_training.retrieval, name, lambda *args: None)
        patch.setattr(loop, "plot_curves", lambda *args: None)
        assert loop.train(miniature(pack_text=False), workdir) == 0
    return training_rows(workdir)


def training_rows(workdir):
    """Without what time and its accidents decide."""
    rows = [row for row in read_metrics(workdir) if "loss" in row]
    return [
        {name: x for name, x in row.items() if name != "images_per_s" and not name.startswith("data_")} for row in rows
    ]


def assert_same_course(rows, expected):
    """Every metric of every step; measured 2e-7."""
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    for row, other in zip(rows, expected, strict=True):
        assert row.keys() - other.keys() == {"unpacked"}
        for name, value in other.items():
            assert row[name] == pytest.approx(value, rel=1e-5, abs=1e-5), (row["step"], name)


def test_losses_are_those_of_training_unpacked(unpacked, shapes, tmp_path, capsys):
    assert loop.train(miniature(pack_text=True), tmp_path / "packed") == 0
    rows = training_rows(tmp_path / "packed")
    assert_same_course(rows, unpacked)
    assert [row["unpacked"] for row in rows] == [0] * STEPS
    r = shapes[0][0][1]
    assert r < 40 // 8
    assert shapes == [[(8, r, 24), (8, r, 24), (8, r, 24), (8, 5), (8, 5)]] * STEPS
    out = capsys.readouterr().out
    assert f"captions packed: 8 groups of {r} rows\n" in out
    assert " ".join(out.split()).count("batches that did not fit their packed rows 0") == 1


@pytest.mark.nightly
def test_losses_of_packed_microbatches_are_those_of_training_unpacked(unpacked, shapes, tmp_path):
    sections = miniature(pack_text=True)
    sections["train"]["num_microbatches"] = 2
    sections["sharding"]["tensor"] = 2
    assert loop.train(sections, tmp_path) == 0
    assert_same_course(training_rows(tmp_path), unpacked)
    assert [step[-1] for step in shapes] == [(4 * 2, 5)] * STEPS


def test_a_batch_that_does_not_fit_is_encoded_unpacked_and_counted(unpacked, shapes, monkeypatch, tmp_path, capsys):
    needed = []

    def note(text, *args, **options):
        needed.append(pack_text(text, *args, **{**options, "rows": None})["tokens"].shape[1])
        return pack_text(text, *args, **options)

    monkeypatch.setattr(text_packer, "pack_text", note)
    monkeypatch.setattr(text_packer, "rows_with_headroom", lambda *args: 2)
    assert loop.train(miniature(pack_text=True), tmp_path / "tight") == 0
    rows = training_rows(tmp_path / "tight")
    assert_same_course(rows, unpacked)
    overflows = [float(rows > 2) for rows in needed]
    assert 0 < sum(overflows) < STEPS
    assert [row["unpacked"] for row in rows] == overflows
    assert [len(step) for step in shapes] == [1 if overflow else 5 for overflow in overflows]
    out = " ".join(capsys.readouterr().out.split())
    assert f"batches that did not fit their packed rows {sum(overflows):.0f}" in out


@pytest.mark.nightly
def test_a_stopped_run_resumes_bit_identically(monkeypatch, tmp_path):
    sections = miniature(pack_text=True)
    assert loop.train(sections, tmp_path / "whole") == 0
    add = loop.ProgressLog.add

    def stop_at_step_3(log, step, *rest):
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        add(log, step, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(loop.ProgressLog, "add", stop_at_step_3)
        assert loop.train(sections, tmp_path / "stopped") == 128 + signal.SIGTERM
    assert len(training_rows(tmp_path / "stopped")) == 3
    assert loop.train(sections, tmp_path / "stopped") == 0
    assert training_rows(tmp_path / "stopped") == training_rows(tmp_path / "whole")
    whole, stopped = (prepare_run(sections, tmp_path / name).state for name in ("whole", "stopped"))
    for leaf, other in zip(jax.tree.leaves(whole), jax.tree.leaves(stopped), strict=True):
        np.testing.assert_array_equal(leaf, other)


def test_packing_may_be_turned_on_when_a_run_resumes(tmp_path):
    sections = miniature(pack_text=False)
    prepare_run(sections, tmp_path)
    assert prepare_run(miniature(pack_text=True), tmp_path).text_packer


def some_text(lengths):
    text = np.zeros((len(lengths), 11), np.int32)
    for row, length in zip(text, lengths):
        row[:length] = [1, *range(2, length), END]
    return text


def test_the_packer_packs_what_fits_and_returns_other_text_unchanged():
    packer = TextPacker(END, num_groups=2, rows=2)
    fits, too_much = some_text([4, 7, 11, 3, 3, 3]), some_text([4, 7, 11, 9, 9, 9])
    packed = packer(fits)
    assert isinstance(packed, PackedText)
    for name, array in pack_text(fits, END, num_groups=2, rows=2).items():
        np.testing.assert_array_equal(getattr(packed, name), array)
    assert packer(too_much) is too_much


@pytest.mark.parametrize("others", [True, False])
def test_processes_agree_before_one_packs(monkeypatch, others):
    seen = []

    def allgather(fits):
        seen.append(bool(fits))
        return np.array([bool(fits), others])

    monkeypatch.setattr(text_packer.jax, "process_count", lambda: 2)
    monkeypatch.setattr(text_packer.multihost_utils, "process_allgather", allgather)
    packer = TextPacker(END, num_groups=1, rows=1)
    assert isinstance(packer(some_text([4, 7])), PackedText if others else np.ndarray)
    assert isinstance(packer(some_text([4, 8])), np.ndarray)
    assert seen == [True, False]


class Words:
    """A tokenizer of one token a word."""

    eot_token = END

    def encode(self, text):
        return some_text([len(text.split()) + 2])[0], False


def model(**text) -> ModelConfig:
    tower = {"width": 8, "depth": 1, "num_heads": 2, "mlp_dim": 8}
    vision = VisionConfig(**tower, image_size=4, patch_size=4)
    return ModelConfig(
        embed_dim=8, vision=vision, text=TextConfig(**tower, context_length=11, vocab_size=61, eot_token=END, **text)
    )


def test_rows_are_measured_on_captions_for_the_captions_of_a_device():
    mesh = make_mesh(ShardingConfig(tensor=2))
    packer = make_text_packer(model(), ["a b c"] * 9, Words(), mesh, batch_size=48, seed=0)
    assert packer.rows == 6  # 48 captions on 4 devices, two of five tokens in a row of eleven
    assert packer(some_text([5] * 48)).tokens.shape == (4, 6, 11)


@pytest.mark.parametrize("changes", [{"causal": False}, {"pooling": "last"}])
def test_a_tower_that_sees_its_padding_is_refused_before_training(changes):
    with pytest.raises(
        ValueError, match=r"^data.pack_text=True needs a causal text tower .* set data.pack_text=False$"
    ):
        make_text_packer(model(**changes), ["a"], Words(), make_mesh(), batch_size=8, seed=0)
