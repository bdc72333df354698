"""How arrays are split over devices: the mesh, a table from parameter path to partition, and placing of batches."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from input_pipeline.ranges import Range, check_ranges

MESH_AXES = ("data", "fsdp", "tensor")
T = TypeVar("T")
BATCH_AXES = ("data", "fsdp")

# Parameters by path; a leading None is the stacked depth axis. Letters: D width, H heads, K head_dim, M mlp_dim.
PARAM_RULES: tuple[tuple[str, P], ...] = (
    (r".*/blocks/attn/qkv/kernel", P(None, "fsdp", None, "tensor", None)),  # [depth, D, 3, H, K]
    (r".*/blocks/attn/qkv/bias", P(None, None, "tensor", None)),  # [depth, 3, H, K]
    (r".*/blocks/attn/out/kernel", P(None, "tensor", None, "fsdp")),  # [depth, H, K, D]
    (r".*/blocks/mlp/fc_in/kernel", P(None, "fsdp", "tensor")),  # [depth, D, M]
    (r".*/blocks/mlp/fc_in/bias", P(None, "tensor")),  # [depth, M]
    (r".*/blocks/mlp/fc_out/kernel", P(None, "tensor", "fsdp")),  # [depth, M, D]
    (r".*/blocks/(attn/out|mlp/fc_out)/bias", P()),
    (r".*/ln(_\w+)?/(scale|bias)", P()),
    (r"visual/patch_embedding/kernel", P(None, "fsdp")),  # [3 * patch_size**2, D]
    (r"visual/patch_embedding/bias", P()),
    (r"(visual|text)/class_embedding", P()),
    (r"(visual|text)/positional_embedding", P()),
    (r"text/token_embedding/embedding", P(None, "fsdp")),  # [vocab_size, D]
    (r"(visual|text)_projection/kernel", P("fsdp", None)),  # [D, embed_dim]
    (r"(visual|text)_projection/bias", P()),
    (r"(visual|text)_projection/fc_in/kernel", P("fsdp", "tensor")),  # [D, D]
    (r"(visual|text)_projection/fc_in/bias", P("tensor")),  # [D]
    (r"(visual|text)_projection/fc_out/kernel", P("tensor", "fsdp")),  # [D, embed_dim]
    (r"logit_(scale|bias)", P()),
    # A decoder's attention over the image; its other layers are as the towers'.
    (r"decoder/blocks/cross/(query|key|value)/kernel", P(None, "fsdp", "tensor", None)),  # [depth, D, H, K]
    (r"decoder/blocks/cross/(query|key|value)/bias", P(None, "tensor", None)),  # [depth, H, K]
    (r"decoder/blocks/cross/out/kernel", P(None, "tensor", None, "fsdp")),  # [depth, H, K, D]
    (r"decoder/blocks/cross/out/bias", P()),
    (r"decoder/(start|positional)_embedding", P()),
    # Of models that predict captions.
    (r"(word_logits|prefix_projection)/kernel", P("fsdp", None)),  # [embed_dim, vocab_size or D]
    (r"(word_logits|prefix_projection)/bias", P()),
    # Attention pooling: of ResNets and of CoCa; the head of SigLIP.
    (r"visual/attention_(pool|head)/(query|key|value)/kernel", P("fsdp", "tensor", None)),  # [D, H, K]
    (r"visual/attention_(pool|head)/(query|key|value)/bias", P("tensor", None)),  # [H, K]
    (r"visual/attention_(pool|head)/out/kernel", P("tensor", None, "fsdp")),  # [H, K, D or embed_dim]
    (r"visual/attention_(pool|head)/out/bias", P()),
    (r"visual/attention_pool/positional_embedding", P()),
    (r"visual/attention_(pool|head)/probe", P()),
    (r"visual/attention_head/mlp/fc_in/kernel", P("fsdp", "tensor")),  # [D, M]
    (r"visual/attention_head/mlp/fc_in/bias", P("tensor")),  # [M]
    (r"visual/attention_head/mlp/fc_out/kernel", P("tensor", "fsdp")),  # [M, D]
    (r"visual/attention_head/mlp/fc_out/bias", P()),
    # Convolutions [size, size, C_in, C_out], those of a stage's later blocks stacked.
    (r"visual/stem_\d/conv/kernel", P()),
    (r"visual/stage_\d/first/\w+/conv/kernel", P(None, None, None, "fsdp")),
    (r"visual/stage_\d/blocks/\w+/conv/kernel", P(None, None, None, None, "fsdp")),
    (r"visual/.*/norm/(scale|bias)", P()),
)


AXIS = Range(-1, 2**20)


@dataclass(frozen=True, kw_only=True)
class ShardingConfig:
    """Number of devices along each mesh axis; -1, at most once, stands for the remaining ones.

    data: splits the batch; parameters are copied. fsdp: splits the batch, parameters and optimizer state. tensor:
    splits heads and MLP channels.
    """

    data: Annotated[int, AXIS] = -1
    fsdp: Annotated[int, AXIS] = 1
    tensor: Annotated[int, AXIS] = 1

    def __post_init__(self) -> None:
        check_ranges(self, "sharding.")


def make_mesh(config: ShardingConfig = ShardingConfig(), devices: list[jax.Device] | None = None) -> Mesh:
    """A (data, fsdp, tensor) mesh over `devices`, by default all of them.

    Axes are Auto: with JAX's default, Explicit, the similarity matrix of two batch-sharded sides is a type error.
    Of several TPU slices, data takes the outer factor: only its all-reduces cross the slower network between them.
    """
    devices = jax.devices() if devices is None else devices
    shape, types = _mesh_shape(config, len(devices)), (AxisType.Auto,) * 3
    # Other platforms report slices, too, but order their devices by process, and fsdp may span processes.
    # Devices that only a topology describes have no slice_index.
    slices = len({getattr(d, "slice_index", 0) for d in devices}) if devices[0].platform == "tpu" else 1
    if slices == 1:
        return jax.make_mesh(shape, MESH_AXES, axis_types=types, devices=devices)
    data, *inner = shape
    if data % slices:
        raise ValueError(
            f"sharding.data={data} is not a multiple of the {slices} TPU slices, between which only data can be split: "
            f"lower fsdp={inner[0]} or tensor={inner[1]}"
        )
    array = mesh_utils.create_hybrid_device_mesh(
        (data // slices, *inner),
        (slices, 1, 1),
        devices,
        allow_split_physical_axes=True,  # as jax.make_mesh does
    )
    return Mesh(array, MESH_AXES, axis_types=types)


def make_abstract_mesh(config: ShardingConfig, num_devices: int) -> AbstractMesh:
    """The same mesh without its devices: enough to compute shapes and shardings."""
    return AbstractMesh(_mesh_shape(config, num_devices), MESH_AXES, axis_types=(AxisType.Auto,) * 3)


def _mesh_shape(config: ShardingConfig, num_devices: int) -> tuple[int, ...]:
    sizes = [config.data, config.fsdp, config.tensor]
    known = int(np.prod([s for s in sizes if s != -1]))
    wrong = sizes.count(-1) > 1 or any(s == 0 or s < -1 for s in sizes)
    if wrong or num_devices % known or (-1 not in sizes and known != num_devices):
        raise ValueError(
            f"sharding data={config.data}, fsdp={config.fsdp}, tensor={config.tensor} does not multiply to the "
            f"{num_devices} devices: set one of them to -1 for 'the rest' and the others to divisors"
        )
    return tuple(num_devices // known if s == -1 else s for s in sizes)


def batch_shards(mesh: Mesh) -> int:
    """Number of parts a batch is split into."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows split over the batch axes."""
    return NamedSharding(mesh, P(BATCH_AXES))


def param_specs(params: Mapping[str, Any]) -> Any:
    """The partition of every parameter of a nested dict, by PARAM_RULES.

    Raises ValueError for a parameter that no rule, or more than one, matches.
    """

    def spec(path: tuple[Any, ...], _: Any) -> P:
        name = "/".join(str(key.key) for key in path)
        specs = [rule for pattern, rule in PARAM_RULES if re.fullmatch(pattern, name)]
        if len(specs) != 1:
            raise ValueError(f"parameter {name} matches {len(specs)} rules of PARAM_RULES; it must match exactly one")
        return specs[0]

    return jax.tree_util.tree_map_with_path(spec, params)


def param_shardings(params: Mapping[str, Any], mesh: Mesh | AbstractMesh) -> Any:
    """The sharding of every parameter, an array or its shape, on a mesh.

    Raises ValueError for a parameter whose size a mesh axis does not divide.
    """

    def sharding(path: tuple[Any, ...], spec: P, leaf: Any) -> NamedSharding:
        for size, axis in zip(leaf.shape, spec):
            if axis is not None and size % mesh.shape[axis]:
                name = "/".join(str(key.key) for key in path)
                # The devices, too, must be a multiple of it.
                below = max(d for d in range(1, mesh.shape[axis]) if size % d == mesh.size % d == 0)
                raise ValueError(
                    f"sharding.{axis}={mesh.shape[axis]} does not divide the {size} of {name} {list(leaf.shape)}: "
                    f"use {below}, or another divisor of {size}"
                )
        return NamedSharding(mesh, spec)

    specs = param_specs(params)
    return jax.tree_util.tree_map_with_path(sharding, specs, params, is_leaf=lambda x: isinstance(x, P))


def local_rows(mesh: Mesh, global_batch_size: int) -> np.ndarray:
    """The positions in a global batch, ascending, of the rows that this process's devices hold.

    Processes that share a tensor group hold the same rows; a process's rows need not be adjacent.
    """
    spans = batch_sharding(mesh).addressable_devices_indices_map((global_batch_size,)).values()
    rows = np.arange(global_batch_size)
    return np.unique(np.concatenate([rows[span] for span in spans]))


def place_batch(batch: Mapping[str, Any], mesh: Mesh) -> dict[str, Any]:
    """Makes global arrays, rows split over the batch axes, of this process's rows (`local_rows`) of all arrays."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda array: jax.make_array_from_process_local_data(sharding, array), dict(batch))


def place_whole_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Like `place_batch`, but each process gives all rows of the global array, the same ones."""
    return {name: place_as(array, batch_sharding(mesh)) for name, array in batch.items()}


def place_as(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """The global array of an array that every process has completely."""
    return jax.make_array_from_process_local_data(sharding, array, array.shape)


def platform() -> str:
    """Platform of the program being traced, "cpu", "gpu" or "tpu": of the mesh in context, or JAX's default."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device else jax.default_backend()


def constrain_batch(x: T, axis: int = 0) -> T:
    """Keeps the rows of every array of a pytree, by default along its leading axis, split over the batch axes.

    Without a mesh in context (`jax.set_mesh`) it does nothing.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, P(*[None] * axis, BATCH_AXES))
