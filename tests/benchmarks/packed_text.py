"""The text tower's time with packed captions, against padded and cut ones: `python tests/benchmarks/packed_text.py
--source=webdataset --path=DIR --vocabulary=bpe_simple_vocab_16e6.txt.gz`.

Real captions, random weights of a published text tower in float32; four forms interleaved in one process, encoding and
encoding with the gradient of every text parameter:
padded, each batch at the full context length; cut, at its longest row, as training could; sorted and cut, over all
captions first, as the Encoder does and training cannot; packed, into as many rows as training would give a batch.
"""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx

from clip_jax.benchmarks.timing import Timed
from clip_jax.cli import common_flags
from clip_jax.cli.bench.options import SHARED, make_report
from clip_jax.cli.common_flags import run_command
from clip_jax.inference.encoder import TEXT_LENGTHS
from clip_jax.losses import normalize
from clip_jax.models import PUBLISHED, PackedText
from clip_jax.models.variables import init_variables, model_graph
from clip_jax.training.text_packer import TextPacker
from input_pipeline.packing import caption_lengths, rows_with_headroom
from input_pipeline.sources import make_source
from input_pipeline.tokenizers import make_tokenizer

for flag in SHARED:
    flags.declare_key_flag(flag)
MODEL = flags.DEFINE_enum("model", "ViT-B/32", list(PUBLISHED), "Published model of the text tower.")
SOURCE = flags.DEFINE_string("source", "webdataset", "Kind of the data: webdataset, table, tfds, ...")
PATH = flags.DEFINE_string("path", None, "Path of the captions.")
SPLIT = flags.DEFINE_string("split", "", "Split of a tfds data set.")
VOCABULARY = flags.DEFINE_string("vocabulary", None, "CLIP's byte-pair vocabulary; by default the Hub's cache.")
NUM_CAPTIONS = flags.DEFINE_integer("num_captions", 128, "Captions encoded in a run.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Texts encoded at once.")

Text = np.ndarray | PackedText


def cut(text: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The rows of a batch, cut at the Encoder's next size above the longest."""
    return text[:, : next((size for size in TEXT_LENGTHS if lengths.max() <= size), text.shape[1])]


def main() -> int:
    """Prints the tables; see the module's docstring."""
    report = make_report("packed_text", main)
    model = PUBLISHED[MODEL.value]
    source = make_source(SOURCE.value, common_flags.required(PATH, "DIR"), SPLIT.value)
    tokenizer = make_tokenizer("clip_bpe", VOCABULARY.value, model.text.context_length)
    captions = [caption for i in range(min(len(source), 2000)) for caption in source.captions(i)]
    text = tokenizer(captions)
    lengths = caption_lengths(text, tokenizer.eot_token)
    size = BATCH_SIZE.value
    packer = TextPacker(tokenizer.eot_token, 1, rows_with_headroom(lengths, size, text.shape[1], seed=0))
    print(
        f"positions a caption, of {len(text):,}: mean {lengths.mean():.1f}, longest {lengths.max()} of "
        f"{text.shape[1]}; {size} captions are packed into {packer.rows} rows of {text.shape[1]}"
    )

    chosen = np.random.default_rng(0).permutation(len(text))[: NUM_CAPTIONS.value // size * size]
    text, lengths = text[chosen], lengths[chosen]
    by_length = np.argsort(lengths, kind="stable")
    slices = [slice(start, start + size) for start in range(0, len(text), size)]
    batches: dict[str, Callable[[], list[Text]]] = {
        "padded": lambda: [text[s] for s in slices],
        "cut": lambda: [cut(text[s], lengths[s]) for s in slices],
        "sorted and cut": lambda: [cut(text[by_length[s]], lengths[by_length[s]]) for s in slices],
        "packed": lambda: [packer(text[s]) for s in slices],  # the time of packing counts
    }
    unpacked = sum(not isinstance(batch, PackedText) for batch in batches["packed"]())
    print(f"{unpacked} of {len(slices)} batches do not fit their rows and are encoded unpacked")

    graph = model_graph(model)
    variables = jax.jit(init_variables, static_argnums=0)(model, jax.random.key(0))
    params = {name: variables[name] for name in ("text", "text_projection")}
    rest = {name: leaf for name, leaf in variables.items() if name not in params}
    cotangent = np.random.default_rng(1).normal(size=(size, model.embed_dim)).astype(np.float32)

    def encode(params: Any, text: Any) -> jax.Array:
        return normalize(nnx.merge(graph, {**rest, **params}).encode_text(text))

    def score(params: Any, text: Any) -> jax.Array:
        return jnp.sum(encode(params, text) * cotangent)

    forward, both = jax.jit(encode), jax.jit(jax.grad(score))

    def run(function: Callable[..., Any], make: Callable[[], list[Text]]) -> Any:
        return jax.block_until_ready([function(params, batch) for batch in make()])

    for title, function in {"forward": forward, "forward and backward": both}.items():
        runners = {name: Timed(partial(run, function, make)) for name, make in batches.items()}
        title = f"{title}, {len(text)} captions, {MODEL.value}"
        report.add(title, {}, report.measure(runners), {"texts": len(text)})

    padded, packed = (np.concatenate(run(forward, batches[name])) for name in ("padded", "packed"))
    wanted, found = (both(params, batches[name]()[0]) for name in ("padded", "packed"))
    errors = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max() / jnp.abs(a).max()), wanted, found)
    differences = {
        "unit features, packed from padded": {"at most": float(np.abs(packed - padded).max())},
        "a gradient, over its largest entry": {"at most": max(jax.tree.leaves(errors))},
    }
    report.note("difference", differences)
    report.write()
    return 0


if __name__ == "__main__":
    run_command(main, sys.argv)
