"""Digests of a checkpoint's files, written before it is complete and compared before it is used.

A megabyte is a matrix of 8-byte words, 4 KiB a row. Sums of all rows and of all columns are exact modulo 2**64, so any
damage within 4 KiB changes one, as does a page that is lost or changes its place; a CRC-32 of the sums is the digest.
That guards against disks and networks, not against people, and takes a third of the time of a CRC-32 of the bytes, a
tenth of that of SHA-256 (benchmarks/README.md).
"""

import json
import os
import sys
import threading
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from input_pipeline.storage import flush, listed, write_bytes

DIGESTS = "file_digests.json"  # digests.json held other ones: such a checkpoint counts as one without
BLOCK_BYTES = 2**26
READ_BYTES = 2**20  # stays in the processor's cache
ROW_BYTES = 2**12
THREADS = 4
AHEAD_BYTES = 2**23  # smaller files are quickly read at the end
POLL_S = 0.05


class _Version(NamedTuple):
    """A file's content, as far as its folder knows it; a name may change while a checkpoint is written."""

    inode: int
    size: int
    mtime_ns: int


class DigestsAhead:
    """Digests of the large files in a folder while others are still being written, so that little is left at the end.

    Digests of a file that has changed since are not used.
    """

    def __init__(self, folder: Path):
        self.found: dict[_Version, str] = {}
        self._folder = folder
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="digests", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        if sys.platform == "linux":  # where it is the priority of this thread alone: what is idle is enough
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        before: set[_Version] = set()
        while not self._ended.wait(POLL_S):
            now = set()
            for file in (Path(root, name) for root, _, names in os.walk(self._folder) for name in names):
                try:
                    version = _version(file)
                    now.add(version)
                    if version.size >= AHEAD_BYTES and version in before and version not in self.found:
                        digest = "".join(_digest(file, at) for at in _blocks(version.size))
                        self.found[version] = digest
                except OSError:  # renamed meanwhile, or removed
                    continue
                if self._ended.is_set():
                    break
            before = now

    def end(self) -> None:
        self._ended.set()


def write_digests(folder: Path, step: int, ahead: DigestsAhead | None = None) -> None:
    """Records step, sizes and digests of all files of a checkpoint, which are on the disk when this returns."""
    if ahead:
        ahead.end()
    found = _digest_files(folder, ahead.found if ahead else {}, durable=True)
    write_bytes(folder / DIGESTS, _as_text(step, found), durable=True)


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
    found = _digest_files(folder, {})
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


def _digest_files(folder: Path, known: dict[_Version, str], durable: bool = False) -> dict[str, tuple[int, str]]:
    """Name -> size in bytes and digest: 8 hexadecimal digits for each block."""
    names = [p.relative_to(folder).as_posix() for p in sorted(folder.rglob("*")) if p.is_file() and p.name != DIGESTS]
    versions = {name: _version(folder / name) for name in names}
    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        blocks = {
            name: [pool.submit(_digest, folder / name, at) for at in _blocks(version.size)]
            for name, version in versions.items()
            if version not in known
        }
        digests = {name: "".join(block.result() for block in found) for name, found in blocks.items()}
        if durable:
            folders = {(folder / name).parent for name in names}
            list(pool.map(flush, [*(folder / name for name in names), *folders]))
    return {name: (version.size, digests.get(name) or known[version]) for name, version in versions.items()}


def _version(file: Path) -> _Version:
    found = file.stat()
    return _Version(found.st_ino, found.st_size, found.st_mtime_ns)


def _blocks(size: int) -> Iterator[int]:
    yield from range(0, max(size, 1), BLOCK_BYTES)


def _digest(file: Path, start: int) -> str:
    """Of the block that begins there."""
    crc, left, buffer = 0, BLOCK_BYTES, memoryview(bytearray(READ_BYTES))
    with file.open("rb", buffering=0) as stream:
        stream.seek(start)
        while left and (count := _fill(stream, buffer[: min(left, READ_BYTES)])):
            rows = count // ROW_BYTES
            words = np.frombuffer(buffer, "<u8", rows * ROW_BYTES // 8).reshape(rows, ROW_BYTES // 8)
            crc = zlib.crc32(words.sum(1), zlib.crc32(words.sum(0), crc))
            crc = zlib.crc32(buffer[rows * ROW_BYTES : count], crc)
            left -= count
    return f"{crc:08x}"


def _fill(stream: BinaryIO, buffer: memoryview) -> int:
    """Bytes read: all that fit but at the file's end."""
    filled = 0
    while filled < len(buffer) and (count := stream.readinto(buffer[filled:])):  # type: ignore[attr-defined]
        filled += count
    return filled
