"""Folders and tables that are called as the splits of a data set, and which of them is measured."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from input_pipeline.image_formats import is_picture_name
from input_pipeline.sources.links import Links
from input_pipeline.sources.unread import is_ignored_folder

T = TypeVar("T")

# What the folders and tables of a split are called, in any case.
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}


def find_splits(folder: Path, link_root: str) -> dict[str, Path]:
    """The folders of splits, by split, where a folder holds no other pictures; else none, as they are classes.

    ValueError where one is called test and others hold pictures, for either could be meant, or two are one split.
    """
    folders = [path for path in sorted(folder.iterdir()) if path.is_dir() and not is_ignored_folder(path.name)]
    named = {path.name: path for path in folders if any(path.name.lower() in names for names in SPLIT_NAMES.values())}
    others = [path for path in folders if path.name not in named and _holds_pictures(path)]
    if not named or (others and not any(name.lower() in SPLIT_NAMES["test"] for name in named)):
        return {}
    found = by_split(named, folder)
    if others:
        raise ValueError(
            f"{folder} holds {found['test'].name}, the name of a split, and {others[0].name}, which has pictures, too: "
            "if they are classes, move them into a folder test; if not, leave splits alone in it"
        )
    links = Links(os.path.abspath(folder), link_root)
    for path in found.values():
        if reason := links.why_not_folder(os.path.abspath(path)):
            raise ValueError(f"the split {path} is {reason}")
    return found


def by_split(named: Mapping[str, T], folder: Path) -> dict[str, T]:
    """Of what has the name of a split, by split; ValueError where two are one split."""
    found: dict[str, T] = {}
    for split, names in SPLIT_NAMES.items():
        matches = [name for name in named if name.lower() in names]
        if len(matches) > 1:
            raise ValueError(f"{folder} holds {' and '.join(matches)}, which are both the {split} split: leave one")
        if matches:
            found[split] = named[matches[0]]
    return found


def _holds_pictures(folder: Path) -> bool:
    """Whether pictures lie below a folder; a linked one, which may not be entered, is taken to hold some."""
    return folder.is_symlink() or any(is_picture_name(name) for _, _, names in os.walk(folder) for name in names)


def with_test(found: Mapping[str, Path]) -> tuple[dict[str, Path], list[str]]:
    """The splits with one to measure, else the validation split for it, and a line that says so."""
    if "test" in found:
        return dict(found), []
    if "validation" not in found:
        (path,) = found.values()
        raise ValueError(
            f"{path.parent} holds {path.name} alone, no split to measure: name {path} itself to measure it, or add "
            "val or test"
        )
    rest = {split: path for split, path in found.items() if split != "validation"}
    return {"test": found["validation"], **rest}, [f"there is no test split, so {found['validation'].name} is measured"]
