"""Files that appear whole or not at all, digests of what decides a result, and folders that continue one record only.

The only module that writes files atomically, computes SHA-256 and compares what is stored with what is
asked for.
"""

import glob
import hashlib
import itertools
import json
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

LISTED = 12  # items of a list in a message


class Missing:
    """Stands for a value that only one side of a comparison has."""

    def __repr__(self) -> str:
        return "missing"


MISSING = Missing()


class Difference(NamedTuple):
    """A key, dotted and with [i] within lists, and its values before and after; a printed one is cut."""

    name: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.name} was {self.before!r:.200}, is {self.after!r:.200}"


class Folder(Protocol):
    """A folder in any file system, whose files appear whole or not at all."""

    def sizes(self) -> dict[str, int]:
        """Sizes in bytes of the complete files, by name."""
        ...

    def read(self, name: str) -> bytes: ...

    def write(self, name: str, data: bytes, *, replace: bool = True) -> None: ...


@contextmanager
def atomic_path(file: str | os.PathLike[str], *, replace: bool = True, durable: bool = False) -> Iterator[Path]:
    """A hidden path beside `file` to write to, renamed to it when the block ends without an error, else removed.

    The hidden name is used once: of several writers at once, in any process, each writes a file of its own.

    Args:
      replace: False keeps a file that is there already, so of several writers the first one wins.
      durable: the data and the name are on the disk when the block ends.
    """
    file = Path(file)
    partial = file.with_name(f".{file.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")
    try:
        yield partial
        if durable:
            flush(partial)
        if replace:
            partial.replace(file)
        else:
            _link_or_keep(partial, file)
        if durable:
            flush(file.parent)
    except BaseException:
        for left in glob.glob(f"{glob.escape(str(partial))}*"):  # a library may write to a temporary name of its own
            os.unlink(left)
        raise


def _link_or_keep(partial: Path, file: Path) -> None:
    try:
        os.link(partial, file)  # unlike a rename this replaces nothing
    except FileExistsError:
        pass
    except OSError:  # a file system without links
        partial.replace(file)
    partial.unlink(missing_ok=True)


@contextmanager
def atomic_file(file: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A binary file to write to, which appears whole or not at all; see `atomic_path`."""
    with atomic_path(file) as partial, partial.open("wb") as stream:
        yield stream


def write_bytes(
    file: str | os.PathLike[str], data: bytes | memoryview, *, replace: bool = True, durable: bool = False
) -> None:
    """Writes a file whole or not at all; see `atomic_path`."""
    with atomic_path(file, replace=replace, durable=durable) as partial:
        partial.write_bytes(data)


def write_text(file: str | os.PathLike[str], text: str) -> None:
    """Writes a UTF-8 file whole or not at all."""
    write_bytes(file, text.encode())


def write_json(file: str | os.PathLike[str], value: Any) -> None:
    """Writes a JSON file, indented by two, whole or not at all."""
    write_text(file, json.dumps(value, indent=2) + "\n")


def flush(path: Path) -> None:
    """Puts a file, or the names in a folder, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def checksum(chunks: Iterable[bytes | memoryview]) -> str:
    """SHA-256 of the chunks, one after the other, in 64 hexadecimal digits."""
    sha = hashlib.sha256()
    for chunk in chunks:
        sha.update(chunk)
    return sha.hexdigest()


def checksum_file(path: str | os.PathLike[str]) -> str:
    """`checksum` of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksum_json(value: Any) -> str:
    """`checksum` of a value's JSON, its keys sorted."""
    return checksum([json.dumps(value, sort_keys=True).encode()])


def digest(*parts: bytes) -> str:
    """The first 16 digits of the SHA-256 of the parts, zero bytes between them."""
    return checksum([b"\0".join(parts)])[:16]


def digest_json(value: Any) -> str:
    """`digest` of a value's JSON, its keys sorted."""
    return checksum_json(value)[:16]


def differences(old: Any, new: Any, missing: Any = MISSING) -> list[Difference]:
    """What differs between two values of mappings, sequences and scalars, sorted by key.

    missing: stands for a key that one side lacks; None makes an absent key equal to one whose value is None.
    """
    return list(_differences("", old, new, missing))


def _differences(name: str, old: Any, new: Any, missing: Any) -> Iterator[Difference]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted({*old, *new}):
            inner = f"{name}.{key}" if name else key
            yield from _differences(inner, old.get(key, missing), new.get(key, missing), missing)
    elif isinstance(old, list | tuple) and isinstance(new, list | tuple):
        for i, (before, after) in enumerate(itertools.zip_longest(old, new, fillvalue=MISSING)):
            yield from _differences(f"{name}[{i}]", before, after, missing)
    elif old != new:
        yield Difference(name, old, new)


def listed(items: Sequence[Any], most: int = LISTED) -> str:
    """The items in one line, the first `most` of them and the number of the others."""
    more = f"; and {len(items) - most} more" if len(items) > most else ""
    return "; ".join(map(str, items[:most])) + more


def check_unchanged(old: Any, new: Any, *, holds: str, fix: str, may_change: tuple[str, ...] = ()) -> None:
    """Raises ValueError "HOLDS: what differs. FIX" where more differs than names that start with `may_change`."""
    changed = [found for found in differences(old, new, None) if not found.name.startswith(may_change)]
    if changed:
        raise ValueError(f"{holds}: {listed(changed)}. {fix}")


def claim(
    folder: Folder, name: str, record: bytes, *, holds: str, products: str, fix: str, may_change: tuple[str, ...] = ()
) -> None:
    """Takes a folder for what a record describes: a new one gets the record, one with the same record is continued.

    Several processes may do so at once; the first one's record counts.

    Args:
      name: of the record's file.
      record: JSON, an object.
      holds: "shards of other settings" in the message that lists what differs.
      products: regular expression for the names of files that are never there without a record.
      fix: "use another --output".
      may_change: beginnings of the dotted names that may differ.

    Raises:
      ValueError: the record there differs (the differences are listed) or is damaged, or products have no record.
    """
    before = folder.sizes()
    # Listed a second time: others may just have written the record, and then their first product.
    if name not in folder.sizes():
        if others := sorted(file for file in before if re.search(products, file)):
            raise ValueError(f"{folder} holds {others[0]} but no {name}: {fix}")
        folder.write(name, record, replace=False)
    try:
        found = json.loads(folder.read(name))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"{name} in {folder} is damaged: {fix}")
    fix = f"{fix[0].upper()}{fix[1:]}"
    check_unchanged(found, json.loads(record), holds=f"{folder} holds {holds}", fix=fix, may_change=may_change)
