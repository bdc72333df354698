"""Speed of making batches: each stage on one core, then the pipeline as training runs it, with and without workers.

Records that were read before lie in the system's cache: a cold disk or a network is slower.
"""

import dataclasses
import functools
import multiprocessing
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from clip_jax.benchmarks.report import Report
from clip_jax.benchmarks.timing import Runner, Timed, Timings
from clip_jax.config.experiment import TOKENIZER_FILE, Config
from input_pipeline.examples import Examples, collate
from input_pipeline.open_data import make_examples, make_sources
from input_pipeline.pipeline import BatchIterator
from input_pipeline.sources import Record
from input_pipeline.tokenizers import make_tokenizer
from input_pipeline.vocabulary import store_vocabulary

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
        """By name, seconds of all records: first the whole, in training's order, then its stages, and last, no part of
        the whole, the other data.decode."""
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

    Batches that workers have made in advance are used up before the clock starts.
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
    """The config's training examples; the vocabulary is written to the folder."""
    image_size, text, vocabulary = config.model.vision.image_size, config.model.text, folder / TOKENIZER_FILE
    source, _ = make_sources(config.data, image_size)
    store_vocabulary(config.data, text.vocab_size, text.context_length, source, vocabulary)
    tokenizer = make_tokenizer(config.data.tokenizer, vocabulary, text.context_length)
    return make_examples(config.data, source, tokenizer, image_size)


def measure_stages(report: Report, subject: str, examples: Examples, num_records: int) -> None:
    """Adds a table of the stages, each alone on one core, to the report."""
    runners = Stages(examples, num_records).runners
    timings = report.measure(runners, excluded=[name for name in runners if name != WHOLE])
    report.add(f"{subject}, one core", share_of_stages(timings, num_records), timings, {"images": num_records})


def measure_pipeline(
    report: Report,
    subject: str,
    config: Config,
    examples: Examples,
    *,
    batch_size: int,
    num_batches: int,
    num_workers: int,
    images_per_s: float,
    memory_records: int | None,
) -> None:
    """Adds a table of the pipeline with no, one and num_workers workers to the report.

    Args:
      num_batches: timed in a run.
      images_per_s: of training, for which the cores are computed.
      memory_records: over which memory is watched; None does not.
    """
    pipelines = {
        _workers(n): Pipeline(examples, batch_size, num_batches, n, config.data.max_broken_share)
        for n in sorted({0, 1, num_workers})
    }
    images = num_batches * batch_size
    timings = report.measure(pipelines)
    report.add(f"{subject}, pipeline, batches of {batch_size:,}", {}, timings, {"images": images})
    rate = images / float(np.median(timings.seconds[_workers(num_workers)]))
    needs = {"images/s": images_per_s, "cores": cores_needed(images_per_s, rate, num_workers)}
    report.note("needs", {f"at {rate / num_workers:,.0f} images/s a worker": needs})
    if memory_records:
        with closing(pipelines[_workers(num_workers)].start()) as batches:
            report.note("memory, MiB", watch_memory(batches, memory_records, batch_size))


def _workers(number: int) -> str:
    return f"{number or 'no'} worker{'s' * (number != 1)}"


def share_of_stages(timings: Timings, N: int) -> dict[str, dict[str, float]]:
    """By stage, images/s of a core that does nothing else, and the share of the whole; the rest is the choice of
    records, random numbers, and caches that a stage by itself keeps warm."""
    whole = timings.seconds[WHOLE]
    stages = {name: seconds for name, seconds in timings.seconds.items() if name != WHOLE}
    shares = {name: float(np.median(seconds / whole)) for name, seconds in stages.items()}
    rates = {name: N / float(np.median(seconds)) for name, seconds in stages.items()}
    rest = {"the rest": {"share": 1 - sum(share for name, share in shares.items() if not name.startswith(OTHER))}}
    return {name: {"images/s": rates[name], "share": shares[name]} for name in stages} | rest


def cores_needed(images_per_s: float, rate: float, num_workers: int) -> float:
    """Cores for images_per_s, where num_workers, each on a core of its own, made `rate`."""
    return images_per_s * num_workers / rate


def watch_memory(batches: Iterator[Any], num_records: int, batch_size: int) -> dict[str, dict[str, float]]:
    """Resident memory of this process and of its workers, a shared page counted once, at ten points on the way.

    Raises ValueError on a system other than Linux.
    """
    points = np.linspace(0, -(-num_records // batch_size), 11).astype(int)[1:].tolist()
    found = {}
    for number in range(1, points[-1] + 1):
        next(batches)
        if number in points:
            workers = [child.pid for child in multiprocessing.active_children()]
            sizes = {"process": _resident_mib("self"), "workers": sum(_resident_mib(pid) for pid in workers)}
            found[f"{number * batch_size:,} records"] = sizes
    return found


def _resident_mib(process: int | str | None) -> float:
    """A process's proportional share of resident memory."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError as error:
        raise ValueError(f"--memory_records needs Linux, which reports a process's memory: {error}") from error
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024
