"""The launch scripts with the real `clip-jax`, as far as a machine without cloud, cluster and GPU can run them.

Only the programs of a cloud and of Slurm's scheduler are played, by small ones that record what they are called with.
"""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image
from processes import QUICK, SLURM_PORTS, Processes, eventually, free_port, kill

from clip_jax.runs.logging import read_metrics

pytestmark = pytest.mark.usefixtures("compile_once")

CLIP_JAX = Path(sysconfig.get_path("scripts")) / "clip-jax"
LAUNCH = Path(__file__).parents[2] / "clip_jax" / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])
# Paths and values that only right quoting brings through: a pattern, spaces, quotes.
TARS = "all tars/{00000..00001}.tar"
DATA = f"gs://pairs/{TARS}"
NOTE = '--config.data.caption_must_not_match=it\'s a "$HOME" *'
# configs/tiny.py on tars, and small.
SMALL = {
    "data.source": "webdataset",
    "data.num_validation": 8,
    "data.num_workers": 0,
    "model.remat": "none",
    "vision.image_size": 16,
    "vision.depth": 1,
    "text.vocab_size": 64,
    "optimizer.warmup_steps": 1,
    "train.global_batch_size": 8,
    "train.checkpoint_every": 0,
    "train.evaluate_every": 0,
    "evaluation.zero_shot": (),
    "evaluation.batch_size": 8,
}
FLAGS = [*(f"--config.{key}={value}" for key, value in SMALL.items()), NOTE]
# A run that ends after two seconds, and one that only a signal ends. Each number is compiled anew.
SHORT, ENDLESS = ([*FLAGS, f"--config.train.total_steps={number}"] for number in (200, 10**9))
MISTAKE = "--config.train.total_steps=0"

RECORD = """
with open(os.environ["CALLS"], "a") as file:
    file.write(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]) + "\\n")
"""
# One slice of one host, whose state is a file; what is run on the host runs here.
GCLOUD = """
import shutil, subprocess
state = os.environ["SLICE"]
home = os.environ["HOME"]
verb = sys.argv[3:5]
if verb == ["queued-resources", "describe"]:
    if not os.path.exists(state):
        sys.exit("NOT_FOUND")
    states = open(state).read().split()
    print(states[0])
    if len(states) > 1:
        open(state, "w").write(" ".join(states[1:]))
elif verb == ["queued-resources", "create"]:
    if os.path.exists(home + "/no quota"):
        sys.exit("no quota")
    open(state, "w").write("WAITING_FOR_RESOURCES ACTIVE")
elif verb == ["queued-resources", "delete"]:
    os.remove(state)
elif verb == ["tpu-vm", "scp"]:
    shutil.copy(sys.argv[5], os.path.join(home, sys.argv[6].split(":")[1]))
elif verb == ["tpu-vm", "ssh"]:
    (command,) = [a.removeprefix("--command=") for a in sys.argv if a.startswith("--command=")]
    sys.exit(subprocess.run(["bash", "-c", command], cwd=home).returncode)
"""
UV = """
if sys.argv[1] == "venv":
    os.makedirs(sys.argv[-1] + "/bin", exist_ok=True)
    if not os.path.exists(sys.argv[-1] + "/bin/clip-jax"):
        os.symlink(os.environ["CLIP_JAX"], sys.argv[-1] + "/bin/clip-jax")
"""
# What the scripts may use besides; nothing else is on the PATH, whatever this machine has.
TOOLS = (
    *("bash", "cat", "dirname", "env", "flock", "grep", "gzip", "hostname", "mkdir", "mktemp", "mountpoint"),
    *("nohup", "rm", "sed", "setsid", "sleep", "tail", "tar", "touch"),
)
# A bucket is a folder.
GCSFUSE = """
import shutil
shutil.copytree(os.path.join(os.environ["BUCKETS"], sys.argv[-2]), sys.argv[-1], dirs_exist_ok=True)
"""
# What gcsfuse was called for is mounted.
MOUNTPOINT = """
mounted = [call[-1] for call in map(json.loads, open(os.environ["CALLS"])) if call[0] == "gcsfuse"]
sys.exit(sys.argv[-1] not in mounted)
"""
# It sees the repository's files.
DOCKER = """
if sys.argv[1] == "build":
    assert {"pyproject.toml", "clip_jax", "configs", "input_pipeline"} <= set(os.listdir(sys.argv[-1]))
    assert os.path.exists(sys.argv[sys.argv.index("-f") + 1])
"""


# Starts the tasks, passes on the SIGTERM of a preemption, and ends with the worst exit code.
SRUN = """
import signal, subprocess
tasks = [
    subprocess.Popen(sys.argv[2:], env={**os.environ, "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)})
    for i in range(int(os.environ["SLURM_NTASKS"]))
]
signal.signal(signal.SIGTERM, lambda *_: [task.terminate() for task in tasks])
sys.exit(max(task.wait() for task in tasks))
"""


class Stage:
    """A folder of played programs, a home folder and buckets."""

    def __init__(self, folder: Path, processes: Processes):
        self.processes = processes
        self.bin, self.home = folder / "bin", folder / "home of all"
        self.bin.mkdir()
        for tool in TOOLS:
            (self.bin / tool).symlink_to(shutil.which(tool) or f"{tool} is missing")
        self.home.mkdir()
        (self.bin / "clip-jax").symlink_to(CLIP_JAX)
        self.calls_file, self.slice, self.buckets = folder / "calls", folder / "slice", folder / "buckets"
        self.calls_file.touch()
        self.env = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "CUDA_"))},
            "PATH": str(self.bin),
            "HOME": str(self.home),
            "CALLS": str(self.calls_file),
            "SLICE": str(self.slice),
            "BUCKETS": str(self.buckets),
            "CLIP_JAX": str(CLIP_JAX),
            "XLA_FLAGS": QUICK,  # one device
            "MPLCONFIGDIR": matplotlib.get_cachedir(),  # where the fonts are known
        }
        for bucket in ("pairs/all tars", "runs", "small"):
            (self.buckets / bucket).mkdir(parents=True)
        self.tars = f"{self.buckets}/pairs/{TARS}"

    def write_tars(self) -> None:
        """40 pairs in two shards."""
        for shard in range(2):
            with tarfile.open(self.tars.replace("{00000..00001}", f"{shard:05d}"), "w") as tar:
                for i in range(20):
                    picture = io.BytesIO()
                    pixels = np.random.default_rng([shard, i]).integers(256, size=(19, 23, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(picture, "PNG")
                    caption = f"picture {i} of the quick brown fox that jumps over a lazy dog".encode()
                    for name, content in ((f"{shard}_{i}.png", picture.getvalue()), (f"{shard}_{i}.txt", caption)):
                        member = tarfile.TarInfo(name)
                        member.size = len(content)
                        tar.addfile(member, io.BytesIO(content))

    def play(self, name: str, code: str = "") -> None:
        file = self.bin / name
        file.unlink(missing_ok=True)
        file.write_text(f"#!{sys.executable} -S\nimport json, os, sys\n{RECORD}{code}")
        file.chmod(0o755)

    def start(self, script: str, *arguments: str, **env: str) -> subprocess.Popen[str]:
        return self.processes.start([LAUNCH / script, *arguments], env={**self.env, **env})

    def run(self, script: str, *arguments: str, code: int = 0, **env: str) -> str:
        """What it printed, stderr last."""
        returned, out, err = self.processes.run([LAUNCH / script, *arguments], 120, env={**self.env, **env})
        assert returned == code, out + err
        return out + err

    def calls(self, name: str) -> list[list[str]]:
        calls = [json.loads(line) for line in self.calls_file.read_text().splitlines()]
        return [call[1:] for call in calls if call[0] == name]

    def trainings(self) -> list[int]:
        """Process ids of `clip-jax train`."""
        return self.processes.living("clip-jax train --workdir")


@pytest.fixture
def stage(tmp_path, processes):
    return Stage(tmp_path, processes)


@pytest.fixture
def pairs(stage):
    """The tars are there."""
    stage.write_tars()
    return stage.tars


def steps(workdir: Path) -> list[int]:
    return [row["step"] for row in read_metrics(workdir) if "loss" in row]


def saved(workdir: Path) -> list[int]:
    return sorted(int(folder.name) for folder in (workdir / "checkpoints").iterdir())


def assert_trains(workdir: Path, data: str) -> None:
    """The flags have arrived as they were given, and records of the data were trained on."""
    config = json.loads((workdir / "config.json").read_text())
    assert config["data"]["path"] == data
    assert f"--config.data.caption_must_not_match={config['data']['caption_must_not_match']}" == NOTE
    assert steps(workdir)[:2] == [1, 2]


def test_scripts_are_clean():
    shellcheck = Path(sysconfig.get_path("scripts")) / "shellcheck"
    commands = [["bash", "-n", str(script)] for script in SCRIPTS]
    for command in (*commands, [str(shellcheck), "-x", "-P", "SCRIPTDIR", *map(str, SCRIPTS)]):
        ran = subprocess.run(command, capture_output=True, text=True)
        assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
    assert "set -euo pipefail" in (LAUNCH / "flags.sh").read_text()
    for script in SCRIPTS:
        sourced = script.name == "flags.sh"
        assert os.access(script, os.X_OK) != sourced
        assert sourced or 'flags.sh"' in script.read_text()


BOX = ("--config=tiny", "--workdir=runs/tiny")
POD = ("--name=clip", "--zone=us-west4-a")
POD_START = (*POD, "--type=v5litepod-16", "--config=tiny", "--workdir=gs://runs/b 32", f"--data={DATA}")
GKE = ("--name=clip", "--cluster=c", "--zone=us-west4-a", "--project=p")
GKE_START = (*GKE, "--type=v5litepod-16", "--image=reg/clip", "--config=tiny", "--workdir=gs://runs/b 32")


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("box.sh", BOX[1:], "--config is missing: for instance --config=clip_vit_b32"),
        ("box.sh", BOX[:1], "--workdir is missing: for instance --workdir=runs/vit_b32"),
        ("box.sh", (*BOX, "--proceses=2"), "unknown flag --proceses: use --config, --workdir, --data, --processes"),
        ("box.sh", (*BOX, "tiny"), "unexpected argument tiny: flags are --name=value; clip-jax's own follow --"),
        ("box.sh", (*BOX, "--processes=0"), "--processes=0 must be a number from 1"),
        ("box.sh", (*BOX, "--clip_jax=nowhere/clip-jax"), "nowhere/clip-jax is not installed: pip install -e '.[gpu]'"),
        ("tpu_pod.sh", (), "say start, watch, status, logs, stop or delete first"),
        ("tpu_pod.sh", ("logs", *POD[:1]), "--zone is missing: for instance --zone=us-west4-a"),
        ("tpu_pod.sh", ("logs", *POD), "gcloud is not installed: see https://cloud.google.com/sdk/docs/install"),
        ("tpu_pod.sh", ("start", *POD, "--dry_run"), "--type is missing: for instance --type=v5litepod-16"),
        ("tpu_pod.sh", ("start", *POD_START, "--type=v5e-4", "--dry_run"), "--type=v5e-4 is not known here: v4-N, "),
        ("tpu_pod.sh", ("start", *POD_START, "--workdir=runs", "--dry_run"), "--workdir=runs must be gs://BUCKET/PATH"),
        ("gke.sh", ("start", *GKE_START), "xpk is not installed: pip install xpk"),
        ("gke.sh", ("start", *GKE, "--dry_run"), "--type is missing"),
        ("gke.sh", ("start", *GKE_START, "--data=/tars", "--dry_run"), "/tars must be gs://BUCKET/PATH"),
        ("gcs.sh", ("data",), "usage: gcs.sh data|workdir gs://BUCKET/PATH"),
        ("gcs.sh", ("data", "gs:///x"), "gs:///x names no bucket"),
        ("train.sh", ("clip-jax",), "usage: train.sh CLIP_JAX DATA WORKDIR"),
        ("host.sh", (), "say start, status, logs or stop"),
        ("host.sh", ("start", DATA), "usage: host.sh start DATA WORKDIR"),
    ],
)
def test_a_mistake_is_told_in_one_line(stage, script, arguments, message):
    error = stage.run(script, *arguments, code=2)
    assert error.startswith(f"{script}: error: {message}")
    assert error.count("\n") == 1


def test_the_usage_of_each_script_is_its_header(stage):
    for script, *verb in (("box.sh",), ("tpu_pod.sh",), ("gke.sh",)):
        usage = stage.run(script, *verb, "--help")
        assert f"\nusage: {script} " in usage
        assert "--workdir=" in usage
        assert "flags.sh" not in usage


def test_a_box_shares_its_gpus_among_its_processes(stage):
    stage.play("nvidia-smi", "print('0\\n1\\n2\\n3')")
    workdir = str(stage.home / "a run")
    flags = (f"--workdir={workdir}", "--config=tiny", "--data=all tars", "--clip_jax=clip-jax", "--dry_run")
    one = stage.run("box.sh", *flags, "--", NOTE)
    assert one.split()[:2] == [str(LAUNCH / "train.sh"), "clip-jax"]
    lines = stage.run("box.sh", "--processes=2", "--port=8500", *flags, "--", NOTE).splitlines()
    assert [line.split()[:2] for line in lines] == [["env", f"CUDA_VISIBLE_DEVICES={v}"] for v in (r"0\,1", r"2\,3")]
    for process, line in enumerate(lines):
        words = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, text=True).stdout
        assert words.split("\0")[2:-1] == [
            str(LAUNCH / "train.sh"),
            "clip-jax",
            "all tars",
            workdir,
            "--config=tiny",
            "--coordinator=localhost:8500",
            "--num_processes=2",
            f"--process_id={process}",
            NOTE,
        ]
    error = stage.run("box.sh", "--processes=3", *flags, code=2)
    assert error == "box.sh: error: 4 GPUs do not divide among --processes=3\n"
    visible = stage.run("box.sh", "--processes=2", *flags, CUDA_VISIBLE_DEVICES="5,7")
    assert [line.split()[1] for line in visible.splitlines()] == ["CUDA_VISIBLE_DEVICES=5", "CUDA_VISIBLE_DEVICES=7"]


# Of several processes only the first keeps what it has compiled: with two these tests take three times as long.
several = pytest.mark.parametrize("count", [1, pytest.param(2, marks=pytest.mark.nightly)])


def box_flags(workdir: Path, data: str) -> list[str]:
    return ["--config=tiny", f"--workdir={workdir}", f"--data={data}", f"--clip_jax={CLIP_JAX}"]


@several
def test_a_box_trains_on_data_and_starts_again_after_a_sigterm_to_the_training(stage, pairs, count):
    workdir = stage.home / "a run"
    flags = [*box_flags(workdir, pairs), f"--processes={count}", f"--port={free_port()}"]
    box = stage.start("box.sh", *flags, "--", *SHORT)
    eventually(lambda: len(steps(workdir)) >= 2)
    os.kill(stage.trainings()[0], signal.SIGTERM)
    out, err = box.communicate(timeout=120)
    assert (box.returncode, out.count("it resumes")) == (0, 1), err
    log = (workdir / "logs" / "process_0.log").read_text()
    (checkpoint,) = [step for step in saved(workdir) if step != 200]
    assert f"stopped by SIGTERM, saved at step {checkpoint}: " in log
    assert f"; steps {checkpoint} to 200 " in log
    assert log.count("2 processes") == (2 if count == 2 else 0)
    assert_trains(workdir, pairs)
    assert steps(workdir)[-1] == 200


def test_a_box_that_is_told_to_end_ends_its_processes_and_does_not_start_again(stage, pairs):
    workdir = stage.home / "a run"
    flags = [*box_flags(workdir, pairs), "--processes=2", f"--port={free_port()}"]
    box = stage.start("box.sh", *flags, "--", *ENDLESS)
    eventually(lambda: len(stage.trainings()) == 2)
    box.send_signal(signal.SIGINT)
    out, err = box.communicate(timeout=60)
    assert (box.returncode, out.count("it resumes")) == (143, 0), err
    assert stage.processes.living() == []


def test_a_box_does_not_start_again_after_a_failure(stage, pairs):
    flags = [*box_flags(stage.home / "run", pairs), "--processes=2", f"--port={free_port()}"]
    error = stage.run("box.sh", *flags, "--", MISTAKE, code=1)
    assert "train.total_steps=0" in error
    assert "it resumes" not in error
    for process in range(2):
        log = (stage.home / "run" / "logs" / f"process_{process}.log").read_text()
        assert log.count("clip-jax: error: ") == 1


def test_buckets_are_mounted_once_and_their_paths_translated(stage):
    stage.play("gcsfuse", GCSFUSE)
    stage.play("mountpoint", MOUNTPOINT)
    assert stage.run("gcs.sh", "data", "tars/{0..9}.tar") == "tars/{0..9}.tar\n"
    assert stage.calls("gcsfuse") == []
    for _ in range(2):
        assert stage.run("gcs.sh", "data", DATA) == f"{stage.home}/gcs/data/pairs/{TARS}\n"
        assert stage.run("gcs.sh", "workdir", "gs://runs/b 32") == f"{stage.home}/gcs/workdir/runs/b 32\n"
    data, workdir = stage.calls("gcsfuse")
    assert data[-2:] == ["pairs", f"{stage.home}/gcs/data/pairs"]
    assert data[:2] == ["-o", "ro"]
    assert "--metadata-cache-ttl-secs=-1" in data
    assert not [flag for flag in data if "cache-dir" in flag]
    assert workdir[-2:] == ["runs", f"{stage.home}/gcs/workdir/runs"]
    # A host must see at once what another has written, and an fsync must reach the bucket.
    expected = {
        "--metadata-cache-ttl-secs=0",
        "--metadata-cache-negative-ttl-secs=0",
        "--enable-streaming-writes=false",
    }
    assert expected <= set(workdir)
    stage.run("gcs.sh", "data", "gs://small/x", GCS_CACHE_MB="9000")
    assert {"--file-cache-max-size-mb=9000", f"--cache-dir={stage.home}/gcs/cache/small"} <= set(
        stage.calls("gcsfuse")[2]
    )


@pytest.fixture
def pod(stage, pairs):
    stage.play("gcloud", GCLOUD)
    stage.play("uv", UV)
    stage.play("gcsfuse", GCSFUSE)
    stage.play("mountpoint", MOUNTPOINT)
    stage.play("sleep", "import time; time.sleep(0.05)")
    stage.env["PYTHONPATH"] = f"{stage.home}/clip_jax_code"  # what was copied to the host is what runs
    stage.workdir, stage.data = stage.home / "gcs" / "workdir" / "runs" / "b 32", f"{stage.home}/gcs/data/pairs/{TARS}"
    stage.log, stage.training_pid = (stage.home / "clip_jax_run" / name for name in ("log", "training_pid"))
    return stage


def test_a_pod_is_asked_for_installed_and_trains_detached(pod):
    pod.run("tpu_pod.sh", "start", *POD_START, "--spot=1", "--project=p", "--poll_s=0", "--", *ENDLESS)
    (create,) = [call for call in pod.calls("gcloud") if call[3] == "create"]
    assert create[4:] == [
        "clip",
        "--node-id=clip",
        "--zone=us-west4-a",
        "--project=p",
        "--accelerator-type=v5litepod-16",
        "--runtime-version=v2-alpha-tpuv5-lite",
        "--scopes=https://www.googleapis.com/auth/cloud-platform",
        "--spot",
    ]
    install = pod.calls("uv")[-1]
    assert install[-2:] == ["-e", f"{pod.home}/clip_jax_code/clip_jax/launch/../..[tpu]"]
    assert (pod.home / "clip_jax_code" / "pyproject.toml").is_file()
    eventually(lambda: len(steps(pod.workdir)) >= 2)
    assert_trains(pod.workdir, pod.data)
    training = pod.trainings()
    assert "1 cpu" in pod.run("tpu_pod.sh", "logs", *POD)
    assert pod.run("tpu_pod.sh", "status", *POD) == "clip: ACTIVE\nrunning\n"
    assert "runs already" in pod.run("tpu_pod.sh", "start", *POD_START, "--poll_s=0", "--", NOTE)
    assert pod.trainings() == training
    pod.run("tpu_pod.sh", "stop", *POD)
    eventually(lambda: "stopped" in pod.run("tpu_pod.sh", "status", *POD))
    assert pod.trainings() == []
    assert saved(pod.workdir) == steps(pod.workdir)[-1:]
    pod.run("tpu_pod.sh", "delete", *POD)
    assert pod.calls("gcloud")[-1][2:] == ["queued-resources", "delete", "clip", POD[1], "--force", "--quiet"]


@pytest.mark.nightly
def test_a_training_on_a_pod_goes_on_after_a_sigterm_a_restart_of_its_hosts_and_the_loss_of_the_slice(pod):
    watch = pod.start("tpu_pod.sh", "watch", *POD_START, "--poll_s=1", "--", *SHORT)
    eventually(lambda: len(steps(pod.workdir)) >= 2)
    first = next_training(pod)
    os.kill(first, signal.SIGTERM)  # as maintenance does, after which this host goes on
    second = next_training(pod, first)
    (checkpoint,) = saved(pod.workdir)
    assert f"stopped by SIGTERM, saved at step {checkpoint}: " in pod.log.read_text()

    supervisor = pod.log.parent / "pid"
    pids = [int(supervisor.read_text()), second]
    supervisor.write_text("1")  # by now another's
    for pid in pids:
        kill(pid)
    third = next_training(pod, second)
    eventually(lambda: "host.sh status" in pod.calls("gcloud")[-1][-1])  # it was started, and is watched

    pod.slice.write_text("SUSPENDED")
    for name in ("clip_jax_run", "clip_jax_code", "clip_jax_venv"):  # the new slice has nothing
        shutil.rmtree(pod.home / name)
    kill(third)
    out, err = watch.communicate(timeout=120)
    assert watch.returncode == 0, out + err
    assert [call[3] for call in pod.calls("gcloud") if call[3] in ("create", "delete")] == [
        "create",
        "delete",
        "create",
    ]
    assert "taken away; it resumes from the newest checkpoint" in out
    assert out.endswith("clip: exit 0\n")
    assert f"; steps {checkpoint} to " in pod.log.read_text()
    assert_trains(pod.workdir, pod.data)
    assert saved(pod.workdir)[-1] == steps(pod.workdir)[-1] == 200


def next_training(pod: Stage, before: int | None = None) -> int:
    """The process id of the training that follows another."""

    def read() -> str:
        return pod.training_pid.read_text().strip() if pod.training_pid.exists() else ""

    eventually(lambda: read() not in ("", str(before)))
    return int(read())


def test_watching_a_pod_ends_with_a_failure_of_the_training(pod):
    flags = (*POD_START, "--poll_s=0", "--", MISTAKE, "--traceback")
    error = pod.run("tpu_pod.sh", "watch", *flags, code=2)
    assert "clip: exit 1\n" in error
    assert error.endswith(
        "error: the training failed; " + f"{LAUNCH}/tpu_pod.sh logs --name=clip --zone=us-west4-a shows why\n"
    )
    log = pod.log.read_text()
    assert log.count("ValueError: train.total_steps=0") == 1
    assert f'File "{pod.home}/clip_jax_code/clip_jax/cli/train.py"' in log


def test_watching_a_pod_ends_where_it_cannot_be_had_or_set_up(pod):
    (pod.home / "no quota").touch()
    assert "clip was not granted" in pod.run("tpu_pod.sh", "watch", *POD_START, "--poll_s=0", code=2)
    pod.slice.write_text("ACTIVE")
    pod.play("uv", "sys.exit('no such Python')")
    assert "clip could not be set up" in pod.run("tpu_pod.sh", "watch", *POD_START, "--poll_s=0", code=2)
    assert [call[3] for call in pod.calls("gcloud")].count("create") == 1
    assert not pod.log.exists()


def test_a_dry_run_on_a_pod_prints_what_would_be_called(stage):
    lines = stage.run("tpu_pod.sh", "start", *POD_START, "--dry_run", "--", NOTE).splitlines()
    assert [line.split()[2:5] for line in lines if line.startswith("gcloud")] == [
        ["tpus", "queued-resources", "create"],
        ["tpus", "tpu-vm", "scp"],
        ["tpus", "tpu-vm", "ssh"],
    ]
    assert stage.calls_file.read_text() == ""


def test_gke_gets_an_image_its_buckets_and_the_workload(stage):
    stage.play("xpk")
    stage.play("docker", DOCKER)
    stage.run("gke.sh", "prepare", *GKE_START, f"--data={DATA}")
    build, push = stage.calls("docker")
    assert build[:3] == ["build", "-t", "reg/clip"]
    assert build[4].endswith("/context/clip_jax/launch/Dockerfile")
    assert push == ["push", "reg/clip"]
    storage = [{flag.split("=")[0]: flag for flag in call[3:]} | {"name": call[2]} for call in stage.calls("xpk")]
    assert [s["name"] for s in storage] == ["workdir-runs", "data-pairs"]
    assert [s["--mount-point"] for s in storage] == [f"--mount-point=/gcs/{p}" for p in ("workdir/runs", "data/pairs")]
    assert [s["--readonly"] for s in storage] == ["--readonly=false", "--readonly=true"]
    stage.run("gke.sh", "start", *GKE_START, f"--data={DATA}", "--slices=2", "--", *SHORT)
    flags = {flag.split("=")[0]: flag.split("=", 1)[1] for flag in stage.calls("xpk")[-1][2:]}
    assert flags["--storage"] == "workdir-runs,data-pairs"
    assert flags["--num-slices"] == "2"
    command = flags["--command"].replace("/gcs/", f"{stage.buckets}/")
    code, _, err = stage.processes.run(["bash", "-c", command], 60, env=stage.env)
    data = f"{stage.buckets}/data/pairs/{TARS}"
    assert code == 1
    assert err.startswith(f"clip-jax: error: no data at '{data}', which does not exist: expected a tar")
    stage.run("gke.sh", "stop", *GKE)
    assert stage.calls("xpk")[-1] == ["workload", "delete", "--workload=clip", "--cluster=c", GKE[2], "--project=p"]


def test_the_image_installs_what_the_repository_has():
    lines = [line.split() for line in (LAUNCH / "Dockerfile").read_text().splitlines() if line and line[0] != "#"]
    assert [line[0] for line in lines] == ["FROM", "ARG", "WORKDIR", "COPY", "RUN"]
    assert lines[0][1] == "python:3.12-slim"


SBATCH = ("--config=tiny", "--workdir=/shared/a run", "--data=all tars")


@several
def test_a_slurm_job_trains_with_its_tasks_and_is_requeued_after_a_sigterm(stage, pairs, count):
    stage.play("srun", SRUN)
    stage.play("scontrol")
    port = free_port(SLURM_PORTS)
    job = {"SLURM_JOB_ID": str(port - SLURM_PORTS[0]), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": str(count)}
    job["SLURM_SUBMIT_DIR"] = str(LAUNCH.parent.parent)
    workdir = stage.home / "a run"
    batch = stage.start("slurm.sbatch", *box_flags(workdir, pairs), "--", *ENDLESS, **job)
    eventually(lambda: len(steps(workdir)) >= 2)
    assert_trains(workdir, pairs)
    assert stage.calls("srun")[0][0] == "--kill-on-bad-exit=0"
    (srun,) = stage.processes.living(f"{stage.bin}/srun")
    os.kill(srun, signal.SIGTERM)
    out, err = batch.communicate(timeout=60)
    assert batch.returncode == 143, err
    assert ("2 processes" in out) == (count == 2)
    assert out.endswith("the training received SIGTERM and has saved a checkpoint: requeued\n")
    assert saved(workdir) == steps(workdir)[-1:]
    assert stage.calls("scontrol") == [["requeue", job["SLURM_JOB_ID"]]]

    job["SLURM_NTASKS"] = "1"
    failed = stage.run("slurm.sbatch", *box_flags(stage.home / "none", pairs), "--", MISTAKE, code=1, **job)
    assert "train.total_steps=0" in failed
    stage.play("srun")
    stage.run("slurm.sbatch", *SBATCH, **job)
    # Cancelled: Slurm tells the script and what it has started.
    stage.play("srun", "import signal; os.kill(os.getppid(), signal.SIGTERM); sys.exit(143)")
    stage.run("slurm.sbatch", *SBATCH, code=143, **job)
    assert len(stage.calls("scontrol")) == 1


def test_a_slurm_job_refuses_what_it_cannot_run(stage):
    place = {"SLURM_SUBMIT_DIR": str(LAUNCH.parent.parent)}
    assert "mount the bucket on the nodes" in stage.run(
        "slurm.sbatch", SBATCH[0], "--workdir=gs://r/x", code=2, **place
    )
    assert "srun is not installed" in stage.run("slurm.sbatch", *SBATCH, code=2, **place)
    error = stage.run("slurm.sbatch", *SBATCH, code=2, SLURM_SUBMIT_DIR=str(stage.home))
    message = f"{stage.home} is not the clone: call sbatch in the folder that has clip_jax/"
    assert error == f"slurm.sbatch: error: {message}\n"
