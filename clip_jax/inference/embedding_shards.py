"""The files of `clip-jax embed`: shards of embeddings, each written whole or not at all, and the manifest.

Reads and writes no more than its folder; their content is described in embed.py of the command line.
"""

import contextlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from input_pipeline.prepare.folder import LocalFolder, ShardedFolder
from input_pipeline.storage import atomic_file, write_text

MANIFEST = "_manifest.json"  # readers of a folder of Parquet files pass over such names
Row = Mapping[str, Any]  # a record without its image: id, path, captions and, if it has one, label
Broken = Sequence[tuple[str, str]]  # (id, reason)


@dataclass(frozen=True, kw_only=True)
class Shards(ShardedFolder):
    """The shards of a folder and their files.

    Attributes:
      file_format: "parquet" or "npy".
      texts: whether captions are embedded.
    """

    folder: LocalFolder
    file_format: str
    texts: bool

    def rename_earlier(self) -> None:
        """Gives what an earlier version wrote beside the data the names of today."""
        for file in (self.folder.path / "manifest.json", *self.folder.path.glob("broken-*-of-*.json")):
            with contextlib.suppress(FileNotFoundError):  # or another process was faster
                file.rename(file.with_name(f"_{file.name}"))

    def files(self, shard: int) -> list[Path]:
        if self.file_format == "parquet":
            return [self._file("part", shard, "parquet")]
        kinds = ["image_embeddings", *(["text_embeddings"] if self.texts else [])]
        return [self._file("ids", shard, "jsonl"), *(self._file(kind, shard, "npy") for kind in kinds)]

    def is_complete(self, shard: int, sizes: Mapping[str, int]) -> bool:
        return all(file.name in sizes for file in self.files(shard))

    def broken(self, shard: int) -> list[tuple[str, str]]:
        """What was left out of a complete shard."""
        file = self._file("_broken", shard, "json")
        return [(record_id, reason) for record_id, reason in json.loads(file.read_text())] if file.exists() else []

    def _file(self, kind: str, shard: int, suffix: str) -> Path:
        return self.folder.path / self.file_name(kind, shard, suffix)

    def write(self, shard: int, rows: Sequence[Row], image: np.ndarray, text: np.ndarray, broken: Broken) -> None:
        """Writes the files of a shard.

        Args:
          rows: n records.
          image: [n, E], their embeddings.
          text: [m, E], those of their captions in order, or [0, E] without texts.
          broken: the records that were left out; written first, as a shard that is there lacks nothing beside it.
        """
        broken_file = self._file("_broken", shard, "json")
        if broken:
            write_text(broken_file, json.dumps(broken, indent=1))
        else:
            broken_file.unlink(missing_ok=True)
        stops = np.cumsum([0, *(len(row["captions"]) if self.texts else 0 for row in rows)])
        if self.file_format == "parquet":
            import pyarrow.parquet as pq

            with atomic_file(*self.files(shard)) as file:
                pq.write_table(_make_table(rows, image, text, stops, self.texts), file, use_dictionary=False)
            return
        ids, *arrays = self.files(shard)
        with atomic_file(ids) as file:
            for row, (start, stop) in zip(rows, itertools.pairwise(stops.tolist())):
                file.write(json.dumps({**row, "texts": [start, stop]} if self.texts else row).encode() + b"\n")
        for path, array in zip(arrays, (image, text)):
            with atomic_file(path) as file:
                np.save(file, array)


def _make_table(rows: Sequence[Row], image: np.ndarray, text: np.ndarray, stops: np.ndarray, texts: bool) -> Any:
    import pyarrow as pa

    def vectors(array: np.ndarray) -> Any:
        return pa.FixedSizeListArray.from_arrays(pa.array(array.ravel()), array.shape[1])

    columns = {
        "id": pa.array([row["id"] for row in rows], pa.string()),
        "path": pa.array([row["path"] for row in rows], pa.string()),
        "image_embedding": vectors(image),
        "captions": pa.array([list(row["captions"]) for row in rows], pa.list_(pa.string())),
        "label": pa.array([row.get("label") for row in rows], pa.int64()),
    }
    if texts:
        columns["text_embeddings"] = pa.ListArray.from_arrays(pa.array(stops, pa.int32()), vectors(text))
    return pa.table(columns)
