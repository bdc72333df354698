"""The launch scripts, as far as a machine without cloud, cluster and GPU can run them: programs of theirs are played by
small ones that record what they are called with. The training of `box.sh` is real."""

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest
from test_hosts import free_port

from clip_jax.runs.logging import read_metrics

LAUNCH = Path(__file__).parent.parent / "clip_jax" / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])
# Paths and values that only right quoting brings through: a pattern, spaces, quotes.
DATA = "gs://pairs/all tars/{00000..00063}.tar"
MOUNTED = "{home}/gcs/data/pairs/all tars/{{00000..00063}}.tar"
NOTE = '--config.evaluation.templates=it\'s a "$HOME" *'

RECORD = """
with open(os.environ["CALLS"], "a") as file:
    file.write(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]) + "\\n")
"""
# What a process does that is started: the next of the answers in $ANSWERS, an exit code or "wait" for SIGTERM.
TRAINING = """
import fcntl, signal, time
with open(os.environ["ANSWERS"], "r+") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    answers = file.read().split()
    file.seek(0), file.truncate(), file.write(" ".join(answers[1:]))
if answers[0] == "wait":
    signal.signal(signal.SIGTERM, lambda *_: os._exit(143))
    print("ready", flush=True)
    time.sleep(60)
sys.exit(int(answers[0]))
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


class Stage:
    """A folder of played programs and a home folder."""

    def __init__(self, folder: Path):
        self.bin, self.home = folder / "bin", folder / "home of all"
        self.bin.mkdir()
        for tool in TOOLS:
            (self.bin / tool).symlink_to(shutil.which(tool) or f"{tool} is missing")
        self.home.mkdir()
        self.calls_file, self.answers_file, self.slice = folder / "calls", folder / "answers", folder / "slice"
        self.calls_file.touch()
        self.started: list[subprocess.Popen[str]] = []
        self.play("clip-jax", TRAINING)
        self.env = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "CUDA_"))},
            "PATH": str(self.bin),
            "HOME": str(self.home),
            "CALLS": str(self.calls_file),
            "ANSWERS": str(self.answers_file),
            "SLICE": str(self.slice),
            "CLIP_JAX": str(self.bin / "clip-jax"),
        }

    def play(self, name: str, code: str = "") -> None:
        file = self.bin / name
        file.unlink(missing_ok=True)
        file.write_text(f"#!{sys.executable} -S\nimport json, os, sys\n{RECORD}{code}")
        file.chmod(0o755)

    def start(self, script: str, *arguments: str, **env: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [str(LAUNCH / script), *arguments],
            env={**self.env, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def run(self, script: str, *arguments: str, code: int = 0, answers: str = "", **env: str) -> str:
        """What it printed, stderr last."""
        self.answers_file.write_text(answers)
        process = self.start(script, *arguments, **env)
        out, err = process.communicate(timeout=60)
        assert process.returncode == code, out + err
        return out + err

    def calls(self, name: str) -> list[list[str]]:
        calls = [json.loads(line) for line in self.calls_file.read_text().splitlines()]
        return [call[1:] for call in calls if call[0] == name]


@pytest.fixture
def stage(tmp_path):
    stage = Stage(tmp_path)
    yield stage
    for process in stage.started:
        process.kill()


def eventually(true, timeout_s: float = 20):
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


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
POD_START = (*POD, "--type=v5litepod-16", "--config=clip_vit_b32", "--workdir=gs://runs/b 32", f"--data={DATA}")
GKE = ("--name=clip", "--cluster=c", "--zone=us-west4-a", "--project=p")
GKE_START = (*GKE, "--type=v5litepod-16", "--image=reg/clip", "--config=clip_vit_b32", "--workdir=gs://runs/b 32")


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
    told = stage.run(script, *arguments, code=2)
    assert told.startswith(f"{script}: error: {message}")
    assert told.count("\n") == 1
    assert stage.calls("clip-jax") == []


def test_the_usage_of_each_script_is_its_header(stage):
    for script, *verb in (("box.sh",), ("tpu_pod.sh",), ("gke.sh",)):
        usage = stage.run(script, *verb, "--help")
        assert f"\nusage: {script} " in usage
        assert "--workdir=" in usage
        assert "flags.sh" not in usage


def test_a_box_runs_one_process_with_all_gpus_or_several_that_share_them(stage):
    stage.play("nvidia-smi", "print('0\\n1\\n2\\n3')")
    workdir = str(stage.home / "a run")
    flags = ("--config=tiny", f"--workdir={workdir}", "--data=all tars", "--", NOTE)
    stage.run("box.sh", *flags, answers="0")
    own = ["train", "--config.data.path=all tars", f"--workdir={workdir}"]
    # train.sh puts the data after the flag that is always there.
    assert sorted(stage.calls("clip-jax")[0]) == sorted([*own, "--config=tiny", NOTE])
    lines = stage.run("box.sh", "--processes=2", "--port=8500", "--dry_run", *flags).splitlines()
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
    told = stage.run("box.sh", "--processes=3", "--dry_run", *flags, code=2)
    assert told == "box.sh: error: 4 GPUs do not divide among --processes=3\n"
    visible = stage.run("box.sh", "--processes=2", "--dry_run", *flags, CUDA_VISIBLE_DEVICES="5,7")
    assert [line.split()[1] for line in visible.splitlines()] == ["CUDA_VISIBLE_DEVICES=5", "CUDA_VISIBLE_DEVICES=7"]


def test_a_box_starts_again_after_a_sigterm_to_the_training_and_not_after_a_failure(stage):
    flags = ("--config=tiny", f"--workdir={stage.home / 'run'}", "--processes=2")
    told = stage.run("box.sh", *flags, answers="143 143 0 0")
    assert "it goes on" in told
    assert len(stage.calls("clip-jax")) == 4
    stage.run("box.sh", *flags, answers="143 1", code=1)
    assert len(stage.calls("clip-jax")) == 6


def test_a_box_that_is_told_to_end_ends_its_processes_and_does_not_start_again(stage):
    stage.answers_file.write_text("wait wait 0 0")
    process = stage.start("box.sh", "--config=tiny", f"--workdir={stage.home / 'run'}", "--processes=2")
    logs = [stage.home / "run" / "logs" / f"process_{i}.log" for i in range(2)]
    eventually(lambda: all(log.exists() and log.read_text() == "ready\n" for log in logs))
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 143
    assert len(stage.calls("clip-jax")) == 2


def test_buckets_are_mounted_once_and_their_paths_translated(stage):
    stage.play("gcsfuse")
    stage.play(
        "mountpoint", "sys.exit(any(sys.argv[-1] in l for l in open(os.environ['CALLS']) if '\"gcsfuse' in l) == 0)"
    )
    assert stage.run("gcs.sh", "data", "tars/{0..9}.tar") == "tars/{0..9}.tar\n"
    assert stage.calls("gcsfuse") == []
    for _ in range(2):
        assert stage.run("gcs.sh", "data", DATA) == MOUNTED.format(home=stage.home) + "\n"
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
def pod(stage):
    stage.play("gcloud", GCLOUD)
    stage.play("uv", UV)
    stage.play("gcsfuse")
    stage.play("sleep", "import time; time.sleep(0.05)")
    return stage


def assert_trained(stage: Stage, times: int) -> None:
    workdir, data = f"{stage.home}/gcs/workdir/runs/b 32", MOUNTED.format(home=stage.home)
    flags = [f"--workdir={workdir}", f"--config.data.path={data}", "--config=clip_vit_b32", NOTE]
    assert stage.calls("clip-jax") == [["train", *flags]] * times


def test_a_pod_is_asked_for_installed_and_trains_detached(pod):
    pod.run("tpu_pod.sh", "start", *POD_START, "--spot=1", "--project=p", "--poll_s=0", "--", NOTE, answers="wait")
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
    log = pod.home / "clip_jax_run" / "log"
    eventually(lambda: log.exists() and "ready" in log.read_text())
    assert_trained(pod, 1)
    assert "ready" in pod.run("tpu_pod.sh", "logs", *POD)
    assert pod.run("tpu_pod.sh", "status", *POD) == "clip: ACTIVE\nrunning\n"
    assert "runs already" in pod.run("tpu_pod.sh", "start", *POD_START, "--poll_s=0", "--", NOTE)
    pod.run("tpu_pod.sh", "stop", *POD)
    eventually(lambda: "stopped" in pod.run("tpu_pod.sh", "status", *POD))
    assert_trained(pod, 1)
    pod.run("tpu_pod.sh", "delete", *POD)
    assert pod.calls("gcloud")[-1][2:] == ["queued-resources", "delete", "clip", POD[1], "--force", "--quiet"]


def test_a_training_on_a_pod_goes_on_after_a_sigterm_and_after_the_slice_was_taken(pod):
    answers = "143 wait 0"  # a SIGTERM; again on the same host; again on a new slice
    pod.answers_file.write_text(answers)
    watch = pod.start("tpu_pod.sh", "watch", *POD_START, "--poll_s=1", "--", NOTE)
    eventually(lambda: len(pod.calls("clip-jax")) == 2)
    eventually(lambda: "ready" in (pod.home / "clip_jax_run" / "log").read_text())
    pid = int((pod.home / "clip_jax_run" / "training_pid").read_text())
    pod.slice.write_text("SUSPENDED")
    for name in ("clip_jax_run", "clip_jax_code", "clip_jax_venv"):  # the new slice has nothing
        shutil.rmtree(pod.home / name)
    os.kill(pid, signal.SIGKILL)
    out, err = watch.communicate(timeout=30)
    assert watch.returncode == 0, out + err
    assert [call[3] for call in pod.calls("gcloud") if call[3] in ("create", "delete")] == [
        "create",
        "delete",
        "create",
    ]
    assert "taken away; it goes on from the newest checkpoint" in out
    assert out.endswith("clip: exit 0\n")
    assert_trained(pod, 3)


def test_watching_a_pod_ends_with_a_failure_of_the_training(pod):
    told = pod.run("tpu_pod.sh", "watch", *POD_START, "--poll_s=0", answers="1", code=2)
    assert "clip: exit 1\n" in told
    assert told.endswith(
        "error: the training failed; " + f"{LAUNCH}/tpu_pod.sh logs --name=clip --zone=us-west4-a shows why\n"
    )
    assert len(pod.calls("clip-jax")) == 1


def test_a_training_on_a_pod_goes_on_after_its_hosts_were_restarted(pod):
    pod.slice.write_text("ACTIVE")
    pod.answers_file.write_text("wait 0")
    watch = pod.start("tpu_pod.sh", "watch", *POD_START, "--poll_s=1", "--", NOTE)
    log, state = pod.home / "clip_jax_run" / "log", pod.home / "clip_jax_run"
    eventually(lambda: log.exists() and "ready" in log.read_text())
    pids = [int((state / name).read_text()) for name in ("pid", "training_pid")]
    (state / "pid").write_text("1")  # by now another's
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    out, err = watch.communicate(timeout=30)
    assert watch.returncode == 0, out + err
    assert out.splitlines()[-1] == "clip: exit 0"
    assert_trained(pod, 2)


def test_watching_a_pod_ends_where_it_cannot_be_had_or_set_up(pod):
    (pod.home / "no quota").touch()
    assert "clip was not granted" in pod.run("tpu_pod.sh", "watch", *POD_START, "--poll_s=0", code=2)
    pod.slice.write_text("ACTIVE")
    pod.play("uv", "sys.exit('no such Python')")
    assert "clip could not be set up" in pod.run("tpu_pod.sh", "watch", *POD_START, "--poll_s=0", code=2)
    assert [call[3] for call in pod.calls("gcloud")].count("create") == 1
    assert pod.calls("clip-jax") == []


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
    stage.run("gke.sh", "start", *GKE_START, f"--data={DATA}", "--slices=2", "--", NOTE)
    flags = {flag.split("=")[0]: flag.split("=", 1)[1] for flag in stage.calls("xpk")[-1][2:]}
    assert flags["--storage"] == "workdir-runs,data-pairs"
    assert flags["--num-slices"] == "2"
    command = flags["--command"].replace("exec clip-jax", str(stage.bin / "clip-jax"), 1)
    stage.answers_file.write_text("0")
    subprocess.run(["bash", "-c", command], env=stage.env, check=True)
    path = DATA.removeprefix("gs://")
    expected = [
        "--workdir=/gcs/workdir/runs/b 32",
        "--config=clip_vit_b32",
        f"--config.data.path=/gcs/data/{path}",
        NOTE,
    ]
    assert stage.calls("clip-jax") == [["train", *expected]]
    stage.run("gke.sh", "stop", *GKE)
    assert stage.calls("xpk")[-1] == ["workload", "delete", "--workload=clip", "--cluster=c", GKE[2], "--project=p"]


def test_the_image_installs_what_the_repository_has():
    lines = [line.split() for line in (LAUNCH / "Dockerfile").read_text().splitlines() if line and line[0] != "#"]
    assert [line[0] for line in lines] == ["FROM", "ARG", "WORKDIR", "COPY", "RUN"]
    assert lines[0][1] == "python:3.12-slim"


SBATCH = ("--config=tiny", "--workdir=/shared/a run", "--data=all tars")


def test_a_slurm_job_runs_one_task_a_gpu_and_is_requeued_after_a_sigterm(stage):
    stage.play("srun", "import subprocess; sys.exit(subprocess.run(sys.argv[2:]).returncode)")
    stage.play("scontrol")
    place = {"SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(LAUNCH.parent.parent)}
    stage.run("slurm.sbatch", *SBATCH, "--", NOTE, answers="0", **place)
    assert stage.calls("srun")[0][0] == "--kill-on-bad-exit=0"
    flags = ["--config.data.path=all tars", "--workdir=/shared/a run", "--config=tiny", NOTE]
    assert sorted(stage.calls("clip-jax")[0]) == sorted(["train", *flags])
    assert stage.calls("scontrol") == []
    assert "requeued" in stage.run("slurm.sbatch", *SBATCH, answers="143", code=143, **place)
    assert stage.calls("scontrol") == [["requeue", "7"]]
    stage.run("slurm.sbatch", *SBATCH, answers="1", code=1, **place)
    # Cancelled: Slurm tells the script and what it has started.
    stage.play("srun", "import signal; os.kill(os.getppid(), signal.SIGTERM); sys.exit(143)")
    stage.run("slurm.sbatch", *SBATCH, code=143, **place)
    assert stage.calls("scontrol") == [["requeue", "7"]]


def test_a_slurm_job_refuses_what_it_cannot_run(stage):
    place = {"SLURM_SUBMIT_DIR": str(LAUNCH.parent.parent)}
    assert "mount the bucket on the nodes" in stage.run(
        "slurm.sbatch", SBATCH[0], "--workdir=gs://r/x", code=2, **place
    )
    assert "srun is not installed" in stage.run("slurm.sbatch", *SBATCH, code=2, **place)
    told = stage.run("slurm.sbatch", *SBATCH, code=2, SLURM_SUBMIT_DIR=str(stage.home))
    assert told == f"slurm.sbatch: error: {stage.home} is not the clone: call sbatch in the folder that has clip_jax/\n"


SMALL = {
    "train.total_steps": 2,
    "optimizer.warmup_steps": 1,
    "train.global_batch_size": 8,
    "train.checkpoint_every": 0,
    "train.evaluate_every": 0,
    "vision.image_size": 16,
    "vision.depth": 1,
    "text.vocab_size": 64,
    "data.num_validation": 8,
    "data.num_examples": 32,
    "data.num_workers": 0,
    "evaluation.zero_shot": (),
    "evaluation.batch_size": 8,
}


@pytest.mark.slow
def test_two_processes_of_a_box_really_train(tmp_path):
    command = tmp_path / "clip jax"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "from clip_jax import cli; cli.main()" "$@"\n')
    command.chmod(0o755)
    workdir = tmp_path / "a run"
    flags = ["--config=tiny", f"--workdir={workdir}", f"--clip_jax={command}", "--processes=2", f"--port={free_port()}"]
    environment = {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    small = [f"--config.{key}={value}" for key, value in SMALL.items()]
    ran = subprocess.run(
        [str(LAUNCH / "box.sh"), *flags, "--", *small], capture_output=True, text=True, env=environment
    )
    assert ran.returncode == 0, ran.stderr
    assert [row["step"] for row in read_metrics(workdir) if "loss" in row] == [1, 2]
    assert "2 processes" in (workdir / "logs" / "process_0.log").read_text()
    assert [int(folder.name) for folder in (workdir / "checkpoints").iterdir()] == [2]
