"""WebDataset tars: an index of offsets, made in one pass over the headers, and positional reads."""

import itertools
import os
import tarfile
from collections.abc import Iterator, Mapping
from typing import IO, Any

import numpy as np

from input_pipeline.sources.base import (
    NO_CAPTION,
    BrokenRecordError,
    Record,
    check_index,
    clean_captions,
    describe_files,
    digest,
    find_files,
    parse_json,
    relative_names,
    require_captions,
    require_records,
)

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
MAX_CAPTION_BYTES = 2**20  # of one .txt or .json; more is no caption
_MAX_OPEN_FILES = 256  # a process; shards beyond that are opened for each read


class WebDatasetSource:
    """Tars of KEY.jpg (jpeg, png, webp) with KEY.txt (one caption) and/or KEY.json (`captions` or `caption`).

    As in WebDataset the key is the name up to the first dot after the last slash; captions in the JSON win over the
    text. Tar headers and captions are read once, when the source is made; the index has 48 bytes and the key a record.
    Links, absolute names and names with ".." are refused. A shard that is cut off keeps its complete records and gives
    one entry in `broken`. The id of a record is SHARD/KEY.

    Args:
      path: a tar, a folder of tars, a glob, or a pattern such as train-{00000..00011}.tar.

    Raises:
      ValueError: nothing at path, or no usable record in it.
    """

    class_names: tuple[str, ...] | None = None

    def __init__(self, path: str):
        self._paths = find_files(path, r"\.tar", "a tar, a folder of tars, a glob or a {00000..00011}.tar pattern")
        self._names = relative_names(self._paths)
        self._files = _OpenFiles()
        self.broken: list[tuple[str, str]] = []
        self._keys: list[str] = []
        rows = list(itertools.chain.from_iterable(map(self._index_shard, range(len(self._paths)))))
        require_records(len(rows), path, self.broken, "KEY.jpg with KEY.txt or KEY.json")
        # Columns: shard, image offset, image size, captions offset, captions size, whether the captions are JSON.
        self._index = np.array(rows, np.int64)  # [n, 6]

    def _index_shard(self, shard: int) -> Iterator[tuple[int, ...]]:
        groups, refused, end = _scan_tar(self._paths[shard])
        self.broken += [(f"{self._names[shard]}/{member}", reason) for member, reason in refused]
        if end:
            self.broken.append((self._names[shard], end))
            # The last record may have lost members behind the cut: keep it only if it has as many as the first one.
            if groups and len(groups[last := next(reversed(groups))]) < len(next(iter(groups.values()))):
                del groups[last]
        with open(self._paths[shard], "rb") as file:
            for key, members in groups.items():
                try:
                    row = _index_record(members, file)
                except ValueError as error:
                    self.broken.append((self._record_id(shard, key), str(error)))
                else:
                    self._keys.append(key)
                    yield shard, *row

    def _record_id(self, shard: int, key: str) -> str:
        return f"{self._names[shard].removesuffix('.tar')}/{key}"

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, index: int) -> Record:
        captions = self.captions(index)
        shard, offset, size = self._index[index, :3].tolist()
        record_id = self._record_id(shard, self._keys[index])
        return {"id": record_id, "image": self._read(record_id, shard, offset, size), "captions": captions}

    def captions(self, index: int) -> tuple[str, ...]:
        check_index(index, len(self))
        shard, _, _, offset, size, is_json = self._index[index].tolist()
        record_id = self._record_id(shard, self._keys[index])
        data = self._read(record_id, shard, offset, size)
        try:
            return require_captions(_parse_captions(data, bool(is_json)))
        except ValueError as error:  # indexed as good, so the file has changed since
            raise BrokenRecordError(record_id, str(error)) from error

    def _read(self, record_id: str, shard: int, offset: int, size: int) -> bytes:
        try:
            data = self._files.read(self._paths[shard], offset, size)
        except OSError as error:
            raise BrokenRecordError(record_id, str(error)) from error
        if len(data) != size:
            raise BrokenRecordError(record_id, f"{self._names[shard]} is shorter than when it was indexed")
        return data

    def fingerprint(self) -> dict[str, Any]:
        index = digest(self._index.tobytes(), "\n".join(self._keys).encode())
        return {"kind": "webdataset", **describe_files(self._paths), "length": len(self), "digest": index}


class _OpenFiles:
    """Files opened when first read; positional reads, so threads and forked processes do not disturb each other."""

    def __init__(self) -> None:
        self._descriptors: dict[str, int] = {}

    def read(self, path: str, offset: int, size: int) -> bytes:
        if path not in self._descriptors and len(self._descriptors) >= _MAX_OPEN_FILES:
            with open(path, "rb") as file:
                return os.pread(file.fileno(), size, offset)
        if path not in self._descriptors:
            opened = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            if self._descriptors.setdefault(path, opened) != opened:  # another thread was faster
                os.close(opened)
        return os.pread(self._descriptors[path], size, offset)

    def __reduce__(self) -> tuple:
        return _OpenFiles, ()

    def __del__(self) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)


def _scan_tar(path: str) -> tuple[dict[str, dict[str, tuple[int, int]]], list[tuple[str, str]], str | None]:
    """Returns key -> suffix -> (offset, size) of the complete members, (name, reason) of refused ones, and where and
    how the tar ends if it does not end as it should."""
    groups: dict[str, dict[str, tuple[int, int]]] = {}
    refused: list[tuple[str, str]] = []
    size = os.path.getsize(path)
    end = 0
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.offset_data + member.size > size:
                    return groups, refused, f"tar cut off at byte {size}, within {member.name}"
                end = tar.offset
                name = member.name.removeprefix("./")
                if member.isdir():
                    continue
                if reason := _refusal(member):
                    refused.append((name.encode(errors="replace").decode(), reason))
                    continue
                folder, slash, base = name.rpartition("/")
                stem, _, suffix = base.partition(".")
                suffix = suffix.lower()
                if suffix not in (*IMAGE_SUFFIXES, "txt", "json"):
                    continue
                group = groups.setdefault(folder + slash + stem, {})
                if suffix in group:
                    refused.append((name, "occurs twice in the tar"))
                group.setdefault(suffix, (member.offset_data, member.size))
    except (tarfile.TarError, ValueError, OverflowError) as error:  # the last two from damaged extended headers
        if not groups:
            return groups, refused, f"not an uncompressed tar, or cut off at byte {size}: {error}"
        return groups, refused, f"tar cut off at byte {size}: {error}"
    with open(path, "rb") as file:  # tarfile takes a bad header for the end
        file.seek(end)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            return groups, refused, f"tar cut off or damaged at byte {end} of {size}"
    return groups, refused, None


def _refusal(member: tarfile.TarInfo) -> str | None:
    if not member.isreg() or member.issparse():
        return "a link, a sparse or a special file, not a plain one"
    if member.name.startswith("/") or ".." in member.name.split("/"):
        return "the name leads out of the tar"
    try:
        member.name.encode()
    except UnicodeEncodeError:
        return "the name is not UTF-8"
    return None


def _index_record(members: Mapping[str, tuple[int, int]], file: IO[bytes]) -> tuple[int, ...]:
    """Returns image offset and size, captions offset and size, and 1 if those are JSON; ValueError if unusable."""
    image = next((members[suffix] for suffix in IMAGE_SUFFIXES if suffix in members), None)
    if image is None:
        raise ValueError("caption without image")
    if image[1] == 0:
        raise ValueError("empty image")
    sources = [suffix for suffix in ("json", "txt") if suffix in members]
    if not sources:
        raise ValueError("image without caption: no .txt and no .json")
    for suffix in sources:
        offset, size = members[suffix]
        if size > MAX_CAPTION_BYTES:
            raise ValueError(f".{suffix} of {size} bytes, at most {MAX_CAPTION_BYTES}")
        file.seek(offset)
        if _parse_captions(file.read(size), suffix == "json"):
            return *image, offset, size, int(suffix == "json")
    raise ValueError(NO_CAPTION)


def _parse_captions(data: bytes, is_json: bool) -> tuple[str, ...]:
    """The captions in a .txt or .json file; empty if there are none, ValueError if they cannot be read."""
    if not is_json:
        return clean_captions(data)
    content = parse_json(data)
    if not isinstance(content, dict):
        raise ValueError(f"the JSON is a {type(content).__name__}, not an object with captions or caption")
    return clean_captions(content.get("captions") or content.get("caption") or ())
