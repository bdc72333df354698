"""Shows what is in a data set: `clip-jax inspect DATA`, DATA a folder, tars, a table, a prepared folder, ...

Prints statistics of a sample of the records, spread evenly, and writes contact_sheet.png, statistics.png and
statistics.json to --output. The form of the data is guessed from the path unless --source names it; `scenes` are
drawn. Of a folder made by `clip-jax prepare` the manifest is shown, too.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from clip_jax.cli import common_flags, data_flags
from clip_jax.tables import format_table
from input_pipeline.prepare.folder import LocalFolder
from input_pipeline.prepare.sample import Sample, sample_source
from input_pipeline.prepare.statistics import count_reasons
from input_pipeline.scenes import SceneSource
from input_pipeline.sources import Source
from input_pipeline.sources.guess import guess_kind
from input_pipeline.sources.unread import describe_unread, remarks, unread_of

POSITIONAL = "DATA"
DRAWN_PIXELS = 128

common_flags.declare("output", "source", "split", *data_flags.FIELD_FLAGS, "num_records", "seed")
DEFAULTS: dict[str, Any] = {"source": "auto", "num_records": 1000}
CAPTIONS = flags.DEFINE_bool("captions", True, "Captions or labels of the pictures; --nocaptions needs none.")
NUM_TILES = flags.DEFINE_integer("num_tiles", 24, "Number of records on the contact sheet.", lower_bound=1)


def main(arguments: Sequence[str]) -> int:
    """Runs the command; see the module's docstring."""
    from clip_jax.plots.data import plot_contact_sheet, plot_statistics
    from input_pipeline.prepare.manifest import MANIFEST, read_manifest

    if len(arguments) != 1:
        raise ValueError(f"give one data set, not {len(arguments)}: for instance clip-jax inspect photos")
    path = arguments[0]
    num_records = common_flags.given(data_flags.NUM_RECORDS, DEFAULTS)
    named = data_flags.source_kind(DEFAULTS, "auto", "scenes")
    kind = guess_kind(os.path.expanduser(path)) if named == "auto" else named
    source: Source
    if kind == "scenes":
        source = SceneSource(data_flags.SEED.value, num_records, DRAWN_PIXELS)
    else:
        try:
            source = data_flags.open_path(kind, path, data_flags.SPLIT.value or "train", CAPTIONS.value)
        except ValueError as error:
            if named != "auto":
                raise
            guess = f"It was taken for {kind}: if it is something else, name it by --source; --nocaptions needs none"
            raise ValueError(f"{error}. {guess}") from error
    name = re.sub(r"[^\w.-]+", "_", Path(path).name).strip("_") or "data"
    output = Path(common_flags.OUTPUT.value or f"inspect-{name}")
    output.mkdir(parents=True, exist_ok=True)
    sample = sample_source(source, num_records, NUM_TILES.value)
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
        "unread": dict(unread_of(source)),
        "notes": list(getattr(source, "notes", ())),
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
    if turned := sample.statistics.orientations.total():
        lines.append(
            f"turned by their EXIF tag: {turned}; evaluation ignores it, training turns them by data.orient=True"
        )
    if sample.statistics.labels:
        lines.append(f"labels: {len(sample.statistics.labels)} different ones")
    for where, broken in (("of those looked at", sample.broken), ("found in the index", source.broken)):
        lines += [f"broken {where}: {count} times {reason}" for reason, count in count_reasons(broken).items()]
    lines += remarks(source)
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
        if unread := describe_unread(Counter(manifest.get("unread", {}))):
            lines.append(f"not read when prepared: {unread}")
    return "\n".join(lines)
