"""Seconds and peak memory of recall at k, in tiles against the whole matrix at once: `python
tests/benchmarks/retrieval.py --num_images=10000`; only in tiles, for sizes whose matrix does not fit:
`--num_images=20000 --form=tiles`. On a busy machine the seconds of all cores tell more than those of the clock.

Random embeddings, five texts an image unless said. Each form runs in a process of its own, so that peak memory is its
own; it is of the whole process, embeddings and JAX included. Both must give the same numbers.
"""

import json
import resource
import subprocess
import sys
import time

import numpy as np
from absl import flags

from clip_jax.cli.common_flags import run_command
from clip_jax.evaluation.metrics.retrieval import CHUNK_SIZE, recall_at_k
from clip_jax.tables import format_table

NUM_IMAGES = flags.DEFINE_integer("num_images", 4000, "Number of images.")
TEXTS_PER_IMAGE = flags.DEFINE_integer("texts_per_image", 5, "Texts of each image.")
EMBED_DIM = flags.DEFINE_integer("embed_dim", 512, "Channels of an embedding.")
CHUNKS = flags.DEFINE_integer("chunk_size", CHUNK_SIZE, "Images, and texts, of a tile.")
FORM = flags.DEFINE_enum("form", "both", ["both", "tiles", "whole"], "Form to measure.")
CHILD = flags.DEFINE_bool("child", False, "Used by the processes that are measured.")


def main() -> int:
    """Prints the table; see the module's docstring."""
    if CHILD.value:
        print(json.dumps(_measure(FORM.value)))
        return 0
    N, M = NUM_IMAGES.value, NUM_IMAGES.value * TEXTS_PER_IMAGE.value
    rows, results = [], []
    for form in ["tiles", "whole"] if FORM.value == "both" else [FORM.value]:
        command = [sys.executable, __file__, *sys.argv[1:], f"--form={form}", "--child"]
        ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        measured = json.loads(ran.stdout)
        speed = 2 * N * M * EMBED_DIM.value / measured["cpu_s"] / 1e9
        seconds = [f"{measured['s']:.1f}", f"{measured['cpu_s']:.1f}"]
        rows.append([form, *seconds, f"{speed:,.0f}", f"{measured['peak'] / 2**30:.2f}"])
        results.append(measured["metrics"])
    titles = ["s", "s of all cores", "GFLOP/s a core, one product", "peak memory, GiB"]
    print(format_table([f"{N:,} images, {M:,} texts", *titles], rows))
    if any(metrics != results[0] for metrics in results):
        raise ValueError(f"the forms differ: {results}")
    return 0


def whole_matrix_ranks(
    images: np.ndarray, texts: np.ndarray, image_of_text: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """How many candidates not its own score at least as high as a query's best own: of images [N], of texts [M].

    The definition, in memory for all pairs.
    """
    scores = images @ texts.T  # [N, M]
    own = image_of_text == np.arange(len(images))[:, None]  # [N, M]
    best_own = np.where(own, scores, -np.inf).max(axis=1, keepdims=True)  # [N, 1]
    own_score = scores[image_of_text, np.arange(len(texts))]  # [M]
    return np.sum(~(scores < best_own) & ~own, axis=1), np.sum(~(scores < own_score) & ~own, axis=0)


def _measure(form: str) -> dict:
    rng = np.random.default_rng(0)
    N, count = NUM_IMAGES.value, TEXTS_PER_IMAGE.value
    images = rng.standard_normal((N, EMBED_DIM.value), np.float32)
    image_of_text = rng.permutation(np.repeat(np.arange(N), count))
    texts = rng.standard_normal((N * count, EMBED_DIM.value), np.float32)
    for start in range(0, len(texts), 4096):  # in parts, so that making the data is not what takes the memory
        rows = slice(start, start + 4096)
        texts[rows] += 0.15 * images[image_of_text[rows]]
        texts[rows] /= np.linalg.norm(texts[rows], axis=1, keepdims=True)
    images /= np.linalg.norm(images, axis=1, keepdims=True)

    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    if form == "tiles":
        metrics = recall_at_k(images, texts, image_of_text, chunk_size=CHUNKS.value)
        metrics = {name: value for name, value in metrics.items() if not name.endswith("_chance")}
    else:
        ranks = dict(zip(("image_to_text", "text_to_image"), whole_matrix_ranks(images, texts, image_of_text)))
        metrics = {f"{name}_r@{k}": float(np.mean(rank < k)) for k in (1, 5, 10) for name, rank in ranks.items()}
        metrics |= {f"{name}_median_rank": float(np.median(rank)) + 1 for name, rank in ranks.items()}
    seconds, cpu_s = time.perf_counter() - start_s, time.process_time() - start_cpu_s
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"s": seconds, "cpu_s": cpu_s, "peak": peak, "metrics": metrics}


if __name__ == "__main__":
    run_command(main, sys.argv)
