"""A folder of pictures, with captions in text files beside them."""

import codecs
import os
from collections.abc import Iterator
from typing import Any

from input_pipeline.sources import opener
from input_pipeline.sources.base import (
    BrokenRecordError,
    Record,
    as_broken,
    check_index,
    clean_captions,
    require_records,
)
from input_pipeline.sources.remote import is_remote
from input_pipeline.storage import digest

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
MAX_CAPTION_BYTES = 2**20  # of one .txt; more is no caption


class FolderSource:
    """All pictures below a folder, sorted by their names, which are also their ids: paths relative to the folder.

    Captions are in a file of the same stem that ends in .txt, one a line; a picture may have none. What begins with
    a dot is skipped. A link to a file within the folder counts as that file. A link that leads out of the folder is
    refused and listed in `broken`, since a folder from elsewhere must not show what its owner never put there; so are
    links to folders, which could go round in circles.

    Args:
      path: the folder.
      class_folders: the folders directly in it, with pictures or without, are classes, their sorted names the names.

    Raises:
      ValueError: the path is remote, missing or no folder, or no picture is in it.
    """

    def __init__(self, path: str, class_folders: bool = False):
        if is_remote(path):
            raise ValueError(
                f"{path} is remote, and a folder of pictures must be local: copy it, mount it or make tars"
            )
        self._root = os.path.abspath(os.path.expanduser(path))
        if not os.path.isdir(self._root):
            state = "which is not a folder" if os.path.exists(self._root) else "which does not exist"
            raise ValueError(f"no data at {path!r}, {state}: expected a folder of pictures")
        self.broken: list[tuple[str, str]] = []
        self._names: list[str] = []
        self._captioned: list[bool] = []
        sizes: list[tuple[int, int]] = []
        for name in sorted(self._find_images()):
            text = f"{os.path.splitext(name)[0]}.txt"
            try:
                if class_folders and "/" not in name:
                    raise ValueError("not in the folder of a class")
                captioned = os.path.lexists(self._path(text))
                size = self._size(name), self._size(text) if captioned else 0
            except (ValueError, OSError) as error:
                self.broken.append((_printable(name), str(error)))
                continue
            self._names.append(name)
            self._captioned.append(captioned)
            sizes.append(size)
        require_records(len(self._names), path, self.broken, f"pictures ({', '.join(IMAGE_SUFFIXES)})")
        with os.scandir(self._root) as entries:  # empty ones, too: a classifier may still predict such a class
            classes = sorted(x.name for x in entries if x.is_dir(follow_symlinks=False) and not x.name.startswith("."))
        self.class_names: tuple[str, ...] | None = tuple(classes) if class_folders else None
        self._digest = digest("\n".join(self._names).encode(), repr(sizes).encode())

    def _find_images(self) -> Iterator[str]:
        """Relative names with forward slashes; notes in `broken` the folders that are not entered."""

        def note(error: OSError) -> None:
            self.broken.append((_printable(self._relative(error.filename)), error.strerror or str(error)))

        for folder, folders, files in os.walk(self._root, onerror=note):
            for name in folders:
                if not name.startswith(".") and os.path.islink(os.path.join(folder, name)):
                    self.broken.append((_printable(self._relative(os.path.join(folder, name))), "a link to a folder"))
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in files:
                if not name.startswith(".") and name.lower().endswith(tuple(f".{x}" for x in IMAGE_SUFFIXES)):
                    yield self._relative(os.path.join(folder, name))

    def _size(self, name: str) -> int:
        """Bytes of a file that may be read; ValueError for one that may not."""
        path = self._path(name)
        try:
            name.encode()
        except UnicodeEncodeError:
            raise ValueError("the name is not UTF-8") from None
        root = os.path.realpath(self._root)
        if os.path.islink(path) and os.path.commonpath([root, os.path.realpath(path)]) != root:
            raise ValueError(f"{os.path.basename(name)} is a link that leads out of the folder")
        if not os.path.isfile(path):
            raise ValueError(f"{os.path.basename(name)} is not a file")
        return os.path.getsize(path)

    def _path(self, name: str) -> str:
        return os.path.join(self._root, name)

    def _relative(self, path: str) -> str:
        return os.path.relpath(path, self._root).replace(os.sep, "/")

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
        name = f"{os.path.splitext(self._names[index])[0]}.txt"
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
        texts = [f"{os.path.splitext(name)[0]}.txt" for name, has in zip(self._names, self._captioned) if has]
        states = [opener.file_state(self._path(name)) for name in (*self._names, *texts)]
        return [digest(repr(states).encode())]

    def fingerprint(self) -> dict[str, Any]:
        classes = {} if self.class_names is None else {"class_names": list(self.class_names)}
        return {"kind": "folder", "length": len(self), "digest": self._digest, **classes}


def _printable(name: str) -> str:
    return name.encode(errors="replace").decode()
