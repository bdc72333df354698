"""How much text encoding gains when rows end at their longest caption: `python -m clip_jax.benchmarks.text_length
--source=webdataset --path=DIR --vocabulary=bpe_simple_vocab_16e6.txt.gz`.

Real captions, random weights of a published text tower; both ways in one process, by turns, medians of the ratios.
"""

import sys
import time

import jax
import numpy as np
from absl import flags

from clip_jax import cli
from clip_jax.encoder import Encoder
from clip_jax.metrics import format_table
from clip_jax.models import PUBLISHED
from clip_jax.sharding import make_mesh
from clip_jax.train_state import init_variables
from input_pipeline.sources import make_source
from input_pipeline.tokenizers import make_tokenizer

MODEL = flags.DEFINE_enum("model", "ViT-B/32", list(PUBLISHED), "Whose text tower.")
SOURCE = flags.DEFINE_string("source", "webdataset", "Kind of the data: webdataset, table, tfds, ...")
PATH = flags.DEFINE_string("path", None, "Where the captions lie.")
SPLIT = flags.DEFINE_string("split", "", "Of a tfds data set.")
VOCABULARY = flags.DEFINE_string("vocabulary", None, "CLIP's byte-pair vocabulary; by default the Hub's cache.")
NUM_CAPTIONS = flags.DEFINE_integer("num_captions", 1024, "How many captions are encoded in a run.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Texts encoded at once.")
NUM_RUNS = flags.DEFINE_integer("num_runs", 5, "Runs of each way.")


def measure(encoders: dict[str, Encoder], text: np.ndarray, num_runs: int) -> dict[str, list[float]]:
    """Seconds of each run by the encoder's name, the encoders taking turns; the first, compiling turn is left out."""
    seconds: dict[str, list[float]] = {name: [] for name in encoders}
    for run in range(num_runs + 1):
        for name, encoder in encoders.items():
            start = time.perf_counter()
            encoder.texts(text)
            if run:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def main() -> int:
    """Prints the table; see the module's docstring."""
    model = PUBLISHED[MODEL.value]
    source = make_source(SOURCE.value, cli.required(PATH, "DIR"), SPLIT.value)
    tokenizer = make_tokenizer("clip_bpe", VOCABULARY.value, model.text.context_length)
    captions = [caption for i in range(len(source)) for caption in source.captions(i)][: NUM_CAPTIONS.value]
    text = tokenizer(captions)
    variables = jax.jit(init_variables, static_argnums=0)(model, jax.random.key(0))
    mesh = make_mesh()
    encoders = {
        "full length": Encoder(model, mesh, BATCH_SIZE.value, short_text=False),
        "longest row": Encoder(model, mesh, BATCH_SIZE.value),
    }
    for encoder in encoders.values():
        encoder.variables = variables
    full, short = (encoder.texts(text) for encoder in encoders.values())
    seconds = measure(encoders, text, NUM_RUNS.value)
    ratios = np.array(seconds["full length"]) / np.array(seconds["longest row"])
    lengths = np.argmax(text == tokenizer.eot_token, axis=1) + 1
    rows = [[name, f"{len(text) / min(times):.1f}", f"{np.median(times):.2f}"] for name, times in seconds.items()]
    print(format_table([f"{len(text)} captions, {MODEL.value}", "texts/s, fastest", "s, median"], rows))
    print(
        f"positions a caption: mean {lengths.mean():.1f}, longest {lengths.max()} of {text.shape[1]}\n"
        f"speed-up: median of the paired ratios {np.median(ratios):.2f}, of the fastest runs "
        f"{min(seconds['full length']) / min(seconds['longest row']):.2f}\n"
        f"largest difference of the unit features: {np.abs(full - short).max():.1e}"
    )
    return 0


if __name__ == "__main__":
    cli.run(main, sys.argv)
