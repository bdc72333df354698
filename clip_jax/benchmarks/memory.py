"""What a train step costs with less memory: `python -m clip_jax.benchmarks.memory --ways=none:1,full:1,full:4`.

A way is a remat policy and a number of microbatches. One device, random weights and rows; memory is what the compiled
step needs besides state and batch, time that of whole steps, the ways taking turns.
"""

import dataclasses
import sys
import time
from typing import Any

import jax
import numpy as np
import optax
from absl import flags

from clip_jax import cli
from clip_jax.flops import count_flops
from clip_jax.metrics import format_table
from clip_jax.models import PUBLISHED, ModelConfig
from clip_jax.optimizer import OptimizerConfig, make_optimizer
from clip_jax.sharding import ShardingConfig, make_mesh, place_batch
from clip_jax.train_state import TrainState, abstract_state, init_state, model_graph
from clip_jax.train_step import make_train_step

MODEL = flags.DEFINE_enum("model", "ViT-B/32", list(PUBLISHED), "Of which model.", allow_override=True)
WAYS = flags.DEFINE_list("ways", ["none:1", "dots:1", "named:1", "full:1", "none:4", "full:4"], "POLICY:MICROBATCHES.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Pairs in a batch.", allow_override=True)
COMPUTE_DTYPE = flags.DEFINE_string("compute_dtype", "float32", "Of the activations.")
PATCH_DROPOUT = flags.DEFINE_float("patch_dropout", 0.0, "Share of patches left out, of vision transformers.")
NUM_RUNS = flags.DEFINE_integer(
    "num_runs", 3, "Steps of each way that are timed; 0 only compiles.", allow_override=True
)
OPTIMIZER = OptimizerConfig(
    learning_rate=1e-4, weight_decay=0.2, b1=0.9, b2=0.98, eps=1e-6, warmup_steps=0, max_logit_scale=100.0
)
SCHEDULE = optax.constant_schedule(OPTIMIZER.learning_rate)


class Way:
    """A compiled step, its temporaries in bytes, its FLOPs and the seconds of its runs."""

    def __init__(self, config: ModelConfig, num_microbatches: int, state: Any, batch: Any):
        """state, batch: arrays or their shapes, with shardings."""
        step: Any = make_train_step(
            model_graph(config),
            make_optimizer(OPTIMIZER, SCHEDULE),
            SCHEDULE,
            OPTIMIZER.max_logit_scale,
            jax.tree.map(lambda leaf: leaf.sharding, state),
            num_microbatches=num_microbatches,
        )
        self.flops = count_flops(step, state, batch)
        self.step = step.lower(state, batch).compile()
        self.temporaries = self.step.memory_analysis().temp_size_in_bytes
        self.seconds: list[float] = []

    def run(self, state: TrainState, batch: Any) -> TrainState:
        """One timed step, on from where another way has come to."""
        start = time.perf_counter()
        state, metrics = self.step(state, batch)
        jax.block_until_ready(metrics)
        self.seconds.append(time.perf_counter() - start)
        return state


def replaced(config: Any, **changes: Any) -> Any:
    """A config with changes from the command line, which check themselves."""
    return dataclasses.replace(config, **changes)


def main() -> int:
    """Prints the table; see the module's docstring."""
    config = replaced(PUBLISHED[MODEL.value], compute_dtype=COMPUTE_DTYPE.value)
    if PATCH_DROPOUT.value:
        config = replaced(config, vision=replaced(config.vision, patch_dropout=PATCH_DROPOUT.value))
    rng, N, size = np.random.default_rng(0), BATCH_SIZE.value, config.vision.image_size
    text = rng.integers(1, config.text.vocab_size - 1, size=(N, config.text.context_length), dtype=np.int32)
    text[:, -1] = config.text.eot_token
    batch: dict[str, np.ndarray] = {"image": rng.integers(256, size=(N, size, size, 3), dtype=np.uint8), "text": text}
    mesh = make_mesh(ShardingConfig(), jax.devices()[:1])
    with jax.set_mesh(mesh):
        rows, state = place_batch(batch, mesh), abstract_state(config, make_optimizer(OPTIMIZER, SCHEDULE), mesh)
        ways = {}
        for name in WAYS.value:
            remat, _, num_microbatches = name.partition(":")
            ways[name] = Way(replaced(config, remat=remat), int(num_microbatches), state, rows)
        if NUM_RUNS.value:
            state = init_state(config, make_optimizer(OPTIMIZER, SCHEDULE), 0, mesh)
        for _ in range(NUM_RUNS.value):
            for way in ways.values():
                state = way.run(state, rows)
    first = next(iter(ways.values()))
    table = [
        [
            name,
            f"{way.temporaries / 2**20:,.0f}",
            f"{way.temporaries / first.temporaries:.2f}",
            f"{way.flops / first.flops:.2f}",
            *([f"{min(way.seconds):.2f}", f"{min(way.seconds) / min(first.seconds):.2f}"] if way.seconds else []),
        ]
        for name, way in ways.items()
    ]
    header = [f"{MODEL.value}, {N} pairs, {config.compute_dtype}", "temporaries, MiB", "ratio", "FLOPs", "s a step"]
    print(format_table([*header, "ratio"][: len(table[0])], table))
    return 0


if __name__ == "__main__":
    cli.run(main, sys.argv)
