"""Any source to ArrayRecord shards: `clip-jax prepare --source=webdataset --path=tars --output=data_256`.

Larger pictures are shrunk to --image_size, antialiased; those that are small enough are copied byte by byte. A shard is
a fixed range of the source's records, and its bytes do not depend on the number of processes or on restarts, so the
same command continues where it was stopped, and does nothing when it is complete. Records that cannot be used, or that
the filters leave out, are listed with their reasons.

--source=scenes draws pictures. --output gets data-00000-of-00012.array_record and beside each a .json of what is in
it; settings.json; and, when all are there, broken.jsonl, duplicates.jsonl (groups of ids: exact and near),
statistics.json, statistics.png and manifest.json. Train with --config.data.source=array_record
--config.data.path=data_256.

What does not fit one machine is prepared by Apache Beam (the extra `beam`), with the same bytes:
--runner=DataflowRunner --output=gs://bucket/data_256 --beam_options='--project=P --region=R --temp_location=gs://...'
"""

import dataclasses
import os
import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

from absl import flags

from clip_jax.cli import common_flags, data_flags
from clip_jax.tables import format_table
from input_pipeline.prefetch import progress_bar
from input_pipeline.prepare import beam, workers
from input_pipeline.prepare.folder import LocalFolder
from input_pipeline.prepare.shards import OwnedFolder, ShardMaker
from input_pipeline.prepare.statistics import Statistics
from input_pipeline.prepare.transform import Settings
from input_pipeline.scenes import SceneSource
from input_pipeline.sources import Filters, Source
from input_pipeline.sources.unread import describe_unread

LOCAL = "local"

common_flags.declare(
    "output", "source", "path", "split", *data_flags.FIELD_FLAGS, "seed", "shard_size", "max_broken_share"
)
DEFAULTS: dict[str, Any] = {"source": "folder", "shard_size": 1024, "max_broken_share": 0.05}
NUM_SCENES = flags.DEFINE_integer("num_scenes", 10_000, "Number of pictures that scenes draws.", lower_bound=1)
NAME = flags.DEFINE_string("name", "data", "Beginning of the shards' names.")
IMAGE_SIZE = flags.DEFINE_integer(
    "image_size", 256, "Shorter side in pixels that larger pictures are shrunk to; 0 keeps sizes.", allow_override=True
)
QUALITY = flags.DEFINE_integer("quality", 90, "Quality of the JPEGs made, in [1, 100].")
ORIENT = flags.DEFINE_bool("orient", False, "Turn pictures upright by their EXIF tag; otherwise they keep the tag.")
NUM_WORKERS = flags.DEFINE_integer(
    "num_workers",
    os.cpu_count() or 1,
    "Number of worker processes; 0 makes the shards in this one.",
    lower_bound=0,
    allow_override=True,
)
flags.DEFINE_integer("min_side", 0, "Smallest shorter side of a picture, in pixels; smaller pictures are left out.")
flags.DEFINE_float(
    "max_aspect", 0.0, "Largest ratio of a picture's longer side to its shorter; others are left out. 0: no limit."
)
flags.DEFINE_integer(
    "min_caption_length",
    0,
    "Smallest number of characters; shorter captions, and records without others, are left out.",
)
flags.DEFINE_integer(
    "max_caption_length",
    0,
    "Largest number of characters; longer captions, and records without others, are left out. 0: no limit.",
)
flags.DEFINE_string("caption_must_match", "", "Regular expression; captions in which it is not found are left out.")
flags.DEFINE_string("caption_must_not_match", "", "Regular expression; captions in which it is found are left out.")
RUNNER = flags.DEFINE_string(
    "runner", LOCAL, "Runner that makes the shards: local, or one of Apache Beam, such as DirectRunner."
)
BEAM_OPTIONS = flags.DEFINE_string("beam_options", "", "Flags of Beam's own, as '--project=P --region=R'.")


def make_folder(path: str) -> OwnedFolder:
    """ValueError for a URL without Beam, whose file systems then are used, and for a path that is a file."""
    return beam.RemoteFolder(path) if "://" in path else LocalFolder(path)


def read_source() -> Source:
    """The source that the flags name; ValueError where they do not fit together."""
    if data_flags.source_kind(DEFAULTS, "scenes") == "scenes":
        return SceneSource(data_flags.SEED.value, NUM_SCENES.value, IMAGE_SIZE.value)
    return data_flags.open_source(DEFAULTS, "photos")


def with_bar(maker: ShardMaker, num_workers: int) -> Callable[[Sequence[int], Callable[[int], None]], None]:
    """Makes shards in worker processes, and shows images/s and the time left."""

    def make(shards: Sequence[int], done: Callable[[int], None]) -> None:
        counts = dict.fromkeys(shards, 0)
        todo = sum(len(maker.indices(shard)) for shard in shards)
        bar = progress_bar(total=len(maker.source), initial=len(maker.source) - todo, unit=" images")

        def seen(shard: int, count: int) -> None:
            bar.update(count - counts[shard])
            counts[shard] = count

        with bar if shards else nullcontext():
            workers.make_shards(maker, shards, num_workers, seen, done)

    return make


def main() -> int:
    """Runs the command; see the module's docstring."""
    from clip_jax.plots.data import plot_statistics
    from input_pipeline.prepare.manifest import prepare

    output = common_flags.required(common_flags.OUTPUT, "data_256")
    filters: dict[str, Any] = {field.name: flags.FLAGS[field.name].value for field in dataclasses.fields(Filters)}
    settings = Settings(
        image_size=IMAGE_SIZE.value, quality=QUALITY.value, orient=ORIENT.value, filters=Filters(**filters)
    )
    if not NAME.value or "/" in NAME.value or NAME.value.startswith("."):
        raise ValueError(f"--name={NAME.value!r} must be the beginning of a file's name")
    folder = make_folder(output)
    maker = ShardMaker(
        source=read_source(),
        folder=folder,
        settings=settings,
        name=NAME.value,
        shard_size=common_flags.given(data_flags.SHARD_SIZE, DEFAULTS),
    )
    if RUNNER.value == LOCAL:
        make = with_bar(maker, NUM_WORKERS.value)
    else:

        def make(shards: Sequence[int], done: Callable[[int], None]) -> None:
            beam.make_shards(maker, RUNNER.value, shlex.split(BEAM_OPTIONS.value), shards, done)

    def draw(statistics: Statistics, path: str) -> None:
        plot_statistics(statistics.named(maker.source.class_names), path)

    manifest, made = prepare(
        maker, make, draw, max_broken_share=common_flags.given(data_flags.MAX_BROKEN_SHARE, DEFAULTS)
    )
    print(describe(manifest, made, str(folder)))
    return 0


def describe(manifest: dict[str, Any], made: int, folder: str) -> str:
    """The table that a run ends with."""
    totals, duplicates = manifest["totals"], manifest["duplicates"]
    header = ("records", "captions", "MB", "broken", "filtered", "exact duplicates", "near duplicates", "shards")
    row = (
        totals["records"],
        totals["captions"],
        f"{totals['bytes'] / 1e6:.1f}",
        totals["broken"],
        totals["filtered"],
        duplicates["exact"]["records"],
        duplicates["near"]["records"],
        len(manifest["shards"]),
    )
    lines = [format_table(header, [row]), ""]
    for kind in ("broken", "filtered"):
        lines += [f"{kind}: {count} times {reason}" for reason, count in manifest[kind]["reasons"].items()]
    if unread := describe_unread(Counter(manifest.get("unread", {}))):
        lines.append(f"not read: {unread}")
    lines.append(f"{made} shards made, in {folder}" if made else f"nothing to do: {folder} is complete")
    return "\n".join(lines)
