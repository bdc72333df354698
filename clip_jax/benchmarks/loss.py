"""Seconds and memory of a loss and its gradients: the whole matrix against blocks, interleaved in one process."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from clip_jax.benchmarks.report import Report
from clip_jax.benchmarks.timing import Timed
from clip_jax.distributed.sharding import batch_sharding
from clip_jax.losses import normalize
from clip_jax.losses.config import FORMS

SCALARS = {"contrastive": (np.log(1 / 0.07),), "sigmoid": (np.log(1 / 0.07), -10.0)}  # logarithm of the scale, bias


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


def plan_forms(forms: dict[str, Callable], N: int, E: int, num_scalars: int, mesh: Mesh) -> dict[str, dict[str, Any]]:
    """By form, compiled for a slice that need not exist: temporaries and peak, or the compiler's refusal."""
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


def measure_loss(report: Report, loss: str, N: int, E: int, block_sizes: list[int], mesh: Mesh) -> None:
    """Adds a table of all forms of a loss of N pairs of E channels to the report."""
    forms, scalars = make_forms(loss, mesh, block_sizes), SCALARS[loss]
    programs = compile_all(forms, N, E, len(scalars), mesh)
    figures = {}
    for name, program in programs.items():
        memory = program.memory_analysis()
        figures[name] = {"temporaries, MB a device": memory.temp_size_in_bytes / 1e6 if memory else None}
    timings = None
    if report.num_runs:
        sides = np.random.default_rng(0).standard_normal((2, N, E), np.float32)
        features = [jax.device_put(normalize(jnp.asarray(side)), batch_sharding(mesh)) for side in sides]
        arguments = [*features, *(jax.device_put(np.float32(x), NamedSharding(mesh, P())) for x in scalars)]
        timings = report.measure({name: Timed(partial(_run, program, arguments)) for name, program in programs.items()})
    report.add(f"{N:,} pairs, {E} channels, {mesh.size} devices", figures, timings, {"pairs": N})


def _run(program: jax.stages.Compiled, arguments: list[jax.Array]) -> None:
    """To its end: the next one must not overlap it."""
    jax.block_until_ready(program(*arguments))
