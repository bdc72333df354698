"""The true train step of a config, compiled for devices that need not exist, and what it asks of each of them."""

import dataclasses
import math
import re
import tempfile
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from clip_jax.config.experiment import Config
from clip_jax.distributed.sharding import batch_sharding, batch_shards, make_mesh
from clip_jax.models import ModelConfig
from clip_jax.models.variables import init_variables, model_graph, split_variables, tower_variables
from clip_jax.planning.flops import count_flops
from clip_jax.planning.hlo import Collective, Program
from clip_jax.planning.params import ParamRow, param_table
from clip_jax.planning.topology import CHIPS, Chip
from clip_jax.training.step import encode
from clip_jax.training.training import Training

GIB = 2**30
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class DoesNotFitError(Exception):
    """XLA's refusal: needed_bytes is what the program would take of a device's memory."""

    def __init__(self, needed_bytes: float, available_bytes: float):
        super().__init__(f"needs {needed_bytes / GIB:.2f} GiB of a device, which has {available_bytes / GIB:.2f}")
        self.needed_bytes = needed_bytes
        self.available_bytes = available_bytes


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """One step, and the run of such steps. Bytes are of one device, FLOPs of all devices, times in seconds.

    Attributes:
      num_devices, chip: what it was compiled for; chip is None for a device that CHIPS lacks.
      parameters: how many numbers, frozen ones included.
      memory: bytes by part: parameters, optimizer (moments and average), batch, kept (for the backward pass, as
        traced), other (temporaries); arguments, temporaries and peak are XLA's own.
      forward_flops: of one image and one text of the full context length.
      model_flops: of the step without recomputation. executed_flops: of the step as it is.
      bytes_moved: to and from main memory, in one step.
      collectives: between devices, by kind, in one step.
      compile_s: of XLA.
      samples, total_samples: pairs of a step, of the run.
    """

    num_devices: int
    chip: Chip | None
    parameters: int
    memory: dict[str, int]
    forward_flops: int
    model_flops: int
    executed_flops: int
    bytes_moved: int
    collectives: list[Collective]
    compile_s: float
    samples: int
    total_samples: int

    @property
    def times(self) -> dict[str, float]:
        """Lower bounds of compute, memory and network, at the chip's peak numbers."""
        if self.chip is None:
            return {}
        return {
            "compute": self.executed_flops / self.num_devices / self.chip.flops,
            "memory": self.bytes_moved / self.chip.memory_bandwidth,
            "network": sum(c.sent_bytes for c in self.collectives) / self.chip.network_bandwidth,
        }

    @property
    def step_s(self) -> float:
        """The roofline, the largest of `times`. A real step takes longer."""
        return max(self.times.values(), default=math.nan)

    @property
    def mfu(self) -> float:
        """Model FLOPs utilisation at the roofline, in [0, 1]."""
        return self.model_flops / self.num_devices / self.chip.flops / self.step_s if self.chip else math.nan

    @property
    def hours(self) -> float:
        """Of the whole run at the roofline."""
        return self.total_samples / self.samples * self.step_s / 3600


def compile_step(config: Config, devices: list[jax.Device]) -> StepPlan:
    """Compiles the config's step for the devices.

    Raises:
      DoesNotFitError: the program does not fit a device.
      ValueError: a mesh that does not multiply to the devices, a batch that they do not divide.
    """
    mesh, chip = make_mesh(config.sharding, devices), CHIPS.get(devices[0].device_kind)
    training, batch = Training(config, mesh), _batch(config, mesh)
    training.check()
    step: Any = training.step
    state = training.abstract()
    start = time.perf_counter()
    with jax.set_mesh(mesh):
        compiled, text = _compile(step.lower(state, batch))
        compile_s = time.perf_counter() - start
        executed_flops = count_flops(step, state, batch)
    plain = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, remat="none"),
        train=dataclasses.replace(config.train, num_microbatches=1),
    )
    model_step = Training(plain, mesh).step
    with jax.set_mesh(mesh):
        model_flops = count_flops(model_step, state, batch)
    program = Program(text)
    rows = param_table(state)
    memory = _memory(config, mesh, rows, batch, compiled.memory_analysis())
    if chip and memory["peak"] > chip.memory_bytes:  # a GPU's compiler does not check
        raise DoesNotFitError(memory["peak"], chip.memory_bytes)
    return StepPlan(
        num_devices=mesh.size,
        chip=chip,
        parameters=sum(math.prod(row.shape) for row in rows),
        memory=memory,
        forward_flops=forward_flops(config.model),
        model_flops=model_flops,
        executed_flops=executed_flops,
        bytes_moved=program.bytes_moved(),
        collectives=program.collectives(),
        compile_s=compile_s,
        samples=config.train.global_batch_size,
        total_samples=config.train.global_batch_size * config.train.total_steps,
    )


def _compile(lowered: jax.stages.Lowered) -> tuple[jax.stages.Compiled, str]:
    """The compiled program and its text, which XLA writes to a file: for v5p `as_text` may fail."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            compiled = lowered.compile(compiler_options={"xla_dump_to": folder, "xla_dump_hlo_as_text": True})
        except jax.errors.JaxRuntimeError as error:
            raise read_refusal(error) from error
        (file,) = Path(folder).glob("*after_optimizations.txt")
        return compiled, file.read_text()


def _batch(config: Config, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a global batch with their shardings."""
    rows, sharding = _rows(config.model, config.train.global_batch_size), batch_sharding(mesh)
    return {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding) for name, x in rows.items()}


def _rows(model: ModelConfig, count: int) -> dict[str, jax.ShapeDtypeStruct]:
    size, length = model.vision.image_size, model.text.context_length
    return {
        "image": jax.ShapeDtypeStruct((count, size, size, 3), jnp.uint8),
        "text": jax.ShapeDtypeStruct((count, length), jnp.int32),
    }


def _memory(config: Config, mesh: Mesh, rows: list[ParamRow], batch: Any, analysis: Any) -> dict[str, int]:
    arguments, temporaries = analysis.argument_size_in_bytes, analysis.temp_size_in_bytes
    local = config.train.global_batch_size // batch_shards(mesh) // config.train.num_microbatches
    kept = min(Towers(config).kept_bytes(config.model.remat, local), temporaries)
    peak = getattr(analysis, "peak_memory_in_bytes", 0)
    return {
        "parameters": sum(row.param_bytes for row in rows),
        "optimizer": sum(row.optimizer_bytes for row in rows),
        "batch": sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in batch.values()),
        "kept": kept,
        "other": temporaries - kept,
        "arguments": arguments,
        "temporaries": temporaries,
        "peak": peak or arguments + temporaries,
    }


def read_refusal(error: Exception) -> Exception:
    """XLA's error about a program that does not fit as a DoesNotFitError; any other error unchanged."""
    sizes = re.findall(r"\(?(\d+(?:\.\d+)?)([KMGT]?)i?B?\)?", str(error).partition("Ran out of memory")[2])
    if len(sizes) < 2:
        return error
    needed, available = (float(number) * UNITS[unit] for number, unit in sizes[:2])
    return DoesNotFitError(needed, available)


def forward_flops(model: ModelConfig) -> int:
    """FLOPs of encoding one image and one text of the full context length, or of predicting it from the image."""
    graph, variables = _abstract_model(model)

    def forward(variables: Any, image: jax.Array, text: jax.Array) -> Any:
        module = nnx.merge(graph, variables)
        features = module.encode_image(image)
        if model.head == "embedding":
            return features, module.encode_text(text)
        return module.caption_logits(features, text)

    return count_flops(forward, variables, *_rows(model, 1).values())


def image_flops(model: ModelConfig) -> int:
    """FLOPs of encoding one image."""
    graph, variables = _abstract_model(model)

    def forward(variables: Any, image: jax.Array) -> Any:
        return nnx.merge(graph, variables).encode_image(image)

    return count_flops(forward, variables, _rows(model, 1)["image"])


@lru_cache(maxsize=16)
def _abstract_model(model: ModelConfig) -> tuple[Any, Any]:
    return model_graph(model), jax.eval_shape(lambda key: init_variables(model, key), jax.random.key(0))


class Towers:
    """What a config's towers keep and compute under each remat policy, traced on one and two rows: both are linear."""

    def __init__(self, config: Config):
        self._config = config
        self._traced: dict[str, tuple[np.ndarray, int]] = {}

    def kept_bytes(self, remat: str, local_batch_size: int) -> int:
        """Bytes that a device keeps for the backward pass of `local_batch_size` pairs."""
        (one, two), _ = self._trace(remat)
        return int(one + (two - one) * (local_batch_size - 1))

    def flops(self, remat: str) -> int:
        """Of the forward and backward pass of one pair."""
        return self._trace(remat)[1]

    def _trace(self, remat: str) -> tuple[np.ndarray, int]:
        if remat not in self._traced:
            model = dataclasses.replace(self._config.model, remat=remat)  # type: ignore[arg-type]
            graph = model_graph(model)
            variables = jax.eval_shape(lambda key: init_variables(model, key), jax.random.key(0))
            params, batch_stats = split_variables(variables)
            frozen = tower_variables(params, self._config.optimizer.frozen)
            learned = {name: value for name, value in params.items() if name not in frozen}

            def pull_back(params: Any, frozen: Any, batch_stats: Any, rows: Any) -> Any:
                return jax.vjp(lambda params: encode(graph, frozen, params, batch_stats, rows)[0], params)

            def both(params: Any, frozen: Any, batch_stats: Any, rows: Any) -> Any:
                features, backward = pull_back(params, frozen, batch_stats, rows)
                return backward(features)

            keys = [jax.eval_shape(lambda n=n: jax.random.split(jax.random.key(0), n)) for n in (1, 2)]
            rows = [{**_rows(model, n), "key": key} for n, key in zip((1, 2), keys)]
            kept = [
                sum(
                    math.prod(leaf.shape) * leaf.dtype.itemsize
                    for leaf in jax.tree.leaves(jax.eval_shape(pull_back, learned, frozen, batch_stats, n)[1])
                )
                for n in rows
            ]
            flops = count_flops(both, learned, frozen, batch_stats, rows[0])
            self._traced[remat] = np.array(kept, float), flops
        return self._traced[remat]
