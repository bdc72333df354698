"""A run that is killed a hundred times, at its start, in its steps and in its saves, is one that nobody disturbed."""

import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from miniature import miniature
from test_train import Run, assert_same_end, rows

from clip_jax.runs import loop
from clip_jax.runs.logging import ProgressLog, read_metrics

pytestmark = [pytest.mark.usefixtures("compile_once"), pytest.mark.nightly]

SECTIONS = miniature(
    data__num_workers=1, train__total_steps=100_000, train__checkpoint_every=2, train__evaluate_every=0
)
LONGEST_S = 7.0  # of a life; about half of it is the start


def last_step(workdir: Path) -> int:
    return max((row["step"] for row in read_metrics(workdir)), default=0)


def killed_in(workdir: Path, before: int) -> str:
    if list(workdir.glob("checkpoints/*.orbax-checkpoint-tmp*")):
        return "save"
    return "step" if last_step(workdir) > before else "start"


def test_a_hundred_kills_change_nothing(processes, tmp_path, monkeypatch):
    number = int(os.environ.get("CLIP_JAX_KILLS", "100"))
    rng, workdir, kinds = random.Random(7), tmp_path / "killed", Counter()
    for _ in range(number):
        before = last_step(workdir)
        run = Run(processes, SECTIONS, workdir, delay_s=0.01)
        time.sleep(rng.uniform(0, LONGEST_S))
        assert run.process.poll() is None, run.process.communicate()
        run.process.kill()
        code, _, err = run.end()
        assert code == -signal.SIGKILL
        assert "damaged" not in err
        assert "cannot be read" not in err
        kinds[killed_in(workdir, before)] += 1
    print(f"killed {number} times, at step {last_step(workdir)}:", dict(kinds))
    assert min(kinds[kind] for kind in ("start", "step", "save")) > number // 20

    goal, add = last_step(workdir) + 5, ProgressLog.add
    for folder in (workdir, tmp_path / "undisturbed"):

        def add_and_stop(self, step, *args):
            add(self, step, *args)
            if step == goal:
                os.kill(os.getpid(), signal.SIGTERM)

        monkeypatch.setattr(ProgressLog, "add", add_and_stop)
        assert loop.train(SECTIONS, folder) == 128 + signal.SIGTERM
    assert last_step(workdir) in (goal, goal + 1)
    assert rows(workdir)[:goal] == rows(tmp_path / "undisturbed")[:goal]
    assert [row["step"] for row in rows(workdir)[:goal]] == list(range(1, goal + 1))
    assert_same_end(workdir, tmp_path / "undisturbed")
