"""Runs as processes of their own: their messages when they fail, signals, and one that is real."""

import json
import os
import signal
import threading
import time

import pytest

from clip_jax.ablations import jobs
from clip_jax.ablations.jobs import StoppedError, run_all, unique
from clip_jax.ablations.spec import load_ablation
from clip_jax.ablations.sweep import conclude, prepare

pytestmark = pytest.mark.usefixtures("adopt")

COMMAND = """
import os, runpy, signal, sys, time
from pathlib import Path
config, folder = (word.partition("=")[2] for word in sys.argv[2:4])
arm = runpy.run_path(config)["SECTIONS"]["loss"]["kind"]
seed = runpy.run_path(config)["SECTIONS"]["data"]["seed"]
"""
DONE = 'Path(folder, "evaluation.json").write_text("{}")'


@pytest.fixture
def runs(tmp_path):
    return prepare(load_ablation("loss", "mini"), 2, tmp_path)


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Puts a package in the place of clip_jax, run as `python -m`."""

    def put(code):
        (tmp_path / "pretended").mkdir(exist_ok=True)
        (tmp_path / "pretended" / "__main__.py").write_text(COMMAND + code)

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setattr(jobs, "PROGRAM", "pretended")
    return put


def test_the_last_message_of_a_failed_run_is_kept_and_the_others_finish(runs, command):
    command(
        f"""
if (arm, seed) == ("contrastive", 0):
    print("clip-jax: error: data is gone\\n(--traceback shows where this came from)", file=sys.stderr); sys.exit(1)
if (arm, seed) == ("sigmoid", 0):
    raise RuntimeError("out of everything")
if seed == 1 and arm == "contrastive":
    os.kill(os.getpid(), signal.SIGKILL)
{DONE}
"""
    )
    said = []
    run_all(runs, said.append)
    reasons = ["data is gone", "RuntimeError: out of everything", "killed by SIGKILL, as for its memory", None]
    assert [run.failure for run in runs] == reasons
    assert [run.done for run in runs] == [False, False, False, True]
    assert sum("FAILED" in line for line in said) == 3
    assert runs[3].minutes > 0
    command(DONE)
    run_all(runs, said.append)
    assert [(run.failure, run.done) for run in runs] == [(None, True)] * 4


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_the_run_once_and_ends_the_sweep(number, runs, command, tmp_path):
    command(
        f"""
received = []
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, _: received.append(number))
Path({str(tmp_path)!r}, "ready").touch()
while not received:
    time.sleep(0.01)
time.sleep(0.1)
Path(folder, "received").write_text(str(received))
Path(folder, "session").write_text(str(os.getsid(0)))
sys.exit(128 + received[0])
"""
    )

    def interrupt():
        while not (tmp_path / "ready").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=interrupt).start()
    before = signal.getsignal(number)
    with pytest.raises(StoppedError, match=f"stopped by {number.name}: the same command resumes there") as stopped:
        run_all(runs, lambda _: None)
    assert stopped.value.code == 128 + number
    assert (runs[0].folder / "received").read_text() == str([number.value])
    assert int((runs[0].folder / "session").read_text()) != os.getsid(
        0
    )  # a terminal's Ctrl-C reaches it from here only
    assert runs[0].failure is None  # it goes on the next time
    assert not runs[1].folder.exists()
    assert signal.getsignal(number) == before


@pytest.mark.nightly
def test_a_real_run_and_suite(tmp_path, monkeypatch):
    """Two steps on few scenes, through the commands themselves."""
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    changes = {"train.total_steps": 2, "optimizer.warmup_steps": 1, "train.global_batch_size": 16}
    changes |= {"data.num_validation": 11, "data.num_workers": 0, "evaluation.num_examples": 13}
    changes |= {
        "evaluation.zero_shot": ("scenes/size",),
        "vision.depth": 1,
        "vision.width": 16,
        "text.width": 16,
        "text.vocab_size": 300,
    }
    ablation = load_ablation("few_shot", "mini", changes)
    suite = {**ablation.suite["suite"], "datasets": ("scenes/size",), "num_examples": 24}
    ablation.suite.update(suite=suite, few_shot={"shots": (1, 2), "num_seeds": 2})
    ablation.suite["suite"]["measures"] = ("zero_shot", "few_shot")
    runs = prepare(ablation, 1, tmp_path)
    said = []
    run_all(unique(runs), said.append)
    assert [run.failure for run in runs] == [None], (runs[0].folder / "log.txt").read_text()[-2000:]
    results = conclude(ablation, runs, tmp_path, "command", said.append)
    report = json.loads((runs[0].suite_folder / "report.json").read_text())
    zero_shot = {row["name"]: row["zero_shot"]["value"] for row in report["sets"]}
    one = {row["name"]: row["few_shot"]["shots"][0]["score"] for row in report["sets"]}
    difference = zero_shot["scenes/size"] - one["scenes/size"]
    assert results.findings[0].values[0] == pytest.approx(difference)
    environment = json.loads((runs[0].folder / "environment.json").read_text())
    assert environment["command"][1:] == [
        "train",
        f"--config={runs[0].folder / 'config.py'}",
        f"--workdir={runs[0].folder}",
    ]
    assert results.versions == environment["versions"]
