"""Seconds and memory of a loss and its gradients, whole matrix against blocks: `python -m clip_jax.benchmarks.loss
--num_pairs=16384`; only memory, on devices that need not be there: `--num_pairs=32768 --num_devices=8 --num_runs=0`,
or `--num_pairs=1048576 --topology=v5e:16x16`.

All forms in one process, by turns. Temporaries are what the compiled program needs on each device beside its inputs and
outputs; on TPU, where XLA tells it, the peak of all three.
"""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from clip_jax.benchmarks.options import SHARED, chosen_devices, make_report
from clip_jax.benchmarks.timing import Timed
from clip_jax.cli.parsing import run_command
from clip_jax.distributed.sharding import ShardingConfig, batch_sharding, make_mesh
from clip_jax.losses import normalize
from clip_jax.losses.blockwise import BLOCK_SIZE
from clip_jax.losses.config import FORMS
from clip_jax.planning.topology import topology_devices

for flag in ("num_devices", *SHARED):
    flags.declare_key_flag(flag)
LOSS = flags.DEFINE_enum("loss", "contrastive", list(FORMS), "Which.")
NUM_PAIRS = flags.DEFINE_multi_integer("num_pairs", [4096], "Pairs of a global batch; may be given again.")
EMBED_DIM = flags.DEFINE_integer("embed_dim", 512, "Channels of the features.")
BLOCK_SIZES = flags.DEFINE_multi_integer("block_size", [BLOCK_SIZE], "Rows of a block; may be given again.")
TOPOLOGY = flags.DEFINE_string("topology", None, "TPU slice to compile for instead, such as v5e:16x16; nothing is run.")


def make_forms(loss: str, mesh: Mesh, block_sizes: list[int]) -> dict[str, Callable]:
    """The functions to compare by name, the full form first."""
    full, streamed = FORMS[loss]
    forms: dict[str, Callable] = {"full": partial(full, mesh=mesh)}
    for size in block_sizes:
        forms[f"streamed, {size} rows"] = partial(streamed, mesh=mesh, block_size=size)
    return forms


def compile_all(
    forms: dict[str, Callable], N: int, E: int, num_scalars: int, mesh: Mesh
) -> dict[str, jax.stages.Compiled]:
    """Value and gradient by all arguments of each form."""
    features = jax.ShapeDtypeStruct((N, E), jnp.float32, sharding=batch_sharding(mesh))
    scalars = [jax.ShapeDtypeStruct((), jnp.float32, sharding=NamedSharding(mesh, P()))] * num_scalars
    gradient = partial(jax.value_and_grad, argnums=range(2 + num_scalars), has_aux=True)
    return {name: jax.jit(gradient(form)).lower(features, features, *scalars).compile() for name, form in forms.items()}


def plan(forms: dict[str, Callable], N: int, E: int, num_scalars: int, mesh: Mesh) -> dict[str, dict[str, Any]]:
    """By form, compiled for a slice that is not there: temporaries and peak, or the compiler's refusal."""
    figures: dict[str, dict[str, Any]] = {}
    for name, form in forms.items():
        try:
            memory: Any = compile_all({name: form}, N, E, num_scalars, mesh)[name].memory_analysis()
            sizes = memory.temp_size_in_bytes / 1e6, memory.peak_memory_in_bytes / 1e6
            figures[name] = dict(zip(("temporaries, MB", "peak, MB"), sizes))
        except jax.errors.JaxRuntimeError as error:
            if "HBM" not in str(error):
                raise
            needs = "needs " + str(error).partition("(")[2].partition(")")[0]
            figures[name] = {"temporaries, MB": "does not fit", "peak, MB": needs}
    return figures


def main() -> int:
    """Prints a table for each number of pairs; see the module's docstring."""
    report = make_report("loss", main)
    devices = topology_devices(TOPOLOGY.value) if TOPOLOGY.value else chosen_devices()
    mesh = make_mesh(ShardingConfig(), devices)
    forms = make_forms(LOSS.value, mesh, BLOCK_SIZES.value)
    scalars = [np.log(1 / 0.07), -10][: 1 if LOSS.value == "contrastive" else 2]
    E = EMBED_DIM.value
    for N in NUM_PAIRS.value:
        if TOPOLOGY.value:
            report.add(f"{N:,} pairs, {E} channels, {TOPOLOGY.value}", plan(forms, N, E, len(scalars), mesh))
            continue
        programs = compile_all(forms, N, E, len(scalars), mesh)
        figures = {}
        for name, program in programs.items():
            memory = program.memory_analysis()
            figures[name] = {"temporaries, MB a device": memory.temp_size_in_bytes / 1e6 if memory else None}
        timings = None
        if report.num_runs:
            rng = np.random.default_rng(0)
            sides = rng.standard_normal((2, N, E), np.float32)
            features = [jax.device_put(normalize(jnp.asarray(side)), batch_sharding(mesh)) for side in sides]
            arguments = [*features, *(jax.device_put(np.float32(x), NamedSharding(mesh, P())) for x in scalars)]
            runners = {name: Timed(partial(run, program, arguments)) for name, program in programs.items()}
            timings = report.measure(runners)
        report.add(f"{N:,} pairs, {E} channels, {mesh.size} devices", figures, timings, {"pairs": N})
    report.write()
    return 0


def run(program: jax.stages.Compiled, arguments: list[jax.Array]) -> None:
    """The program, to its end: the next one must not overlap it."""
    jax.block_until_ready(program(*arguments))


if __name__ == "__main__":
    run_command(main, sys.argv)
