"""The description of a folder of prepared shards: settings.json from the start, the rest when all shards are complete.

manifest.json is written last. It holds the source's fingerprint and the settings; a row a shard with its records, bytes
and SHA-256; totals; and of broken and of filtered records how many for which reason, with the first ones' ids; and how
many files beside the records were not read, by suffix. All broken and filtered ones stand in broken.jsonl, groups of
duplicates in duplicates.jsonl, histograms in statistics.json and statistics.png.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from input_pipeline import jpeg
from input_pipeline.open_data import check_broken_share, count_indexed
from input_pipeline.prepare.duplicates import find_exact, find_near
from input_pipeline.prepare.shards import Folder, ShardMaker
from input_pipeline.prepare.statistics import Statistics, count_reasons
from input_pipeline.sources.unread import unread_of

VERSION = 1
SETTINGS, MANIFEST = "settings.json", "manifest.json"
IDS_REMEMBERED = 1000
DECIDES_BYTES = ("pillow", "array-record", "protobuf")  # libraries, beside those of `jpeg`


def prepare(
    maker: ShardMaker,
    make_shards: Callable[[Sequence[int], Callable[[int], None]], None],
    draw: Callable[[Statistics, str], None],
    *,
    max_broken_share: float,
) -> tuple[dict[str, Any], int]:
    """Makes the shards that are not there yet, then the manifest; returns it, and how many shards were made.

    Args:
      maker: of the shards.
      make_shards: makes the shards of these numbers and calls back with each complete one.
      draw: draws the statistics into the PNG of that path.
      max_broken_share: of the records seen, in [0, 1].

    Raises:
      ValueError: the folder holds shards of another source or other settings; another run is preparing there; too many
        broken records; none is left; and whatever `make_shards` raises.
    """
    num_indexed = count_indexed(maker.source)
    broken = list(maker.source.broken)
    seen = len(broken)
    check_broken_share(seen, num_indexed, broken, max_broken_share, "--max_broken_share")

    def check(shard: int) -> None:
        nonlocal seen
        seen += len(maker.indices(shard))
        broken.extend(maker.details(shard)["broken"])
        check_broken_share(len(broken), seen, broken, max_broken_share, "--max_broken_share", num_indexed)

    with maker.folder.locked():
        todo = maker.missing()
        may_change = () if todo else ("libraries.",)  # libraries change what would be made, not what is there
        record = json.dumps(_describe(maker), indent=2)
        maker.claim(SETTINGS, record, holds="shards of another source or other settings", may_change=may_change)
        if not todo and MANIFEST in maker.folder.sizes():
            return read_manifest(maker.folder), 0
        for shard in sorted({*range(len(maker))} - {*todo}):
            check(shard)
        make_shards(todo, check)
        return _write_manifest(maker, draw), len(todo)


def read_manifest(folder: Folder) -> dict[str, Any]:
    """Raises ValueError when it is damaged or of another version."""
    try:
        manifest = json.loads(folder.read(MANIFEST))
        if manifest["version"] == VERSION:
            return manifest
    except (ValueError, KeyError, TypeError):
        pass
    raise ValueError(f"{MANIFEST} in {folder} is damaged, or of another version: remove it, and prepare again")


def _describe(maker: ShardMaker) -> dict[str, Any]:
    return {
        "version": VERSION,
        "source": maker.source.fingerprint(),
        "settings": asdict(maker.settings),
        "name": maker.name,
        "shard_size": maker.shard_size,
        "num_shards": len(maker),
        "class_names": maker.source.class_names,
        "libraries": {name: version(name) for name in DECIDES_BYTES} | jpeg.libraries(),
    }


def _write_manifest(maker: ShardMaker, draw: Callable[[Statistics, str], None]) -> dict[str, Any]:
    shards: list[dict[str, Any]] = []
    ids: list[str] = []
    pixels: list[str] = []
    hashes: list[bytes] = []
    left_out: dict[str, list[Sequence[str]]] = {"broken": list(maker.source.broken), "filtered": []}
    statistics = Statistics()
    for shard in range(len(maker)):
        details = maker.details(shard)
        shards.append({"file": maker.file(shard), **{x: details[x] for x in ("records", "bytes", "sha256")}})
        ids += details["ids"]
        pixels += details["pixels"]
        hashes += map(bytes.fromhex, details["looks"])
        for kind, pairs in left_out.items():
            pairs += details[kind]
        statistics.merge(Statistics.from_json(details["statistics"]))
    # A filter's reason is the same for all its records; that of a broken record has details of its own.
    reasons = {
        "broken": count_reasons(left_out["broken"]),
        "filtered": dict(Counter(reason for _, reason in left_out["filtered"]).most_common()),
    }
    if not ids:
        raise ValueError(f"no record is left of {len(maker.source)}: {reasons}")

    duplicates: dict[str, list[list[int]]] = {"exact": find_exact(pixels)}
    # A near group whose pixels are all equal is an exact group already.
    duplicates["near"] = [group for group in find_near(hashes) if len({pixels[i] for i in group}) > 1]
    folder = maker.folder
    lines = ({"kind": k, "id": name, "reason": reason} for k, pairs in left_out.items() for name, reason in pairs)
    _write_lines(folder, "broken.jsonl", lines)
    groups = ({"kind": kind, "ids": [ids[x] for x in group]} for kind, found in duplicates.items() for group in found)
    _write_lines(folder, "duplicates.jsonl", groups)
    folder.write("statistics.json", json.dumps(statistics.as_json()).encode())
    with folder.whole("statistics.png") as path:
        draw(statistics, path)
    manifest = {
        **_describe(maker),
        "totals": {
            "records": len(ids),
            "captions": statistics.characters.total(),
            "bytes": sum(shard["bytes"] for shard in shards),
            **{kind: len(pairs) for kind, pairs in left_out.items()},
        },
        "duplicates": {
            kind: {"groups": len(groups), "records": sum(map(len, groups))} for kind, groups in duplicates.items()
        },
        **{kind: {"reasons": reasons[kind], "first": pairs[:IDS_REMEMBERED]} for kind, pairs in left_out.items()},
        "unread": dict(unread_of(maker.source)),
        "shards": shards,
    }
    folder.write(MANIFEST, json.dumps(manifest, indent=1).encode())
    return json.loads(json.dumps(manifest))


def _write_lines(folder: Folder, name: str, lines: Any) -> None:
    folder.write(name, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())
