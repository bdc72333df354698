"""A folder of pictures, with captions in text files beside them."""

import codecs
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator
from typing import Any

from input_pipeline.image_formats import HEIC_SUFFIXES, IMAGE_SUFFIXES, is_picture_name
from input_pipeline.sources import opener
from input_pipeline.sources.base import (
    BrokenRecordError,
    Record,
    as_broken,
    check_index,
    clean_captions,
    require_records,
)
from input_pipeline.sources.links import Links
from input_pipeline.sources.remote import is_remote
from input_pipeline.sources.unread import count_unread, describe_unread, is_ignored_folder
from input_pipeline.storage import digest

MAX_CAPTION_BYTES = 2**20  # of one .txt; more is no caption
MAX_PATH_BYTES = 4096  # of a link that was stored as text
TABLE_SUFFIXES = (".csv", ".tsv", ".parquet")


class FolderSource:
    """All pictures below a folder, sorted by their names, which are also their ids: paths relative to the folder.

    Captions are in a file of the same stem that ends in .txt, in any case and Unicode form, one a line; a picture may
    have none. What begins with a dot and the folders that systems make are skipped. A link to a file within the folder
    counts as that file. A link that leads out of the folder is refused and listed in `broken`, since a folder from
    elsewhere must not show what its owner never put there; so are links to folders. With link_root they are followed
    where they stay below it, but never in a circle.

    Args:
      path: the folder.
      class_folders: the folders directly in it that hold pictures are classes, their sorted names the names.
      link_root: folder below which links may lead, besides the source's own; empty allows none.

    Attributes:
      unread: how many files are not read, by suffix.
      notes: what was decided about classes and tables, for people.

    Raises:
      ValueError: the path is remote, missing or no folder, or no picture is in it; a class folder is a link that is not
        followed, or none of its pictures can be read.
    """

    def __init__(self, path: str, class_folders: bool = False, link_root: str = ""):
        if is_remote(path):
            raise ValueError(
                f"{path} is remote, and a folder of pictures must be local: copy it, mount it or make tars"
            )
        self._root = os.path.abspath(os.path.expanduser(path))
        if not os.path.isdir(self._root):
            state = "which is not a folder" if os.path.exists(self._root) else "which does not exist"
            raise ValueError(f"no data at {path!r}, {state}: expected a folder of pictures")
        self._links = Links(self._root, link_root)
        self.broken: list[tuple[str, str]] = []
        self.unread: Counter[str] = Counter()
        self.notes: list[str] = []
        self._names: list[str] = []
        self._captioned: list[bool] = []
        self._other_texts: dict[str, str] = {}  # of pictures whose captions are not in STEM.txt
        sizes: list[tuple[int, int]] = []
        for name, text in sorted(self._find_images(class_folders)):
            try:
                if class_folders and "/" not in name:
                    raise ValueError("not in the folder of a class")
                size = self._size(name), self._size(text) if text else 0
            except (ValueError, OSError) as error:
                self.broken.append((_printable(name), str(error)))
                continue
            self._names.append(name)
            self._captioned.append(bool(text))
            if text and text != _usual_text(name):
                self._other_texts[name] = text
            sizes.append(size)
        found = f"; not read: {describe_unread(self.unread)}" if self.unread else ""
        require_records(len(self._names), path, self.broken, f"pictures ({', '.join(IMAGE_SUFFIXES)}){found}")
        self.class_names: tuple[str, ...] | None = self._find_classes() if class_folders else None
        if not class_folders and not self.has_captions:
            self._name_tables()
        self._digest = digest("\n".join(self._names).encode(), repr(sizes).encode())

    def _find_images(self, class_folders: bool) -> Iterator[tuple[str, str]]:
        """Relative names of pictures and of their captions' files ("" for none), with forward slashes.

        Notes in `broken` the folders that are not entered, and in `unread` the files that are not read.
        """

        def note(error: OSError) -> None:
            self.broken.append((_printable(self._relative(error.filename)), error.strerror or str(error)))

        for folder, folders, files in os.walk(self._root, onerror=note, followlinks=True):
            at_root = class_folders and folder == self._root
            entered = []
            for name in folders:
                path = os.path.join(folder, name)
                if is_ignored_folder(name):
                    self.unread[f"{name if not name.startswith('.') else 'hidden'}/"] += 1
                elif reason := self._links.why_not_folder(path):
                    if at_root:
                        raise ValueError(f"the class folder {path} is {reason}")
                    self.broken.append((_printable(self._relative(path)), reason))
                else:
                    entered.append(name)
            folders[:] = entered
            if at_root:
                self._refuse_stored_links(files)
            texts, there = _texts_by_stem(files), {*files}
            pictures = [name for name in files if is_picture_name(name) and not name.startswith(".")]
            used = set()
            for name in pictures:
                text = usual if (usual := _usual_text(name)) in there else texts.get(_stem(name), "")
                used.add(text)
                yield self._relative(os.path.join(folder, name)), text and self._relative(os.path.join(folder, text))
            self.unread += count_unread(there - {*pictures} - used)

    def _refuse_stored_links(self, files: list[str]) -> None:
        """ValueError for a link that leads nowhere, or that git wrote as a file: its class would be missing."""
        for name in files:
            path = self._path(name)
            if os.path.splitext(name)[1] or name.startswith("."):
                continue
            if os.path.islink(path) and not os.path.exists(path):
                raise ValueError(f"the class folder {path} is a link to {os.readlink(path)}, which does not exist")
            if not os.path.isfile(path) or os.path.getsize(path) >= MAX_PATH_BYTES:
                continue
            with open(path, "rb") as file:
                target = os.fsdecode(file.read()).strip()
            if target and "\0" not in target and "\n" not in target and os.path.isdir(os.path.join(self._root, target)):
                raise ValueError(
                    f"the class folder {path} is a link to {target} that was stored as text, as git does without "
                    "core.symlinks: put the folder or a link there, or remove the file"
                )

    def _find_classes(self) -> tuple[str, ...]:
        """The folders with pictures that can be used. ValueError where a folder has pictures and none can be used."""
        classes = {name.partition("/")[0] for name in self._names}
        with os.scandir(self._root) as entries:
            others = sorted(x.name for x in entries if x.is_dir() and not is_ignored_folder(x.name))
        for name in (x for x in others if x not in classes):
            files = [file for _, _, names in os.walk(self._path(name)) for file in names]
            heic = [x for x in files if x.lower().endswith(tuple(f".{suffix}" for suffix in HEIC_SUFFIXES))]
            if heic or any(map(is_picture_name, files)):
                reasons = [why for x, why in self.broken if x.startswith(f"{_printable(name)}/")][:1]
                why = reasons[0] if reasons else describe_unread(count_unread(heic))
                raise ValueError(f"no picture of the class folder {self._path(name)} can be used: {why}")
            self.notes.append(f"the folder {name} holds no picture, so it is no class")
        return tuple(sorted(classes))

    def _name_tables(self) -> None:
        tables = sorted(x for x in os.listdir(self._root) if x.lower().endswith(TABLE_SUFFIXES))
        for name in tables[:3]:
            self.notes.append(
                f"no picture has a .txt with captions, and {name} lies there: if it holds them, read it as "
                f"source=table with the path {self._path(name)}"
            )

    def _size(self, name: str) -> int:
        """Bytes of a file that may be read; ValueError for one that may not."""
        path = self._path(name)
        try:
            name.encode()
        except UnicodeEncodeError:
            raise ValueError("the name is not UTF-8") from None
        if reason := self._links.why_not_file(path):
            raise ValueError(f"{os.path.basename(name)} is {reason}")
        if not os.path.isfile(path):
            raise ValueError(f"{os.path.basename(name)} is not a file")
        return os.path.getsize(path)

    def _path(self, name: str) -> str:
        return os.path.join(self._root, name)

    def _relative(self, path: str) -> str:
        return os.path.relpath(path, self._root).replace(os.sep, "/")

    def _text(self, name: str) -> str:
        return self._other_texts.get(name) or _usual_text(name)

    @property
    def has_captions(self) -> bool:
        """Whether any picture has a file of captions."""
        return any(self._captioned)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Record:
        captions = self.captions(index)
        name = self._names[index]
        image = self._read(index, name)
        if not image:
            raise BrokenRecordError(name, "empty image")
        record: Record = {"id": name, "image": image, "captions": captions}
        if self.class_names is None:
            return record
        return record | {"label": self.class_names.index(name.partition("/")[0])}

    def captions(self, index: int) -> tuple[str, ...]:
        check_index(index, len(self))
        if not self._captioned[index]:
            return ()
        name = self._text(self._names[index])
        data = self._read(index, name, MAX_CAPTION_BYTES + 1)
        with as_broken(self._names[index]):
            if len(data) > MAX_CAPTION_BYTES:
                raise ValueError(f"{os.path.basename(name)} has more than {MAX_CAPTION_BYTES} bytes")
            return clean_captions(data.removeprefix(codecs.BOM_UTF8).splitlines())

    def _read(self, index: int, name: str, most: int = 2**62) -> bytes:
        try:
            return opener.read_file(self._path(name), most)
        except OSError as error:
            raise BrokenRecordError(self._names[index], f"{name}: {error.strerror}") from error

    def file_states(self) -> list:
        """Sizes and times of writing of all pictures and their captions, digested."""
        texts = [self._text(name) for name, has in zip(self._names, self._captioned) if has]
        states = [opener.file_state(self._path(name)) for name in (*self._names, *texts)]
        return [digest(repr(states).encode())]

    def fingerprint(self) -> dict[str, Any]:
        classes = {} if self.class_names is None else {"class_names": list(self.class_names)}
        return {"kind": "folder", "length": len(self), "digest": self._digest, **classes}


def _stem(name: str) -> str:
    """A file's name without its suffix, in one Unicode form: macOS and Linux write accents differently."""
    return unicodedata.normalize("NFC", os.path.splitext(name)[0])


def _texts_by_stem(files: list[str]) -> dict[str, str]:
    """The .txt of each stem, in one Unicode form; of several spellings the one in lower case."""
    texts = sorted(name for name in files if name.lower().endswith(".txt") and not name.startswith("."))
    return {_stem(name): name for name in texts}  # the last one of a stem counts, and "T" is before "t"


def _usual_text(name: str) -> str:
    return f"{os.path.splitext(name)[0]}.txt"


def _printable(name: str) -> str:
    return name.encode(errors="replace").decode()
