"""The same shards by an Apache Beam pipeline, for what does not fit one machine: an element is the number of a shard.

Needs the extra `beam`. Workers read the source and write to the folder themselves, so both must lie where each of them
can reach them; the folder may be a URL of Beam's file systems, such as gs://bucket/flickr8k_256.
"""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from input_pipeline.prepare.shards import ShardMaker

INSTALL = "Apache Beam is not installed: pip install 'jax-clip[beam]'"


class RemoteFolder:
    """A folder of Beam's file systems. An object appears there when it is closed, so never half-written.

    It knows no lock: two runs with equal settings make the same bytes, and settings.json keeps others out.
    """

    def __init__(self, path: str):
        try:
            from apache_beam.io.filesystems import FileSystems
        except ImportError:
            raise ValueError(f"--output={path}: {INSTALL}") from None
        FileSystems.get_filesystem(path)  # ValueError for an unknown scheme, or one whose package is missing
        self.path = path.rstrip("/")

    def __str__(self) -> str:
        return self.path

    def sizes(self) -> dict[str, int]:
        from apache_beam.io.filesystems import FileSystems

        found = FileSystems.match([f"{self.path}/*"])[0].metadata_list
        return {os.path.basename(file.path): file.size_in_bytes for file in found}

    def read(self, name: str) -> bytes:
        from apache_beam.io.filesystems import FileSystems

        with FileSystems.open(f"{self.path}/{name}") as file:
            return file.read()

    def write(self, name: str, data: bytes, *, replace: bool = True) -> None:
        from apache_beam.io.filesystems import FileSystems

        with FileSystems.create(f"{self.path}/{name}") as file:
            file.write(data)

    @contextmanager
    def whole(self, name: str) -> Iterator[str]:
        """A local path to write to, copied there when the block ends without an error."""
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, name)
            yield path
            with open(path, "rb") as file:
                self.write(name, file.read())

    @contextmanager
    def locked(self) -> Iterator[None]:
        yield


def make_shards(
    maker: ShardMaker, runner: str, options: Sequence[str], shards: Sequence[int], done: Callable[[int], None]
) -> None:
    """Makes the shards by a pipeline and waits for it.

    Args:
      runner: a name of Beam's, such as "DirectRunner" or "DataflowRunner".
      options: Beam's own flags, such as "--region=europe-west4".

    Raises:
      ValueError: Beam is not installed, or the pipeline failed.
    """
    if not shards:
        return
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        raise ValueError(f"--runner={runner}: {INSTALL}") from None

    try:
        with beam.Pipeline(options=PipelineOptions([f"--runner={runner}", *options])) as pipeline:
            numbers = pipeline | beam.Create(list(shards))
            spread = numbers | beam.Reshuffle()  # or a runner may give all to one worker
            spread | beam.Map(maker.make)
    except Exception as error:  # of every kind, as the runners differ
        raise ValueError(f"the pipeline of {runner} failed; what is complete stays: {error}") from error
    for shard in shards:
        done(shard)
