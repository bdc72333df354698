"""Interleaved runs in one process, the ratios of their times, and whether the noise was low enough to trust these."""

import math
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from input_pipeline import prefetch

Runner = Callable[[], float]  # does its work one or several times; returns the seconds of one
MAX_SPREAD = 0.05  # by which a ratio may differ from one measurement to the next
MIN_ROUNDS = 8  # with fewer the noise is not judged
MIN_RUN_S = 0.2  # a run repeats shorter work, so that the clock and a hiccup of the system weigh little
NUM_RESAMPLES = 500


class Timed:
    """A runner of `work`, which starts its work once and returns what to wait for, or None when it has waited.

    The constructor calls work twice: the first call may compile, `first_s` holds its seconds; the second decides how
    often a run repeats the work.
    """

    def __init__(
        self, work: Callable[[], Any], min_run_s: float = MIN_RUN_S, clock: Callable[[], float] = time.perf_counter
    ):
        self._work, self._clock = work, clock
        self.num_repeats = 1
        self.first_s = self()
        self.num_repeats = max(1, math.ceil(min_run_s / max(self(), 1e-9)))

    def __call__(self) -> float:
        start = self._clock()
        for _ in range(self.num_repeats):
            result = self._work()
        jax.block_until_ready(result)
        return (self._clock() - start) / self.num_repeats


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """The time of a variant over that of the reference, and by what share another measurement of it may differ.

    Attributes:
      fastest: the fastest run over the reference's fastest.
      median: of the ratios of runs that followed each other.
      spread: the largest of three relative differences: of `fastest`, and of `median`, between the quarters of the
        rounds, which shows slow changes of the machine; and the difference that two medians of so many rounds keep
        within in 95 of 100 cases, by the bootstrap.
    """

    fastest: float
    median: float
    spread: float


def compare(seconds: np.ndarray, reference: np.ndarray) -> Ratio:
    """The ratio of two series of as many interleaved runs [R]; with ones as reference a series is judged by itself."""
    logs = np.log(seconds / reference)  # [R]
    quarters = np.array_split(np.arange(len(logs)), min(4, len(logs)))
    medians = [np.median(logs[part]) for part in quarters]
    fastest = [np.log(seconds[part].min() / reference[part].min()) for part in quarters]
    chosen = np.random.default_rng(0).integers(len(logs), size=(NUM_RESAMPLES, len(logs)))
    deviation = np.median(logs[chosen], axis=1).std()
    differences = [np.ptp(medians), np.ptp(fastest), 1.96 * math.sqrt(2) * deviation]
    return Ratio(
        fastest=float(seconds.min() / reference.min()),
        median=float(np.exp(np.median(logs))),
        spread=float(np.expm1(max(differences))),
    )


@dataclass(frozen=True, kw_only=True)
class Timings:
    """Seconds of each run by the variant's name, [R] each, in the order of the rounds; the first is the reference.

    excluded: names that were interleaved too, but are no variants of the same work: they have no ratio.
    """

    seconds: dict[str, np.ndarray]
    excluded: frozenset[str] = frozenset()

    @property
    def num_rounds(self) -> int:
        return len(next(iter(self.seconds.values())))

    @property
    def ratios(self) -> dict[str, Ratio]:
        """Of every variant but the reference; of a single variant, its own times, over one second."""
        names = [name for name in self.seconds if name not in self.excluded]
        first = self.seconds[names[0]]
        if len(names) == 1:
            return {names[0]: compare(first, np.ones_like(first))}
        return {name: compare(self.seconds[name], first) for name in names[1:]}

    @property
    def spread(self) -> float:
        """The largest of all ratios."""
        return max(ratio.spread for ratio in self.ratios.values())

    @property
    def is_low_noise(self) -> bool:
        return self.num_rounds >= MIN_ROUNDS and self.spread <= MAX_SPREAD

    @property
    def verdict(self) -> str:
        """One line: noise below or above 5 %, or too few runs to say."""
        if self.num_rounds < MIN_ROUNDS:
            return f"too few runs to judge the noise: {self.num_rounds} rounds, and {MIN_ROUNDS} are needed"
        name = max(self.ratios, key=lambda name: self.ratios[name].spread)
        what = "time" if len(self.seconds) - len(self.excluded) == 1 else "ratio"
        side = "below" if self.is_low_noise else "above"
        return (
            f"noise {side} {MAX_SPREAD:.0%}: the {what} of {name!r} may differ by {self.spread:.1%} from one "
            f"measurement to the next, after {self.num_rounds} rounds"
        )

    def as_json(self) -> dict[str, Any]:
        """For JSON: all raw times, the ratios and the verdict."""
        return {
            "seconds": {name: series.tolist() for name, series in self.seconds.items()},
            "ratios": {name: vars(ratio) for name, ratio in self.ratios.items()},
            "spread": self.spread,
            "is_low_noise": self.is_low_noise,
            "verdict": self.verdict,
        }


def interleave(
    runners: Mapping[str, Runner],
    num_rounds: int,
    max_s: float = 0.0,
    *,
    excluded: Collection[str] = (),
    clock: Callable[[], float] = time.perf_counter,
) -> Timings:
    """Runs all interleaved, A B C A B C, at least num_rounds times. Shows a progress bar.

    While the noise is too high, the number of rounds is doubled, until max_s seconds have passed in all.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    start, wanted = clock(), num_rounds
    with progress_bar("measure", total=wanted * len(runners), unit="run") as bar:
        while True:
            for name, run in runners.items():
                seconds[name].append(run())
                bar.update()
            done = len(seconds[name])
            over = done >= num_rounds and clock() - start >= max_s
            if done < wanted and not over:
                continue
            series = {name: np.array(times) for name, times in seconds.items()}
            timings = Timings(seconds=series, excluded=frozenset(excluded))
            if over or timings.is_low_noise:
                return timings
            wanted *= 2
            bar.total = wanted * len(runners)
            bar.set_postfix_str(f"noise so far: {timings.spread:.0%}", refresh=False)


def progress_bar(what: str, total: int | None = None, unit: str = "program") -> tqdm:
    """On standard error; few lines where that is no terminal, none for what ends soon."""
    return prefetch.progress_bar(total=total, desc=what, unit=unit, leave=False, delay=2)
