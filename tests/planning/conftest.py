"""libtpu takes the flags of XLA from the environment, and crashes of those for the CPU."""

import os

import jax
import pytest
from processes import FUSED, QUICK


@pytest.fixture(autouse=True, scope="module")
def no_flags_of_the_cpu():
    jax.devices()  # so that the CPU's compiler has taken them before
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"].replace(QUICK, FUSED))
        yield
