"""How many planted near-duplicates `perceptual_embedding` finds: `python tests/benchmarks/duplicates.py --path=DIR`.

Photographs of a WebDataset are the training set. Some of them, changed in one way, are evaluation images with a known
duplicate; the same ones unchanged, with themselves left out of the training set, are evaluation images without. The
table gives the share found at the thresholds that call 1 % and none of the unchanged ones duplicates. With --output
those nearest to the first threshold are drawn beside what was taken for their duplicate, to be judged by eye.
"""

import io
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from absl import flags
from PIL import Image

from clip_jax.cli import common_flags
from clip_jax.cli.common_flags import run_command
from clip_jax.evaluation.metrics.overlap import nearest_images, pairs_around, perceptual_embedding
from clip_jax.plots.robustness import plot_duplicates
from clip_jax.tables import format_table
from input_pipeline.sources import make_source
from input_pipeline.transforms import decode_image

common_flags.declare("output")
PATH = flags.DEFINE_string("path", None, "WebDataset tars of photographs.")
NUM_PLANTED = flags.DEFINE_integer("num_planted", 500, "Photographs that are changed.")
SIDE = 128  # the photographs are held at this longer side at most

Change = Callable[[Image.Image, np.random.Generator], Image.Image]


def _recompressed(quality: int) -> Change:
    def change(image: Image.Image, rng: np.random.Generator) -> Image.Image:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        return Image.open(buffer).convert("RGB")

    return change


def _cropped(area: float) -> Change:
    def change(image: Image.Image, rng: np.random.Generator) -> Image.Image:
        width, height = (int(side * area**0.5) for side in image.size)
        x, y = (int(rng.integers(side - kept + 1)) for side, kept in zip(image.size, (width, height)))
        return image.crop((x, y, x + width, y + height))

    return change


def _scaled(width: float, height: float) -> Change:
    def change(image: Image.Image, rng: np.random.Generator) -> Image.Image:
        return image.resize((int(image.width * width), int(image.height * height)), Image.Resampling.BICUBIC)

    return change


CHANGES: dict[str, Change] = {
    "half the size": _scaled(0.5, 0.5),
    "0.8 of the width": _scaled(0.8, 1),
    "JPEG, quality 30": _recompressed(30),
    "JPEG, quality 10": _recompressed(10),
    "brighter (gamma 0.7)": lambda image, rng: image.point(lambda v: 255 * (v / 255) ** 0.7),
    "red by 1.2, blue by 0.8": lambda image, rng: Image.merge(
        "RGB", [band.point(lambda v, f=f: v * f) for band, f in zip(image.split(), (1.2, 1, 0.8))]
    ),
    "greys": lambda image, rng: image.convert("L").convert("RGB"),
    "turned by 3 degrees": lambda image, rng: image.rotate(3, Image.Resampling.BICUBIC),
    "crop of 95 % of the area": _cropped(0.95),
    "crop of 90 %": _cropped(0.9),
    "crop of 80 %": _cropped(0.8),
    "crop of 50 %": _cropped(0.5),
    "mirrored": lambda image, rng: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
}


def main() -> int:
    """Prints the table; see the module's docstring."""
    source = make_source("webdataset", common_flags.required(PATH, "DIR"), "")
    images = []
    for i in range(len(source)):
        image = decode_image(source[i]["image"])
        image.thumbnail((SIDE, SIDE))
        images.append(image)
    start = time.perf_counter()
    training = np.stack([perceptual_embedding(np.asarray(image)) for image in images])
    print(f"{len(images):,} photographs, {1e3 * (time.perf_counter() - start) / len(images):.2f} ms to embed one")

    rng = np.random.default_rng(0)
    planted = rng.choice(len(images), min(NUM_PLANTED.value, len(images) // 2), replace=False)
    others = np.setdiff1d(np.arange(len(images)), planted)
    index, alone = nearest_images(training[planted], training[others])
    thresholds = [float(np.quantile(alone, 0.99)), float(np.nextafter(alone.max(), np.float32(2)))]
    rows = []
    for name, change in CHANGES.items():
        changed = [np.asarray(change(images[i], rng)) for i in planted]
        similarity, mirrored = (_found(views, training, planted) for views in (changed, [x[:, ::-1] for x in changed]))
        shares = [np.mean(similarity >= threshold) for threshold in thresholds]
        shares.append(np.mean(np.maximum(similarity, mirrored) >= thresholds[0]))
        rows.append([name, *(f"{share:.1%}" for share in shares)])
    titles = [f"{len(planted)} planted", *(f"found at {threshold:.3f}" for threshold in thresholds)]
    print(format_table([*titles, f"or mirrored, at {thresholds[0]:.3f}"], rows))

    if common_flags.OUTPUT.value:
        shown = pairs_around(alone, thresholds[0], 24)
        pairs = [(np.asarray(images[planted[i]]), np.asarray(images[others[index[i]]]), float(alone[i])) for i in shown]
        Path(common_flags.OUTPUT.value).mkdir(parents=True, exist_ok=True)
        plot_duplicates(pairs, thresholds[0], Path(common_flags.OUTPUT.value) / "duplicates.png")
    return 0


def _found(images: list[np.ndarray], training: np.ndarray, planted: np.ndarray) -> np.ndarray:
    """Similarity of each image to its nearest in the training set if that is the planted one, else -1."""
    found, similarity = nearest_images(np.stack([perceptual_embedding(image) for image in images]), training)
    return np.where(found == planted, similarity, -1)


if __name__ == "__main__":
    run_command(main, sys.argv)
