"""WebDataset tars: an index of offsets, made in one pass over the headers and kept, and positional reads."""

import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from tqdm import tqdm

from input_pipeline.sources import base, opener
from input_pipeline.sources.base import BrokenRecordError, FilesSource, Record
from input_pipeline.sources.columns import name_labels
from input_pipeline.sources.remote import is_remote
from input_pipeline.sources.tar_index import TarIndex, open_index, parse_captions
from input_pipeline.sources.unread import describe_unread
from input_pipeline.storage import digest
from input_pipeline.transforms import header_size

TAR_SUFFIX = r"(?i:\.tar)"


class WebDatasetSource(FilesSource):
    """Tars of KEY.jpg (png, webp, ...) with KEY.txt (one caption), KEY.json (`captions` or `caption`) or KEY.cls.

    As in WebDataset the key is the name up to the first dot after the last slash; captions in the JSON win over the
    text, where there are any. KEY.cls holds a label: a whole number, or a name, and the sorted names become the class
    names. Tar headers and captions are read once, when the source is first made; the index has 48 bytes and the key a
    record, and is kept in a file (`tar_index.open_index`).
    Links, absolute names and names with ".." are refused. A shard that is cut off keeps its complete records and gives
    one entry in `broken`. The id of a record is SHARD/KEY.

    Args:
      path: a tar, a folder of tars, a glob, or a pattern such as train-{00000..00011}.tar; local or a URL.
      captions_field: the JSON's key of the captions, or "txt" for the text; empty finds them as above.
      require_captions: False takes records without captions and labels, too.

    Attributes:
      unread: how many members are no part of a record, and how many files beside the tars of a folder, by suffix.

    Raises:
      ValueError: nothing at path, or no usable record in it.
    """

    def __init__(self, path: str, captions_field: str = "", require_captions: bool = True):
        expected = "a tar, a folder of tars, a glob or a {00000..00011}.tar pattern"
        super().__init__(base.find_files(path, TAR_SUFFIX, expected), captions_field)
        self._names = base.relative_names(self._paths)
        self._captions_field, self._require_captions = captions_field, require_captions
        self._opener = opener.Opener()
        self._keys: list[str] = []
        rows = []
        labels: list[str] = []
        self.unread = base.count_beside(path, TAR_SUFFIX)
        for shard, index in enumerate(self._open_indices()):
            self.broken += [(f"{self._stem(shard)}{rest}", reason) for rest, reason in index.broken]
            self._keys += index.keys
            rows.append(np.insert(index.rows, 0, shard, axis=1))
            labels += index.labels or [""] * len(index.keys)
            self.unread.update(index.unread)
        # Columns: shard, image offset, image size, captions offset, captions size, whether the captions are JSON.
        self._index = np.concatenate(rows)  # [n, 6]
        base.require_records(len(self), path, self.broken, f"KEY.jpg with KEY.txt, KEY.json or KEY.cls{self._seen()}")
        self._labels: np.ndarray | None = None  # int64 [n], -1 for none
        if any(labels):
            columns: dict[str, list] = {"label": labels}
            self.class_names = name_labels([columns])
            self._labels = np.array([-1 if label is None else label for label in columns["label"]], np.int64)

    def _open_indices(self) -> list[TarIndex]:
        with ThreadPoolExecutor(opener.THREADS if is_remote(self._paths[0]) else 1) as pool:
            fields, needs = itertools.repeat(self._captions_field), itertools.repeat(self._require_captions)
            # Of local ones the processor is the limit.
            indices = pool.map(open_index, self._paths, fields, self._states, needs)
            bar = tqdm(indices, total=len(self._paths), desc="index", unit="tar", delay=3, leave=False)
            return list(bar)

    def _seen(self) -> str:
        return f"; not read: {describe_unread(self.unread)}" if self.unread else ""

    def _stem(self, shard: int) -> str:
        return self._names[shard].removesuffix(".tar")

    def _record_id(self, shard: int, key: str) -> str:
        return f"{self._stem(shard)}/{key}"

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, index: int) -> Record:
        captions = self.captions(index)
        shard, offset, size = self._index[index, :3].tolist()
        record_id = self._record_id(shard, self._keys[index])
        record = {"id": record_id, "image": self._read(record_id, shard, offset, size), "captions": captions}
        if self._labels is None or self._labels[index] < 0:
            return record
        return record | {"label": int(self._labels[index])}

    def captions(self, index: int) -> tuple[str, ...]:
        record_id, data, is_json = self._read_captions(index)
        if not data:
            return ()
        with base.as_broken(record_id):  # indexed as good, so the file has changed since
            return base.require_captions(parse_captions(data, is_json, self._captions_field))

    def find_image_size(self, index: int) -> tuple[int, int]:
        """Width and height in pixels: those in the JSON, as img2dataset writes them, or in the image's header."""
        record_id, data, is_json = self._read_captions(index)
        with base.as_broken(record_id):
            content = base.parse_json(data) if is_json else {}
            width, height = content.get("width"), content.get("height")
            if isinstance(width, int) and isinstance(height, int) and min(width, height) > 0:
                return width, height
            shard, offset, size = self._index[index, :3].tolist()
            return header_size(lambda most: self._read(record_id, shard, offset, min(size, most)))

    def _read_captions(self, index: int) -> tuple[str, bytes, bool]:
        base.check_index(index, len(self))
        shard, _, _, offset, size, is_json = self._index[index].tolist()
        record_id = self._record_id(shard, self._keys[index])
        return record_id, self._read(record_id, shard, offset, size), bool(is_json)

    def _read(self, record_id: str, shard: int, offset: int, size: int) -> bytes:
        with base.as_broken(record_id, OSError):
            data = self._opener.read(self._paths[shard], offset, size)
        if len(data) != size:
            raise BrokenRecordError(record_id, f"{self._names[shard]} is shorter than when it was indexed")
        return data

    def fingerprint(self) -> dict[str, Any]:
        index = digest(self._index.tobytes(), "\n".join(self._keys).encode())
        return {"kind": "webdataset", **self._files, "length": len(self), "digest": index}
