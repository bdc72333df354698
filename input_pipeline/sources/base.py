"""What every source is, `Source`, and what the formats share: finding files, cleaning captions, checking indices."""

import codecs
import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from glob import has_magic
from typing import Any, Protocol

import numpy as np

from input_pipeline.sources import opener
from input_pipeline.sources.remote import UnreachableError, is_remote
from input_pipeline.sources.unread import count_unread, unread_of

Record = dict[str, Any]
OWN_FILES = r"\..*\.index\.npz$"  # written beside tars
NO_CAPTION = "no caption, or only empty ones"


class UnusedRecordError(ValueError):
    """A record that is left out."""

    def __init__(self, record_id: str, reason: str):
        super().__init__(record_id, reason)  # both, or the error could not be unpickled from a worker process
        self.record_id = record_id
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.record_id}: {self.reason}"


class BrokenRecordError(UnusedRecordError):
    """A record that cannot be used; the pipeline counts and skips it."""


@contextmanager
def as_broken(record_id: str, kinds: type[Exception] | tuple[type[Exception], ...] = ValueError) -> Iterator[None]:
    """Errors of these kinds within the block become a BrokenRecordError; an UnreachableError stays one."""
    try:
        yield
    except (BrokenRecordError, UnreachableError):
        raise
    except kinds as error:
        raise BrokenRecordError(record_id, str(error)) from error


class Source(Protocol):
    """Random access to records; picklable, safe to read from several threads and after a fork.

    A record is {"id": str, "image": encoded bytes or uint8 [H, W, 3], "captions": tuple of str} and, in a labelled
    source, "label": int. Captions are stripped and none is empty; only labelled records may have none. "path" names the
    picture's file as the source does, where its id does not.

    Attributes:
      broken: (id, reason) of what was found unusable while indexing; len() does not count it.
      filtered: where a source leaves records out by choice, how many for which reason; len() does not count them.
      unread: where a source leaves things out that lie beside its records, how many of which suffix; see `unread`.
      notes: where a source decided something by itself, lines that say so.
      class_names: the names of the labels 0, 1, ..., or None.
    """

    broken: list[tuple[str, str]]
    class_names: tuple[str, ...] | None

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record:
        """Raises BrokenRecordError for a record that cannot be used, IndexError outside [0, len)."""
        ...

    def captions(self, index: int) -> tuple[str, ...]:
        """The captions alone, without reading the image where the format allows it. Raises like indexing."""
        ...

    def fingerprint(self) -> dict[str, Any]:
        """What identifies the data (str, int, float or list values), the same wherever the files lie."""
        ...


class SubsetSource:
    """The records [start, stop) of another source, as to hold out a validation part.

    `broken` is the whole source's: what is broken is not part of the order.
    """

    def __init__(self, source: Source, start: int, stop: int):
        if not 0 <= start < stop <= len(source):
            raise ValueError(f"the range [{start}, {stop}) is empty or not within the source's {len(source)} records")
        self._source: Source = source
        self._start, self._stop = start, stop
        if isinstance(source, SubsetSource):  # of the whole, so that equal ranges have equal fingerprints
            self._source = source._source
            self._start, self._stop = source._start + start, source._start + stop
        self.broken = source.broken
        self.filtered = getattr(source, "filtered", Counter())
        self.unread = unread_of(source)
        self.notes = list(getattr(source, "notes", ()))
        self.class_names = getattr(source, "class_names", None)

    def __len__(self) -> int:
        return self._stop - self._start

    def __getitem__(self, index: int) -> Record:
        check_index(index, len(self))
        return self._source[self._start + index]

    def captions(self, index: int) -> tuple[str, ...]:
        check_index(index, len(self))
        return self._source.captions(self._start + index)

    def fingerprint(self) -> dict[str, Any]:
        return {**self._source.fingerprint(), "length": len(self), "start": self._start, "stop": self._stop}


class PerProcess:
    """A reader that each process makes for itself, as ArrayRecord's threads and files do not survive a fork."""

    def __init__(self, make: Callable[[], Any]):
        self._make = make
        self._made: dict[int, Any] = {}

    def get(self) -> Any:
        process = os.getpid()
        return self._made[process] if process in self._made else self._made.setdefault(process, self._make())

    def __reduce__(self) -> tuple:
        return PerProcess, (self._make,)


def find_files(path: str, suffix: str, expected: str) -> list[str]:
    """The files that a path, folder, glob or {00..11} pattern names, in order; ValueError if there are none.

    `suffix` is a regular expression for the names that count in a folder.
    """
    path = path if is_remote(path) else os.path.expanduser(path)
    try:
        return _find_files(path, suffix, expected)
    except PermissionError as error:
        raise ValueError(f"{path} may not be read: {error}") from error


def _find_files(path: str, suffix: str, expected: str) -> list[str]:
    if opener.is_file(path):
        return [path]
    if opener.is_folder(path):
        names = [name for name in opener.list_names(path) if re.search(f"{suffix}$", name) and not name.startswith(".")]
        if not names:
            raise ValueError(f"no data in the folder {path!r}: expected {expected}")
        return [opener.join(path, name) for name in names]
    patterns = _expand_range(path)
    found = _find_each(patterns)
    if not any(found):
        raise ValueError(f"no data at {path!r}, which does not exist: expected {expected}")
    if not all(found):
        missing = [pattern for pattern, files in zip(patterns, found) if not files]
        raise ValueError(f"{path}: {len(missing)} of {len(patterns)} files do not exist, the first is {missing[0]}")
    return list(itertools.chain.from_iterable(found))


def _find_each(patterns: Sequence[str]) -> list[list[str]]:
    """For each pattern its files. Plain remote names are looked up in the listings of their folders, all at once."""
    plain = [is_remote(pattern) and not has_magic(pattern) for pattern in patterns]
    listed: dict[str, set[str]] = {}
    for folder in {os.path.dirname(pattern) for pattern, is_plain in zip(patterns, plain) if is_plain}:
        try:
            listed[folder] = set(opener.list_names(folder))
        except (FileNotFoundError, NotADirectoryError):
            listed[folder] = set()
    return [
        ([pattern] if os.path.basename(pattern) in listed[os.path.dirname(pattern)] else [])
        if is_plain
        else opener.matching_files(pattern)
        for pattern, is_plain in zip(patterns, plain)
    ]


def _expand_range(path: str) -> list[str]:
    match = re.search(r"\{(\d+)\.\.(\d+)\}", path)
    if match is None:
        return [path]
    first, last = match.groups()
    numbers = (f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1))
    return [name for number in numbers for name in _expand_range(path.replace(match[0], number, 1))]


def count_beside(path: str, suffix: str, used: Collection[str] = ()) -> Counter[str]:
    """Of a folder of data files, the files directly in it that are neither those nor used, by suffix.

    suffix: as of `find_files`. used: names from the folder. A path that names the files themselves leaves none out.
    """
    path = path if is_remote(path) else os.path.expanduser(path)
    if not opener.is_folder(path):
        return Counter()
    names = (name for name in opener.list_sizes(path) if not re.search(f"{suffix}$", name) or name.startswith("."))
    return count_unread(name for name in names if name not in used and not re.match(OWN_FILES, name))


def relative_names(paths: Sequence[str]) -> list[str]:
    """The paths from the deepest folder that holds all of them, with forward slashes."""
    paths = [f"/{path.partition('://')[2]}" if is_remote(path) else os.path.abspath(path) for path in paths]
    root = os.path.commonpath([os.path.dirname(path) for path in paths])
    return [os.path.relpath(path, root).replace(os.sep, "/") for path in paths]


class FilesSource:
    """What the sources of files share: their states and their part of the fingerprint.

    Args:
      paths: of the files, local or URLs.
      captions_field: a chosen field of captions, or empty.
    """

    class_names: tuple[str, ...] | None = None

    def __init__(self, paths: list[str], captions_field: str):
        self._paths = paths
        with ThreadPoolExecutor(opener.THREADS if is_remote(paths[0]) else 1) as pool:
            self._states = list(pool.map(opener.file_state, paths))
        field = {"captions_field": captions_field} if captions_field else {}
        self._files = {"files": relative_names(paths), "sizes": [size for size, _ in self._states], **field}
        self.broken: list[tuple[str, str]] = []

    def __getitem__(self, index: int) -> Record:
        raise NotImplementedError

    def captions(self, index: int) -> tuple[str, ...]:
        return self[index]["captions"]

    def file_states(self) -> list[list[int | str]]:
        """`opener.file_state` of each file."""
        return self._states


def clean_captions(captions: Any) -> tuple[str, ...]:
    """str, bytes or a sequence of them -> stripped, without empty ones; ValueError if it is something else."""
    if isinstance(captions, str | bytes):
        captions = [captions]
    if not isinstance(captions, Sequence | np.ndarray):
        raise ValueError(f"captions are a {type(captions).__name__}, not strings")
    return tuple(text for caption in captions if (text := decode(caption).strip()))


def require_captions(captions: tuple[str, ...]) -> tuple[str, ...]:
    """The captions as they are; ValueError if there are none."""
    if not captions:
        raise ValueError(NO_CAPTION)
    return captions


def parse_json(data: bytes) -> Any:
    """ValueError if the captions are not valid UTF-8 or JSON."""
    try:
        return json.loads(decode(data.removeprefix(codecs.BOM_UTF8)))
    except json.JSONDecodeError as error:
        raise ValueError(f"captions are not valid JSON: {error}") from None
    except RecursionError:
        raise ValueError("captions are not valid JSON: nested too deep") from None


def decode(text: Any) -> str:
    """UTF-8 bytes, str or None (empty) -> str; ValueError if it is something else or not valid."""
    if text is None:
        return ""
    if not isinstance(text, str | bytes):
        raise ValueError(f"expected text, found {type(text).__name__}")
    try:
        return text.encode().decode() if isinstance(text, str) else text.decode()  # a str may hold lone surrogates
    except UnicodeError:
        raise ValueError("text is not valid UTF-8") from None


def check_index(index: int, length: int) -> None:
    """IndexError outside [0, length)."""
    if not 0 <= index < length:
        raise IndexError(f"record {index} of {length}")


def require_records(
    count: int, path: str, broken: Sequence[tuple[str, str]], expected: str, filtered: Counter[str] | None = None
) -> None:
    """ValueError if count is 0, naming the first broken ones and why others are left out, or else what was expected."""
    if count == 0:
        found = [f"{name}: {reason}" for name, reason in broken[:3]]
        found += [f"{number} had {reason}" for reason, number in Counter(filtered).most_common(3)]
        raise ValueError(f"no usable record in {path}: {'; '.join(found) or f'expected {expected}'}")
