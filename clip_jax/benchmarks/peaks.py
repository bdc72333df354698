"""How many floating-point operations a device could do: published, or else measured by a large matrix product.

Model FLOPs utilisation, MFU: what a model's products need, without what is computed twice, over this peak.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from clip_jax.benchmarks.timing import Runner, Timed
from clip_jax.sharding import BATCH_AXES

_TPU = "cloud.google.com/tpu/docs/v{}, peak compute per chip"
_H100 = "NVIDIA H100 data sheet, dense: half of what it tells with sparsity"
_H200 = "NVIDIA H200 data sheet, dense: half of what it tells with sparsity"
_A100 = "NVIDIA A100 data sheet, dense"
_L4 = "NVIDIA L4 data sheet, dense: half of what it tells with sparsity"
_L40S = "NVIDIA L40S data sheet, dense"


class Peak(NamedTuple):
    """FLOP/s of one JAX device by the dtype of the operands, and where they were read.

    float32 is what JAX's default precision does with it: bfloat16 passes on TPU, TF32 on GPU.
    """

    bfloat16: float
    float32: float
    source: str


# By jax.Device.device_kind. On v2 and v3 a device is one of a chip's two cores.
PEAKS: dict[str, Peak] = {
    "TPU v2": Peak(22.5e12, 22.5e12, _TPU.format(2) + ", halved"),
    "TPU v3": Peak(61.5e12, 61.5e12, _TPU.format(3) + ", halved"),
    "TPU v4": Peak(275e12, 275e12, _TPU.format(4)),
    "TPU v5 lite": Peak(197e12, 197e12, _TPU.format("5e")),
    "TPU v5e": Peak(197e12, 197e12, _TPU.format("5e")),
    "TPU v5": Peak(459e12, 459e12, _TPU.format("5p")),
    "TPU v5p": Peak(459e12, 459e12, _TPU.format("5p")),
    "TPU v6 lite": Peak(918e12, 918e12, _TPU.format("6e")),
    "TPU v6e": Peak(918e12, 918e12, _TPU.format("6e")),
    "NVIDIA A100-SXM4-40GB": Peak(312e12, 156e12, _A100),
    "NVIDIA A100-SXM4-80GB": Peak(312e12, 156e12, _A100),
    "NVIDIA A100-PCIE-40GB": Peak(312e12, 156e12, _A100),
    "NVIDIA A100 80GB PCIe": Peak(312e12, 156e12, _A100),
    "NVIDIA H100 80GB HBM3": Peak(989.5e12, 494.5e12, _H100 + "; SXM"),
    "NVIDIA H100 PCIe": Peak(756.5e12, 378e12, _H100 + "; PCIe"),
    "NVIDIA H200": Peak(989.5e12, 494.5e12, _H200 + "; SXM"),
    "NVIDIA L4": Peak(121e12, 60e12, _L4),
    "NVIDIA L40S": Peak(362e12, 183e12, _L40S),
}
NUM_PRODUCTS = 5  # in a turn


def published_peak(device_kind: str, dtype: str) -> tuple[float, str] | None:
    """FLOP/s of a device and their source; None for a device, or a dtype such as float64, that the table lacks."""
    peak = PEAKS.get(device_kind)
    if peak is None or dtype not in ("bfloat16", "float32"):
        return None
    return getattr(peak, dtype), peak.source


class Peaks:
    """The peak of each way's dtype on the devices of a mesh: published, or measured among the ways' turns.

    dtypes: of the operands, by way.
    """

    def __init__(self, mesh: Mesh, dtypes: Mapping[str, str]):
        self._dtypes = dict(dtypes)
        device = mesh.devices.flat[0]
        # Rows a device, and columns: enough to be bound by arithmetic, and short enough to find a quiet moment.
        self._size = 1024 if device.platform == "cpu" else 8192
        self._published = {dtype: published_peak(device.device_kind, dtype) for dtype in dtypes.values()}
        unknown = [dtype for dtype, peak in self._published.items() if peak is None]
        self.runners: dict[str, Runner] = {
            f"product, {dtype}": make_matmul(mesh, dtype, self._size) for dtype in unknown
        }

    def of(self, way: str, seconds: Mapping[str, np.ndarray]) -> float:
        """FLOP/s of a device at a way's dtype, from the seconds of all runners."""
        return self._peak(self._dtypes[way], seconds)

    def _peak(self, dtype: str, seconds: Mapping[str, np.ndarray]) -> float:
        published = self._published[dtype]
        return published[0] if published else 2 * self._size**3 / float(seconds[f"product, {dtype}"].min())

    def describe(self, seconds: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
        """By dtype: TFLOP/s of a device, and where from."""
        measured = f"measured: the fastest product of {self._size} rows a device and {self._size} columns"
        return {
            dtype: {"TFLOP/s": self._peak(dtype, seconds) / 1e12, "source": peak[1] if peak else measured}
            for dtype, peak in self._published.items()
        }


def make_matmul(mesh: Mesh, dtype: str, size: int) -> Runner:
    """A runner of the product of [size * devices, size] and [size, size], rows split over all devices: seconds of the
    fastest of a few."""
    rows, everywhere = NamedSharding(mesh, P((*BATCH_AXES, "tensor"))), NamedSharding(mesh, P())
    a = jax.jit(lambda: jnp.ones((size * mesh.size, size), dtype), out_shardings=rows)()
    b = jax.jit(lambda: jnp.ones((size, size), dtype), out_shardings=everywhere)()
    multiply = jax.jit(jnp.matmul, out_shardings=rows)
    run = Timed(lambda: multiply(a, b), min_run_s=0)
    return lambda: min(run() for _ in range(NUM_PRODUCTS))


def utilisation(model_flops: float, seconds: float, num_devices: int, peak: float) -> float:
    """MFU, in [0, 1]: the model's FLOPs, of all devices together, over what these could do in that time."""
    return model_flops / (seconds * num_devices * peak)
