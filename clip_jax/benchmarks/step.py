"""What a training step takes, in time and memory: `python -m clip_jax.benchmarks.step --config=tiny`.

--ways=remat=none,remat=full+num_microbatches=4 compares settings, by turns in one process: remat, num_microbatches,
block_size (of the streamed loss, 0 for the whole matrix), text (padded, short, packed, or cut at so many positions),
compute_dtype, patch_dropout. Random pictures and captions, the state handed on from way to way, buffers donated as in
training. MFU counts what the model's products need, without what a way computes twice. --batch_size=auto takes the
largest batch that fits the device in every way, found by compiling. --peer_python compares with open_clip's step, too.
"""

import dataclasses
import math
import sys
import time
from contextlib import ExitStack, closing
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from jax.sharding import Mesh

from clip_jax.benchmarks.batch_size import is_out_of_memory, largest_batch, memory_limit, program_bytes
from clip_jax.benchmarks.options import PEER_PYTHON, PUBLISHED_NAME, SUBJECT, chosen_config, chosen_devices, make_report
from clip_jax.benchmarks.peaks import Peaks, utilisation
from clip_jax.benchmarks.peer import open_clip_step
from clip_jax.benchmarks.timing import Runner, Timed, progress_bar
from clip_jax.benchmarks.ways import Way, draw_captions, make_ways, shape_text
from clip_jax.cli.parsing import run_command
from clip_jax.config.experiment import Config
from clip_jax.distributed.sharding import batch_sharding, batch_shards, make_mesh, place_batch
from clip_jax.losses import LossConfig
from clip_jax.models.variables import model_graph
from clip_jax.planning.flops import count_flops
from clip_jax.training.optimizer import make_optimizer
from clip_jax.training.state import abstract_state, init_state
from clip_jax.training.step import Batch, TrainStep, make_train_step

for flag in (*SUBJECT, "peer_python"):
    flags.declare_key_flag(flag)
DEFAULT_CONFIG = "tiny"
WAYS = flags.DEFINE_list("ways", [], "What to compare, the first with the others; by default the config as it is.")
BATCH_SIZE = flags.DEFINE_string(
    "batch_size", None, "Pairs of a step over all devices, or auto; by default the config's, 32 of a published model."
)
MEMORY_GIB = flags.DEFINE_float("memory_gib", None, "Of a device, instead of what it has.", lower_bound=0)

PEER = "open_clip"
MOST = 2**20  # pairs that --batch_size=auto tries


def make_step(config: Config, mesh: Mesh) -> tuple[TrainStep, optax.GradientTransformation, Any]:
    """The config's step, its optimizer and the state's shapes and shardings; at its peak learning rate throughout."""
    schedule = optax.constant_schedule(config.optimizer.learning_rate)
    optimizer = make_optimizer(config.optimizer, schedule)
    frozen, has_ema = config.optimizer.frozen, config.optimizer.has_ema
    state = abstract_state(config.model, optimizer, mesh, frozen=frozen, has_ema=has_ema)
    step = make_train_step(
        model_graph(config.model),
        optimizer,
        schedule,
        config.optimizer.max_logit_scale,
        jax.tree.map(lambda leaf: leaf.sharding, state),
        loss=config.loss,
        num_microbatches=config.train.num_microbatches,
        ema_decay=config.optimizer.ema_decay,
    )
    return step, optimizer, state


class Program:
    """A way's compiled step of N pairs. `compile_s` are the seconds of tracing and compiling."""

    def __init__(self, way: Way, mesh: Mesh, N: int):
        self.way, self._mesh, self._N = way, mesh, N
        captions = draw_captions(way.config.model.text, N)
        self._text = shape_text(way, captions, batch_shards(mesh))
        step: Any = make_step(way.config, mesh)
        start = time.perf_counter()
        self.compiled = step[0].lower(step[2], self._shapes()).compile()
        self.compile_s = time.perf_counter() - start

    def _shapes(self) -> Batch:
        size, sharding = self.way.config.model.vision.image_size, batch_sharding(self._mesh)
        image = jax.ShapeDtypeStruct((self._N, size, size, 3), jnp.uint8)
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            {"image": image, "text": self._text},
        )

    def place(self, images: np.ndarray) -> Batch:
        """The batch on the devices: uint8 images [N, H, W, 3], and the way's text."""
        return place_batch({"image": images, "text": self._text}, self._mesh)

    def figures(self) -> dict[str, Any]:
        """By title: FLOPs of the model's products alone, of those that are executed, memory a device, compile time."""
        config = self.way.config
        plain = dataclasses.replace(
            config,
            model=dataclasses.replace(config.model, remat="none"),
            loss=LossConfig(kind=config.loss.kind),
            train=dataclasses.replace(config.train, num_microbatches=1),
        )
        model, executed = (self._count(c) for c in (plain, config))
        memory: Any = self.compiled.memory_analysis()
        return {
            "compile, s": self.compile_s,
            "model GFLOP a pair": model / self._N / 1e9,
            "executed over model": executed / model,
            "temporaries, MiB": memory.temp_size_in_bytes / 2**20,
            "in all, MiB": program_bytes(self.compiled) / 2**20,
        }

    def _count(self, config: Config) -> int:
        step, _, state = make_step(config, self._mesh)
        return count_flops(step, state, self._shapes())


class Session:
    """The state that all ways train on, in turn."""

    def __init__(self, config: Config, mesh: Mesh, N: int):
        _, optimizer, _ = make_step(config, mesh)
        frozen, has_ema = config.optimizer.frozen, config.optimizer.has_ema
        self._state: Any = init_state(config.model, optimizer, 0, mesh, frozen=frozen, has_ema=has_ema)
        size = config.model.vision.image_size
        self._images = np.random.default_rng(0).integers(256, size=(N, size, size, 3), dtype=np.uint8)

    def runner(self, program: Program) -> Timed:
        """One step after the other; a run has ended when the parameters are there."""
        batch = program.place(self._images)

        def step() -> Any:
            self._state, metrics = program.compiled(self._state, batch)
            return self._state.params, metrics

        return Timed(step)


def compile_ways(ways: dict[str, Way], mesh: Mesh, limit: int) -> tuple[int, dict[str, Program]]:
    """The largest batch that fits a device's `limit` of bytes in every way, and its programs by way."""
    fitting: dict[int, dict[str, Program]] = {}
    with progress_bar("find the largest batch") as bar:

        def fits(N: int) -> bool:
            programs = {}
            for name, way in ways.items():
                bar.set_postfix_str(f"{N} pairs, {name}")
                try:
                    programs[name] = Program(way, mesh, N)
                except jax.errors.JaxRuntimeError as error:
                    if not is_out_of_memory(error):
                        raise
                    return False
                bar.update()
                if program_bytes(programs[name].compiled) > limit:
                    return False
            fitting[N] = programs
            return True

        N = largest_batch(fits, _parts(ways, mesh), MOST)
    return N, fitting[N]


def _parts(ways: dict[str, Way], mesh: Mesh) -> int:
    return batch_shards(mesh) * math.lcm(*(way.config.train.num_microbatches for way in ways.values()))


def _batch_size(config: Config, ways: dict[str, Way], mesh: Mesh) -> int:
    given = BATCH_SIZE.value or str(32 if PUBLISHED_NAME.value else config.train.global_batch_size)
    if not given.isdigit() or int(given) < 1:
        raise ValueError(f"--batch_size={given} must be a number of pairs, or auto")
    N, parts = int(given), _parts(ways, mesh)
    if N % parts:
        near = f"{N // parts * parts} or {N // parts * parts + parts}" if parts < N else f"{parts}"
        raise ValueError(
            f"--batch_size={N} is not divisible by {parts}, the devices that share a batch times the microbatches: "
            f"use {near}"
        )
    return N


def main() -> int:
    """Prints the tables; see the module's docstring."""
    report = make_report("step", main)
    subject, config = chosen_config()
    ways = make_ways(config, WAYS.value)
    mesh = make_mesh(config.sharding, chosen_devices())
    device = mesh.devices.flat[0]
    limit = int(MEMORY_GIB.value * 2**30) if MEMORY_GIB.value else memory_limit(device)
    if PEER_PYTHON.value and not PUBLISHED_NAME.value:
        raise ValueError("--peer_python compares a model that open_clip has, too: name it, as --published=ViT-B/32")
    with jax.set_mesh(mesh), ExitStack() as stack:
        if BATCH_SIZE.value == "auto":
            N, programs = compile_ways(ways, mesh, limit)
        else:
            N = _batch_size(config, ways, mesh)
            with progress_bar("compile", total=len(ways)) as bar:
                programs = {}
                for name, way in ways.items():
                    programs[name] = Program(way, mesh, N)
                    bar.update()
        figures = {name: program.figures() for name, program in programs.items()}
        title = f"{subject}, {N:,} pairs, {mesh.size} {device.device_kind}"
        report.content |= {"batch_size": N, "device_bytes": limit, "config": dataclasses.asdict(config)}
        if not report.num_runs:
            report.add(title, figures)
            report.write()
            return 0
        _refuse_too_large(programs, N, limit)
        session = Session(config, mesh, N)
        runners: dict[str, Runner] = {name: session.runner(program) for name, program in programs.items()}
        if PEER_PYTHON.value:
            peer = open_clip_step(PEER_PYTHON.value, subject, N, config.model.vision.image_size)
            stack.enter_context(closing(peer))
            peer()  # the first step takes longer
            runners[PEER] = peer
        peaks = Peaks(mesh, {name: way.config.model.compute_dtype for name, way in ways.items()})
        timings = report.measure({**runners, **peaks.runners}, aside=tuple(peaks.runners))
        for name, row in figures.items():
            flops, peak = row["model GFLOP a pair"] * N * 1e9, peaks.of(name, timings.seconds)
            row["MFU"] = utilisation(flops, timings.seconds[name].min(), mesh.size, peak)
        report.add(title, figures, timings, {"images": N})
        report.tell("peaks", peaks.describe(timings.seconds))
        stats = device.memory_stats() or {}
        if "peak_bytes_in_use" in stats:
            print(f"a device held at most {stats['peak_bytes_in_use'] / 2**30:.2f} GiB of {limit / 2**30:.2f}")
    report.write()
    return 0


def _refuse_too_large(programs: dict[str, Program], N: int, limit: int) -> None:
    for name, program in programs.items():
        if (needed := program_bytes(program.compiled)) > limit:
            raise ValueError(
                f"{N} pairs, {name}: a step needs {needed / 2**30:.3g} GiB on each device, which has "
                f"{limit / 2**30:.3g}: lower --batch_size, or let --batch_size=auto find the largest that fits"
            )


if __name__ == "__main__":
    run_command(main, sys.argv)
