"""Speed of encoding images and texts, for several variants of a config, interleaved in one process.

The `Encoder` as evaluation and `clip-jax embed` use it, with the transfers to the device and back, on random pictures
and captions.
"""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from clip_jax.benchmarks.batch_size import program_bytes
from clip_jax.benchmarks.peaks import Peaks, utilisation
from clip_jax.benchmarks.report import Report
from clip_jax.benchmarks.timing import Timed
from clip_jax.benchmarks.variants import Variant, draw_captions
from clip_jax.config.experiment import Config
from clip_jax.distributed.sharding import batch_sharding
from clip_jax.inference.encoder import Encoder
from clip_jax.models.variables import init_variables, model_graph
from clip_jax.planning.flops import count_flops

SETTINGS = ("text", "compute_dtype")  # of a variant that change the encoder


class Encoding:
    """A variant's encoder, and what its program of a whole batch of images needs."""

    def __init__(self, variant: Variant, mesh: Mesh, batch_size: int):
        if variant.text not in ("padded", "short"):
            raise ValueError(f"--variants: the encoder has text=padded and text=short, not text={variant.text}")
        self.model = model = variant.config.model
        self.encoder = Encoder(model, mesh, batch_size, short_text=variant.text == "short")
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


def measure_encoding(
    report: Report,
    subject: str,
    config: Config,
    variants: Mapping[str, Variant],
    mesh: Mesh,
    batch_size: int,
    num_rows: int,
) -> None:
    """Adds a table of images and one of texts, num_rows of each in a run, to the report; MFU is of the images."""
    size = config.model.vision.image_size
    images = np.random.default_rng(0).integers(256, size=(num_rows, size, size, 3), dtype=np.uint8)
    text = draw_captions(config.model.text, num_rows)
    report.content |= {"batch_size": batch_size, "config": dataclasses.asdict(config)}
    with jax.set_mesh(mesh):
        encodings = {name: Encoding(variant, mesh, batch_size) for name, variant in variants.items()}
        figures = {name: encoding.image_figures() for name, encoding in encodings.items()}
    title = f"{subject}, batches of {batch_size:,}, {mesh.size} {mesh.devices.flat[0].device_kind}"
    if not report.num_runs:
        report.add(f"{title}, images", figures)
        return
    dtypes = {name: encoding.model.compute_dtype for name, encoding in encodings.items()}
    peaks = Peaks(mesh, dtypes)
    by_dtype = {dtype: name for name, dtype in reversed(dtypes.items())}  # the form of the text changes no image
    runners = {name: Timed(partial(encodings[name].encoder.images, images)) for name in by_dtype.values()}
    timings = report.measure({**runners, **peaks.runners}, excluded=tuple(peaks.runners))
    shown = {name: figures[name] | {"first run, s": runner.first_s} for name, runner in runners.items()}
    for name, row in shown.items():
        flops, peak = row["GFLOP an image"] * num_rows * 1e9, peaks.of(name, timings.seconds)
        row["MFU"] = utilisation(flops, timings.seconds[name].min(), mesh.size, peak)
    report.add(f"{title}, images", shown, timings, {"images": num_rows})
    report.note("peaks", peaks.describe(timings.seconds))
    print()
    runners = {name: Timed(partial(encoding.encoder.texts, text)) for name, encoding in encodings.items()}
    first = {name: {"first run, s": runner.first_s} for name, runner in runners.items()}
    report.add(f"{title}, texts", first, report.measure(runners), {"texts": num_rows})
