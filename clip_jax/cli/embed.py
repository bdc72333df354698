"""Embeds pictures and captions: `clip-jax embed --model=ViT-B/32 --path=photos --output=embeddings`.

The output is shards of normalised embeddings and manifest.json, which says what they were made from. A shard is a fixed
range of the source's records, whatever the number of machines: part i of n makes the shards i, i + n, ... Processes of
a cluster find their parts by themselves, as in training; --part says them by hand, and then none waits for another.
Each encodes with all devices of its own. Shards that are there are skipped, so the same command goes on where it was
stopped.

parquet: part-00000-of-00012.parquet with the columns id, image_embedding, captions, label (null where there is none)
and text_embeddings, one for each caption. npy: image_embeddings-00000-of-00012.npy [n, E], text_embeddings-....npy
[m, E] and ids-....jsonl, a line an image: id, captions, label, and `texts`, [start, stop) of its rows of
text_embeddings. Records that cannot be used are left out and listed, [id, reason], in broken-00000-of-00012.json.
"""

import re
from contextlib import nullcontext
from pathlib import Path

import jax
from absl import flags

from clip_jax.cli import common_flags, host_flags
from clip_jax.distributed import processes
from clip_jax.distributed.sharding import make_mesh
from clip_jax.inference.api import load
from clip_jax.inference.embed import DTYPES, FORMATS, Summary, embed
from clip_jax.tables import format_table
from input_pipeline.sources import make_source

SOURCES = ("folder", "webdataset", "tfds", "array_record", "table")

common_flags.declare("model", "activation", "output", *host_flags.HOST_FLAGS)
SOURCE = flags.DEFINE_enum("source", "folder", SOURCES, f"Form of the data: {', '.join(SOURCES)}.")
PATH = flags.DEFINE_string("path", None, "Where the data lies: folder, tars, table; for tfds DATA_DIR/NAME.")
SPLIT = flags.DEFINE_string("split", "", "Split of a tfds data set.")
FORMAT = flags.DEFINE_enum(  # `convert` has another --format, and tests import both into one process
    "format", "parquet", FORMATS, "Form of the shards: parquet or npy.", allow_override=True
)
DTYPE = flags.DEFINE_enum("dtype", "float32", DTYPES, "Of the embeddings that are written: float32 or float16.")
SHARD_SIZE = flags.DEFINE_integer("shard_size", 4096, "Records of a shard.", lower_bound=1)
PART = flags.DEFINE_string("part", None, "This machine's part of the shards, as 0/4; else its place in a cluster.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 256, "Images or texts encoded at once.", lower_bound=1)
TEXTS = flags.DEFINE_bool("texts", True, "Embed the captions, too.")
MAX_BROKEN_SHARE = flags.DEFINE_float(
    "max_broken_share", 0.01, "Stop when more of the records cannot be used.", lower_bound=0, upper_bound=1
)


def parse_part(text: str | None) -> tuple[int, int]:
    """ "1/4" -> (1, 4); None -> this process's place among jax's. ValueError for anything else."""
    if text is None:
        return jax.process_index(), jax.process_count()
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or int(match[1]) >= int(match[2]):
        raise ValueError(f"--part={text} must be i/n with 0 <= i < n: for instance --part=0/4 to --part=3/4")
    return int(match[1]), int(match[2])


def main() -> int:
    """Runs the command; see the module's docstring."""
    name = common_flags.required(common_flags.MODEL, "ViT-B/32")
    path = common_flags.required(PATH, "photos")
    output = Path(common_flags.required(common_flags.OUTPUT, "embeddings"))
    with processes.joined(**host_flags.host_options()) if PART.value is None else nullcontext():
        part = parse_part(PART.value)
        source = make_source(SOURCE.value, path, SPLIT.value)
        model, preprocess, tokenize = load(
            name,
            activation=common_flags.ACTIVATION.value,
            batch_size=BATCH_SIZE.value,
            mesh=make_mesh(devices=jax.local_devices()),
        )
        summary = embed(
            model,
            preprocess,
            tokenize,
            source,
            output,
            texts=TEXTS.value,
            file_format=FORMAT.value,
            dtype=DTYPE.value,
            shard_size=SHARD_SIZE.value,
            part=part,
            batch_size=BATCH_SIZE.value,
            max_broken_share=MAX_BROKEN_SHARE.value,
        )
        print(describe(summary, output))
    return 0


def describe(summary: Summary, output: Path) -> str:
    """The table that a run ends with."""
    speed = f"{summary.images / max(summary.seconds, 1e-9):.0f}"
    header = ("images", "captions", "truncated captions", "broken", "images/s", "files")
    row = (summary.images, summary.captions, summary.truncated, len(summary.broken), speed, len(summary.files))
    lines = [format_table(header, [row]), "", f"the embeddings are in {output}"]
    if summary.broken:
        named = "; ".join(f"{record_id}: {reason}" for record_id, reason in summary.broken[:3])
        lines.append(f"broken records are left out ({named}); all are in broken-*.json")
    if summary.shards_skipped:
        lines.append(f"{summary.shards_skipped} shards were there already")
    return "\n".join(lines)
