"""Local and remote files behind one opener: sizes, listings and reads by (offset, size), tried again when they fail.

A path with "://" goes through fsspec, see `remote`, every other one through the operating system. fsspec's isfile,
isdir and glob take a question that failed for a no, so only its info and ls are asked here.
"""

import functools
import io
import os
from collections.abc import Iterator
from fnmatch import fnmatchcase
from glob import glob, has_magic
from pathlib import Path
from typing import Any

from fsspec.spec import AbstractBufferedFile
from tqdm import tqdm

from input_pipeline.sources.remote import ask, is_remote, with_retries
from input_pipeline.storage import atomic_file, digest

LOCAL_TRIES = 5  # a disk that fails for three seconds will fail on
MAX_OPEN_FILES = 256  # a process; files beyond that are opened for each read
THREADS = 16  # so many remote files are asked about at once
BLOCK_SIZE = 8 * 2**20  # bytes that a remote file read in order is fetched by


def read_range(path: str, offset: int, size: int) -> bytes:
    """Bytes [offset, offset + size) of a file, fewer at its end.

    Raises FileNotFoundError and PermissionError at once, UnreachableError after the last try.
    """
    if not is_remote(path):
        return with_retries(functools.partial(_read_local, path, offset, size), LOCAL_TRIES)
    if size <= 0:  # fsspec would take it for the whole file
        return b""
    return ask(path, lambda fs, name: fs.cat_file(name, start=offset, end=offset + size), size)


def read_file(path: str, most: int = 2**62) -> bytes:
    """All bytes of a file, or the first `most` of them. Raises like `read_range`."""
    return read_range(path, 0, min(most, file_size(path)))


def file_size(path: str) -> int:
    """Bytes. Raises like `read_range`."""
    if not is_remote(path):
        return with_retries(functools.partial(os.path.getsize, path), LOCAL_TRIES)
    return ask(path, lambda fs, name: int(fs.info(name)["size"]))


def file_state(path: str) -> list[int | str]:
    """Size, and the time of writing or the store's tag, which change with the file."""
    if not is_remote(path):
        stat = os.stat(path)
        return [stat.st_size, stat.st_mtime_ns]
    info = ask(path, lambda fs, name: fs.info(name))
    marks = (info.get(key) for key in ("etag", "ETag", "md5Hash", "generation", "mtime", "LastModified", "created"))
    return [int(info["size"]), str(next((mark for mark in marks if mark), ""))]


def is_file(path: str) -> bool:
    return _remote_type(path) == "file" if is_remote(path) else os.path.isfile(path)


def is_folder(path: str) -> bool:
    return _remote_type(path) == "directory" if is_remote(path) else os.path.isdir(path)


def list_names(folder: str) -> list[str]:
    """The names of everything directly in a folder, sorted. Raises FileNotFoundError if there is no such folder."""
    return sorted(_remote_entries(folder) if is_remote(folder) else os.listdir(folder))


def list_sizes(folder: str) -> dict[str, int]:
    """The names and sizes in bytes of the files directly in a folder; empty if there is no such folder."""
    if not is_remote(folder):
        if not os.path.isdir(folder or "."):
            return {}
        with os.scandir(folder or ".") as entries:
            return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
    return {name: int(info["size"]) for name, info in _entries(folder) if info["type"] == "file"}


def join(folder: str, name: str) -> str:
    return f"{folder.rstrip('/')}/{name}" if is_remote(folder) else os.path.join(folder, name)


def matching_files(pattern: str) -> list[str]:
    """The files that a glob pattern names, sorted."""
    if not is_remote(pattern):
        return sorted(filter(os.path.isfile, glob(pattern)))
    if not has_magic(pattern):
        return [pattern] if is_file(pattern) else []
    return sorted({path for path, kind in _remote_matches(pattern) if kind == "file"})


class RangedFile(AbstractBufferedFile):
    """A file to read and seek in, by `read_range`; within io.BufferedReader it is fetched block by block."""

    def __init__(self, path: str):
        super().__init__(None, path, size=file_size(path), cache_type="none")

    def _fetch_range(self, start: int, end: int) -> bytes:
        return read_range(self.path, start, min(end, self.size) - start)


def _remote_type(path: str) -> str | None:
    """The type that fsspec gives, as file or directory, or None if there is nothing. Raises UnreachableError."""
    try:
        return ask(path, lambda fs, name: fs.info(name)["type"])
    except (FileNotFoundError, NotADirectoryError):
        return None


def _remote_entries(folder: str) -> dict[str, dict[str, Any]]:
    """fsspec's info of everything directly in a folder, by name; links as what they lead to.

    Raises FileNotFoundError if there is no such folder, and UnreachableError.
    """
    found, itself = ask(folder, lambda fs, name: (fs.ls(name, detail=True), name.rstrip("/")))
    entries = {}
    for info in found:
        path = info["name"].rstrip("/")
        name = path.rpartition("/")[2]
        if info["type"] not in ("file", "directory"):
            info = {**info, "type": _remote_type(f"{folder.rstrip('/')}/{name}"), "islink": True}
        if path != itself:  # as of a file, and of buckets' folders that are objects, too
            entries[name] = info
    return entries


def _remote_matches(pattern: str) -> Iterator[tuple[str, str]]:
    """Path and type of all that a pattern names, in no order and perhaps twice; ** goes through folders of any depth.

    Raises UnreachableError.
    """
    end = pattern.rindex("/") + 1
    folder, name = pattern[:end], pattern[end:]
    if has_magic(folder):
        parents = [f"{path}/" for path, kind in _remote_matches(folder[:-1]) if kind == "directory"]
    else:
        parents = [folder]
    for parent in parents:
        if name == "**":
            yield from _all_below(parent)
            continue
        yield from ((parent + entry, info["type"]) for entry, info in _entries(parent) if fnmatchcase(entry, name))


def _all_below(folder: str) -> Iterator[tuple[str, str]]:
    yield folder[:-1], "directory"
    for name, info in _entries(folder):
        if info["type"] == "directory":
            if not info.get("islink"):  # links could go round in circles
                yield from _all_below(f"{folder}{name}/")
        else:
            yield folder + name, info["type"]


def _entries(folder: str) -> list[tuple[str, dict[str, Any]]]:
    try:
        return list(_remote_entries(folder).items())
    except (FileNotFoundError, NotADirectoryError):
        return []


def open_file(path: str) -> io.BufferedReader:
    """A file to read in order or from any position."""
    if not is_remote(path):
        return open(path, "rb")
    return io.BufferedReader(RangedFile(path), BLOCK_SIZE)


def cache_folder() -> Path:
    """Folder of the indices and copies that cannot be kept beside the data: $CLIP_JAX_CACHE or ~/.cache/clip_jax."""
    return Path(os.environ.get("CLIP_JAX_CACHE") or Path.home() / ".cache" / "clip_jax")


def local_copy(path: str) -> str:
    """A path that the operating system can open: of a remote file, its copy in the cache folder, made once.

    Raises OSError when the copy cannot be written, as on a full disk; nothing half-written is left.
    """
    if not is_remote(path):
        return path
    size, mark = file_state(path)
    fingerprint = digest(f"{path}\0{size}\0{mark}".encode())
    copy = cache_folder() / "copies" / fingerprint / path.rpartition("/")[2]
    if not (copy.is_file() and copy.stat().st_size == size):
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy_file(path, copy)
    return str(copy)


def copy_file(path: str, copy: Path) -> None:
    """Copies a file, whole or not at all, with the progress on the terminal. Raises OSError, as on a full disk."""
    size = file_size(path)
    with (
        atomic_file(copy) as file,
        tqdm(total=size, unit="B", unit_scale=True, desc=f"copy {copy.name}", delay=3, leave=False) as bar,
    ):
        for start in range(0, size, BLOCK_SIZE):
            data = read_range(path, start, min(BLOCK_SIZE, size - start))
            file.write(data)
            bar.update(len(data))


class Opener:
    """Reads by (offset, size) from many files. Local ones are opened when first read and read by position, so threads
    and forked processes do not disturb each other; it is pickled without its open files."""

    def __init__(self) -> None:
        self._descriptors: dict[str, int] = {}

    def read(self, path: str, offset: int, size: int) -> bytes:
        """As `read_range`."""
        if is_remote(path):
            return read_range(path, offset, size)
        return with_retries(functools.partial(self._read_local, path, offset, size), LOCAL_TRIES)

    def _read_local(self, path: str, offset: int, size: int) -> bytes:
        if path not in self._descriptors and len(self._descriptors) >= MAX_OPEN_FILES:
            return _read_local(path, offset, size)
        if path not in self._descriptors:
            opened = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            if self._descriptors.setdefault(path, opened) != opened:  # another thread was faster
                os.close(opened)
        return os.pread(self._descriptors[path], size, offset)

    def __reduce__(self) -> tuple:
        return Opener, ()

    def __del__(self) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)


def _read_local(path: str, offset: int, size: int) -> bytes:
    with open(path, "rb") as file:
        return os.pread(file.fileno(), size, offset)
