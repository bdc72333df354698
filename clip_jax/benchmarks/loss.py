"""Seconds and memory of a loss and its gradients, whole matrix against blocks: `python -m clip_jax.benchmarks.loss
--num_pairs=16384`; only memory, on devices that need not be there: `--num_pairs=32768 --num_devices=8 --num_runs=0`,
or `--num_pairs=1048576 --topology=v5e:16x16`.

All forms in one process, by turns, compared by the medians of the paired ratios and by the fastest runs. Temporaries
are what the compiled program needs on each device beside its inputs and outputs; on TPU, where XLA tells it, the peak
of all three.
"""

import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from clip_jax import cli
from clip_jax.losses import normalize
from clip_jax.losses.choice import FORMS
from clip_jax.losses.ring import BLOCK_SIZE
from clip_jax.metrics import format_table
from clip_jax.sharding import ShardingConfig, batch_sharding, make_mesh
from clip_jax.topology import topology_devices

LOSS = flags.DEFINE_enum("loss", "contrastive", list(FORMS), "Which.")
NUM_PAIRS = flags.DEFINE_multi_integer("num_pairs", [4096], "Pairs of a global batch; may be given again.")
EMBED_DIM = flags.DEFINE_integer("embed_dim", 512, "Channels of the features.")
NUM_DEVICES = flags.DEFINE_integer("num_devices", 1, "Devices; on CPU as many as are wished.")
BLOCK_SIZES = flags.DEFINE_multi_integer("block_size", [BLOCK_SIZE], "Rows of a block; may be given again.")
TOPOLOGY = flags.DEFINE_string("topology", None, "TPU slice to compile for instead, such as v5e:16x16; nothing is run.")
NUM_RUNS = flags.DEFINE_integer("num_runs", 5, "Runs of each form; 0 only compiles.")


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


def measure(
    programs: dict[str, jax.stages.Compiled], arguments: list[jax.Array], num_runs: int
) -> dict[str, list[float]]:
    """Seconds of each run by the form's name, the forms taking turns."""
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(num_runs):
        for name, program in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program(*arguments))
            seconds[name].append(time.perf_counter() - start)
    return seconds


def plan(forms: dict[str, Callable], N: int, E: int, num_scalars: int, mesh: Mesh) -> list[list[str]]:
    """A row of each form, compiled for a slice that is not there: temporaries and peak, or the compiler's refusal."""
    rows = []
    for name, form in forms.items():
        try:
            memory: Any = compile_all({name: form}, N, E, num_scalars, mesh)[name].memory_analysis()
            rows.append([name, f"{memory.temp_size_in_bytes / 1e6:,.1f}", f"{memory.peak_memory_in_bytes / 1e6:,.1f}"])
        except jax.errors.JaxRuntimeError as error:
            if "HBM" not in str(error):
                raise
            rows.append([name, "does not fit", "needs " + str(error).partition("(")[2].partition(")")[0]])
    return rows


def main() -> int:
    """Prints a table for each number of pairs; see the module's docstring."""
    jax.config.update("jax_num_cpu_devices", NUM_DEVICES.value)
    devices = topology_devices(TOPOLOGY.value) if TOPOLOGY.value else jax.devices()[: NUM_DEVICES.value]
    mesh = make_mesh(ShardingConfig(), devices)
    forms = make_forms(LOSS.value, mesh, BLOCK_SIZES.value)
    scalars = [np.log(1 / 0.07), -10][: 1 if LOSS.value == "contrastive" else 2]
    for N in NUM_PAIRS.value:
        if TOPOLOGY.value:
            titles = [
                f"{N:,} pairs, {EMBED_DIM.value} channels, {TOPOLOGY.value}",
                "temporaries, MB",
                "peak, MB",
            ]
            print(format_table(titles, plan(forms, N, EMBED_DIM.value, len(scalars), mesh)), flush=True)
            continue
        programs = compile_all(forms, N, EMBED_DIM.value, len(scalars), mesh)
        rows = []
        for name, program in programs.items():
            memory = program.memory_analysis()
            rows.append([name, f"{memory.temp_size_in_bytes / 1e6:,.1f}" if memory else "unknown"])
        titles = [f"{N:,} pairs, {EMBED_DIM.value} channels, {NUM_DEVICES.value} devices", "temporaries, MB a device"]
        if NUM_RUNS.value:
            rng = np.random.default_rng(0)
            sides = rng.standard_normal((2, N, EMBED_DIM.value), np.float32)
            features = [jax.device_put(normalize(jnp.asarray(side)), batch_sharding(mesh)) for side in sides]
            arguments = [*features, *(jax.device_put(np.float32(x), NamedSharding(mesh, P())) for x in scalars)]
            seconds = {name: np.array(times) for name, times in measure(programs, arguments, NUM_RUNS.value).items()}
            titles += ["s, fastest", "s, median", "of the full form's, fastest", "median of pairs"]
            for row in rows:
                times, full = seconds[row[0]], seconds["full"]
                row += [f"{times.min():.2f}", f"{np.median(times):.2f}"]
                row += [f"{times.min() / full.min():.2f}", f"{np.median(times / full):.2f}"]
        print(format_table(titles, rows), flush=True)
    return 0


if __name__ == "__main__":
    cli.run(main, sys.argv)
