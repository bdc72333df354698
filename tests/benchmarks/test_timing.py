import itertools

import numpy as np
import pytest

from clip_jax.benchmarks.timing import MAX_SPREAD, Timed, Timings, compare, interleave


class Clock:
    """Moves only when something takes time."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def runner(self, seconds, log=None, name=None):
        """Takes the seconds given, over and over."""
        series = itertools.cycle(seconds)

        def run():
            taken = next(series)
            self.now += taken
            if log is not None:
                log.append(name)
            return taken

        return run


def test_runs_are_interleaved_and_all_are_kept():
    clock, log = Clock(), []
    runners = {name: clock.runner(times, log, name) for name, times in {"a": [1, 2, 3], "b": [5, 7, 11]}.items()}
    timings = interleave(runners, 3, clock=clock)
    assert log == ["a", "b"] * 3
    assert {name: series.tolist() for name, series in timings.seconds.items()} == {"a": [1, 2, 3], "b": [5, 7, 11]}


def test_ratios_are_of_the_fastest_runs_and_the_median_of_the_pairs():
    ratio = compare(np.array([3.0, 4.0, 12.0]), np.array([2.0, 1.0, 4.0]))
    assert ratio.fastest == 3.0
    assert ratio.median == pytest.approx(3.0, abs=1e-12)  # of 1.5, 4 and 3


def test_noise_that_both_variants_share_does_not_move_the_ratio():
    reference = np.array([1.0, 5.0, 1.0, 1.7, 2.0, 1.0, 1.0, 9.0])
    ratio = compare(1.3 * reference, reference)
    assert ratio.spread == pytest.approx(0, abs=1e-12)
    timings = Timings(seconds={"a": reference, "b": 1.3 * reference})
    assert timings.is_low_noise
    assert (
        timings.verdict
        == "noise below 5%: the ratio of 'b' may differ by 0.0% from one measurement to the next, after 8 rounds"
    )


def test_a_machine_that_changes_meanwhile_is_noise_above_the_limit():
    reference = np.ones(20)
    slower = np.where(np.arange(20) < 10, 1.0, 1.08)
    assert compare(slower, reference).spread >= 0.08
    mostly = np.where(np.arange(20) < 10, np.tile([1.0, 1.08, 1.08, 1.08, 1.08], 4), 1.08)
    assert compare(mostly, reference).spread == pytest.approx(0.08, rel=1e-6)  # of the fastest, not of the medians
    timings = Timings(seconds={"a": reference, "b": slower})
    assert not timings.is_low_noise
    assert timings.verdict.startswith("noise above 5%: the ratio of 'b' may differ by 10.1% from one")


def test_scattered_pairs_are_noise_above_the_limit_though_the_quarters_agree():
    scattered = np.tile([1.0, 1.6, 1.6, 1.0, 1.3], 4)
    ratio = compare(scattered, np.ones(20))
    assert {np.median(scattered[i : i + 5]) for i in range(0, 20, 5)} == {1.3}
    assert MAX_SPREAD < ratio.spread < 0.9


def test_the_spread_holds_what_a_second_measurement_shows():
    """Of 200 pairs of measurements of a known ratio with 4 % of noise, how many differ by more than predicted."""
    rng = np.random.default_rng(0)
    beyond = 0
    for _ in range(200):
        first, second = (compare(1.5 * np.exp(rng.normal(0, 0.04, 40)), np.ones(40)) for _ in range(2))
        beyond += abs(first.median / second.median - 1) > first.spread
    assert beyond <= 10  # five in a hundred


def test_a_ratio_with_noise_below_the_limit_is_found_again_within_it():
    """What the verdict promises, on measurements of a known ratio with independent noise of 2 %."""
    rng = np.random.default_rng(1)
    judged_low = beyond = 0
    for _ in range(200):
        noise = np.exp(rng.normal(0, 0.02, (2, 2, 20)))
        first, second = (compare(1.5 * a, b) for a, b in noise)
        differences = [abs(first.median / second.median - 1), abs(first.fastest / second.fastest - 1)]
        judged_low += first.spread <= MAX_SPREAD
        beyond += first.spread <= MAX_SPREAD and max(differences) > MAX_SPREAD
    assert judged_low > 100
    assert beyond <= 0.05 * judged_low


def test_few_rounds_are_not_judged():
    timings = Timings(seconds={"a": np.ones(7), "b": np.ones(7)})
    assert not timings.is_low_noise
    assert timings.verdict == "too few runs to judge the noise: 7 rounds, and 8 are needed"


def test_a_single_variant_is_judged_by_its_times():
    timings = Timings(seconds={"a": np.full(8, 2.0), "product": np.arange(1.0, 9.0)}, excluded=frozenset({"product"}))
    assert timings.ratios["a"].fastest == 2.0
    assert timings.verdict.startswith("noise below 5%: the time of 'a' may differ by 0.0%")


def test_the_rounds_are_doubled_until_the_noise_is_low():
    clock = Clock()
    noisy_at_first = itertools.chain([1, 3, 1, 3, 1, 3, 1, 3], itertools.repeat(1))
    runners = {"a": clock.runner([1.0]), "b": lambda: float(next(noisy_at_first))}
    assert interleave(runners, 8, max_s=1000, clock=clock).num_rounds == 64  # at 32 the first quarter is still unlike


def test_it_gives_up_when_the_time_is_over_and_never_measures_less_than_asked():
    clock = Clock()
    runners = {"a": clock.runner([1.0]), "b": clock.runner([1.0, 3.0])}
    assert interleave(runners, 8, max_s=40, clock=clock).num_rounds == 14  # of 3 s a round, on average
    assert interleave(runners, 8, max_s=0, clock=clock).num_rounds == 8


def test_short_work_is_repeated_within_a_run():
    clock, calls = Clock(), []

    def work():
        calls.append(None)
        clock.now += 4.0 if len(calls) == 1 else 0.03  # the first call compiles

    timed = Timed(work, min_run_s=0.2, clock=clock)
    assert (timed.first_s, timed.num_repeats) == (4.0, 7)
    assert timed() == pytest.approx(0.03)
    assert len(calls) == 2 + 7
