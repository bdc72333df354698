"""Files and folders of a remote file system, and patterns of them.

fsspec's isfile, isdir and glob take a question that failed for a no, so only its info and ls are asked here.
"""

from collections.abc import Iterator
from fnmatch import fnmatchcase
from glob import has_magic
from typing import Any

from input_pipeline.sources.remote import ask


def remote_type(path: str) -> str | None:
    """The type that fsspec gives, as file or directory, or None if there is nothing. Raises UnreachableError."""
    try:
        return ask(path, lambda fs, name: fs.info(name)["type"])
    except (FileNotFoundError, NotADirectoryError):
        return None


def remote_entries(folder: str) -> dict[str, dict[str, Any]]:
    """fsspec's info of everything directly in a folder, by name; links as what they lead to.

    Raises FileNotFoundError if there is no such folder, and UnreachableError.
    """
    found, itself = ask(folder, lambda fs, name: (fs.ls(name, detail=True), name.rstrip("/")))
    entries = {}
    for info in found:
        path = info["name"].rstrip("/")
        name = path.rpartition("/")[2]
        if info["type"] not in ("file", "directory"):
            info = {**info, "type": remote_type(f"{folder.rstrip('/')}/{name}"), "islink": True}
        if path != itself:  # as of a file, and of buckets' folders that are objects, too
            entries[name] = info
    return entries


def remote_matches(pattern: str) -> Iterator[tuple[str, str]]:
    """Path and type of all that a pattern names, in no order and perhaps twice; ** goes through folders of any depth.

    Raises UnreachableError.
    """
    end = pattern.rindex("/") + 1
    folder, name = pattern[:end], pattern[end:]
    if has_magic(folder):
        parents = [f"{path}/" for path, kind in remote_matches(folder[:-1]) if kind == "directory"]
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
        return list(remote_entries(folder).items())
    except (FileNotFoundError, NotADirectoryError):
        return []
