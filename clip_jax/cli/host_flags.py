"""Flags of a run in several processes, each with the same command; within a cluster they are found by themselves."""

from typing import Any

from absl import flags

COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, to start several processes by hand.")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of processes in the run.", lower_bound=1)
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Index of this process, from 0.", lower_bound=0)
CLUSTER = flags.DEFINE_string(
    "cluster",
    "auto",
    "Detection of the processes that no flag names: auto for TPU, Slurm and Open MPI; none; or a detector of JAX's.",
)
HOST_TIMEOUT_S = flags.DEFINE_integer(
    "host_timeout_s", 300, "Seconds to wait until all processes have started.", lower_bound=1
)
HOST_FLAGS = ("coordinator", "num_processes", "process_id", "cluster", "host_timeout_s")


def host_options() -> dict[str, Any]:
    """The arguments of `distributed.processes.joined`."""
    return {
        "coordinator": COORDINATOR.value,
        "num_processes": NUM_PROCESSES.value,
        "process_id": PROCESS_ID.value,
        "cluster": CLUSTER.value,
        "timeout_s": HOST_TIMEOUT_S.value,
    }
