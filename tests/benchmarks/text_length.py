"""Text encoding with rows cut at their longest caption, against full length: `python tests/benchmarks/text_length.py
--source=webdataset --path=DIR --vocabulary=bpe_simple_vocab_16e6.txt.gz`.

Real captions, random weights of a published text tower; both forms interleaved in one process.
"""

import sys
from functools import partial

import jax
import numpy as np
from absl import flags

from clip_jax.benchmarks.timing import Timed
from clip_jax.cli import common_flags
from clip_jax.cli.bench.options import SHARED, make_report
from clip_jax.cli.common_flags import run_command
from clip_jax.distributed.sharding import make_mesh
from clip_jax.inference.encoder import Encoder
from clip_jax.models import PUBLISHED
from clip_jax.models.variables import init_variables
from input_pipeline.packing import caption_lengths
from input_pipeline.sources import make_source
from input_pipeline.tokenizers import make_tokenizer

for flag in SHARED:
    flags.declare_key_flag(flag)
MODEL = flags.DEFINE_enum("model", "ViT-B/32", list(PUBLISHED), "Published model of the text tower.")
SOURCE = flags.DEFINE_string("source", "webdataset", "Kind of the data: webdataset, table, tfds, ...")
PATH = flags.DEFINE_string("path", None, "Path of the captions.")
SPLIT = flags.DEFINE_string("split", "", "Split of a tfds data set.")
VOCABULARY = flags.DEFINE_string("vocabulary", None, "CLIP's byte-pair vocabulary; by default the Hub's cache.")
NUM_CAPTIONS = flags.DEFINE_integer("num_captions", 1024, "Captions encoded in a run.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Texts encoded at once.")


def main() -> int:
    """Prints the table; see the module's docstring."""
    report = make_report("text_length", main)
    model = PUBLISHED[MODEL.value]
    source = make_source(SOURCE.value, common_flags.required(PATH, "DIR"), SPLIT.value)
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
    lengths = caption_lengths(text, tokenizer.eot_token)
    print(f"positions a caption: mean {lengths.mean():.1f}, longest {lengths.max()} of {text.shape[1]}")
    timings = report.measure({name: Timed(partial(encoder.texts, text)) for name, encoder in encoders.items()})
    report.add(f"{len(text)} captions, {MODEL.value}", {}, timings, {"texts": len(text)})
    report.note("equality", {"largest difference of the unit features": {"is": float(np.abs(full - short).max())}})
    report.write()
    return 0


if __name__ == "__main__":
    run_command(main, sys.argv)
