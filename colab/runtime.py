"""The first cell of every notebook: checks the runtime, installs what is missing, names the fix where it does not fit.

Runs in a bare Colab runtime, before clip_jax is installed, so only the standard library is imported at the top.
CLIP_JAX_SMALL in the environment makes every notebook small, for tests; CLIP_JAX_RUNS says where runs go.
"""

import os
import re
import shutil
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

SMALL = bool(os.environ.get("CLIP_JAX_SMALL"))
ROOT = Path(__file__).resolve().parent.parent
OLDEST_PYTHON, OLDEST_CUDA = (3, 11), 12
SHOWN = ("jax", "flax", "numpy")
MINUTE_STEPS = 600  # of the drawn scenes' model, on two cores
RESTART = "Runtime > Restart session, then run this cell again"


def prepare() -> None:
    """Installs clip_jax where it is missing, checks what is there and prints it.

    Raises:
      RuntimeError: the runtime does not fit; the message says what to do.
    """
    if sys.version_info < OLDEST_PYTHON:
        raise RuntimeError(
            f"this is Python {sys.version.split()[0]}, clip_jax needs {'.'.join(map(str, OLDEST_PYTHON))} or newer: "
            "Runtime > Change runtime type > Runtime version > Latest"
        )
    accelerator, cuda = find_accelerator()
    before = {name: sys.modules[name].__version__ for name in SHOWN if name in sys.modules}
    if not _version("jax-clip"):
        print("installing, about a minute ...", flush=True)
        command = [sys.executable, "-m", "pip", "install", "-q", *requirements(accelerator, cuda)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}\nIs there a network? {RESTART}")
        if str(ROOT) not in sys.path:
            sys.path.insert(0, str(ROOT))  # an editable install is seen by new processes only
    if stale := [name for name, was in before.items() if _version(name) != was]:
        raise RuntimeError(f"installed, but this session still holds the old {', '.join(stale)}: {RESTART}")
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # of clip-jax
    number, platform, kind = find_devices()
    versions = ", ".join(f"{name} {_version(name)}" for name in ("jax-clip", *SHOWN))
    print(f"Python {sys.version.split()[0]}, {versions}; {number} {platform} device(s): {kind}")
    if accelerator != "cpu" and platform == "cpu":
        print(f"There is a {accelerator} that JAX does not see: all will run, slowly. To fix it: {RESTART}")


@cache  # when the cell is run again, this process may hold the TPU
def find_devices() -> list[str]:
    """How many JAX sees, their platform and kind.

    Raises:
      RuntimeError: JAX does not start.
    """
    # In a process of its own: a TPU or a GPU's memory belongs to the first process that looks at it.
    look = "import jax; d = jax.devices(); print(len(d), d[0].platform, d[0].device_kind, sep=',')"
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=False)
    if done.returncode:
        why = done.stderr.strip() or f"exit code {done.returncode}"
        raise RuntimeError(f"JAX finds no device: {why.splitlines()[-1]}. {RESTART}")
    return done.stdout.strip().splitlines()[-1].split(",", 2)


def find_accelerator() -> tuple[str, int]:
    """The kind, "tpu", "gpu" or "cpu", and the driver's CUDA version, 0 without one."""
    # "v5litepod-1", "tpu7x-8" or the like; on a machine without a TPU libtpu writes a sentence there.
    named = os.environ.get("TPU_ACCELERATOR_TYPE", "").startswith(("v", "tpu"))
    if named or Path("/dev/accel0").exists() or Path("/dev/vfio/0").exists():
        return "tpu", 0
    if not shutil.which("nvidia-smi"):
        return "cpu", 0
    done = subprocess.run(["nvidia-smi"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"CUDA Version: (\d+)", done)
    return ("gpu", int(found[1])) if found else ("cpu", 0)


def requirements(accelerator: str, cuda: int) -> list[str]:
    """What pip is to install, run in the repository.

    Raises:
      RuntimeError: a driver that no current JAX runs on.
    """
    # Not the extra "notebook": a runtime has an editor, whose versions are to stay.
    if accelerator == "tpu":
        return ["-e", ".[tpu,hub]", "rich"]
    if accelerator == "cpu":
        return ["-e", ".[hub]", "rich"]
    if cuda < OLDEST_CUDA:
        raise RuntimeError(
            f"this GPU's driver knows CUDA {cuda}, JAX needs {OLDEST_CUDA} or newer: Runtime > Change runtime type, "
            "another GPU or a CPU"
        )
    return ["-e", ".[hub]", "rich", f"jax[cuda{min(cuda, 13)}]"]


def folder(name: str, *, drive: bool = False) -> Path:
    """Where a notebook's run goes: below runs/, or with drive=True in Colab below clip_jax/ of your Drive, which
    outlives the runtime."""
    if drive:
        try:
            from google.colab import drive as mount
        except ImportError:
            print("no Drive outside Colab: the run goes to a folder here")
        else:
            mount.mount("/content/drive")
            return Path("/content/drive/MyDrive/clip_jax") / name
    return Path(os.environ.get("CLIP_JAX_RUNS", "runs")) / name


def upload() -> list[Path]:
    """Pictures chosen in Colab's upload widget; elsewhere, or where none is chosen, an empty list."""
    try:
        from google.colab import files
    except ImportError:
        return []
    return [Path(name) for name in files.upload()]


def load_or_train(name: str):
    """What `clip_jax.load(name)` gives, or where a published model cannot be had, one trained here in a minute.

    Raises:
      ValueError: of another name, as `clip_jax.load` does.
      RuntimeError: the training was stopped.
    """
    import clip_jax
    from clip_jax.runs.loop import train
    from configs import tiny

    try:
        return clip_jax.load(name)
    except ValueError as error:
        if name not in clip_jax.available_models():
            raise
        print(f"{error}\n\nSo a small one is trained on drawn scenes, or the one trained before is taken.")
    workdir = folder("minute_small" if SMALL else "minute")
    if not (workdir / "evaluation.json").exists():
        config = tiny.get_config()
        config.train.total_steps = 30 if SMALL else MINUTE_STEPS
        config.optimizer.warmup_steps = 10 if SMALL else 60
        config.train.evaluate_every = 0
        if SMALL:
            config.evaluation.num_examples = 128
        config.data.scene_kinds = ()  # all kinds
        if train(config.to_dict(), workdir):
            raise RuntimeError("the training was stopped: run this cell again to resume")
    return clip_jax.load(workdir)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
