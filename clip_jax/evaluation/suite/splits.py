"""Data of one's own, KIND:PATH, and its splits: found by their names, and drawn where there are none."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from input_pipeline.image_formats import is_picture_name
from input_pipeline.sources import OPTION_KINDS, FolderSource, NotPreparedError, Source, TableSource, make_source
from input_pipeline.sources.links import Links
from input_pipeline.sources.table import TABLE_SUFFIX
from input_pipeline.sources.unread import is_ignored_folder, remarks

FEWEST = 3  # pictures of a class, of which a split can be drawn


class OwnSplits(NamedTuple):
    """Sources by split, one of them "test"; lines for people; whether nobody has divided the pictures."""

    sources: dict[str, Source]
    remarks: tuple[str, ...] = ()
    undivided: bool = False


class AbsentError(ValueError):
    """A data set that is absent; the message says how to prepare it."""


class Place(NamedTuple):
    """Where data of one's own lies: kind, path and split are arguments of `make_source`."""

    kind: str
    path: str
    split: str

    def open(self, link_root: str, require_captions: bool = True) -> Source:
        """The source, all of it as it lies there; raises ValueError as `make_source`."""
        root = link_root if self.kind in OPTION_KINDS["link_root"] else ""
        return make_source(self.kind, self.path, self.split, link_root=root, require_captions=require_captions)


def parse_place(name: str) -> Place | None:
    """The place that KIND:PATH, for tfds KIND:PATH:SPLIT, says; None for a name of another form."""
    kind, _, path = name.partition(":")
    if not path:
        return None
    split = ""
    if kind == "tfds" and ":" in path:
        path, _, split = path.rpartition(":")
    return Place(kind, os.path.expanduser(path), split)


def own_splits(place: Place, link_root: str) -> OwnSplits:
    """The splits of labelled data; without any, all of it is "test". Raises AbsentError, ValueError."""
    if place.kind == "folder":
        return folder_splits(Path(place.path), link_root)
    if place.kind == "table":
        return table_splits(Path(place.path), link_root)
    try:
        source = place.open(link_root, require_captions=False)
    except NotPreparedError as error:
        raise AbsentError(str(error)) from None
    return OwnSplits({"test": source}, tuple(remarks(source)), undivided=True)


# What the folders and tables of a split are called, in any case.
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
SPLITS = tuple(SPLIT_NAMES)


def find_splits(folder: Path, link_root: str) -> dict[str, Path]:
    """The folders of splits, by split, where a folder holds no other pictures; else none, as they are classes.

    ValueError where one is called test and others hold pictures, for either could be meant, or two are one split.
    """
    folders = [path for path in sorted(folder.iterdir()) if path.is_dir() and not is_ignored_folder(path.name)]
    named = [path for path in folders if _split_of(path)]
    if not named:
        return {}
    others = [path for path in folders if path not in named and _holds_pictures(path)]
    if others and "test" not in map(_split_of, named):
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


def only_splits(path: Path, kind: str) -> list[str]:
    """The names of several splits, where they are all that a folder of pictures or of tables holds; else none."""
    if kind not in ("folder", "table") or not path.is_dir():
        return []
    entries = [entry for entry in sorted(path.iterdir()) if not is_ignored_folder(entry.name)]
    if kind == "table":
        parts = [entry for entry in entries if re.search(f"{TABLE_SUFFIX}$", entry.name)]
    else:
        parts = [e for e in entries if (_holds_pictures(e) if e.is_dir() else is_picture_name(e.name))]
    are_splits = all(_split_of(part) and part.is_dir() == (kind == "folder") for part in parts)
    return [part.name for part in parts] if len(parts) > 1 and are_splits else []


def by_split(paths: Sequence[Path], folder: Path) -> dict[str, Path]:
    """Of what has the name of a split, by split; ValueError where two are one split."""
    found: dict[str, Path] = {}
    for split in SPLITS:
        matches = [path for path in paths if _split_of(path) == split]
        if len(matches) > 1:
            names = " and ".join(path.name for path in matches)
            raise ValueError(f"{folder} holds {names}, which are both the {split} split: leave one")
        if matches:
            found[split] = matches[0]
    return found


def _split_of(path: Path) -> str | None:
    """The split that a folder or a table is called as, if any; COCO's have a year behind, as val2017."""
    name = re.sub(r"[_-]?(19|20)\d\d$", "", (path.name if path.is_dir() else path.stem).lower())
    return next((split for split, names in SPLIT_NAMES.items() if name in names), None)


def _holds_pictures(folder: Path) -> bool:
    """Whether pictures lie below a folder; a linked one, which may not be entered, is taken to hold some."""
    if folder.is_symlink():
        return True
    for _, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not is_ignored_folder(name)]
        if any(is_picture_name(name) and not name.startswith(".") for name in names):
            return True
    return False


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


def folder_splits(folder: Path, link_root: str) -> OwnSplits:
    """The splits of a folder, or it all as "test". Raises AbsentError where there is none."""
    if not folder.is_dir():
        raise AbsentError(f"there is no folder {folder}: put a folder a class into it, or into {folder}/test")
    found = find_splits(folder, link_root)
    if not found:
        source = _open(folder, link_root)
        return OwnSplits({"test": source}, tuple(remarks(source)), undivided=True)
    return open_splits(found, link_root)


def open_splits(found: Mapping[str, Path], link_root: str) -> OwnSplits:
    """The sources of folders or tables by split."""
    found, said = with_test(found)
    splits: dict[str, Source] = {}
    for split, path in found.items():
        splits[split] = source = _open(path, link_root)
        said += [f"{path.name}: {remark}" for remark in remarks(source)]
    return OwnSplits(splits, tuple(said))


def _open(path: Path, link_root: str) -> Source:
    if path.is_dir():
        return FolderSource(str(path), class_folders=True, link_root=link_root)
    return TableSource(str(path), link_root=link_root)


def table_splits(path: Path, link_root: str) -> OwnSplits:
    """The table of each split in a folder, or a file as "test".

    Raises AbsentError where there is none, ValueError for a folder without such tables.
    """
    if not path.exists():
        raise AbsentError(f"there is no {path}: write a CSV or Parquet with the columns image and label")
    if path.is_file():
        table = _open(path, link_root)
        return OwnSplits({"test": table}, tuple(remarks(table)), undivided=True)
    files = [file for file in sorted(path.iterdir()) if re.search(f"{TABLE_SUFFIX}$", file.name)]
    named = by_split(files, path)
    if not named:
        names = ", ".join(file.stem for file in files)
        raise ValueError(f"{path} has no test.csv or test.parquet; it has {names or 'no tables'}")
    return open_splits(named, link_root)


def draw_splits(labels: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """{split: bool [N]}: of each class a fifth to test, a fifth to validate, rounded down, at least one each.

    labels: int [N], each at least `FEWEST` times.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    drawn = {split: np.zeros(len(labels), bool) for split in SPLITS}
    for label in np.unique(labels):
        rows = order[labels[order] == label]
        fifth = max(len(rows) // 5, 1)
        for split, part in zip(SPLITS, np.split(rows, [len(rows) - 2 * fifth, len(rows) - fifth])):
            drawn[split][part] = True
    return drawn
