"""The peak FLOP/s of a device: published, or else measured by a large matrix product.

Model FLOPs utilisation, MFU, is the model's FLOP/s, nothing counted twice, over this peak.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from clip_jax.benchmarks.timing import Runner, Timed
from clip_jax.distributed.sharding import BATCH_AXES
from clip_jax.planning.topology import CHIPS

NUM_PRODUCTS = 5  # in a run


def published_peak(device_kind: str, dtype: str) -> float | None:
    """FLOP/s of a device; None for one that `topology.CHIPS` lacks, or a dtype such as float64 that it lacks of it."""
    chip = CHIPS.get(device_kind)
    return {"bfloat16": chip.flops, "float32": chip.float32_flops}.get(dtype) if chip else None


class Peaks:
    """The peak of each variant's dtype on the devices of a mesh: published, or measured by interleaved products.

    dtypes: of the operands, by variant.
    """

    def __init__(self, mesh: Mesh, dtypes: Mapping[str, str]):
        self._dtypes = dict(dtypes)
        device = mesh.devices.flat[0]
        # Rows a device, and columns: enough to be bound by arithmetic, and short enough to fall between interruptions.
        self._size = 1024 if device.platform == "cpu" else 8192
        self._published = {dtype: published_peak(device.device_kind, dtype) for dtype in dtypes.values()}
        unknown = [dtype for dtype, peak in self._published.items() if peak is None]
        self.runners: dict[str, Runner] = {
            f"product, {dtype}": make_matmul(mesh, dtype, self._size) for dtype in unknown
        }

    def of(self, variant: str, seconds: Mapping[str, np.ndarray]) -> float:
        """FLOP/s of a device at a variant's dtype, from the seconds of all runners."""
        return self._peak(self._dtypes[variant], seconds)

    def _peak(self, dtype: str, seconds: Mapping[str, np.ndarray]) -> float:
        published = self._published[dtype]
        return published or 2 * self._size**3 / float(seconds[f"product, {dtype}"].min())

    def describe(self, seconds: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
        """By dtype: TFLOP/s of a device, and their source."""
        measured = f"measured: the fastest product of {self._size} rows a device and {self._size} columns"
        return {
            dtype: {"TFLOP/s": self._peak(dtype, seconds) / 1e12, "source": "its maker's" if peak else measured}
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
