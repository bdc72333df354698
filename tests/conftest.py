"""Eight devices on any machine, so that no sharding test is ever skipped, and quick rather than tight compilation.

Set before jax wakes up.
"""

import os

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)
os.environ["JAX_PLATFORMS"] = "cpu"

from pathlib import Path

import jax
import pytest

GOLDENS = Path(__file__).parent / "goldens"


@pytest.fixture
def x64():
    """float64 for tests that compare with float64 references."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def goldens() -> Path:
    return GOLDENS
