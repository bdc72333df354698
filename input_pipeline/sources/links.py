"""Which paths a source may follow: those below its own folder, and below one that the user allows."""

import os
import posixpath
from collections.abc import Sequence
from typing import Any

from input_pipeline.sources import opener
from input_pipeline.sources.remote import is_remote

LINK_ROOT = "link_root"
# How the user allows it, in every message.
FIX = "--link_root=DIR, or link_root of the config's section data, evaluation or suite, allows what is below DIR"


class Links:
    """Judges links and paths that could lead out of a folder.

    Args:
      root: the source's folder, absolute.
      allowed: a folder below which links and paths may lead as well; empty allows none.

    Raises:
      ValueError: `allowed` is no folder.
    """

    def __init__(self, root: str, allowed: str = ""):
        self._start, self._root = root, os.path.realpath(root)
        self._allowed = os.path.realpath(os.path.expanduser(allowed)) if allowed else ""
        if allowed and not os.path.isdir(self._allowed):
            raise ValueError(f"{LINK_ROOT}={allowed} is no folder: name one below which links may lead")

    def why_not_folder(self, path: str) -> str | None:
        """Why a folder is not entered, or None. Without an allowed root no link to a folder is followed."""
        if not os.path.islink(path):
            return None
        if not self._allowed:
            return f"a link to a folder: {FIX}"
        real = os.path.realpath(path)
        if not self.contains(real):
            return f"a link to a folder that leads out of {self._allowed}: {FIX}"
        folder = os.path.dirname(path)
        while not _is_below(os.path.realpath(folder), real):  # by way of other links, too
            if folder == self._start:
                return None
            folder = os.path.dirname(folder)
        return "a link to a folder that goes round in circles"

    def why_not_file(self, path: str) -> str | None:
        """Why a file is not read, or None."""
        if os.path.islink(path) and not self.contains(os.path.realpath(path)):
            return f"a link that leads out of the folder: {FIX}"
        return None

    def contains(self, real: str) -> bool:
        """Whether a path without links lies below one of the two folders."""
        return _is_below(real, self._root) or (bool(self._allowed) and _is_below(real, self._allowed))


def _is_below(path: str, folder: str) -> bool:
    return os.path.commonpath([path, folder]) == folder


class PicturePaths:
    """The files that the rows of tables name, which lie below the folder of their table or below an allowed one.

    Args:
      tables: their paths, local or URLs.
      allowed: as of `Links`.
    """

    def __init__(self, tables: Sequence[str], allowed: str):
        self._folders = [os.path.dirname(path) for path in tables]
        self._allowed = allowed
        self._links: dict[int, Links] = {}
        self._sizes: dict[str, dict[str, int]] = {}  # by folder: a listing is quicker than a question for each file
        self._linked: dict[str, set[str]] = {}  # by folder, the names that are links
        self._why_not: dict[tuple[int, str], str | None] = {}

    def join(self, table: int, name: str) -> str:
        return opener.join(self._folders[table], name)

    def size(self, table: int, name: str) -> int:
        """Bytes of a picture; ValueError where there is none, or where it may not be read."""
        path = self.join(table, name)
        folder, file = os.path.split(path)
        if (table, folder) not in self._why_not:
            self._why_not[table, folder] = self._why_not_folder(table, folder)
        if reason := self._why_not[table, folder]:
            raise ValueError(f"image {name!r} {reason}")
        if folder not in self._sizes:
            self._sizes[folder] = opener.list_sizes(folder)
            self._linked[folder] = set() if is_remote(folder) else _links_in(folder)
        if file not in self._sizes[folder]:
            raise ValueError(f"image {name!r} is not a file in the folder of the table")
        if file in self._linked[folder] and (reason := self._links_of(table).why_not_file(path)):
            raise ValueError(f"image {name!r} is {reason}")
        return self._sizes[folder][file]

    def _why_not_folder(self, table: int, folder: str) -> str | None:
        root = self._folders[table]
        if is_remote(folder):
            plain = posixpath.normpath(folder.partition("://")[2])
            roots = [x.partition("://")[2].rstrip("/") for x in (root, self._allowed) if is_remote(x)]
            inside = any(plain == x or plain.startswith(f"{x}/") for x in roots)
        else:
            inside = self._links_of(table).contains(os.path.realpath(folder))
        return None if inside else f"leads out of the folder of the table: {FIX}"

    def _links_of(self, table: int) -> Links:
        if table not in self._links:
            self._links[table] = Links(os.path.abspath(self._folders[table]), self._allowed)
        return self._links[table]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_sizes": {}, "_linked": {}, "_why_not": {}}


def _links_in(folder: str) -> set[str]:
    if not os.path.isdir(folder or "."):
        return set()
    with os.scandir(folder or ".") as entries:
        return {entry.name for entry in entries if entry.is_symlink()}
