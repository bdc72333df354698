"""A folder of shards, each made from a fixed range of a source's records, whoever makes it and however often."""

from collections.abc import Mapping, Sized
from dataclasses import dataclass

from input_pipeline.storage import Folder, claim


@dataclass(frozen=True, kw_only=True)
class ShardedFolder:
    """Numbers, ranges and file names of the shards.

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
