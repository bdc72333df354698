"""The files of `clip-jax embed`: shards of embeddings, each written whole or not at all, and the manifest.

Reads and writes no more than its folder; what stands in the files is told in embed.py.
"""

import itertools
import json
import os
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

MANIFEST = "manifest.json"
Row = Mapping[str, Any]  # a record without its image: id, captions and, if it has one, label
Broken = Sequence[tuple[str, str]]  # (id, reason)


@dataclass(frozen=True, kw_only=True)
class Shards:
    """Fixed ranges of a source's records, and their files in a folder.

    Attributes:
      folder: made by `claim`.
      num_records: of the source.
      shard_size: records of a shard; the last one may have fewer.
      file_format: "parquet" or "npy".
      texts: whether captions are embedded.
    """

    folder: Path
    num_records: int
    shard_size: int
    file_format: str
    texts: bool

    def __len__(self) -> int:
        return -(-self.num_records // self.shard_size)

    def records(self, shard: int) -> range:
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.num_records))

    def files(self, shard: int) -> list[Path]:
        if self.file_format == "parquet":
            return [self._file("part", shard, "parquet")]
        kinds = ["image_embeddings", *(["text_embeddings"] if self.texts else [])]
        return [self._file("ids", shard, "jsonl"), *(self._file(kind, shard, "npy") for kind in kinds)]

    def is_complete(self, shard: int) -> bool:
        return all(file.exists() for file in self.files(shard))

    def broken(self, shard: int) -> list[tuple[str, str]]:
        """What was left out of a complete shard."""
        file = self._file("broken", shard, "json")
        return [(record_id, reason) for record_id, reason in json.loads(file.read_text())] if file.exists() else []

    def _file(self, kind: str, shard: int, suffix: str) -> Path:
        return self.folder / f"{kind}-{shard:05d}-of-{len(self):05d}.{suffix}"

    def claim(self, manifest: Mapping[str, Any]) -> None:
        """Writes the manifest unless there is one that says the same; several parts may do so at once.

        Raises:
          ValueError: the manifest there differs (the differences are listed) or is damaged, or shards have none.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / MANIFEST
        shards = [path.name for path in self.folder.iterdir() if re.search(r"^[a-z].*-\d{5}-of-\d{5}\.", path.name)]
        if not file.exists():
            if shards:  # listed before the look at the manifest, which other parts write before their first shard
                raise ValueError(f"{self.folder} holds {min(shards)} but no {MANIFEST}: use another --output")
            _write_first(file, json.dumps(manifest, indent=2) + "\n")
        try:
            found = _flatten(json.loads(file.read_text()))
        except (ValueError, TypeError, KeyError):
            raise ValueError(f"{file} is damaged: use another --output") from None
        expected = _flatten(json.loads(json.dumps(manifest)))
        names = [name for name in {**expected, **found} if found.get(name) != expected.get(name)]
        if names:
            differences = "; ".join(f"{x} was {found.get(x)!r:.200}, is {expected.get(x)!r:.200}" for x in names)
            raise ValueError(f"{self.folder} holds embeddings made otherwise: {differences}. Use another --output")

    def write(self, shard: int, rows: Sequence[Row], image: np.ndarray, text: np.ndarray, broken: Broken) -> None:
        """Writes the files of a shard.

        Args:
          rows: n records.
          image: [n, E], their embeddings.
          text: [m, E], those of their captions in order, or [0, E] without texts.
          broken: the records that were left out; written first, as a shard that is there lacks nothing beside it.
        """
        broken_file = self._file("broken", shard, "json")
        if broken:
            with _whole(broken_file) as file:
                file.write(json.dumps(broken, indent=1).encode())
        else:
            broken_file.unlink(missing_ok=True)
        stops = np.cumsum([0, *(len(row["captions"]) if self.texts else 0 for row in rows)])
        if self.file_format == "parquet":
            import pyarrow.parquet as pq

            with _whole(*self.files(shard)) as file:
                pq.write_table(_make_table(rows, image, text, stops, self.texts), file, use_dictionary=False)
            return
        ids, *arrays = self.files(shard)
        with _whole(ids) as file:
            for row, (start, stop) in zip(rows, itertools.pairwise(stops.tolist())):
                file.write(json.dumps({**row, "texts": [start, stop]} if self.texts else row).encode() + b"\n")
        for path, array in zip(arrays, (image, text)):
            with _whole(path) as file:
                np.save(file, array)


def _make_table(rows: Sequence[Row], image: np.ndarray, text: np.ndarray, stops: np.ndarray, texts: bool) -> Any:
    import pyarrow as pa

    def vectors(array: np.ndarray) -> Any:
        return pa.FixedSizeListArray.from_arrays(pa.array(array.ravel()), array.shape[1])

    columns = {
        "id": pa.array([row["id"] for row in rows], pa.string()),
        "image_embedding": vectors(image),
        "captions": pa.array([list(row["captions"]) for row in rows], pa.list_(pa.string())),
        "label": pa.array([row.get("label") for row in rows], pa.int64()),
    }
    if texts:
        columns["text_embeddings"] = pa.ListArray.from_arrays(pa.array(stops, pa.int32()), vectors(text))
    return pa.table(columns)


def _flatten(manifest: Mapping[str, Any]) -> dict[str, Any]:
    source = {f"source.{name}": value for name, value in manifest["source"].items()}
    return {**{name: value for name, value in manifest.items() if name != "source"}, **source}


def _write_first(file: Path, text: str) -> None:
    """Writes the file whole unless it is there; of several processes the first one wins."""
    partial = _partial(file)
    partial.write_text(text)
    try:
        os.link(partial, file)  # unlike a rename this replaces nothing
    except FileExistsError:
        pass
    except OSError:  # a file system without links
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _whole(path: Path) -> Iterator[BinaryIO]:
    """A file that gets its name only when it is complete."""
    partial = _partial(path)
    try:
        with partial.open("wb") as file:
            yield file
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _partial(file: Path) -> Path:
    """A hidden name beside the file that no other process uses, even if the same part is started twice."""
    return file.with_name(f".{file.name}.{socket.gethostname()}-{os.getpid()}.partial")
