"""Seconds of a training step, beside open_clip's: `python -m clip_jax.benchmarks.step --peer_python=PATH`.

One step of a published model on random pictures, text of --text_length positions, float32, AdamW. The peer is
open_clip's own model and loss in the interpreter of --peer_python (torch and open_clip_torch 3.3), run by turns with
ours in one session; the ratio of the fastest runs and the median of the paired ratios are printed.
"""

import dataclasses
import subprocess
import sys
import time
from typing import Any

import jax
import numpy as np
from absl import flags

from clip_jax import cli
from clip_jax.metrics import format_table
from clip_jax.models import PUBLISHED, ModelConfig
from clip_jax.optimizer import OptimizerConfig, make_optimizer
from clip_jax.sharding import make_mesh, place_batch
from clip_jax.train_state import init_state, model_graph, state_shardings
from clip_jax.train_step import make_train_step

MODEL = flags.DEFINE_enum("published", "ViT-B/32", list(PUBLISHED), "Which model.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Pairs of a step.")
TEXT_LENGTH = flags.DEFINE_integer("text_length", 77, "Positions of our text; the peer's are always 77.")
NUM_RUNS = flags.DEFINE_integer("num_runs", 5, "Steps of each, after one that is left out.")
PEER_PYTHON = flags.DEFINE_string("peer_python", None, "Interpreter with open_clip; without it only ours is measured.")
REMAT = flags.DEFINE_string("remat", "none", "Policy, see ModelConfig.")

PEER = """
import sys, time, torch
library = torch.library.Library("torchvision", "DEF")  # torchvision has no CPU build
for name in ("nms", "qnms"):
    library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
import open_clip
name, batch_size, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
model = open_clip.create_model(name, force_quick_gelu=True).train()
loss_fn = open_clip.loss.ClipLoss()
decayed = [p for p in model.parameters() if p.ndim >= 2]
others = [p for p in model.parameters() if p.ndim < 2]
groups = [{"params": decayed, "weight_decay": 0.2}, {"params": others, "weight_decay": 0.0}]
optimizer = torch.optim.AdamW(groups, lr=5e-4, betas=(0.9, 0.98), eps=1e-6)
images = torch.randn(batch_size, 3, size, size)
text = torch.randint(1, 49405, (batch_size, 77))
text[:, -1] = 49407
for line in sys.stdin:
    start = time.perf_counter()
    optimizer.zero_grad()
    loss_fn(*model(images, text)).backward()
    optimizer.step()
    print(time.perf_counter() - start, flush=True)
"""


class OurStep:
    """Runs one step of ours and tells its seconds."""

    def __init__(self, config: ModelConfig, batch_size: int, text_length: int):
        self._mesh = make_mesh(devices=jax.devices()[:1])
        settings = OptimizerConfig(
            learning_rate=5e-4, weight_decay=0.2, b1=0.9, b2=0.98, eps=1e-6, warmup_steps=0, max_logit_scale=100.0
        )
        optimizer = make_optimizer(settings, lambda step: 5e-4)
        self._state = init_state(config, optimizer, 0, self._mesh)
        shardings = state_shardings(self._state, optimizer, self._mesh)
        self._step = make_train_step(model_graph(config), optimizer, lambda step: 5e-4, 100.0, shardings)
        rng = np.random.default_rng(0)
        text = rng.integers(1, config.text.eot_token - 1, size=(batch_size, text_length), dtype=np.int32)
        text[:, -1] = config.text.eot_token
        size = config.vision.image_size
        images = rng.standard_normal((batch_size, size, size, 3), dtype=np.float32)
        self._batch = place_batch({"image": images, "text": text}, self._mesh)

    def __call__(self) -> float:
        start = time.perf_counter()
        with jax.set_mesh(self._mesh):
            self._state, metrics = self._step(self._state, self._batch)
        metrics["loss"].block_until_ready()
        jax.block_until_ready(self._state.params)
        return time.perf_counter() - start


def _start_peer(name: str, batch_size: int, image_size: int) -> Any:
    arguments = [name.replace("/", "-").removesuffix("@336px"), str(batch_size), str(image_size)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    return subprocess.Popen([PEER_PYTHON.value, "-c", PEER, *arguments], **pipes)  # type: ignore[call-overload]


def _ask(peer: Any) -> float:
    peer.stdin.write("go\n")
    answer = peer.stdout.readline()
    if not answer:
        raise ValueError(f"--peer_python={PEER_PYTHON.value} cannot run open_clip; its message stands above")
    return float(answer)


def main() -> int:
    """Prints the table; see the module's docstring."""
    config = dataclasses.replace(PUBLISHED[MODEL.value], remat=REMAT.value)  # type: ignore[arg-type]
    runners: dict[str, Any] = {"clip_jax": OurStep(config, BATCH_SIZE.value, TEXT_LENGTH.value)}
    if PEER_PYTHON.value:
        peer = _start_peer(MODEL.value, BATCH_SIZE.value, config.vision.image_size)
        runners["open_clip"] = lambda: _ask(peer)
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    first = {name: run() for name, run in runners.items()}
    for _ in range(NUM_RUNS.value):
        for name, run in runners.items():
            seconds[name].append(run())
    rows = [
        [name, f"{first[name]:.1f}", f"{min(times):.2f}", f"{np.median(times):.2f}"] for name, times in seconds.items()
    ]
    what = f"{MODEL.value}, batch {BATCH_SIZE.value}, text {TEXT_LENGTH.value}, remat {REMAT.value}"
    print(format_table([what, "first step, s", "fastest, s", "median, s"], rows))
    if PEER_PYTHON.value:
        ours, theirs = (np.array(seconds[name]) for name in ("clip_jax", "open_clip"))
        print(f"ours over open_clip's: fastest {ours.min() / theirs.min():.2f}, median {np.median(ours / theirs):.2f}")
        peer.stdin.close()
        peer.wait()
    return 0


if __name__ == "__main__":
    cli.run(main, sys.argv)
