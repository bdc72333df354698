"""What lies beside the data and is not read: counted by suffix, so that nothing is left out without a word."""

import os
from collections import Counter
from collections.abc import Iterable
from typing import Any

from input_pipeline.image_formats import HEIC_SUFFIXES, IMAGE_SUFFIXES

# Made by systems beside their users' files: thumbnails, attributes and bins, never data.
SYSTEM_FOLDERS = ("__MACOSX", "@eaDir", "lost+found", "#recycle", "$RECYCLE.BIN", "System Volume Information")
HIDDEN, NO_SUFFIX = "hidden", "without a suffix"
KINDS_NAMED = 8  # in a line
HEIC_FIX = "pip install 'jax-clip[heic]' for them"


def is_ignored_folder(name: str) -> bool:
    """Whether a folder of this name is hidden or a system's, and holds no data."""
    return name.startswith(".") or name in SYSTEM_FOLDERS


def unread_kind(name: str) -> str:
    """What a file that is not read counts as: its suffix in lower case, or what it lacks."""
    if name.startswith("."):
        return HIDDEN
    suffix = os.path.splitext(name)[1].lower()
    return suffix.encode(errors="replace").decode() if len(suffix) > 1 else NO_SUFFIX


def count_unread(names: Iterable[str]) -> Counter[str]:
    return Counter(map(unread_kind, names))


def unread_of(source: Any) -> Counter[str]:
    """How many files, members or other things beside a source's records are not read, by kind."""
    return Counter(getattr(source, "unread", {}))


def describe_unread(unread: Counter[str]) -> str:
    """ "3 .heic (how to read them), 2 .pdf"; empty where all is read."""
    parts = []
    for kind, count in sorted(unread.items(), key=lambda item: (-item[1], item[0])):
        suffix = kind.partition(" ")[0][1:]
        fix = f" ({HEIC_FIX})" if suffix in HEIC_SUFFIXES and suffix not in IMAGE_SUFFIXES else ""
        parts.append(f"{count:,} {kind}{fix}")
    more = len(parts) - KINDS_NAMED
    return ", ".join(parts[:KINDS_NAMED]) + (f" and {more} other kinds" if more > 0 else "")


def remarks(source: Any) -> list[str]:
    """Lines for people: what the source decided by itself, and what lies there that it does not read."""
    unread = describe_unread(unread_of(source))
    return [*getattr(source, "notes", ()), *([f"not read: {unread}"] if unread else [])]
