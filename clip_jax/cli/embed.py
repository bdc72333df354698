"""Embeds pictures and captions: `clip-jax embed --model=ViT-B/32 --path=photos --output=embeddings`.

The output is shards of normalised embeddings and _manifest.json, which says what they were made from. A shard is a
fixed range of the source's records, whatever the number of machines: part i of n makes the shards i, i + n, ...
Processes of a cluster find their parts by themselves, as in training; with --part=i/n you assign parts yourself, and
the processes do not wait for each other. Each encodes with all devices of its own. Finished shards are skipped, so the
same command continues where it was stopped.

parquet: part-00000-of-00012.parquet with the columns id, path, image_embedding, captions, label (null where there is
none) and text_embeddings, one for each caption; `pandas.read_parquet(FOLDER)` reads them all. npy:
image_embeddings-00000-of-00012.npy [n, E], text_embeddings-....npy [m, E] and ids-....jsonl, a line an image: id, path,
captions, label, and `texts`, [start, stop) of its rows of text_embeddings. `path` is the picture's file as a table or a
tfds set names it, else the id, which is a folder's file, or a tar and the member's key. Records that cannot be used are
left out and listed, [id, reason], in _broken-00000-of-00012.json.
"""

import re
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from clip_jax.cli import common_flags, data_flags
from clip_jax.tables import format_table
from input_pipeline.sources.unread import remarks

if TYPE_CHECKING:
    from clip_jax.inference.embed import Summary

common_flags.declare("model", "activation", "output", *common_flags.HOST_FLAGS)
common_flags.declare("source", "path", "split", *data_flags.FIELD_FLAGS, "shard_size", "max_broken_share")
DEFAULTS: dict[str, Any] = {"source": "folder", "shard_size": 4096, "max_broken_share": 0.01}
FORMAT = flags.DEFINE_enum(  # `convert` has another --format, and tests import both into one process
    "format", "parquet", ("parquet", "npy"), "File format of the shards: parquet or npy.", allow_override=True
)
DTYPE = flags.DEFINE_enum(
    "dtype", "float32", ("float32", "float16"), "Dtype of the embeddings written: float32 or float16."
)
PART = flags.DEFINE_string(
    "part",
    None,
    "Part of the shards that this machine makes, as 0/4; by default its index among a cluster's processes.",
)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 256, "Number of images or texts encoded at once.", lower_bound=1)
TEXTS = flags.DEFINE_bool("texts", True, "Embedding of the captions, beside the images; --notexts needs none.")


def parse_part(text: str) -> tuple[int, int]:
    """ "1/4" -> (1, 4); ValueError for anything else."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or int(match[1]) >= int(match[2]):
        raise ValueError(f"--part={text} must be i/n with 0 <= i < n: for instance --part=0/4 to --part=3/4")
    return int(match[1]), int(match[2])


def main() -> int:
    """Runs the command; see the module's docstring."""
    import jax

    from clip_jax.distributed import processes
    from clip_jax.distributed.sharding import make_mesh
    from clip_jax.inference.api import load
    from clip_jax.inference.embed import embed

    name = common_flags.required(common_flags.MODEL, "ViT-B/32")
    path = common_flags.required(data_flags.PATH, "photos")
    output = Path(common_flags.required(common_flags.OUTPUT, "embeddings"))
    with processes.joined(**common_flags.host_options()) if PART.value is None else nullcontext():
        part = (jax.process_index(), jax.process_count()) if PART.value is None else parse_part(PART.value)
        source = data_flags.open_source(DEFAULTS, "photos", require_captions=TEXTS.value)
        for remark in remarks(source):
            print(remark)
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
            shard_size=common_flags.given(data_flags.SHARD_SIZE, DEFAULTS),
            part=part,
            batch_size=BATCH_SIZE.value,
            max_broken_share=common_flags.given(data_flags.MAX_BROKEN_SHARE, DEFAULTS),
            about={"model": name, "data": path},
        )
        print(describe(summary, output))
    return 0


def describe(summary: "Summary", output: Path) -> str:
    """The table that a run ends with."""
    speed = f"{summary.images / max(summary.seconds, 1e-9):.0f}"
    header = ("images", "captions", "truncated captions", "broken", "images/s", "files")
    row = (summary.images, summary.captions, summary.truncated, len(summary.broken), speed, len(summary.files))
    lines = [format_table(header, [row]), "", f"the embeddings are in {output}"]
    if summary.broken:
        named = "; ".join(f"{record_id}: {reason}" for record_id, reason in summary.broken[:3])
        lines.append(f"broken records are left out ({named}); all are in _broken-*.json")
    if summary.shards_skipped:
        lines.append(f"{summary.shards_skipped} shards found, not computed again")
    return "\n".join(lines)
