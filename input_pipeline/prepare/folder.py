"""Folders whose files appear whole or not at all, of which one run at a time is the owner, and the shards in them."""

import os
from collections.abc import Iterator, Mapping, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from input_pipeline.lock import lock_folder
from input_pipeline.storage import Folder, atomic_path, claim, write_bytes


class LocalFolder:
    """A folder on a file system, made when missing.

    Another kind of folder (see `beam`) has the same methods.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(os.path.expanduser(path))
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"{self.path} is a file: give a folder to write to")

    def __str__(self) -> str:
        return str(self.path)

    def sizes(self) -> dict[str, int]:
        """Of the files in it that are complete, by their names, in bytes."""
        if not self.path.is_dir():
            return {}
        return {file.name: file.stat().st_size for file in self.path.iterdir() if not file.name.startswith(".")}

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    @contextmanager
    def whole(self, name: str) -> Iterator[str]:
        """A path to write to; the file gets its name, and is on the disk, when the block ends without an error."""
        self.path.mkdir(parents=True, exist_ok=True)
        with atomic_path(self.path / name, durable=True) as partial:
            yield str(partial)

    def write(self, name: str, data: bytes, *, replace: bool = True) -> None:
        """Writes a file; replace=False keeps one that is there already."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_bytes(self.path / name, data, replace=replace, durable=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Owns the folder while the block lasts; removes what dead processes left half-written.

        The lock dies with its process. The lock of another machine, dead or alive, has to be removed by hand.

        Raises:
          ValueError: another process has it; names its host and process id.
        """
        with lock_folder(self.path, doing="preparing into", fix="use another --output"):
            self._remove_partial()
            try:
                yield
            finally:
                self._remove_partial()

    def _remove_partial(self) -> None:
        for left in self.path.glob(".*.partial*"):
            left.unlink(missing_ok=True)


@dataclass(frozen=True, kw_only=True)
class ShardedFolder:
    """A folder of shards, each made from a fixed range of a source's records, whoever makes it and however often.

    Attributes:
      source: the records.
      folder: for the shards.
      shard_size: records of the source that a shard is made from; the last one may have fewer.
    """

    source: Sized
    folder: Folder
    shard_size: int

    def __len__(self) -> int:
        return -(-len(self.source) // self.shard_size)

    def indices(self, shard: int) -> range:
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, len(self.source)))

    def file_name(self, kind: str, shard: int, suffix: str) -> str:
        return f"{kind}-{shard:05d}-of-{len(self):05d}.{suffix}"

    def missing(self) -> list[int]:
        """The shards that are not complete."""
        sizes = self.folder.sizes()
        return [shard for shard in range(len(self)) if not self.is_complete(shard, sizes)]

    def is_complete(self, shard: int, sizes: Mapping[str, int]) -> bool:
        """Whether a shard is among the files of these names and sizes in bytes."""
        raise NotImplementedError

    def claim(self, name: str, record: str, *, holds: str, may_change: tuple[str, ...] = ()) -> None:
        """`storage.claim` with a JSON record; shards without one are refused."""
        products, fix = r"-\d{5}-of-\d{5}\.|\.array_record$", "use another --output"
        claim(self.folder, name, record.encode(), holds=holds, products=products, fix=fix, may_change=may_change)
