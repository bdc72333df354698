"""Training end to end in miniature: what it leaves behind, how it is stopped, and how it goes on."""

import io
import itertools
import json
import os
import random
import re
import shutil
import signal
import sys
import tarfile
import threading
import time
from collections import Counter
from contextlib import ExitStack, contextmanager
from pathlib import Path

import jax
import numpy as np
import pytest
from miniature import miniature, picture
from PIL import Image
from processes import Processes

from clip_jax.config import record
from clip_jax.config.experiment import TOKENIZER_FILE, make_config
from clip_jax.config.record import load_config
from clip_jax.distributed.sharding import make_mesh
from clip_jax.evaluation import in_training
from clip_jax.evaluation.in_training import evaluate
from clip_jax.evaluation.suite.sources import open_run_sources
from clip_jax.evaluation.suite.splits import only_splits
from clip_jax.runs import loop, setup, stopping
from clip_jax.runs.logging import read_metrics, source_cells, summary_table
from clip_jax.training import training
from clip_jax.training.checkpoint import Checkpointer
from input_pipeline.examples import Examples
from input_pipeline.lock import LOCK, lock_folder
from input_pipeline.open_data import make_sources
from input_pipeline.pipeline import BatchIterator
from input_pipeline.scenes import SceneSource
from input_pipeline.sources import FilteredSource, Filters, Mixture, Source, write_array_record
from input_pipeline.tokenizers import make_tokenizer
from input_pipeline.vocabulary import store_vocabulary

pytestmark = pytest.mark.usefixtures("compile_once")

STAGES = ("data_read_s", "data_decode_s", "data_tokenise_s")
# All that may differ between two equal runs.
TIMING = ("images_per_s", "data_wait_share", "data_batches_ready", "data_worker_restarts", *STAGES)


@pytest.fixture
def no_pictures(monkeypatch):
    """They take longer than the training."""
    monkeypatch.setattr(in_training, "plot_confusion", lambda *args: None)
    for name in ("plot_similarity", "plot_retrieval"):
        monkeypatch.setattr(in_training.retrieval, name, lambda *args: None)
    monkeypatch.setattr(loop, "plot_curves", lambda *args: None)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The workdir of a run that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    assert loop.train(miniature(), workdir) == 0
    return workdir


RUN = """
import json, sys, time
from pathlib import Path
from clip_jax.evaluation import in_training
from clip_jax.cli.common_flags import run_command
from clip_jax.runs import loop

sections, workdir, delay_s = json.loads(sys.argv.pop())
place_batch = loop.place_batch
def place_slowly(*args):
    time.sleep(delay_s)
    return place_batch(*args)
loop.place_batch = place_slowly
loop.plot_curves = lambda *args: None
{more}
run_command(lambda: loop.train(sections, Path(workdir)), sys.argv)
"""


class Run:
    """A training process, the first of a process group of its own."""

    def __init__(self, processes: Processes, sections: dict, workdir: Path, delay_s: float = 0.0, more: str = ""):
        arguments = json.dumps([sections, str(workdir), delay_s])
        command = [sys.executable, "-c", RUN.replace("{more}", more), arguments]
        self.workdir = workdir
        self.process = processes.start(command)

    def wait_for_step(self, step: int) -> None:
        deadline = time.monotonic() + 60
        while not any(row["step"] >= step for row in read_metrics(self.workdir)):
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def end(self) -> tuple[int, str, str]:
        """Exit code, stdout and stderr, once every process of the group is gone."""
        out, err = self.process.communicate(timeout=60)  # until the last process that holds the pipes is gone
        self.wait_for_group()
        return self.process.returncode, out, err

    def wait_for_group(self) -> None:
        deadline = time.monotonic() + 5
        while self.group_lives():
            assert time.monotonic() < deadline, "a worker process outlived the run"
            time.sleep(0.05)

    def group_lives(self) -> bool:
        try:
            os.killpg(self.process.pid, 0)
        except ProcessLookupError:
            return False
        return True


def rows(workdir: Path) -> list[dict]:
    return [{name: value for name, value in row.items() if name not in TIMING} for row in read_metrics(workdir)]


def make_examples(workdir: Path) -> tuple[Examples, Source]:
    """The stream that a run reads, and its source."""
    made = load_config(workdir)
    source, _ = make_sources(made.data, made.model.vision.image_size)
    tokenizer = make_tokenizer("sentencepiece", workdir / TOKENIZER_FILE, made.model.text.context_length)
    data = {"min_scale": made.data.min_crop_scale, "seed": made.data.seed, "decode": made.data.decode}
    return Examples(source=source, tokenizer=tokenizer, image_size=16, **data), source


def restore(workdir: Path):
    """Newest state, data state and the records of the next batches."""
    made = load_config(workdir)
    examples, _ = make_examples(workdir)
    target = training.Training(made, make_mesh(made.sharding)).abstract()
    checkpointer = Checkpointer(workdir)
    state, data_state = checkpointer.restore(target)  # type: ignore[misc]
    checkpointer.close()
    batches = BatchIterator(examples, made.train.global_batch_size, state=data_state, max_broken_share=1.0)
    return state, data_state, np.stack([next(batches)["index"] for _ in range(3)])


def assert_same_end(left: Path, right: Path) -> None:
    assert rows(left) == rows(right)
    (state, data_state, index), (other_state, other_data_state, other_index) = restore(left), restore(right)
    assert data_state == other_data_state
    np.testing.assert_array_equal(index, other_index)
    leaves, other_leaves = jax.tree.leaves_with_path(state), jax.tree.leaves_with_path(other_state)
    assert len(leaves) == len(other_leaves) > 50
    for (path, leaf), (_, other) in zip(leaves, other_leaves):
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(other), err_msg=jax.tree_util.keystr(path))


def test_a_workdir_of_an_earlier_version_goes_on_as_it_did_there(tmp_path, goldens, no_pictures):
    """old_workdir ended at step 70, with miniature(), by the last version whose checkpoints had no digests."""
    with tarfile.open(goldens / "old_workdir.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    workdir = tmp_path / "old_workdir"
    metrics, expected = workdir / "metrics.jsonl", rows(workdir)
    assert (saved_steps(workdir), expected[-1]["step"]) == ([60], 70)
    lines = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join(line for line in lines if json.loads(line)["step"] <= 60))
    assert loop.train(miniature(), workdir) == 0
    found = rows(workdir)
    assert [sorted(row) for row in found] == [sorted(row) for row in expected]
    for row, other in zip(found, expected):
        assert row == pytest.approx(other, rel=1e-4)


def printed(capsys) -> str:
    """What was printed, without its alignment."""
    return " ".join(capsys.readouterr().out.split())


def saved_steps(workdir: Path) -> list[int]:
    return sorted(int(folder.name) for folder in (workdir / "checkpoints").iterdir() if folder.name.isdigit())


def test_a_finished_run_has_the_files_that_its_last_line_lists(finished):
    steps = [row for row in read_metrics(finished) if "loss" in row]
    assert [row["step"] for row in steps] == list(range(1, 71))
    assert [row["samples_seen"] for row in steps] == list(range(8, 561, 8))
    assert all(np.isfinite(value) for row in steps for value in row.values())
    assert all(abs(row["chance_loss"] - np.log(8)) < 1e-6 for row in steps)
    assert all(0 <= row["data_batches_ready"] <= loop.BATCHES_AHEAD for row in steps)
    spent = {stage: sum(row[stage] for row in steps) for stage in STAGES}
    assert spent["data_decode_s"] < spent["data_read_s"]  # drawn, and handed on as they are
    assert {row["data_broken"] + row["data_worker_restarts"] for row in steps} == {0}
    assert steps[0]["learning_rate"] == 0
    assert max(row["learning_rate"] for row in steps) == pytest.approx(1e-3)
    assert [row["step"] for row in read_metrics(finished) if "loss" not in row] == [20, 40, 60, 70]

    assert saved_steps(finished) == [60, 70]  # the newest two
    assert load_config(finished) == make_config(miniature())
    assert json.loads((finished / "environment.json").read_text())["versions"]["jax"] == jax.__version__
    (events,) = (finished / "tensorboard").iterdir()
    assert events.stat().st_size > 1000

    pictures = {"curves", "similarity", "retrieval", "confusion_scenes_digit"}
    assert {file.stem for file in finished.glob("*.png")} == pictures
    for name in pictures:
        with Image.open(finished / f"{name}.png") as image:
            assert min(image.size) > 200
            assert len(np.unique(np.asarray(image.convert("L")))) > 20


def test_the_last_evaluation_is_written_and_logged(finished):
    results = json.loads((finished / "evaluation.json").read_text())
    digits = results["zero_shot"]["scenes/digit"]
    assert (digits["count"], digits["chance"], len(digits["per_class"])) == (13, 0.1, 10)
    retrieval = results["retrieval"]
    assert (retrieval["images"], retrieval["captions"], retrieval["skipped"]) == (11, 55, [])
    last = [row for row in read_metrics(finished) if "loss" not in row][-1]
    assert last["evaluation/scenes/digit/top1"] == digits["top1"]
    assert last["evaluation/retrieval/text_to_image_r@5"] == retrieval["text_to_image_r@5"]


def test_a_finished_run_that_is_entered_again_measures_nothing_twice(
    finished, tmp_path, no_pictures, monkeypatch, capsys
):
    workdir = tmp_path / "again"
    shutil.copytree(finished, workdir)
    measured: list[int] = []
    measure = in_training.Evaluator.__call__

    def counted(self, *args):
        measured.append(1)
        return measure(self, *args)

    monkeypatch.setattr(in_training.Evaluator, "__call__", counted)
    before = (workdir / "evaluation.json").read_bytes()
    assert loop.train(miniature(), workdir) == 0
    assert measured == []
    assert (workdir / "evaluation.json").read_bytes() == before
    assert "evaluation.json has the results of the last step by these settings: nothing is" in capsys.readouterr().out
    (workdir / "evaluation.json").write_bytes(before[:-5])  # damaged
    assert loop.train(miniature(), workdir) == 0
    assert (measured, (workdir / "evaluation.json").read_bytes()) == ([1], before)
    fewer = miniature()
    fewer["evaluation"]["num_examples"] = 7
    assert loop.train(fewer, workdir) == 0
    assert measured == [1, 1]


def test_evaluate_gives_the_numbers_of_the_end_of_the_run(finished, tmp_path):
    results = evaluate(finished, tmp_path / "new")
    assert results.pop("step") == 70
    assert results == json.loads((finished / "evaluation.json").read_text())
    assert json.loads((tmp_path / "new" / "evaluation.json").read_text()) == {"step": 70, **results}
    assert len(list((tmp_path / "new").glob("*.png"))) == 3


def test_evaluate_takes_other_sets_and_sizes(finished, tmp_path, no_pictures):
    results = evaluate(finished, tmp_path, zero_shot=("scenes/shape",), num_examples=7, templates="bare")
    assert list(results["zero_shot"]) == ["scenes/shape"]
    assert results["zero_shot"]["scenes/shape"]["count"] == results["retrieval"]["images"] == 7
    with pytest.raises(ValueError, match="data set 'digit' is unknown: use a name of the paper's sets, 'scenes/NAME'"):
        evaluate(finished, tmp_path, zero_shot=("digit",))


def test_evaluate_measures_all_of_other_data_and_the_held_out_part_of_its_own(tmp_path, no_pictures, capsys):
    write_tar(tmp_path / "a.tar", 17, cut=(), uncaptioned=())
    write_tar(tmp_path / "test.tar", 15, cut=(), uncaptioned=())
    changes = {"data__source": "auto", "data__path": str(tmp_path / "a.tar"), "data__num_validation": 6}
    sections = miniature(**changes, train__total_steps=1, optimizer__warmup_steps=0, evaluation__zero_shot=())
    assert loop.train(sections, tmp_path / "run") == 0
    assert f"data.source='webdataset', guessed from the files at {tmp_path}/a.tar" in capsys.readouterr().out
    assert load_config(tmp_path / "run").data.source == "webdataset"
    (tmp_path / "moved").mkdir()
    (tmp_path / "a.tar").rename(tmp_path / "moved" / "a.tar")
    moved = evaluate(tmp_path / "run", tmp_path / "out", str(tmp_path / "moved" / "a.tar"))
    assert moved["retrieval"]["images"] == 6
    other = evaluate(tmp_path / "run", tmp_path / "out", str(tmp_path / "test.tar"))
    assert other["retrieval"]["images"] == 15  # more than evaluation.num_examples
    assert "test.tar (webdataset) is not the run's data: all 15 records are measured" in capsys.readouterr().out
    sources = open_run_sources(tmp_path / "run", 32, str(tmp_path / "test.tar"))  # of a suite
    assert (len(sources.validation), sources.is_own) == (15, False)
    with pytest.raises(ValueError, match="no data at"):
        sources.open_train()  # it has moved, too


def test_splits_are_not_trained_on_as_one_heap(tmp_path):
    for name in ("train", "val"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(8):
            (tmp_path / "photos" / name / f"{i}.png").write_bytes(picture(i))
            (tmp_path / "photos" / name / f"{i}.txt").write_text("a red circle")
    changes = {"data__source": "auto", "data__num_validation": 0, "data__validation_path": f"{tmp_path}/photos/val"}
    with pytest.raises(ValueError, match=f"^data.path={tmp_path}/photos holds train and val, and the run would train"):
        loop.train(miniature(**changes, data__path=f"{tmp_path}/photos"), tmp_path / "run")
    parts = [{"name": n, "kind": "folder", "path": f"{tmp_path}/photos{p}"} for n, p in (("a", "/val"), ("b", ""))]
    mixed = miniature(data__source="mixture", data__mixture=parts, data__num_validation=4)
    with pytest.raises(ValueError, match=rf"^data.mixture\[1\].path={tmp_path}/photos holds train and val"):
        loop.train(mixed, tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()
    (tmp_path / "photos" / "more").mkdir()
    (tmp_path / "photos" / "more" / "0.png").write_bytes(picture(0))
    assert only_splits(tmp_path / "photos", "folder") == []  # so they are folders of the user's own order
    assert only_splits(tmp_path, "webdataset") == []
    for name in ("train.csv", "Test.parquet"):
        (tmp_path / name).touch()
    assert only_splits(tmp_path, "table") == ["Test.parquet", "train.csv"]


def test_a_batch_larger_than_the_data_is_refused(tmp_path):
    message = "train.global_batch_size=8 is larger than the 7 records to train on, so that a "
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        loop.train(miniature(data__num_examples=7), tmp_path)
    assert not (tmp_path / "config.json").exists()


def test_the_same_command_after_the_end_changes_nothing(finished, no_pictures, capsys):
    before, results = read_metrics(finished), (finished / "evaluation.json").read_bytes()
    assert loop.train(miniature(), finished) == 0
    assert read_metrics(finished) == before
    assert (finished / "evaluation.json").read_bytes() == results
    out = printed(capsys)
    assert "samples seen 560 loss, mean" in out
    assert "records that could not be used 0 met, 0 left out beforehand" in out


@pytest.mark.parametrize(
    "stops",
    [
        ((signal.SIGKILL, 10), (signal.SIGTERM, 30)),
        pytest.param(((signal.SIGKILL, 10), (signal.SIGTERM, 30), (signal.SIGINT, 50)), marks=pytest.mark.nightly),
    ],
)
def test_a_run_killed_and_stopped_ends_as_an_undisturbed_one(stops, processes, finished, tmp_path, no_pictures):
    sections, workdir = miniature(data__num_workers=1), tmp_path / "disturbed"
    for number, after_step in stops:
        run = Run(processes, sections, workdir, delay_s=0.1)
        run.wait_for_step(after_step)
        time.sleep(random.uniform(0, 0.5))
        # Ctrl-C and a scheduler's stop reach the whole group; SIGKILL finds one process alone.
        os.killpg(run.process.pid, number) if number != signal.SIGKILL else run.process.kill()
        code, out, err = run.end()
        assert "Traceback" not in err
        if number == signal.SIGKILL:
            assert code == -signal.SIGKILL
        else:
            assert code == 128 + number, err
            saved = saved_steps(workdir)[-1]
            assert f"stopped by {number.name}, saved at step {saved}: the same command resumes there\n" in out
            assert [row["step"] for row in read_metrics(workdir) if "loss" in row] == list(range(1, saved + 1))
    assert loop.train(sections, workdir) == 0
    assert_same_end(workdir, finished)


@pytest.mark.nightly
def test_an_interrupted_evaluation_is_repeated_when_the_run_resumes(finished, tmp_path, no_pictures, monkeypatch):
    def stop(*args):
        raise RuntimeError("the power failed")

    sections = miniature()  # a checkpoint and an evaluation are due together at step 20
    with monkeypatch.context() as patch:
        patch.setattr(in_training.Evaluator, "__call__", stop)
        with pytest.raises(RuntimeError, match="the power failed"):
            loop.train(sections, tmp_path)
    assert [row["step"] for row in read_metrics(tmp_path)] == list(range(1, 21))
    assert loop.train(sections, tmp_path) == 0
    assert_same_end(tmp_path, finished)


@pytest.mark.parametrize(
    "end", ["signal", "second signal", "error", pytest.param("nothing", marks=pytest.mark.nightly)]
)
def test_a_run_without_data_saves_the_steps_it_took(end, finished, tmp_path, no_pictures, monkeypatch, capsys):
    sections = miniature(train__hang_timeout_s=2 if end == "nothing" else 1800)
    read, count, release = loop._next_batch, itertools.count(1), threading.Event()

    def stall(run):
        if next(count) <= 13:
            return read(run)
        if end == "error":
            raise ValueError("the shard is gone")
        for _ in range({"signal": 1, "second signal": 2, "nothing": 0}[end]):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
        release.wait(60)
        raise ValueError("nobody waits for this any more")

    watch = loop.hang_watch

    @contextmanager
    def watch_after_compilation(timeout_s, on_hang):
        with ExitStack() as stack:
            reports: list = []

            def report_progress(where):
                if where == "step 13":
                    reports.append(stack.enter_context(watch(timeout_s, on_hang)))
                for report in reports:
                    report(where)

            yield report_progress

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_next_batch", stall)
        patch.setattr(loop, "hang_watch", watch_after_compilation)
        start = time.monotonic()
        if end == "error":
            with pytest.raises(ValueError, match="the shard is gone"):
                loop.train(sections, tmp_path)
        elif end == "nothing":
            with pytest.raises(
                ValueError, match=r"^no progress for 2 s since step 13 .*: no batch came, so a data worker"
            ):
                loop.train(sections, tmp_path)
        elif end == "second signal":
            with pytest.raises(KeyboardInterrupt):
                loop.train(sections, tmp_path)
        else:
            assert loop.train(sections, tmp_path) == 128 + signal.SIGINT
            assert f"stopped by SIGINT, saved at step {saved_steps(tmp_path)[-1]}: " in capsys.readouterr().out
        assert time.monotonic() - start < 40
    release.set()
    # A signal may be seen after a step for which there was a batch, or while waiting for the next batch.
    assert saved_steps(tmp_path)[-1] in {"signal": (11, 12, 13), "second signal": (10,)}.get(end, (13,))
    if end in ("signal", "nothing"):
        assert loop.train(miniature(), tmp_path) == 0
        assert_same_end(finished, tmp_path)


def test_a_signal_ends_an_evaluation_after_its_batch(finished, tmp_path, no_pictures, monkeypatch, capsys):
    encode, count = in_training.Evaluator.__call__, itertools.count(1)

    def interrupt(self, *args):
        if next(count) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return encode(self, *args)

    monkeypatch.setattr(in_training.Evaluator, "__call__", interrupt)
    assert loop.train(miniature(train__checkpoint_every=50), tmp_path) == 128 + signal.SIGTERM
    assert "stopped by SIGTERM, saved at step 20: the same command resumes there\n" in capsys.readouterr().out
    assert [row["step"] for row in read_metrics(tmp_path)] == list(range(1, 21))
    assert loop.train(miniature(), tmp_path) == 0
    assert_same_end(tmp_path, finished)


def test_a_step_that_never_ends_is_not_waited_for_after_a_signal(monkeypatch):
    class EndedError(Exception):
        pass

    def end_all(message):
        raise EndedError(message)

    monkeypatch.setattr(stopping.processes, "end_all", end_all)
    monkeypatch.setattr(stopping, "STEP_S", 0.3)
    stuck = stopping.Stopping()
    stuck.received.append(signal.SIGTERM)
    with pytest.raises(
        EndedError, match=r"^SIGTERM: nothing has moved for 0 s; the same command resumes at the newest"
    ):
        stuck.watch_first()
    slow = stopping.Stopping()
    slow.received.append(signal.SIGTERM)
    slow._reports, slow._longest = 2, 60.0  # a step may take three times as long
    threading.Timer(0.8, slow.seen.set).start()
    slow.watch_first()


def test_a_second_process_is_refused_and_nothing_of_the_lock_is_left(finished, tmp_path, no_pictures):
    message = f"^process 1 on .* is training into {tmp_path}: wait for it, or use another --workdir$"
    with lock_folder(tmp_path, doing="training into", fix="use another --workdir", beats=True):
        record = json.loads((tmp_path / LOCK).read_text())
        (tmp_path / LOCK).write_text(json.dumps({**record, "pid": 1}))
        with pytest.raises(ValueError, match=message):
            loop.train(miniature(), tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert not (finished / LOCK).exists()


def test_a_bucket_is_no_workdir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ValueError, match=r"^--workdir=gs:/bucket/run: a run cannot write to gs://\.\.\.; give a folder"
    ):
        loop.train(miniature(), Path("gs://bucket/run"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.nightly
@pytest.mark.parametrize("stuck", [False, True])
@pytest.mark.parametrize("signals", [[signal.SIGTERM], [signal.SIGINT], [signal.SIGINT] * 2, []])
def test_a_run_with_stuck_workers_ends_within_seconds_and_frees_its_memory(signals, stuck, processes, tmp_path):
    if not signals and not stuck:
        return
    hang_timeout_s = 1800 if signals else 15  # compiling is no hang, and takes up to ten seconds here
    sections = miniature(
        data__num_workers=2, train__total_steps=10**5, train__evaluate_every=0, train__hang_timeout_s=hang_timeout_s
    )
    run = Run(processes, sections, tmp_path, delay_s=0.01)
    run.wait_for_step(12)
    workers = processes.living("spawn_main")
    assert len(workers) == 2
    for pid in workers if stuck else []:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(1)
    start = time.monotonic()
    number = signals[0] if signals else None
    for each in signals:
        os.killpg(run.process.pid, each)
        time.sleep(0.2)
    code, _, err = run.end()
    assert time.monotonic() - start < (10 if signals else hang_timeout_s + 10)
    assert code == (1 if number is None else 128 + number)
    assert "leaked" not in err
    if number is None:
        assert "clip-jax: error: no progress for 15 s since step" in err
    elif len(signals) == 2:
        assert "interrupted" in err
    else:
        assert "Traceback" not in err


def test_a_loss_that_is_not_finite_names_the_step_the_records_and_the_checkpoint(tmp_path, no_pictures, monkeypatch):
    def make_failing_step(*args, **keywords):
        step = make_train_step(*args, **keywords)

        def failing_step(state, batch):
            number = int(state.step) + 1
            state, metrics = step(state, batch)
            return state, metrics | ({"loss": np.float32("nan")} if number >= 13 else {})

        return failing_step

    make_train_step = training.make_train_step
    monkeypatch.setattr(training, "make_train_step", make_failing_step)
    sections = miniature()
    with pytest.raises(ValueError, match=r"^the loss is nan at step 13, in the batch of ") as error:
        loop.train(sections, tmp_path)
    record = json.loads((tmp_path / "non_finite_batch.json").read_text())
    assert [row["step"] for row in rows(tmp_path)] == list(range(1, 13))
    examples, source = make_examples(tmp_path)
    assert record == {"step": 13, "ids": [source[examples[12 * 8 + i]["index"]]["id"] for i in range(8)]}
    assert saved_steps(tmp_path) == [10]
    assert str(error.value) == (
        f"the loss is nan at step 13, in the batch of {', '.join(record['ids'][:3])}, ... "
        f"(all ids in {tmp_path / 'non_finite_batch.json'}). The newest checkpoint is step 10. Try a lower "
        "optimizer.learning_rate, a longer optimizer.warmup_steps or model.compute_dtype=float32 in another "
        "--workdir, and look at those records"
    )


def write_tar(path: Path, count: int, cut: tuple[int, ...], uncaptioned: tuple[int, ...]) -> None:
    with tarfile.open(path, "w") as tar:
        for i in range(count):
            members = {f"{i}.jpg": picture(i)[: 300 if i in cut else None]}
            if i not in uncaptioned:
                members[f"{i}.txt"] = f"picture number {i} of a long row of pictures".encode()
            for name, data in members.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def test_broken_records_are_skipped_counted_and_reported(tmp_path, no_pictures, capsys):
    write_tar(tmp_path / "a.tar", 31, cut=(3, 17, 29), uncaptioned=(8,))
    sections = miniature(
        data__source="webdataset",
        data__path=str(tmp_path / "a.tar"),
        data__num_validation=7,
        data__max_broken_share=0.2,
        data__num_workers=1,
        train__evaluate_every=0,
        evaluation__zero_shot=(),
    )
    assert loop.train(sections, tmp_path / "run") == 0
    out = printed(capsys)
    assert "23 pairs to train on, 7 to validate" in out
    assert "left out: a/8: image without caption: no .txt and no .json" in out
    met = re.search(r"records that could not be used (\d+) met, 1 left out beforehand", out)
    assert met is not None
    assert 48 <= int(met[1]) <= 50  # two in each of 24.3 epochs
    assert read_metrics(tmp_path / "run")[-2]["data_broken"] == int(met[1])
    assert "broken: a/17: truncated or broken image" in out
    assert "broken: a/3: truncated or broken image" in out
    assert "captions truncated 560 " in out
    results = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert results["retrieval"]["images"] == 6
    assert [record_id for record_id, _ in results["retrieval"]["skipped"]] == ["a/29"]

    sections["data"]["max_broken_share"] = 0.05
    with pytest.raises(ValueError, match=r"2 of 23 records cannot be used, more than data.max_broken_share=0.05 \(a/"):
        loop.train(sections, tmp_path / "strict")


def test_the_summary_says_what_was_seen_of_each_source():
    few = FilteredSource(SceneSource(0, 40, 16), [Filters(max_caption_length=1000, min_side=8)])
    few.filtered["a side below 8 pixels"] = 1234
    source = Mixture({"few": few, "many": SceneSource(1, 3000, 16)}, [3.0, 1.0])
    examples = Examples(source=source, tokenizer=None, image_size=16, min_scale=1.0, seed=0)  # type: ignore[arg-type]
    assert source_cells(source, examples.samples_seen(10_000)) == [
        ["epochs of few", "187.50 (7,500 samples)"],
        ["epochs of many", "0.83 (2,500 samples)"],
        ["filtered: few: a side below 8 pixels", "1,234"],
    ]
    one = Examples(source=few, tokenizer=None, image_size=16, min_scale=1.0, seed=0)  # type: ignore[arg-type]
    assert source_cells(SceneSource(0, 40, 16), one.samples_seen(50)) == [["epochs", "1.25"]]


def test_the_summary_counts_what_was_not_read():
    source = SceneSource(0, 40, 16)
    source.unread = Counter({".pdf": 2, ".xmp": 1})  # type: ignore[attr-defined]
    row = {"loss": 1.0, "chance_loss": 2.0, "samples_seen": 8, "images_per_s": 1.0, "data_wait_share": 0.0}
    state = {"broken": 0, "first_broken": [], "retries": 0, "truncated": 0}
    printed = summary_table([row], source, state, {}, 1.0, packed=False)
    assert printed.splitlines()[-1] == "  not read: 2 .pdf, 1 .xmp"


def test_a_broken_record_does_not_stop_the_training_of_the_tokenizer(tmp_path):
    good = {"image": picture(0), "captions": ("one red square", "a square")}
    records = [{"id": f"r{i}", **good} for i in range(5)] + [{"id": "bare", "image": picture(0), "captions": ()}]
    write_array_record(str(tmp_path / "a.array_record"), records)
    data = miniature(data__source="array_record", data__path=str(tmp_path / "a.array_record"), data__num_validation=1)
    made = make_config(data)
    source = make_sources(made.data, 16)[0]._source  # type: ignore[attr-defined]  # the whole
    store_vocabulary(made.data, made.model.text.vocab_size, 8, source, tmp_path / "tokenizer.model")
    assert make_tokenizer("sentencepiece", tmp_path / "tokenizer.model", 8).vocab_size > 10


def test_the_vocabulary_of_a_refused_config_is_not_used(finished, tmp_path):
    with pytest.raises(ValueError, match="labelled set 'cats'"):
        setup.prepare_run(miniature(text__vocab_size=120, evaluation__zero_shot=("scenes/cats",)), tmp_path)
    prepared = setup.prepare_run(miniature(), tmp_path)
    prepared.batches.close()
    prepared.checkpointer.close()
    assert (tmp_path / TOKENIZER_FILE).read_bytes() == (finished / TOKENIZER_FILE).read_bytes()


def test_a_refused_config_leaves_the_workdir_free(finished, tmp_path):
    vocabulary = str(finished / TOKENIZER_FILE)
    with pytest.raises(ValueError, match=r"^text.vocab_size=50 is smaller than the tokenizer's vocabulary, \d+: set"):
        loop.train(miniature(text__vocab_size=50, data__tokenizer_file=vocabulary), tmp_path)
    record.check_workdir(miniature(), tmp_path)
    assert list(tmp_path.iterdir()) == []


FULL_DISK = """
import resource
from clip_jax.training.checkpoint import Checkpointer
save = Checkpointer.save
def save_on_a_full_disk(self, step, *args):
    if step == 20:
        self.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    save(self, step, *args)
Checkpointer.save = save_on_a_full_disk
"""


def test_a_full_disk_ends_in_one_message_and_the_run_resumes_when_there_is_room(
    processes, finished, tmp_path, no_pictures
):
    code, _, err = Run(processes, miniature(), tmp_path, more=FULL_DISK).end()
    assert code == 1
    assert "orbax/checkpoint/_src" not in err  # its own tracebacks
    message = err[err.index("clip-jax: error: ") :]
    assert message.startswith(f"clip-jax: error: could not save a checkpoint to {tmp_path}/checkpoints: ")
    assert "File too large" in message
    assert "The newest complete checkpoint is step 10; free space or repair the folder, then run the same" in message
    assert saved_steps(tmp_path) == [10]
    assert loop.train(miniature(), tmp_path) == 0
    assert_same_end(tmp_path, finished)
