"""What making batches takes, and how many cores keep an accelerator busy: `python -m clip_jax.benchmarks.input
--config=tiny --images_per_s=2000`.

First one core's time for the config's data, and the share of each stage: reading a record (drawing it, of scenes),
decoding and cropping, by both values of data.decode, tokenising, stacking. Then the pipeline as training runs it, in
the training process, with one worker process and with --num_workers; each run starts workers of its own, and is timed
when what they make ahead is used up.
--memory_records=100000 tells the memory of the process and its workers while so many are read. Records that were read
before lie in the system's cache: a cold disk or a network is slower.
"""

import dataclasses
import functools
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import numpy as np
from absl import flags

from clip_jax.benchmarks.memory import watch_memory
from clip_jax.benchmarks.options import SHARED, chosen_config, make_report
from clip_jax.benchmarks.timing import Runner, Timed, Timings
from clip_jax.cli.parsing import run_command
from clip_jax.config.experiment import Config
from clip_jax.runs.setup import TOKENIZER_FILE, store_tokenizer
from input_pipeline.data_config import make_sources
from input_pipeline.examples import Examples, collate, make_examples
from input_pipeline.pipeline import BatchIterator
from input_pipeline.sources import Record
from input_pipeline.tokenizers import make_tokenizer

for flag in ("config", *SHARED):
    flags.declare_key_flag(flag)
DEFAULT_CONFIG = "tiny"
NUM_WORKERS = flags.DEFINE_integer("num_workers", None, "Worker processes; by default the config's.", lower_bound=1)
BATCH_SIZE = flags.DEFINE_integer("batch_size", None, "Images of a batch; by default the config's.", lower_bound=1)
NUM_BATCHES = flags.DEFINE_integer("num_batches", 8, "Timed in a run of the pipeline.", lower_bound=1)
NUM_RECORDS = flags.DEFINE_integer("num_records", 64, "Of which each stage is timed.", lower_bound=1)
IMAGES_PER_S = flags.DEFINE_float("images_per_s", 1000.0, "That training takes.", lower_bound=1)
MEMORY_RECORDS = flags.DEFINE_integer("memory_records", None, "Over which memory is watched.", lower_bound=1)

WHOLE = "all stages"
OTHER = "the same, data.decode="


class Stages:
    """Each stage by itself on the first records of the stream, in this process."""

    def __init__(self, examples: Examples, num_records: int):
        self._examples = examples
        self._made = [examples[position] for position in range(num_records)]
        self._records: list[Record] = [examples.source[made["index"]] for made in self._made]
        self._numbers = np.random.default_rng(0).random((num_records, 3))

    @property
    def runners(self) -> dict[str, Runner]:
        """By name, seconds of all records; the first one does what all others do, in training's order, but for those of
        another data.decode."""
        stages = {
            WHOLE: self._whole,
            "read": self._read,
            "decode, crop": lambda: self._crop(self._examples),
            "tokenise": self._tokenise,
            "stack": self._stack,
        }
        for decode in sorted({"fast", "exact"} - {self._examples.decode}):
            other = dataclasses.replace(self._examples, decode=decode)  # type: ignore[arg-type]
            stages[f"{OTHER}{decode}"] = functools.partial(self._crop, other)
        return {name: Timed(stage) for name, stage in stages.items()}

    def _whole(self) -> None:
        collate([self._examples[position] for position in range(len(self._made))])

    def _read(self) -> None:
        for made in self._made:
            self._examples.source[made["index"]]

    def _crop(self, examples: Examples) -> None:
        for record, numbers in zip(self._records, self._numbers):
            examples.crop(record, numbers)

    def _tokenise(self) -> None:
        for record in self._records:
            self._examples.tokenizer.encode(record["captions"][0])

    def _stack(self) -> None:
        collate(self._made)


class Pipeline:
    """A runner of the iterator that training reads; seconds of num_batches batches.

    What the workers have made ahead when the clock starts they are ahead when it stops: both are as little as a reader
    that never waits leaves.
    """

    def __init__(
        self, examples: Examples, batch_size: int, num_batches: int, num_workers: int, max_broken_share: float
    ):
        self._num_batches, self._num_workers = num_batches, num_workers

        def start() -> BatchIterator:
            options = {"num_workers": num_workers, "max_broken_share": max_broken_share}
            return BatchIterator(examples, batch_size, **options)  # type: ignore[arg-type]

        self.start = start

    def __call__(self) -> float:
        with closing(self.start()) as batches:
            for _ in range(4 + 4 * self._num_workers):  # the buffers of grain, two a worker on either side
                next(batches)
            start = time.perf_counter()
            for _ in range(self._num_batches):
                next(batches)
            return time.perf_counter() - start


def open_examples(config: Config, folder: Path) -> Examples:
    """The config's training examples; a tokenizer that has to be trained is put into the folder."""
    image_size = config.model.vision.image_size
    source, _ = make_sources(config.data, image_size)
    store_tokenizer(config.data, config.model, source, folder / TOKENIZER_FILE)
    tokenizer = make_tokenizer(config.data.tokenizer, folder / TOKENIZER_FILE, config.model.text.context_length)
    return make_examples(config.data, source, tokenizer, image_size)


def main() -> int:
    """Prints the tables; see the module's docstring."""
    report = make_report("input", main)
    subject, config = chosen_config()
    if not report.num_runs:
        raise ValueError("--num_runs=0 leaves nothing to do here: the input pipeline compiles nothing")
    report.content["config"] = dataclasses.asdict(config)
    with tempfile.TemporaryDirectory() as folder:
        examples = open_examples(config, Path(folder))
        N = NUM_RECORDS.value
        stages = Stages(examples, N)
        runners = stages.runners
        timings = report.measure(runners, aside=[name for name in runners if name != WHOLE])
        report.add(f"{subject}, one core", share_of_stages(timings, N), timings, {"images": N})
        batch_size = BATCH_SIZE.value or config.train.global_batch_size
        num_workers = NUM_WORKERS.value or max(1, config.data.num_workers)
        pipelines = {
            _workers(n): Pipeline(examples, batch_size, NUM_BATCHES.value, n, config.data.max_broken_share)
            for n in sorted({0, 1, num_workers})
        }
        images = NUM_BATCHES.value * batch_size
        timings = report.measure(pipelines)
        report.add(f"{subject}, pipeline, batches of {batch_size:,}", {}, timings, {"images": images})
    rate = images / float(np.median(timings.seconds[_workers(num_workers)]))
    needs = {"images/s": IMAGES_PER_S.value, "cores": cores_needed(IMAGES_PER_S.value, rate, num_workers)}
    report.tell("needs", {f"at {rate / num_workers:,.0f} images/s a worker": needs})
    if MEMORY_RECORDS.value:
        with closing(pipelines[_workers(num_workers)].start()) as batches:
            report.tell("memory, MiB", watch_memory(batches, MEMORY_RECORDS.value, batch_size))
    report.write()
    return 0


def _workers(number: int) -> str:
    return f"{number or 'no'} worker{'s' * (number != 1)}"


def share_of_stages(timings: Timings, N: int) -> dict[str, dict[str, float]]:
    """By stage, images/s of a core that does nothing else, and the share of all stages' time; what is left over is the
    choice of records, random numbers, and caches that a stage by itself keeps warm."""
    whole = timings.seconds[WHOLE]
    stages = {name: seconds for name, seconds in timings.seconds.items() if name != WHOLE}
    shares = {name: float(np.median(seconds / whole)) for name, seconds in stages.items()}
    rates = {name: N / float(np.median(seconds)) for name, seconds in stages.items()}
    rest = {"the rest": {"share": 1 - sum(share for name, share in shares.items() if not name.startswith(OTHER))}}
    return {name: {"images/s": rates[name], "share": shares[name]} for name in stages} | rest


def cores_needed(images_per_s: float, rate: float, num_workers: int) -> float:
    """Cores that make so many images/s when num_workers, each on a core of its own, made `rate`."""
    return images_per_s * num_workers / rate


if __name__ == "__main__":
    run_command(main, sys.argv)
