"""Time and memory of a training step, for several variants of a config, interleaved in one process.

Random pictures and captions; the state is handed on from variant to variant, buffers are donated as in training. MFU
counts what the model's products need, without what a variant computes twice.
"""

import dataclasses
import math
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from clip_jax.benchmarks.batch_size import is_out_of_memory, largest_batch, program_bytes
from clip_jax.benchmarks.peaks import Peaks, utilisation
from clip_jax.benchmarks.report import Report
from clip_jax.benchmarks.timing import Runner, Timed, progress_bar
from clip_jax.benchmarks.variants import Variant, draw_captions, shape_text
from clip_jax.config.experiment import Config
from clip_jax.distributed.sharding import batch_sharding, batch_shards, place_batch
from clip_jax.losses import LossConfig
from clip_jax.planning.flops import count_flops
from clip_jax.training.step import Batch
from clip_jax.training.training import Training

MAX_PAIRS = 2**20  # that the search for the largest batch tries


def make_training(config: Config, mesh: Mesh) -> Training:
    """The config's training, at its peak learning rate throughout."""
    return Training(config, mesh, optax.constant_schedule(config.optimizer.learning_rate))


class Program:
    """A variant's compiled step of N pairs. `compile_s` are the seconds of tracing and compiling."""

    def __init__(self, variant: Variant, mesh: Mesh, N: int):
        self.config, self._mesh, self._N = variant.config, mesh, N
        self._text = shape_text(variant, draw_captions(variant.config.model.text, N), batch_shards(mesh))
        training = make_training(variant.config, mesh)
        step: Any = training.step
        state = training.abstract()
        start = time.perf_counter()
        self.compiled = step.lower(state, self._shapes()).compile()
        self.compile_s = time.perf_counter() - start

    def _shapes(self) -> Batch:
        size, sharding = self.config.model.vision.image_size, batch_sharding(self._mesh)
        image = jax.ShapeDtypeStruct((self._N, size, size, 3), jnp.uint8)
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            {"image": image, "text": self._text},
        )

    def place(self, images: np.ndarray) -> Batch:
        """The batch on the devices: uint8 images [N, H, W, 3], and the variant's text."""
        return place_batch({"image": images, "text": self._text}, self._mesh)

    def figures(self) -> dict[str, Any]:
        """By title: FLOPs of the model's products alone, of those that are executed, memory a device, compile time."""
        plain = dataclasses.replace(
            self.config,
            model=dataclasses.replace(self.config.model, remat="none"),
            loss=LossConfig(kind=self.config.loss.kind),
            train=dataclasses.replace(self.config.train, num_microbatches=1),
        )
        model, executed = (self._count(config) for config in (plain, self.config))
        memory: Any = self.compiled.memory_analysis()
        return {
            "compile, s": self.compile_s,
            "model GFLOP a pair": model / self._N / 1e9,
            "executed over model": executed / model,
            "temporaries, MiB": memory.temp_size_in_bytes / 2**20,
            "in all, MiB": program_bytes(self.compiled) / 2**20,
        }

    def _count(self, config: Config) -> int:
        training = make_training(config, self._mesh)
        return count_flops(training.step, training.abstract(), self._shapes())


class Session:
    """The state that all variants train, one after the other."""

    def __init__(self, config: Config, mesh: Mesh, N: int):
        self._state: Any = make_training(config, mesh).init(0)
        size = config.model.vision.image_size
        self._images = np.random.default_rng(0).integers(256, size=(N, size, size, 3), dtype=np.uint8)

    def runner(self, program: Program) -> Timed:
        """One step after the other; a run has ended when the parameters are computed."""
        batch = program.place(self._images)

        def step() -> Any:
            self._state, metrics = program.compiled(self._state, batch)
            return self._state.params, metrics

        return Timed(step)


def compile_variants(variants: Mapping[str, Variant], mesh: Mesh, N: int) -> dict[str, Program]:
    """The programs by variant, of N pairs.

    Raises ValueError where the devices and microbatches do not divide N.
    """
    if N % (parts := _parts(variants, mesh)):
        near = f"{N // parts * parts} or {N // parts * parts + parts}" if parts < N else f"{parts}"
        raise ValueError(
            f"--batch_size={N} is not divisible by {parts}, the devices that share a batch times the microbatches: "
            f"use {near}"
        )
    programs = {}
    with progress_bar("compile", total=len(variants)) as bar:
        for name, variant in variants.items():
            programs[name] = Program(variant, mesh, N)
            bar.update()
    return programs


def compile_largest(variants: Mapping[str, Variant], mesh: Mesh, limit: int) -> tuple[int, dict[str, Program]]:
    """The largest batch that fits a device's `limit` of bytes in every variant, and its programs by variant."""
    fitting: dict[int, dict[str, Program]] = {}
    with progress_bar("find the largest batch") as bar:

        def fits(N: int) -> bool:
            programs = {}
            for name, variant in variants.items():
                bar.set_postfix_str(f"{N} pairs, {name}")
                try:
                    programs[name] = Program(variant, mesh, N)
                except jax.errors.JaxRuntimeError as error:
                    if not is_out_of_memory(error):
                        raise
                    return False
                bar.update()
                if program_bytes(programs[name].compiled) > limit:
                    return False
            fitting[N] = programs
            return True

        N = largest_batch(fits, _parts(variants, mesh), MAX_PAIRS)
    return N, fitting[N]


def _parts(variants: Mapping[str, Variant], mesh: Mesh) -> int:
    return batch_shards(mesh) * math.lcm(*(variant.config.train.num_microbatches for variant in variants.values()))


def measure_steps(
    report: Report,
    subject: str,
    config: Config,
    variants: Mapping[str, Variant],
    mesh: Mesh,
    batch_size: int | None,
    limit: int,
    peers: Mapping[str, Runner] | None = None,
) -> None:
    """Adds a table of the variants' steps to the report.

    Args:
      subject: the model's name, for the title.
      batch_size: pairs of a step over all devices; None takes the largest that fits every variant.
      limit: bytes that a program may take of a device.
      peers: runners of other packages' steps by name, interleaved with ours.

    Raises:
      ValueError: a batch that the devices and microbatches do not divide, or that does not fit.
    """
    device = mesh.devices.flat[0]
    with jax.set_mesh(mesh):
        if batch_size is None:
            N, programs = compile_largest(variants, mesh, limit)
        else:
            N, programs = batch_size, compile_variants(variants, mesh, batch_size)
        figures = {name: program.figures() for name, program in programs.items()}
        title = f"{subject}, {N:,} pairs, {mesh.size} {device.device_kind}"
        report.content |= {"batch_size": N, "device_bytes": limit, "config": dataclasses.asdict(config)}
        if not report.num_runs:
            report.add(title, figures)
            return
        _refuse_too_large(programs, N, limit)
        session = Session(config, mesh, N)
        runners: dict[str, Runner] = {name: session.runner(program) for name, program in programs.items()}
        peaks = Peaks(mesh, {name: variant.config.model.compute_dtype for name, variant in variants.items()})
        timings = report.measure({**runners, **(peers or {}), **peaks.runners}, excluded=tuple(peaks.runners))
    for name, row in figures.items():
        flops, peak = row["model GFLOP a pair"] * N * 1e9, peaks.of(name, timings.seconds)
        row["MFU"] = utilisation(flops, timings.seconds[name].min(), mesh.size, peak)
    report.add(title, figures, timings, {"images": N})
    report.note("peaks", peaks.describe(timings.seconds))
    stats = device.memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        print(f"a device held at most {stats['peak_bytes_in_use'] / 2**30:.2f} GiB of {limit / 2**30:.2f}")


def _refuse_too_large(programs: Mapping[str, Program], N: int, limit: int) -> None:
    for name, program in programs.items():
        if (needed := program_bytes(program.compiled)) > limit:
            raise ValueError(
                f"{N} pairs, {name}: a step needs {needed / 2**30:.3g} GiB on each device, which has "
                f"{limit / 2**30:.3g}: lower --batch_size, or let --batch_size=auto find the largest that fits"
            )
