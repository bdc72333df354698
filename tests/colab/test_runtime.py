"""The first cell of the notebooks, on machines that are not here."""

import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

SPEC = spec_from_file_location("runtime", Path(__file__).parents[2] / "colab" / "runtime.py")
runtime = module_from_spec(SPEC)
SPEC.loader.exec_module(runtime)

SMI = "| NVIDIA-SMI 550.54.15    Driver Version: 550.54.15    CUDA Version: {}   |"


def answer(monkeypatch, *, returncode=0, stdout="1,cpu,cpu\n", stderr=""):
    """What every command says; the list of those that were called."""
    called = []
    runtime.find_devices.cache_clear()

    def run(command, **_):
        called.append(command)
        return subprocess.CompletedProcess(command, returncode, stdout, stderr)

    monkeypatch.setattr(runtime.subprocess, "run", run)
    monkeypatch.setattr(runtime, "find_accelerator", lambda: ("cpu", 0))
    return called


@pytest.mark.parametrize(
    ("accelerator", "cuda", "expected"),
    [
        ("cpu", 0, ["-e", ".[hub]", "rich"]),
        ("tpu", 0, ["-e", ".[tpu,hub]", "rich"]),
        ("gpu", 12, ["-e", ".[hub]", "rich", "jax[cuda12]"]),
        ("gpu", 14, ["-e", ".[hub]", "rich", "jax[cuda13]"]),
    ],
)
def test_what_is_installed_fits_the_accelerator(accelerator, cuda, expected):
    assert runtime.requirements(accelerator, cuda) == expected


def test_an_old_driver_is_refused():
    with pytest.raises(RuntimeError, match="this GPU's driver knows CUDA 11, JAX needs 12 or newer: Runtime > Change"):
        runtime.requirements("gpu", 11)


def test_an_old_python_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 10, 4))
    with pytest.raises(RuntimeError, match=r"clip_jax needs 3\.11 or newer: Runtime > Change runtime type > Runtime v"):
        runtime.prepare()


@pytest.mark.parametrize(("cuda", "expected"), [("12.4", ("gpu", 12)), ("13.0", ("gpu", 13)), ("N/A", ("cpu", 0))])
def test_the_driver_says_its_cuda(monkeypatch, cuda, expected):
    monkeypatch.setenv("TPU_ACCELERATOR_TYPE", "WARNING: could not determine TPU accelerator type")
    monkeypatch.setattr(runtime.shutil, "which", lambda name: f"/usr/bin/{name}")
    result = subprocess.CompletedProcess([], 0, SMI.format(cuda), "")
    monkeypatch.setattr(runtime.subprocess, "run", lambda *_, **__: result)
    monkeypatch.setattr(runtime.Path, "exists", lambda _: False)
    assert runtime.find_accelerator() == expected


def test_a_tpu_is_known_by_its_environment(monkeypatch):
    monkeypatch.setenv("TPU_ACCELERATOR_TYPE", "v5litepod-1")
    assert runtime.find_accelerator() == ("tpu", 0)


def test_a_failed_installation_is_told(monkeypatch):
    answer(monkeypatch, returncode=1, stderr="No matching distribution found")
    monkeypatch.setattr(runtime, "_version", lambda name: None)
    with pytest.raises(
        RuntimeError, match=r"(?s)pip install .* failed:\nNo matching distribution found\nIs there a net"
    ):
        runtime.prepare()


def test_what_is_installed_over_a_module_in_use_asks_for_a_restart(monkeypatch):
    answer(monkeypatch)
    versions = {"jax-clip": "0.1.0", "numpy": "9.9"}
    monkeypatch.setattr(runtime, "_version", lambda name: versions.get(name) or sys.modules[name].__version__)
    with pytest.raises(RuntimeError, match="this session still holds the old numpy: Runtime > Restart session"):
        runtime.prepare()


def test_what_is_there_is_printed_and_nothing_installed(monkeypatch, capsys):
    called = answer(monkeypatch)
    runtime.prepare()
    assert len(called) == 1  # the look at the devices
    assert "1 cpu device(s): cpu" in capsys.readouterr().out


def test_the_devices_are_looked_at_once(monkeypatch):
    called = answer(monkeypatch)
    runtime.prepare()
    runtime.prepare()
    assert len(called) == 1


def test_a_jax_that_does_not_start_is_told(monkeypatch):
    answer(monkeypatch, returncode=-11)
    with pytest.raises(RuntimeError, match=r"JAX finds no device: exit code -11\. Runtime > Restart"):
        runtime.prepare()


def test_a_name_that_is_no_model_trains_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("CLIP_JAX_RUNS", str(tmp_path))
    with pytest.raises(ValueError, match="ViT-B32"):
        runtime.load_or_train("ViT-B32")
    assert not list(tmp_path.iterdir())


def test_an_accelerator_that_jax_does_not_see_is_told(monkeypatch, capsys):
    answer(monkeypatch)
    monkeypatch.setattr(runtime, "find_accelerator", lambda: ("gpu", 12))
    runtime.prepare()
    assert "There is a gpu that JAX does not see: all will run, slowly." in capsys.readouterr().out


def test_no_drive_and_no_upload_outside_colab(monkeypatch, capsys):
    monkeypatch.setenv("CLIP_JAX_RUNS", "somewhere")
    assert runtime.folder("train", drive=True) == Path("somewhere/train")
    assert "no Drive outside Colab" in capsys.readouterr().out
    assert runtime.upload() == []
