"""A run that is killed a hundred times, at its start, in its steps and in its saves, is one that nobody disturbed.

All are forked from one process that has imported everything, because importing takes longer than these runs.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
from miniature import miniature
from test_train import assert_same_end, rows

from clip_jax.runs import loop
from clip_jax.runs.logging import ProgressLog, read_metrics

pytestmark = [pytest.mark.usefixtures("compile_once"), pytest.mark.nightly]

SECTIONS = miniature(train__total_steps=100_000, train__checkpoint_every=2, train__evaluate_every=0)
NURSERY = """
import json, os, sys, time
from pathlib import Path
from clip_jax.cli.common_flags import run_command
from clip_jax.evaluation import in_training
from clip_jax.runs import loop

place_batch = loop.place_batch
loop.place_batch = lambda *args: time.sleep(0.01) or place_batch(*args)
for line in sys.stdin:
    request = json.loads(line)
    if "kill" in request:
        os.kill(request["kill"], 9)
        _, status = os.waitpid(request["kill"], 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
        continue
    pid = os.fork()
    if not pid:
        os.setsid()
        for number in (1, 2):
            os.dup2(os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        run_command(lambda: loop.train(request["sections"], Path(request["workdir"])), ["kills"])
        os._exit(0)
    print(pid, flush=True)
"""


def last_step(workdir: Path) -> int:
    return max((row["step"] for row in read_metrics(workdir)), default=0)


def unfinished(workdir: Path) -> set[tuple[str, int]]:
    found = set()
    for path in workdir.glob("checkpoints/*.orbax-checkpoint-tmp"):
        with suppress(FileNotFoundError):  # it was renamed, complete, in the meantime
            found.add((path.name, path.stat().st_ctime_ns))
    return found


def test_a_hundred_kills_change_nothing(processes, tmp_path, monkeypatch):
    number = int(os.environ.get("CLIP_JAX_KILLS", "100"))
    nursery = processes.start([sys.executable, "-W", "ignore", "-c", NURSERY], stdin=subprocess.PIPE, stderr=None)

    def ask(**request):
        nursery.stdin.write(json.dumps(request) + "\n")
        nursery.stdin.flush()
        return int(nursery.stdout.readline())

    rng, workdir, log, kinds = random.Random(7), tmp_path / "killed", tmp_path / "log", Counter()
    for life in range(number):
        before, left = last_step(workdir), unfinished(workdir)
        pid = ask(sections=SECTIONS, workdir=str(workdir), log=str(log))
        if life % 3:  # in its steps or a save, else perhaps at its start
            deadline = time.monotonic() + 60
            while last_step(workdir) <= before:
                assert time.monotonic() < deadline, log.read_text()[-2000:]
                time.sleep(0.002)
            time.sleep(rng.uniform(0, 0.3))
            while life % 3 == 1 and unfinished(workdir) - left:  # else nearly all would fall into a save
                time.sleep(0.001)
        else:
            time.sleep(rng.uniform(0, 2))
        assert ask(kill=pid) == -signal.SIGKILL, log.read_text()[-2000:]
        in_save = unfinished(workdir) - left
        kinds["save" if in_save else "step" if last_step(workdir) > before else "start"] += 1
    print(f"killed {number} times, at step {last_step(workdir)}:", dict(kinds))
    assert min(kinds[kind] for kind in ("start", "step", "save")) >= number // 20
    assert "damaged" not in log.read_text()
    assert "cannot be read" not in log.read_text()

    goal, add = last_step(workdir) + 5, ProgressLog.add

    def add_and_stop(self, step, *args):
        add(self, step, *args)
        if step == goal:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(ProgressLog, "add", add_and_stop)
    for folder in (workdir, tmp_path / "undisturbed"):
        assert loop.train(SECTIONS, folder) == 128 + signal.SIGTERM
        assert last_step(folder) == goal
    assert [row["step"] for row in rows(workdir)] == list(range(1, goal + 1))
    assert_same_end(workdir, tmp_path / "undisturbed")
