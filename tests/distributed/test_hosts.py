"""Training by several processes on this machine: the same numbers as one process, one checkpoint, one end.

All are forked from one process that has imported everything, because importing takes longer than these runs.
"""

import functools
import hashlib
import io
import json
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from miniature import miniature, picture
from PIL import Image
from processes import QUICK, SLURM_PORTS, Processes, free_port

import clip_jax
from clip_jax.distributed import lifeline
from clip_jax.distributed.processes import (
    OPEN_MPI,
    check_equal,
    describe_differences,
    from_first,
    gather,
    joined,
    process_count,
)
from clip_jax.distributed.rendezvous import HostsError, wait_for_processes
from clip_jax.distributed.sharding import ShardingConfig, local_rows, make_mesh
from clip_jax.evaluation import in_training
from clip_jax.losses import normalize
from clip_jax.runs import loop, setup
from clip_jax.runs.logging import ProgressLog, read_metrics

pytestmark = pytest.mark.usefixtures("compile_once")

NURSERY = """
import contextlib, hashlib, json, os, sys, time
from pathlib import Path

import jax
import numpy as np
from jax._src import xla_bridge
from clip_jax.runs import setup
from clip_jax.evaluation import in_training
from clip_jax.cli.common_flags import run_command
from clip_jax.cli import evaluate
from clip_jax.runs import loop
from clip_jax.training import checkpoint
from clip_jax.distributed import processes

assert not xla_bridge.backends_are_initialized(), "an import has started JAX"
loop.plot_curves = lambda *args: None
in_training.plot_confusion = lambda *args: None
for name in ("plot_similarity", "plot_retrieval"):
    setattr(in_training.retrieval, name, lambda *args: None)

def work(process, sections, workdir, notes, options, patch):
    notes = Path(notes)

    def note(kind, **values):
        with open(notes / f"{kind}_{process}.jsonl", "a") as file:
            file.write(json.dumps(values) + "\\n")

    def digest(state):
        everywhere = jax.sharding.NamedSharding(state.step.sharding.mesh, jax.sharding.PartitionSpec())
        leaves = jax.tree.leaves(jax.jit(lambda s: s, out_shardings=everywhere)(state))
        return hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in leaves)).hexdigest()

    add, save, prepare_run, recall_at_k = (
        loop.ProgressLog.add, checkpoint.Checkpointer.save, loop.prepare_run, in_training.retrieval.recall_at_k
    )
    def add_and_note(self, step, metrics, index):
        note("index", step=step, index=index.tolist())
        add(self, step, metrics, index)
    def save_and_note(self, step, state, data_state):
        note("saved", step=step, digest=digest(state), data_state=data_state)
        save(self, step, state, data_state)
    def prepare_and_note(*args):
        prepared = prepare_run(*args)
        note("restored", step=prepared.first_step, digest=digest(prepared.state))
        return prepared
    def recall_and_note(images, texts, image_of_text):
        np.savez(notes / f"features_{process}.npz", images=images, texts=texts)
        return recall_at_k(images, texts, image_of_text)
    loop.ProgressLog.add, checkpoint.Checkpointer.save = add_and_note, save_and_note
    loop.prepare_run, in_training.retrieval.recall_at_k = prepare_and_note, recall_and_note
    exec(patch, globals() | {"process": process})
    def main():
        with processes.joined(**options):
            return loop.train(sections, Path(workdir))
    run_command(main, ["hosts"])

for line in sys.stdin:
    request = json.loads(line)
    if "start" in request:
        answer = os.fork()
        if not answer:
            os.environ |= request["env"]
            os.chdir(request["folder"])
            for number, name in ((1, "out"), (2, "err")):
                os.dup2(os.open(request[name], os.O_WRONLY | os.O_CREAT), number)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            work(**request["start"])
            raise AssertionError("cli.run returned")
    else:
        ended, status = os.waitpid(request["wait"], os.WNOHANG)
        answer = os.waitstatus_to_exitcode(status) if ended else None
    print(json.dumps(answer), flush=True)
"""


class Host:
    """One process."""

    def __init__(self, ask: Callable[[dict], Any], request: dict):
        self._ask = ask
        self._request = request
        self._code: int | None = None
        self.pid = ask(request)

    def code(self, timeout_s: float = 240) -> int:
        deadline = time.monotonic() + timeout_s
        while self._code is None:
            self._code = self._ask({"wait": self.pid})
            assert time.monotonic() < deadline, self.err()
            time.sleep(0.02)
        return self._code

    def out(self) -> str:
        return Path(self._request["out"]).read_text()

    def err(self) -> str:
        return Path(self._request["err"]).read_text()


@pytest.fixture(scope="module")
def ask(compile_once):
    with Processes() as processes:
        nursery = processes.start([sys.executable, "-W", "ignore", "-c", NURSERY], stdin=subprocess.PIPE, stderr=None)

        def ask(request: dict) -> Any:
            assert nursery.stdin is not None
            assert nursery.stdout is not None
            nursery.stdin.write(json.dumps(request) + "\n")
            nursery.stdin.flush()
            return json.loads(nursery.stdout.readline())

        yield ask


@pytest.fixture(scope="module")
def start(ask, tmp_path_factory):
    """Starts processes."""

    def start(count: int, devices: int, sections: dict | list[dict], workdir: Path, patch: str = "", folders=None):
        notes = tmp_path_factory.mktemp("notes")
        port = free_port()
        flags = f"--xla_force_host_platform_device_count={devices} {QUICK}"
        started = []
        for process in range(count):
            options = {"num_processes": count, "process_id": process, "coordinator": f"localhost:{port}"}
            work = {
                "process": process,
                "sections": sections[process] if isinstance(sections, list) else sections,
                "workdir": str(folders[process] / workdir if folders else workdir),
                "notes": str(notes),
                "options": {**options, "timeout_s": 240},
                "patch": patch,
            }
            streams = {name: str(notes / f"{name}_{process}") for name in ("out", "err")}
            folder = str(folders[process] if folders else notes)
            started.append(Host(ask, {"start": work, **streams, "folder": folder, "env": {"XLA_FLAGS": flags}}))
        return SimpleNamespace(hosts=started, notes=notes, workdir=workdir)

    return start


def notes(job, kind: str, process: int = 0) -> list[dict]:
    return [json.loads(line) for line in (job.notes / f"{kind}_{process}.jsonl").read_text().splitlines()]


def assert_same_training(workdir: Path, other: Path, steps: int) -> None:
    """Sums over devices differ in their order only: 5e-7 in the loss, 7e-7 of the gradient's norm."""
    left, right = ([row for row in read_metrics(w) if "loss" in row][:steps] for w in (workdir, other))
    assert [row["step"] for row in left] == [row["step"] for row in right] == list(range(1, steps + 1))
    for name, rtol, atol in (("loss", 0, 1e-6), ("grad_norm", 3e-6, 0)):
        np.testing.assert_allclose([row[name] for row in left], [row[name] for row in right], rtol=rtol, atol=atol)


STEPS = 40
SLOWLY = """
place_batch = loop.place_batch
loop.place_batch = lambda *args: time.sleep(0.1) or place_batch(*args)
"""
# Rows of one process that do not lie side by side, as on a TPU slice.
INTERLEAVED = """
make_mesh = setup.make_mesh
def make_interleaved_mesh(*args):
    mesh = make_mesh(*args)
    devices = np.array(jax.devices()).reshape(2, -1).T.reshape(mesh.devices.shape)
    return jax.sharding.Mesh(devices, mesh.axis_names, axis_types=mesh.axis_types)
setup.make_mesh = make_interleaved_mesh
"""


def sections(**changes) -> dict:
    base = {
        "train__total_steps": STEPS,
        "train__checkpoint_every": 0,
        "train__evaluate_every": 0,
        "sharding__fsdp": 2,
        "evaluation__zero_shot": (),
    }
    return miniature(**base | changes)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The workdir of a run by this process alone with its eight devices, and the records of each batch."""
    index = {}
    workdir = tmp_path_factory.mktemp("one")
    add = ProgressLog.add
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "plot_curves", lambda *args: None)
        for name in ("plot_similarity", "plot_retrieval"):
            patch.setattr(in_training.retrieval, name, lambda *args: None)
        patch.setattr(ProgressLog, "add", lambda self, *args: index.update({args[0]: args[2]}) or add(self, *args))
        assert loop.train(sections(), workdir) == 0
    return SimpleNamespace(workdir=workdir, index=index)


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.nightly)])
def several(start, request, tmp_path_factory):
    """A run of as many processes, with eight devices in all, of which the last gets a SIGTERM."""
    job = start(request.param, 8 // request.param, sections(), tmp_path_factory.mktemp("several"), SLOWLY)
    while not any("loss" in row for row in read_metrics(job.workdir)):
        assert job.hosts[0]._ask({"wait": job.hosts[0].pid}) is None, job.hosts[0].err()
        time.sleep(0.02)
    os.kill(job.hosts[-1].pid, signal.SIGTERM)
    job.codes = [host.code() for host in job.hosts]
    job.stopped_at = notes(job, "saved")[-1]["step"]
    return job


@pytest.fixture(scope="module")
def two(start, several, tmp_path_factory):
    """The same run, resumed by two processes with four devices each, in another order."""
    workdir = tmp_path_factory.mktemp("two") / "copy"
    shutil.copytree(several.workdir, workdir)
    job = start(2, 4, sections(), workdir, INTERLEAVED)
    assert [host.code() for host in job.hosts] == [0, 0], job.hosts[0].err()
    return job


def test_a_signal_to_one_process_ends_all_at_the_same_step_with_a_checkpoint(several):
    assert several.codes == [128 + signal.SIGTERM] * len(several.hosts)
    assert 1 < several.stopped_at < STEPS
    assert [int(folder.name) for folder in (several.workdir / "checkpoints").iterdir()] == [several.stopped_at]
    for process in range(len(several.hosts)):
        assert [row["step"] for row in notes(several, "index", process)] == list(range(1, several.stopped_at + 1))
        assert notes(several, "saved", process) == notes(several, "saved")
    out, *others = [host.out() for host in several.hosts]
    assert f"stopped by SIGTERM, saved at step {several.stopped_at}: the same command resumes there" in out
    assert f"on 8 cpu (data=4, fsdp=2, tensor=1, {len(several.hosts)} processes); 101 pairs to train on" in out
    for other in others:  # besides what gloo says of itself, in lines that may run into each other
        assert not {word for word in ("stopped", "parameters", "step", "loss") if word in other}


def test_losses_of_several_processes_are_those_of_one(one, several):
    assert_same_training(several.workdir, one.workdir, several.stopped_at)


def test_each_process_makes_its_part_of_the_same_global_batches(one, several):
    parts = [notes(several, "index", process) for process in range(len(several.hosts))]
    for rows in zip(*parts):
        np.testing.assert_array_equal(np.concatenate([row["index"] for row in rows]), one.index[rows[0]["step"]])


@pytest.mark.nightly
def test_two_processes_resume_what_several_have_written(one, several, two):
    saved = notes(several, "saved")[-1]
    assert saved["data_state"]["next_batch"] == several.stopped_at
    assert notes(two, "restored") == [{"step": several.stopped_at, "digest": saved["digest"]}]
    first, second = notes(two, "index", 0), notes(two, "index", 1)
    assert first[0]["step"] == several.stopped_at + 1
    for mine, other in zip(first, second):
        np.testing.assert_array_equal(mine["index"] + other["index"], one.index[mine["step"]][[0, 2, 4, 6, 1, 3, 5, 7]])
    assert_same_training(two.workdir, one.workdir, STEPS)
    positions = [json.loads((w / f"checkpoints/{STEPS}/data/metadata").read_text()) for w in (two.workdir, one.workdir)]
    assert positions[0] == positions[1]
    assert positions[0]["truncated"] > 100  # counted by all processes, before and after


def test_one_process_resumes_what_several_have_written(one, several, tmp_path):
    shutil.copytree(several.workdir, tmp_path / "copy")
    prepared = setup.prepare_run(sections(), tmp_path / "copy")
    assert prepared.first_step == several.stopped_at
    np.testing.assert_array_equal(next(prepared.batches)["index"], one.index[several.stopped_at + 1])
    leaves = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(prepared.state)]
    prepared.batches.close()
    prepared.checkpointer.close()
    assert hashlib.sha256(b"".join(leaves)).hexdigest() == notes(several, "saved")[-1]["digest"]


def test_every_process_has_the_features_that_one_has(one, two):
    features = [dict(np.load(two.notes / f"features_{process}.npz")) for process in range(2)]
    assert features[0]["images"].shape == (11, 16)
    assert features[0]["texts"].shape == (55, 16)
    found: dict[str, np.ndarray] = {}
    with pytest.MonkeyPatch.context() as patch:
        for name in ("plot_similarity", "plot_retrieval"):
            patch.setattr(in_training.retrieval, name, lambda *args: None)
        recall_at_k = in_training.retrieval.recall_at_k
        patch.setattr(
            in_training.retrieval,
            "recall_at_k",
            lambda i, t, *rest: found.update(images=i, texts=t) or recall_at_k(i, t, *rest),
        )
        prepared = setup.prepare_run(sections(), two.workdir)
        assert prepared.first_step == STEPS
        results = prepared.evaluator(prepared.state.variables)
        prepared.batches.close()
        prepared.checkpointer.close()
    for name, expected in found.items():
        np.testing.assert_array_equal(features[0][name], features[1][name])
        np.testing.assert_allclose(features[0][name], expected, rtol=0, atol=1e-6)
    assert set(json.loads((two.workdir / "evaluation.json").read_text())["retrieval"]) == set(results["retrieval"])


FAILING = """
add = loop.ProgressLog.add
def add_or_fail(self, step, *args):
    add(self, step, *args)
    if process == 1 and step == 3:
        raise ValueError("the disk of this host is gone")
loop.ProgressLog.add = add_or_fail
"""
STUCK = """
place_batch, steps = loop.place_batch, []
def get_stuck(*args):
    steps.append(1)
    while process == 1 and len(steps) == 3:
        time.sleep(1)
    return place_batch(*args)
loop.place_batch = get_stuck

hang_watch = loop.hang_watch
@contextlib.contextmanager
def watch_after_compilation(timeout_s, on_hang):
    timeout_s *= 10 if process == 0 else 1  # else either may be the first to notice
    with contextlib.ExitStack() as stack:
        watches = []
        def report_progress(where):
            if where == "step 2":
                watches.append(stack.enter_context(hang_watch(timeout_s, on_hang)))
            for each in watches:
                each(where)
        yield report_progress
loop.hang_watch = watch_after_compilation
"""


def test_the_failure_of_one_process_ends_all_and_names_it(start, tmp_path):
    job = start(2, 1, sections(sharding__fsdp=1, sharding__tensor=2), tmp_path, FAILING)
    assert [host.code() for host in job.hosts] == [1, 1]
    assert job.hosts[1].err().splitlines()[-2] == "clip-jax: error: the disk of this host is gone"
    message = f"clip-jax: error: process 1 ({socket.gethostname()}) has ended: the disk of this host is gone"
    assert message in job.hosts[0].err().splitlines()
    assert "tensorflow" not in job.hosts[0].err() + job.hosts[1].err()  # of JAX's coordination service
    # Heads are split over both: each needs every row.
    assert notes(job, "index", 0)[:3] == notes(job, "index", 1)[:3]
    assert len(notes(job, "index")[0]["index"]) == 8


def test_a_lifeline_breaks_with_its_process_and_names_it():
    lost = queue.SimpleQueue()
    port = lifeline.listen(lost.put)
    code = (
        "import sys; from clip_jax.distributed import lifeline\n"
        f"lifeline.connect('localhost', {port}, 3, lambda: None); print(); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert lost.empty()
        other.kill()
        assert lost.get(timeout=10) == 3
    with socket.create_server(("localhost", 0)) as server:
        lifeline.connect("localhost", server.getsockname()[1], 1, lambda: lost.put("first"))
        connection, _ = server.accept()
        assert json.loads(connection.makefile("rb").readline()) == {"process": 1}
        connection.close()
        assert lost.get(timeout=10) == "first"
    lifeline.connect("localhost", free_port(), 1, lambda: lost.put("unreachable"))
    assert lost.empty()


@pytest.mark.nightly
@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_is_named_in_one_line_by_the_other(start, tmp_path, killed):
    job = start(2, 1, sections(sharding__fsdp=1), tmp_path, SLOWLY)
    while not any("loss" in row for row in read_metrics(tmp_path)):
        time.sleep(0.05)
    os.kill(job.hosts[killed].pid, signal.SIGKILL)
    started = time.monotonic()
    assert job.hosts[1 - killed].code() == 1
    assert time.monotonic() - started < 10
    err = job.hosts[1 - killed].err()
    message = (
        f"clip-jax: error: process {killed} ({socket.gethostname()}) has ended: it was killed, or its host is gone"
    )
    assert err.splitlines().count(message) == 1
    assert "Traceback" not in err


@pytest.mark.nightly
def test_a_process_without_progress_shows_its_threads_and_all_end(start, tmp_path):
    sizes = {"sharding__fsdp": 1, "sharding__tensor": 2, "train__hang_timeout_s": 3}
    job = start(2, 1, sections(**sizes), tmp_path, STUCK)
    assert [host.code() for host in job.hosts] == [1, 1]
    first, second = (host.err() for host in job.hosts)
    assert "clip-jax: no progress for 3 s since step 2; all threads:" in second
    assert "in get_stuck" in second
    assert "clip-jax: error: no progress for 3 s since step 2 (train.hang_timeout_s)" in second
    assert f"process 1 ({socket.gethostname()}) has ended: no progress for 3 s since step 2" in first


def write_tar(path: Path, captions: list[str]) -> None:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for i, caption in enumerate(captions):
            for name, data in ((f"{i:02}.jpg", picture(i)), (f"{i:02}.txt", caption.encode())):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def test_processes_that_see_other_data_are_named(start, tmp_path):
    folders = [tmp_path / name for name in ("a", "b", "c")]
    for folder, count in zip(folders, (17, 16, 17)):
        write_tar(folder / "pairs.tar", [f"picture number {i}" for i in range(count)])
    data = {"data__source": "webdataset", "data__path": "pairs.tar", "data__num_validation": 5}
    job = start(3, 1, sections(**data, sharding__fsdp=1, train__global_batch_size=9), tmp_path / "run", folders=folders)
    assert [host.code() for host in job.hosts] == [1, 1, 1]
    hostname = socket.gethostname()
    for host in job.hosts:
        (message,) = [line for line in host.err().splitlines() if line.startswith("clip-jax: error: ")]
        assert message.startswith("clip-jax: error: the processes differ in data: ")
        assert f"training data, length: process 1 ({hostname}) has 11, the others 12" in message
    assert not (tmp_path / "run").exists()


def test_a_workdir_that_is_not_shared_is_refused(start, tmp_path):
    folders = [tmp_path / name for name in ("a", "b")]
    for folder in folders:
        folder.mkdir()
    sizes = {"sharding__fsdp": 1}
    job = start(2, 1, sections(**sizes), Path("run"), "setup.preflight.SHARED_TIMEOUT_S = 1", folders=folders)
    assert [host.code() for host in job.hosts] == [1, 1]
    hostname = socket.gethostname()
    for host, folder in zip(job.hosts, folders):
        first, second = (f"process {process} ({hostname})" for process in range(2))
        message = f"{second} cannot see what {first} writes to --workdir={folder / 'run'}: it must be the same folder"
        assert f"clip-jax: error: {message}" in host.err()
    assert list((tmp_path / "a" / "run").iterdir()) == []


@pytest.fixture
def run_module(processes):
    def run_module(name: str, *options: str, **environment: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "clip_jax", name, *options]
        return processes.start(command, env={**os.environ, **environment})

    return run_module


@pytest.fixture
def run_command(run_module):
    return functools.partial(run_module, "train", "--config=tiny")


def test_a_process_with_another_config_is_named(start, tmp_path):
    learning_rates = (sections(sharding__fsdp=1, optimizer__learning_rate=rate) for rate in (0.002, 0.5))
    job = start(2, 1, list(learning_rates), tmp_path / "run")
    hostname = socket.gethostname()
    for host in job.hosts:
        assert host.code() == 1
        assert (
            "clip-jax: error: the processes differ in config, code or devices: optimizer.learning_rate: process 1 "
            f"({hostname}) has 0.5, process 0 ({hostname}) 0.002"
        ) in host.err().splitlines()
    assert not (tmp_path / "run").exists()


@pytest.mark.nightly
def test_the_command_finds_its_processes_by_slurm_and_names_the_one_with_another_config(run_command, tmp_path):
    workdir, port = f"--workdir={tmp_path / 'run'}", free_port(SLURM_PORTS)
    job = {"SLURM_JOB_ID": str(port - SLURM_PORTS[0]), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
    first = run_command(workdir, **job, SLURM_PROCID="0", SLURM_LOCALID="0")
    change = "--config.optimizer.learning_rate=0.5"
    second = run_command(workdir, change, **job, SLURM_PROCID="1", SLURM_LOCALID="1")
    hostname = socket.gethostname()
    for process in (first, second):
        _, err = process.communicate(timeout=60)
        assert process.returncode == 1
        assert err.splitlines()[0] == (
            "clip-jax: error: the processes differ in config, code or devices: optimizer.learning_rate: process 1 "
            f"({hostname}) has 0.5, process 0 ({hostname}) 0.002"
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.nightly
def test_the_command_names_the_missing_process(run_command, tmp_path):
    port = free_port()
    flags = ["--num_processes=3", "--process_id=0", f"--coordinator=localhost:{port}", "--host_timeout_s=1"]
    process = run_command(f"--workdir={tmp_path / 'run'}", *flags)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    hostname = socket.gethostname()
    assert err.splitlines()[0] == (
        f"clip-jax: error: processes 1, 2 of 3 did not arrive at {hostname}:{port} within 1 s; "
        f"there were 0 ({hostname})"
    )


def test_embed_gives_each_process_its_shards(run_module, goldens, tmp_path):
    (tmp_path / "photos").mkdir()
    for i in range(11):
        pixels = np.random.default_rng(i).integers(256, size=(40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i:02d}.png")
    options = [f"--model={goldens / 'hf_clip'}", f"--path={tmp_path / 'photos'}", f"--output={tmp_path / 'out'}"]
    options += ["--notexts", "--format=npy", "--shard_size=4", f"--coordinator=localhost:{free_port()}"]
    processes = [run_module("embed", *options, "--num_processes=2", f"--process_id={i}") for i in range(2)]
    # Of three shards the first process makes the first and the last.
    for process, images, files in zip(processes, (7, 4), (4, 2)):
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        row = out.splitlines()[-3].split()
        assert (row[0], row[-1]) == (str(images), str(files))
    shards = [np.load(file) for file in sorted((tmp_path / "out").glob("image_embeddings-*.npy"))]
    assert [len(shard) for shard in shards] == [4, 4, 3]
    model, preprocess, _ = clip_jax.load(goldens / "hf_clip")
    images = np.stack([preprocess(file) for file in sorted((tmp_path / "photos").iterdir())])
    # Measured: 1.2e-7, sums in another order.
    np.testing.assert_allclose(np.concatenate(shards), normalize(model.encode_image(images)), rtol=0, atol=1e-6)


def wait_for_all(processes: list[tuple[int, int]], timeout_s: float) -> list[Any]:
    """The answers that processes given as (process_id, num_processes) get, each in a thread."""
    port = free_port()
    answers: list[Any] = [None] * len(processes)

    def arrive(i: int) -> None:
        process, count = processes[i]
        try:
            answers[i] = wait_for_processes(f"localhost:{port}", count, process, timeout_s)
        except HostsError as error:
            answers[i] = str(error)

    threads = [threading.Thread(target=arrive, args=(i,)) for i in range(len(processes))]
    for thread in reversed(threads):  # process 0 is the last
        thread.start()
        time.sleep(0.05)
    for thread in threads:
        thread.join()
    return [str(answer).replace(str(port), "PORT").replace(socket.gethostname(), "HOST") for answer in answers]


def test_every_process_gets_the_host_names_of_all():
    assert wait_for_all([(0, 3), (1, 3), (2, 3)], 10) == ["['HOST', 'HOST', 'HOST']"] * 3


@pytest.mark.parametrize(
    ("processes", "message"),
    [
        ([(0, 4), (2, 4)], "processes 1, 3 of 4 did not arrive at HOST:PORT within 1 s; there were 0 (HOST), 2 (HOST)"),
        ([(0, 3), (1, 3), (1, 3)], "HOST and HOST both say they are process 1: give each its own --process_id"),
        (
            [(0, 2), (1, 4)],
            "process 1 (HOST) was started with --num_processes=4, process 0 (HOST) with 2: give both the same "
            "--num_processes",
        ),
    ],
)
def test_every_process_that_arrived_gets_what_is_wrong(processes, message):
    assert wait_for_all(processes, 1) == [message] * len(processes)


CLUSTERS = {
    "Open MPI 4": {"OMPI_MCA_orte_hnp_uri": "{job}.0;tcp://127.0.0.1:1"},
    "Open MPI 5": {},
    "Slurm": {
        "SLURM_JOB_ID": "{slurm_job}",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
    },
    "GKE": {
        "TPU_WORKER_HOSTNAMES": "127.0.0.1,h1",
        "TPU_WORKER_ID": "0",
        "TPU_SKIP_MDS_QUERY": "1",
        "MEGASCALE_COORDINATOR_ADDRESS": "127.0.0.1",
        "MEGASCALE_NUM_SLICES": "1",
        "MEGASCALE_SLICE_ID": "0",
    },
}


@pytest.mark.parametrize("name", CLUSTERS)
def test_a_process_gets_its_index_from_its_cluster(monkeypatch, name):
    port = free_port(SLURM_PORTS)
    variables = CLUSTERS[name]
    if name == "GKE":
        monkeypatch.setattr("jax._src.clusters.cloud_tpu_cluster.running_in_cloud_tpu_vm", True)
        monkeypatch.setenv("JAX_COORDINATOR_PORT", str(port))
    elif name != "Slurm":
        variables = variables | dict(zip(OPEN_MPI, "200"))
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value.format(job=2**12 * (port - SLURM_PORTS[0]), slurm_job=port - SLURM_PORTS[0]))
    coordinator = f"localhost:{port}" if name == "Open MPI 5" else None
    message = rf"^process 1 of 2 did not arrive at \S+:{port} within 1 s; there were 0 "
    with pytest.raises(HostsError, match=message), joined(coordinator, timeout_s=1):
        raise AssertionError("it went on alone")


def test_a_coordinator_without_an_address_is_named(monkeypatch):
    monkeypatch.setattr("jax._src.clusters.cloud_tpu_cluster.running_in_cloud_tpu_vm", True)
    for variable, value in CLUSTERS["GKE"].items():
        monkeypatch.setenv(variable, value.replace("127.0.0.1", "nowhere.invalid"))
    message = (
        "^Failed to recognize coordinator address nowhere.invalid, as gketpu reports it: give --coordinator=HOST:PORT$"
    )
    with pytest.raises(HostsError, match=message), joined(timeout_s=0):
        raise AssertionError("it went on alone")


def test_open_mpi_5_without_a_coordinator_is_no_run_of_one_process(monkeypatch):
    for variable, value in zip(OPEN_MPI, "210"):
        monkeypatch.setenv(variable, value)
    with pytest.raises(HostsError, match=r"^--coordinator missing: outside of a cluster"), joined():
        raise AssertionError("it went on alone")


def test_a_coordinator_that_does_not_arrive_is_named():
    (answer,) = wait_for_all([(1, 2)], 0.5)
    assert answer.startswith("process 0 did not arrive: process 1 (HOST) could not reach it at localhost:PORT within")


@pytest.mark.parametrize("address", ["localhost", "localhost:x", ":80", "host:99999"])
def test_an_address_that_is_none_is_refused(address):
    with pytest.raises(HostsError, match=f"^--coordinator={address} must be HOST:PORT of process 0, for instance "):
        wait_for_processes(address, 2, 1, 0.1)


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ([{"a": "1"}] * 4, ""),
        ([{"a": "1"}, {"a": "1"}, {"a": "2"}], "a: process 2 (h2) has 2, the others 1"),
        ([{"a": "1"}, {"a": "2"}, {"a": "2"}], "a: process 0 (h0) has 1, the others 2"),
        ([{"a": "1"}, {}], "a: process 1 (h1) has nothing, process 0 (h0) 1"),
        (
            [{"a": "1", "b": "x"}, {"a": "2", "b": "x"}, {"a": "1", "b": "y"}],
            "a: process 1 (h1) has 2, the others 1; b: process 2 (h2) has y, the others x",
        ),
    ],
)
def test_the_process_that_differs_is_named(tables, message):
    assert describe_differences(tables, ["h0", "h1", "h2", "h3"]) == message


def test_one_process_waits_for_no_other():
    assert process_count() == 1
    assert gather("x", {"a": 1}) == [{"a": 1}]
    assert from_first("x", lambda: 3) == 3
    check_equal("x", {"a": 1})


def tpus(slices: int, per_slice: int) -> list[Any]:
    """Devices of TPU slices, as far as a mesh looks at them, in no good order."""
    return [
        SimpleNamespace(
            id=per_slice * s + i, slice_index=s, platform="tpu", device_kind="TPU v5 lite", process_index=s,
            coords=(i, 0, 0), core_on_chip=0,
        )
        for i in range(per_slice)
        for s in range(slices)
    ]  # fmt: skip


@pytest.mark.parametrize(("sizes", "shape"), [((-1, 1, 1), (8, 1, 1)), ((2, 4, 1), (2, 4, 1)), ((4, -1, 2), (4, 1, 2))])
def test_data_goes_over_several_slices_and_the_rest_stays_within(sizes, shape, monkeypatch):
    monkeypatch.setattr(
        "clip_jax.distributed.sharding.Mesh", lambda devices, names, axis_types: SimpleNamespace(devices=devices)
    )
    config = ShardingConfig(data=sizes[0], fsdp=sizes[1], tensor=sizes[2])
    devices = make_mesh(config, tpus(slices=2, per_slice=4)).devices
    assert devices.shape == shape
    slices = np.vectorize(lambda device: device.slice_index)(devices)
    assert (slices[: shape[0] // 2] == 0).all()
    assert (slices[shape[0] // 2 :] == 1).all()
    assert sorted(device.id for device in devices.flat) == list(range(8))


def test_a_data_axis_that_the_slices_do_not_divide_is_refused():
    message = r"^sharding.data=2 is not a multiple of the 4 TPU slices, between which only data can be split: "
    with pytest.raises(ValueError, match=message):
        make_mesh(ShardingConfig(data=2, fsdp=4), tpus(slices=4, per_slice=2))


def test_one_process_holds_all_rows():
    mesh = make_mesh(ShardingConfig(data=2, fsdp=2, tensor=2))
    np.testing.assert_array_equal(local_rows(mesh, 12), np.arange(12))
