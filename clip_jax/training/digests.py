"""Digests of a checkpoint's files, written before it is complete and compared before it is used.

A CRC-32 of each 64 MiB finds every damage within 32 neighbouring bits and misses one other in 4e9. It is a guard
against disks and networks, not against people, and the fastest of the standard library (see benchmarks/README.md).
"""

import json
import os
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from input_pipeline.storage import flush, listed, write_bytes

DIGESTS = "digests.json"
BLOCK_BYTES = 2**26
READ_BYTES = 2**20  # stays in the processor's cache
THREADS = 4


def write_digests(folder: Path, step: int) -> None:
    """Records step, sizes and digests of all files of a checkpoint, which are on the disk when this returns."""
    write_bytes(folder / DIGESTS, _as_text(step, _digest_files(folder, durable=True)), durable=True)


def find_damage(folder: Path, step: int) -> str | None:
    """What differs from the record in one sentence, "" where nothing does; None where there is no record.

    Files that the record does not name are not read by a restore, and not compared.
    """
    file = folder / DIGESTS
    if not file.is_file():
        return None
    text = file.read_bytes()
    try:
        record = json.loads(text)
        expected = {name: (int(size), str(digest)) for name, (size, digest) in record["files"].items()}
        is_whole = text == _as_text(record["step"], expected)
    except (ValueError, TypeError, KeyError, AttributeError):
        is_whole = False
    if not is_whole:
        return f"{DIGESTS} is damaged"
    if record["step"] != step:
        return f"it holds step {record['step']}"
    found = _digest_files(folder)
    damaged = [_describe(name, want, found.get(name)) for name, want in expected.items() if found.get(name) != want]
    return listed(damaged, 3)


def _describe(name: str, expected: tuple[int, str], found: tuple[int, str] | None) -> str:
    if found is None:
        return f"{name} is missing"
    if found[0] != expected[0]:
        return f"{name} has {found[0]:,} of {expected[0]:,} bytes"
    return f"{name} is not what was written, by its digest"


def _as_text(step: int, files: dict[str, tuple[int, str]]) -> bytes:
    """The record, with a digest of itself."""
    content = {"step": step, "files": files}
    own = f"{zlib.crc32(json.dumps(content, sort_keys=True).encode()):08x}"
    return (json.dumps({**content, "digest": own}, indent=1, sort_keys=True) + "\n").encode()


def _digest_files(folder: Path, durable: bool = False) -> dict[str, tuple[int, str]]:
    """Name -> size in bytes and digest: 8 hexadecimal digits for each block."""
    names = [p.relative_to(folder).as_posix() for p in sorted(folder.rglob("*")) if p.is_file() and p.name != DIGESTS]
    sizes = {name: (folder / name).stat().st_size for name in names}
    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        blocks = {name: [pool.submit(_digest, folder / name, at) for at in _blocks(sizes[name])] for name in names}
        digests = {name: "".join(block.result() for block in found) for name, found in blocks.items()}
        if durable:
            folders = {(folder / name).parent for name in names}
            list(pool.map(flush, [*(folder / name for name in names), *folders]))
    return {name: (sizes[name], digests[name]) for name in names}


def _blocks(size: int) -> Iterator[int]:
    yield from range(0, max(size, 1), BLOCK_BYTES)


def _digest(file: Path, start: int) -> str:
    crc, left, buffer = 0, BLOCK_BYTES, memoryview(bytearray(READ_BYTES))
    with file.open("rb", buffering=0) as stream:
        stream.seek(start)
        while left and (count := stream.readinto(buffer[: min(left, READ_BYTES)])):
            crc = zlib.crc32(buffer[:count], crc)
            left -= count
    return f"{crc:08x}"
