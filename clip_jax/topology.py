"""TPU slices that are not there: XLA knows enough of them to compile for them, memory and refusals included."""

import os

import jax
from jax.experimental import topologies

# Else libtpu asks the cloud's metadata server, for minutes, and complains that nobody answers.
NOT_ON_A_TPU = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-4"}


def topology_devices(name: str) -> list[jax.Device]:
    """The devices of a Cloud TPU slice, such as those of "v5e:16x16": good to compile for, not to compute on.

    Raises ValueError when there is no such slice, or libtpu, which holds the compiler, is not installed.
    """
    for variable, value in NOT_ON_A_TPU.items():
        os.environ.setdefault(variable, value)
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name).devices)
    except Exception as error:
        if "libtpu" in str(error):
            raise ValueError(
                f"to compile for {name} takes libtpu, which is not installed: pip install -e '.[tpu]'"
            ) from error
        raise ValueError(
            f"topology {name!r} is not one that libtpu knows ({error}): write one like v5e:16x16, v6e:8x8 or v5p:4x4x4"
        ) from error
