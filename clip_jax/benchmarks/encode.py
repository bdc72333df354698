"""What encoding takes, images and texts: `python -m clip_jax.benchmarks.encode --config=tiny`.

The `Encoder` as evaluation and `clip-jax embed` use it, the way to the device and back included, on random pictures and
captions. --ways=text=padded,text=short compares settings, by turns in one process: text (padded to the context length,
or short, sorted and cut at its longest row) and compute_dtype. MFU is of the images.
"""

import dataclasses
import sys
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx
from jax.sharding import Mesh

from clip_jax.benchmarks.batch_size import program_bytes
from clip_jax.benchmarks.options import SUBJECT, chosen_config, chosen_devices, make_report
from clip_jax.benchmarks.peaks import Peaks, utilisation
from clip_jax.benchmarks.timing import Timed
from clip_jax.benchmarks.ways import Way, draw_captions, make_ways
from clip_jax.cli.parsing import run_command
from clip_jax.distributed.sharding import batch_sharding, make_mesh
from clip_jax.inference.encoder import Encoder
from clip_jax.models.variables import init_variables, model_graph
from clip_jax.planning.flops import count_flops

for flag in SUBJECT:
    flags.declare_key_flag(flag)
DEFAULT_CONFIG = "tiny"
WAYS = flags.DEFINE_list("ways", ["text=short", "text=padded"], "What to compare, the first with the others.")
NUM_ROWS = flags.DEFINE_integer(
    "num_rows", None, "Images, and texts, of a run; by default two batches of the config's.", lower_bound=1
)
BATCH_SIZE = flags.DEFINE_integer("batch_size", None, "Encoded at once; by default the config's.", lower_bound=1)
SETTINGS = ("text", "compute_dtype")


class Encoding:
    """A way's encoder, and what its programs of a whole batch need."""

    def __init__(self, way: Way, mesh: Mesh, batch_size: int):
        if way.text not in ("padded", "short"):
            raise ValueError(f"--ways: text={way.text} is no way of the encoder: it has padded and short")
        self.model = model = way.config.model
        self.encoder = Encoder(model, mesh, batch_size, short_text=way.text == "short")
        self.encoder.variables = jax.jit(init_variables, static_argnums=0)(model, jax.random.key(0))
        self._mesh, self._batch_size = mesh, batch_size

    def image_figures(self) -> dict[str, Any]:
        """By title: FLOPs and memory a device of encoding a batch of images."""
        graph, size = model_graph(self.model), self.model.vision.image_size

        def encode(variables: Any, images: jax.Array) -> jax.Array:
            return nnx.merge(graph, variables).encode_image(images)

        shape = (self._batch_size, size, size, 3)
        images = jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=batch_sharding(self._mesh))
        compiled = jax.jit(encode).lower(self.encoder.variables, images).compile()
        flops = count_flops(encode, self.encoder.variables, images)
        return {
            "GFLOP an image": flops / self._batch_size / 1e9,
            "in all, MiB": program_bytes(compiled) / 2**20,
        }


def main() -> int:
    """Prints the tables; see the module's docstring."""
    report = make_report("encode", main)
    subject, config = chosen_config()
    mesh = make_mesh(config.sharding, chosen_devices())
    ways = make_ways(config, WAYS.value, SETTINGS)
    batch_size = BATCH_SIZE.value or config.evaluation.batch_size
    size, N = config.model.vision.image_size, NUM_ROWS.value or 2 * batch_size
    images = np.random.default_rng(0).integers(256, size=(N, size, size, 3), dtype=np.uint8)
    text = draw_captions(config.model.text, N)
    report.content |= {"batch_size": batch_size, "config": dataclasses.asdict(config)}
    with jax.set_mesh(mesh):
        encodings = {name: Encoding(way, mesh, batch_size) for name, way in ways.items()}
        figures = {name: encoding.image_figures() for name, encoding in encodings.items()}
    title = f"{subject}, batches of {batch_size:,}, {mesh.size} {mesh.devices.flat[0].device_kind}"
    if not report.num_runs:
        report.add(f"{title}, images", figures)
        report.write()
        return 0
    dtypes = {name: encoding.model.compute_dtype for name, encoding in encodings.items()}
    peaks = Peaks(mesh, dtypes)
    by_dtype = {dtype: name for name, dtype in reversed(dtypes.items())}  # the text's form does not touch images
    runners = {name: Timed(partial(encodings[name].encoder.images, images)) for name in by_dtype.values()}
    timings = report.measure({**runners, **peaks.runners}, aside=tuple(peaks.runners))
    shown = {name: figures[name] | {"first run, s": runner.first_s} for name, runner in runners.items()}
    for name, row in shown.items():
        per_run = row["GFLOP an image"] * N * 1e9
        row["MFU"] = utilisation(per_run, timings.seconds[name].min(), mesh.size, peaks.of(name, timings.seconds))
    report.add(f"{title}, images", shown, timings, {"images": N})
    report.tell("peaks", peaks.describe(timings.seconds))
    print()
    runners = {name: Timed(partial(encoding.encoder.texts, text)) for name, encoding in encodings.items()}
    first = {name: {"first run, s": runner.first_s} for name, runner in runners.items()}
    report.add(f"{title}, texts", first, report.measure(runners), {"texts": N})
    report.write()
    return 0


if __name__ == "__main__":
    run_command(main, sys.argv)
