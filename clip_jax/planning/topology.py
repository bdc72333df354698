"""The chips to plan for, and TPU slices that need not exist: XLA compiles for them, with their limits of memory."""

import os
from dataclasses import dataclass

import jax
from jax.experimental import topologies

# Otherwise libtpu waits minutes for the cloud's metadata server, and admits only one process of a machine, as if each
# used the chips.
NOT_ON_A_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@dataclass(frozen=True, kw_only=True)
class Chip:
    """The peak numbers of a chip: its maker's, except a TPU's memory_bytes.

    Attributes:
      name: the product's.
      memory_bytes: of main memory that a program may use; of TPUs the limit of XLA's compiler.
      flops: bfloat16 operations a second, dense.
      float32_flops: of float32 products at JAX's default precision: bfloat16 passes, or TF32 on a GPU.
      memory_bandwidth: bytes a second.
      network_bandwidth: bytes a second that a chip sends to the others of its slice or host, over all its links.
      example: a slice for rent.
    """

    name: str
    memory_bytes: float
    flops: float
    float32_flops: float
    memory_bandwidth: float
    network_bandwidth: float
    example: str = ""


# By jax.Device.device_kind: name, GiB, TFLOP/s, those of float32 products, GB/s of memory, GB/s of network, a slice. Of
# TPUs: https://cloud.google.com/tpu/docs/system-architecture-tpu-vm and the page of each; of GPUs NVIDIA's data sheets.
_TABLE: dict[str, tuple[str, float, float, float, float, float, str]] = {
    "TPU v4": ("v4", 30.75, 275, 275, 1228, 300, "v4:4x4x4"),
    "TPU v5 lite": ("v5e", 15.75, 197, 197, 819, 200, "v5e:16x16"),
    "TPU v5": ("v5p", 95.73, 459, 459, 2765, 600, "v5p:4x4x4"),
    "TPU v6 lite": ("v6e", 31.24, 918, 918, 1640, 448, "v6e:16x16"),
    "NVIDIA A100-SXM4-80GB": ("A100", 74.5, 312, 156, 2039, 300, ""),
    "NVIDIA H100 80GB HBM3": ("H100", 74.5, 989, 494, 3350, 450, ""),
    "NVIDIA H200": ("H200", 131.3, 989, 494, 4800, 450, ""),
}
CHIPS = {
    kind: Chip(
        name=name,
        memory_bytes=gib * 2**30,
        flops=flops * 1e12,
        float32_flops=float32 * 1e12,
        memory_bandwidth=memory * 1e9,
        network_bandwidth=network * 1e9,
        example=example,
    )
    for kind, (name, gib, flops, float32, memory, network, example) in _TABLE.items()
}
FAMILIES = {chip.name: chip for chip in CHIPS.values() if chip.example}


def topology_devices(name: str) -> list[jax.Device]:
    """The devices of a Cloud TPU slice, such as "v5e:16x16", to compile for and not to compute on.

    Raises ValueError when there is no such slice, or libtpu, the compiler, is not installed.
    """
    family = name.partition(":")[0]
    if family not in FAMILIES:
        raise ValueError(f"topology {name!r} is not one to plan for: use {_known()}")
    for variable, value in NOT_ON_A_TPU.items():
        os.environ.setdefault(variable, value)
    # Without it a v4 chip shows as two devices, which no v4 slice has had since megacore.
    cores = {"chip_config_name": "megacore"} if family == "v4" else {}
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name, **cores).devices)
    except Exception as error:
        if "libtpu" in str(error) and "lockfile" not in str(error):
            raise ValueError(
                f"to compile for {name} takes libtpu, which is not installed: pip install 'jax-clip[tpu]'"
            ) from error
        raise ValueError(f"topology {name!r} is not one that libtpu knows ({error}): use {_known()}") from error


def _known() -> str:
    chips = [
        f"{chip.example} ({chip.name}: {chip.memory_bytes / 2**30:.2f} GiB a chip, {chip.flops / 1e12:.0f} TFLOP/s)"
        for chip in FAMILIES.values()
    ]
    return f"the chip and the slice's shape, such as {', '.join(chips)}"
