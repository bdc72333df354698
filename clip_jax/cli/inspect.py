"""Shows what is in a data set: `clip-jax inspect DATA`, DATA a folder, tars, a table, a prepared folder, ...

Prints statistics of a sample of the records, spread evenly, and writes contact_sheet.png, statistics.png and
statistics.json to --output. The form of the data is guessed from the path unless --source says it; `scenes` draws.
Of a folder made by `clip-jax prepare` the manifest is shown, too.
"""

import json
import os
import re
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from clip_jax.cli import common_flags
from clip_jax.plots.data import Tile, plot_contact_sheet, plot_statistics
from clip_jax.tables import format_table
from input_pipeline.prefetch import load_ahead
from input_pipeline.prepare.folder import LocalFolder
from input_pipeline.prepare.manifest import MANIFEST, read_manifest
from input_pipeline.prepare.statistics import Facts, Statistics, count_reasons
from input_pipeline.prepare.transform import open_record, shrink
from input_pipeline.scenes import SceneSource
from input_pipeline.sources import BrokenRecordError, Record, Source, make_source, opener
from input_pipeline.sources.folder import IMAGE_SUFFIXES

POSITIONAL = "DATA"
SOURCES = ("auto", "folder", "webdataset", "tfds", "array_record", "table", "scenes")
TILE_PIXELS = 256  # of the shorter side, as drawn
DRAWN_PIXELS = 128
MAX_BROKEN_TILES = 6
MAX_VERSIONS = 100  # looked for in the folder of a tfds data set, which holds nothing else
AHEAD = 16

flags.declare_key_flag("output")
SOURCE = flags.DEFINE_enum("source", "auto", SOURCES, f"Form of the data: {', '.join(SOURCES)}.", allow_override=True)
SPLIT = flags.DEFINE_string("split", "", "Split of a tfds data set; train by default.", allow_override=True)
CAPTIONS_FIELD = flags.DEFINE_string(
    "captions_field", "", "Where the captions stand, if not in the usual place.", allow_override=True
)
NUM_RECORDS = flags.DEFINE_integer(
    "num_records", 1000, "Records that are looked at.", lower_bound=1, allow_override=True
)
NUM_TILES = flags.DEFINE_integer("num_tiles", 24, "Records on the contact sheet.", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "Of the drawn scenes.", lower_bound=0, allow_override=True)


def guess_kind(path: str) -> str:
    """The form of the data at a path, by the names of the files there: a word of `make_source`, or "scenes".

    Raises:
      ValueError: nothing is there.
    """
    if path == "scenes":
        return "scenes"
    forms = {r"\.tar": "webdataset", r"\.array_?record(-\d+-of-\d+)?": "array_record", r"\.(csv|parquet)": "table"}
    for suffix, kind in forms.items():
        if re.search(f"{suffix}$", path) and not opener.is_folder(path):
            return kind
    if not opener.is_folder(path):
        raise ValueError(f"no data at {path!r}: give a folder, tars, ArrayRecord files, a .csv or .parquet, or scenes")
    names = opener.list_names(path)
    info = "dataset_info.json"
    if info in names:
        return "tfds"
    for suffix, kind in forms.items():
        if kind != "table" and any(re.search(f"{suffix}$", name) for name in names):
            return kind
    versions = (opener.join(path, name) for name in names[:MAX_VERSIONS])
    if any(opener.is_file(opener.join(version, info)) for version in versions):
        return "tfds"
    stems = [os.path.splitext(name)[0] for name in names if re.search(r"\.(csv|parquet)$", name)]
    has_pictures = any(os.path.splitext(name)[1][1:].lower() in IMAGE_SUFFIXES for name in names)
    # Of a table beside a folder of its name, as img2dataset writes them, the pictures are in the folder.
    return "table" if stems and not has_pictures and not {*stems} & {*names} else "folder"


@dataclass(kw_only=True)
class Sample:
    """What was found in some records of a source.

    Attributes:
      statistics: of the records that can be used.
      broken: (id, reason) of the others.
      tiles: for the contact sheet.
      num_records: looked at.
    """

    statistics: Statistics = field(default_factory=Statistics)
    broken: list[tuple[str, str]] = field(default_factory=list)
    tiles: list[Tile] = field(default_factory=list)
    num_records: int = 0


def sample_source(source: Source, num_records: int, num_tiles: int) -> Sample:
    """Looks at records spread evenly over the source.

    Of the tiles at most MAX_BROKEN_TILES are records that cannot be used, found in the sample or in the source's index;
    the others are spread evenly over the sample.
    """
    indices = spread(len(source), num_records)
    shown = {indices[place] for place in spread(len(indices), num_tiles)}
    sample = Sample(num_records=len(indices))

    def load(index: int) -> tuple[Record, Facts, np.ndarray | None] | BrokenRecordError:
        try:
            record = source[index]
            image, facts = open_record(record)
        except BrokenRecordError as error:
            return error
        pixels = shrink(image, TILE_PIXELS) if index in shown else None
        return {name: value for name, value in record.items() if name != "image"}, facts, pixels

    with closing(load_ahead(load, indices, os.cpu_count() or 1, AHEAD)) as found:
        for item in found:
            if isinstance(item, BrokenRecordError):
                sample.broken.append((item.record_id, item.reason))
                continue
            record, facts, pixels = item
            sample.statistics.add(record, facts)
            if pixels is not None:
                sample.tiles.append(Tile(record_id=record["id"], image=pixels, texts=_texts(record, source)))
    broken = [*sample.broken, *source.broken]
    marked = [broken[place] for place in spread(len(broken), min(MAX_BROKEN_TILES, num_tiles))]
    tiles = [sample.tiles[place] for place in spread(len(sample.tiles), num_tiles - len(marked))]
    sample.tiles = tiles + [Tile(record_id=x, image=None, texts=(), reason=reason) for x, reason in marked]
    return sample


def spread(length: int, count: int) -> list[int]:
    """At most count of the places [0, length), evenly spread, the first one among them."""
    return [place * length // min(count, length) for place in range(min(count, length))]


def _texts(record: Record, source: Source) -> tuple[str, ...]:
    """The captions; of a record without them its label."""
    if record["captions"] or "label" not in record:
        return record["captions"]
    names = source.class_names
    return (names[record["label"]] if names else f"label {record['label']}",)


def main(arguments: Sequence[str]) -> int:
    """Runs the command; see the module's docstring."""
    if len(arguments) != 1:
        raise ValueError(f"give one data set, not {len(arguments)}: for instance clip-jax inspect photos")
    path = arguments[0]
    kind = guess_kind(os.path.expanduser(path)) if SOURCE.value == "auto" else SOURCE.value
    source: Source
    if kind == "scenes":
        source = SceneSource(SEED.value, NUM_RECORDS.value, DRAWN_PIXELS)
    else:
        try:
            source = make_source(kind, path, SPLIT.value or "train", CAPTIONS_FIELD.value)
        except ValueError as error:
            if SOURCE.value != "auto":
                raise
            guess = f"It was taken for {kind}: if it is something else, name it by --source"
            raise ValueError(f"{error}. {guess}") from error
    name = re.sub(r"[^\w.-]+", "_", Path(path).name).strip("_") or "data"
    output = Path(common_flags.OUTPUT.value or f"inspect-{name}")
    output.mkdir(parents=True, exist_ok=True)
    sample = sample_source(source, NUM_RECORDS.value, NUM_TILES.value)
    plot_contact_sheet(sample.tiles, output / "contact_sheet.png", f"{path}: {len(source):,} records")
    if sample.statistics.forms:
        plot_statistics(sample.statistics.named(source.class_names), output / "statistics.png")
    report = {
        "data": path,
        "source": source.fingerprint(),
        "records": len(source),
        "records_looked_at": sample.num_records,
        "broken": sample.broken,
        "broken_in_index": source.broken,
        "statistics": sample.statistics.as_json(),
    }
    LocalFolder(str(output)).write("statistics.json", json.dumps(report, indent=1).encode())
    manifest = None
    if os.path.isfile(os.path.join(os.path.expanduser(path), MANIFEST)):
        manifest = read_manifest(LocalFolder(path))
    print(describe(kind, source, sample, manifest))
    print(f"\ncontact_sheet.png, statistics.png and statistics.json are in {output}")
    return 0


def describe(kind: str, source: Source, sample: Sample, manifest: dict[str, Any] | None) -> str:
    """The tables that are printed."""
    lines = [f"{kind}, {len(source)} records, {sample.num_records} looked at", ""]
    header = ("", "count", "mean", "min", "5 %", "50 %", "95 %", "max")
    rows = [(name, count, f"{mean:.1f}", *rest) for name, count, mean, *rest in sample.statistics.describe()]
    if rows:
        forms = ", ".join(f"{count} {form}" for form, count in sample.statistics.forms.most_common())
        lines += [format_table(header, rows), "", f"formats: {forms}"]
    if sample.statistics.labels:
        lines.append(f"labels: {len(sample.statistics.labels)} different ones")
    for where, broken in (("of those looked at", sample.broken), ("found in the index", source.broken)):
        lines += [f"broken {where}: {count} times {reason}" for reason, count in count_reasons(broken).items()]
    if manifest:
        totals, size = manifest["totals"], manifest["settings"]["image_size"]
        duplicates = ", ".join(f"{found['records']} {kind}" for kind, found in manifest["duplicates"].items())
        lines += [
            "",
            f"prepared from {manifest['source']['kind']} at image_size={size}: {totals['records']} records, "
            f"{totals['bytes'] / 1e6:.1f} MB in {len(manifest['shards'])} shards; {totals['broken']} broken, "
            f"{totals['filtered']} filtered; duplicates: {duplicates}",
        ]
        for what in ("broken", "filtered"):
            lines += [f"{what} when prepared: {n} times {reason}" for reason, n in manifest[what]["reasons"].items()]
    return "\n".join(lines)
