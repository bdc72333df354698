"""Time of zero-shot classification after encoding: `python tests/benchmarks/zero_shot.py`.

Random unit vectors stand for the embeddings of 50,000 images and of 1,000 classes x 80 prompts. Timed is all that a
report needs of them: class embeddings, scores, ranks, confidences, top-1, top-5, per class, calibration, the bootstrap
intervals and the confusion matrix.
"""

import sys
import time

import numpy as np
from absl import flags

from clip_jax.cli.common_flags import run_command
from clip_jax.evaluation.metrics.classification import classify, confusion, single_label_metrics
from clip_jax.evaluation.metrics.zero_shot import class_embeddings
from clip_jax.tables import format_table

NUM_IMAGES = flags.DEFINE_integer("num_images", 50_000, "Number of images.", lower_bound=1)
NUM_CLASSES = flags.DEFINE_integer("num_classes", 1_000, "Number of classes.", lower_bound=2)
NUM_TEMPLATES = flags.DEFINE_integer("num_templates", 80, "Number of prompts of a class.", lower_bound=1)
EMBED_DIM = flags.DEFINE_integer("embed_dim", 512, "Channels of an embedding.", lower_bound=1)
NUM_RUNS = flags.DEFINE_integer("num_runs", 3, "Runs, of which the fastest counts.", lower_bound=1)


def main() -> int:
    """Runs the command; see the module's docstring."""
    rng = np.random.default_rng(0)
    N, C, T, E = NUM_IMAGES.value, NUM_CLASSES.value, NUM_TEMPLATES.value, EMBED_DIM.value
    images = rng.standard_normal((N, E), np.float32)
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    prompts = rng.standard_normal((C * T, E), np.float32)
    labels = rng.integers(C, size=N)
    names = [f"class {c}" for c in range(C)]
    templates = [f"{t} {{}}" for t in range(T)]
    parts: list[dict[str, float]] = []
    for _ in range(NUM_RUNS.value):
        times = [time.perf_counter()]
        classes = class_embeddings(
            lambda tokens: prompts, lambda texts: np.zeros((len(texts), 1), np.int32), names, templates
        )
        times.append(time.perf_counter())
        found = classify(images, labels, classes, 100.0)
        times.append(time.perf_counter())
        single_label_metrics(found, names, "accuracy")
        confusion(found)
        times.append(time.perf_counter())
        steps = ("class embeddings", "scores, ranks, confidences", "metrics and 1,000 draws")
        parts.append(dict(zip(steps, np.diff(times))) | {"all": times[-1] - times[0]})
    best = min(parts, key=lambda part: part["all"])
    print(
        format_table(
            (f"{N:,} images x {C:,} classes x {T} prompts", "seconds"), [(k, f"{v:.2f}") for k, v in best.items()]
        )
    )
    return 0


if __name__ == "__main__":
    run_command(main, sys.argv)
