"""The shards of a prepared data set: fixed ranges of a source's records, each made by one process from start to end.

What a shard holds is decided by the source, the settings and its number, so whoever makes it, and however often, the
bytes are the same. Beside NAME-00000-of-00012.array_record is NAME-00000-of-00012.json with all that the manifest
needs; it is written last, so a shard that has it is complete, and one that lacks it is made again.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from input_pipeline.prepare.folder import ShardedFolder
from input_pipeline.prepare.statistics import Statistics
from input_pipeline.prepare.transform import FilteredRecordError, Settings, prepare_record
from input_pipeline.sources.array_record import write_array_record
from input_pipeline.sources.base import Record, Source, UnusedRecordError
from input_pipeline.storage import Folder, checksum_file


class OwnedFolder(Folder, Protocol):
    """A folder with one owner at a time: `folder.LocalFolder`, or `beam.RemoteFolder`."""

    def whole(self, name: str) -> AbstractContextManager[str]: ...

    def locked(self) -> AbstractContextManager[None]: ...


@dataclass(frozen=True, kw_only=True)
class ShardMaker(ShardedFolder):
    """Makes any shard by its number, in any process: it is cheap to send.

    A shard holds fewer records than it is made from where some were left out.

    Attributes:
      settings: what becomes of a record.
      name: what the files' names begin with.
    """

    source: Source
    folder: OwnedFolder
    settings: Settings
    name: str

    def file(self, shard: int, suffix: str = "array_record") -> str:
        return self.file_name(self.name, shard, suffix)

    def is_complete(self, shard: int, sizes: Mapping[str, int]) -> bool:
        """Whether both files are there, and the records are as long as when they were complete."""
        if not {self.file(shard), self.file(shard, "json")} <= sizes.keys():
            return False
        try:
            return self.details(shard)["bytes"] == sizes[self.file(shard)]
        except (ValueError, KeyError, TypeError):  # damaged, too
            return False

    def make(self, shard: int, seen: Callable[[int], None] = lambda count: None) -> None:
        """Writes a shard and its details; `seen` gets the number of records that are done.

        Raises OSError that names the file when it cannot be written, as on a full disk.
        """
        details: dict[str, Any] = {"ids": [], "pixels": [], "looks": [], "broken": [], "filtered": []}
        statistics = Statistics()

        def records() -> Iterator[Record]:
            for count, index in enumerate(self.indices(shard)):
                seen(count)
                try:
                    prepared = prepare_record(self.source[index], self.settings)
                except UnusedRecordError as error:
                    kind = "filtered" if isinstance(error, FilteredRecordError) else "broken"
                    details[kind].append((error.record_id, error.reason))
                    continue
                record = prepared.record
                details["ids"].append(record["id"])
                details["pixels"].append(prepared.pixels)
                details["looks"].append(prepared.perceptual_hash.hex())
                statistics.add(record, prepared.facts)
                yield record

        file = self.file(shard)
        with self.folder.whole(file) as path:
            try:
                count = write_array_record(path, records())
            except RuntimeError as error:  # of the library's writer
                raise _cannot_write(file, self.folder, error) from error
            details |= {"records": count, "bytes": os.path.getsize(path), "sha256": checksum_file(path)}
        details["statistics"] = statistics.as_json()
        file = self.file(shard, "json")
        try:
            self.folder.write(file, json.dumps(details).encode())
        except OSError as error:
            raise _cannot_write(file, self.folder, error) from error
        seen(len(self.indices(shard)))

    def details(self, shard: int) -> dict[str, Any]:
        """The details of a complete shard, for the manifest."""
        return json.loads(self.folder.read(self.file(shard, "json")))


def _cannot_write(file: str, folder: Folder, error: Exception) -> OSError:
    return OSError(f"{file} cannot be written to {folder}: {error}. What is complete stays: the same command resumes")
