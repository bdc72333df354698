"""Every parameter with its shape, its partition, and its bytes on a device, optimizer state included."""

import math
from typing import Any, NamedTuple

import jax
from flax.traverse_util import flatten_dict
from jax.sharding import PartitionSpec as P

from clip_jax.models.variables import join_variables
from clip_jax.tables import format_table
from clip_jax.training.state import TrainState


class ParamRow(NamedTuple):
    """One parameter: shape, partition, and bytes on each device; optimizer_bytes are of moments and average, 0 if
    frozen."""

    name: str
    shape: tuple[int, ...]
    spec: P
    param_bytes: int
    optimizer_bytes: int


def param_table(state: TrainState) -> list[ParamRow]:
    """Every parameter by name; of the state only shapes and shardings are read, see `Training.abstract`."""
    params = flatten_dict(join_variables(state.params, state.frozen), sep="/")
    moments: dict[str, int] = dict.fromkeys(params, 0)
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state):
        keys = "/".join(str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey))
        if keys in moments:
            moments[keys] += _bytes(leaf)
    for name, leaf in flatten_dict(state.ema, sep="/").items():
        if name in moments:
            moments[name] += _bytes(leaf)
    return [
        ParamRow(name, leaf.shape, leaf.sharding.spec, _bytes(leaf), moments[name]) for name, leaf in params.items()
    ]


def _bytes(leaf: Any) -> int:
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def as_table(rows: list[ParamRow]) -> str:
    """The rows as a table, with a sum at the end."""
    cells = [
        [name, "x".join(map(str, shape)), _describe(spec), f"{param_bytes:,}", f"{optimizer_bytes:,}"]
        for name, shape, spec, param_bytes, optimizer_bytes in rows
    ]
    total = [
        f"{len(rows)} parameters",
        f"{sum(math.prod(row.shape) for row in rows):,} numbers",
        "",
        f"{sum(row.param_bytes for row in rows):,}",
        f"{sum(row.optimizer_bytes for row in rows):,}",
    ]
    header = ["parameter", "shape", "partition", "bytes a device", "of moments and average"]
    return format_table(header, [*cells, total])


def _describe(spec: P) -> str:
    return ", ".join("-" if axis is None else str(axis) for axis in spec) or "on every device"
