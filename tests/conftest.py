"""Eight devices on any machine, so that no sharding test is ever skipped, and quick rather than tight compilation.

Set before jax wakes up.
"""

import atexit
import gc
import os
import shutil
import signal
import tempfile

from processes import QUICK, Processes

os.environ["CLIP_JAX_CACHE"] = tempfile.mkdtemp(prefix="clip_jax_cache_")  # of kept indices and copies of data
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8 {QUICK}"
os.environ["JAX_PLATFORMS"] = "cpu"

from pathlib import Path

import jax
import jaxtyping
import pytest
from jax.experimental.compilation_cache import compilation_cache

# Types and shapes in these modules' signatures are checked at run time, in tests only; configs check themselves.
SHAPES_CHECKED = [
    *(f"clip_jax.evaluation.metrics.{name}" for name in ("bias", "binomial", "classification", "few_shot")),
    *(f"clip_jax.evaluation.metrics.{name}" for name in ("linear_probe", "logistic_regression", "overlap")),
    *(f"clip_jax.evaluation.metrics.{name}" for name in ("retrieval", "robustness", "statistics", "zero_shot")),
    *(f"clip_jax.losses.{name}" for name in ("blockwise", "captions", "contrastive", "sigmoid", "streamed")),
    *(f"clip_jax.models.{name}" for name in ("batch_norm", "caption_models", "clip", "modified_resnet")),
    *(f"clip_jax.models.{name}" for name in ("text_transformer", "transformer", "variables", "vision_transformer")),
]
jaxtyping.install_import_hook(SHAPES_CHECKED, "type_checker.check")

GOLDENS = Path(__file__).parent / "goldens"

gc.set_threshold(200_000, 20, 100)  # traced programs are many objects that stay, walked in vain 5 % of the time

# What is started by `nohup ... &` ignores Ctrl-C, and so would all that tests start and interrupt. And tests that are
# told to end take down what they have started.
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.default_int_handler)


atexit.register(shutil.rmtree, os.environ["CLIP_JAX_CACHE"], ignore_errors=True)


@pytest.fixture
def processes():
    """Starts programs, and kills what is left of them after the test, passed or failed."""
    with Processes() as processes:
        yield processes


@pytest.fixture
def adopt(processes, monkeypatch):
    """What the code under test starts is killed after the test, too."""
    for name, value in processes.environment.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def x64():
    """float64 for tests that compare with float64 references."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def shapes_unchecked():
    """Signatures are not checked, as where users run: a function's own message about a shape is seen."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def goldens() -> Path:
    return GOLDENS


@pytest.fixture(scope="module")
def compile_once(tmp_path_factory):
    """Runs and their subprocesses share one cache of compiled programs, over modules and workers, too."""
    folder = tmp_path_factory.getbasetemp()  # a worker's own lies in that of them all
    settings = {
        "jax_compilation_cache_dir": str(
            (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "compiled"
        ),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name.upper(), str(value))
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
