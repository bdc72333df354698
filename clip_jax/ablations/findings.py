"""Whether a finding of the paper holds: one statistic a seed, its mean, its error, and the range it should lie in."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from clip_jax.ablations.observations import Observation, by_seed, distinct, select
from clip_jax.ablations.spec import Finding
from clip_jax.evaluators.few_shot import labels_to_match, student_interval

ERRORS = 2  # standard errors either way
HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "undecided"


def judge(finding: Finding, observations: Sequence[Observation]) -> dict[str, Any]:
    """A finding's result, ready for JSON.

    Returns:
      words, statistic, unit, range (low and high, None for no end), values {seed: number}, mean, standard_error, low
      and high (two standard errors either way), student_low and student_high (95 %), verdict. Of one seed there is no
      error, and nothing is decided; without observations mean is None.
    """
    values = STATISTICS[finding.statistic](finding, observations)
    values = {seed: value for seed, value in values.items() if math.isfinite(value)}
    found = summary(list(values.values()))
    low, high = found["low"], found["high"]
    verdict = UNDECIDED
    if low is not None:
        inside = finding.low < low and high < finding.high  # beyond two errors: an end itself is not within
        outside = high <= finding.low or low >= finding.high
        verdict = HOLDS if inside else FAILS if outside else UNDECIDED
    ends = [end if math.isfinite(end) else None for end in (finding.low, finding.high)]
    return {
        "words": finding.words,
        "statistic": finding.statistic,
        "unit": finding.unit,
        "range": ends,
        "values": {str(seed): value for seed, value in values.items()},
        **found,
        "verdict": verdict,
    }


def summary(values: Sequence[float]) -> dict[str, Any]:
    """mean, standard_error, low and high by two standard errors, student_low and student_high of some seeds' values."""
    names = ("mean", "standard_error", "low", "high", "student_low", "student_high")
    found: dict[str, Any] = dict.fromkeys(names)
    if values:
        found["mean"] = float(np.mean(values))
    if len(values) > 1:
        mean, low, high = student_interval(values)
        error = float(np.std(values, ddof=1) / len(values) ** 0.5)
        found = dict(zip(names, (mean, error, mean - ERRORS * error, mean + ERRORS * error, low, high)))
    return found


def overall(results: Sequence[Mapping[str, Any]]) -> str:
    """Of several findings: it holds when all do, does not when one does not."""
    verdicts = [result["verdict"] for result in results]
    return FAILS if FAILS in verdicts else UNDECIDED if UNDECIDED in verdicts or not verdicts else HOLDS


def sentence(results: Sequence[Mapping[str, Any]]) -> str:
    """Does it hold here, by how much, with what uncertainty."""
    begins = {HOLDS: "Holds here", FAILS: "Does not hold here", UNDECIDED: "Undecided here"}[overall(results)]
    return f"{begins}: {'; '.join(_clause(result) for result in results)}."


def _clause(result: Mapping[str, Any]) -> str:
    if result["mean"] is None:
        return f"{result['words']}: nothing was measured"
    unit = result["unit"]
    words = f"{result['words']} {number(result['mean'], unit)}"
    seeds = len(result["values"])
    if result["low"] is None:
        return f"{words} (one seed, which has no error)"
    ends = f"{number(result['low'], unit, bare=True)} to {number(result['high'], unit, bare=True)}"
    asked = f"; asked: {describe_range(result)}" if result["range"] != [None, None] else ""
    return f"{words} ({ends} by two standard errors over {seeds} seeds{asked})"


def describe_range(result: Mapping[str, Any]) -> str:
    """Where a finding should lie, in words; empty where anywhere."""
    low, high = (None if end is None else number(end, result["unit"], bare=True) for end in result["range"])
    if low is None:
        return "" if high is None else f"less than {high}"
    return f"more than {low}" if high is None else f"between {low} and {high}"


def number(value: float, unit: str, bare: bool = False) -> str:
    """A value in its unit; bare: without the unit's name."""
    if unit == "points":
        return f"{100 * value:+.1f}" + ("" if bare else " points")
    if unit == "percent":
        return f"{100 * value:.1f}" + ("" if bare else " %")
    return f"{value:.3g}" + (" times" if unit == "times" and not bare else "")


def _mean(finding: Finding, observations: Sequence[Observation]) -> dict[int, float]:
    return by_seed(observations, finding.a)


def _difference(finding: Finding, observations: Sequence[Observation]) -> dict[int, float]:
    """a less b, seed by seed: the same seed is the same data and the same first parameters. Where they have sets in
    common these alone count, so that a set without a probe does not move the average of the other side."""
    shared = _shared_sets(observations, finding.a, finding.b)
    a, b = by_seed(observations, {**finding.a, **shared}), by_seed(observations, {**finding.b, **shared})
    return {seed: a[seed] - b[seed] for seed in a if seed in b}


def _shared_sets(observations: Sequence[Observation], *sides: Mapping[str, Any]) -> dict[str, Any]:
    """What selects the sets that all sides have; nothing where there are none."""
    names = [distinct(select(observations, side), "set") for side in sides]
    shared = [name for name in names[0] if all(name in others for others in names)]
    return {"set": shared} if shared else {}


def _difference_to_best(finding: Finding, observations: Sequence[Observation]) -> dict[int, float]:
    """a less the one of b's arms that is best by the mean over seeds."""
    return _difference_to(max, finding, observations)


def _difference_to_worst(finding: Finding, observations: Sequence[Observation]) -> dict[int, float]:
    return _difference_to(min, finding, observations)


def _difference_to(end: Callable, finding: Finding, observations: Sequence[Observation]) -> dict[int, float]:
    arms = distinct(select(observations, finding.b), "arm")
    values = {arm: by_seed(observations, {**finding.b, "arm": arm}) for arm in arms}
    if not values:
        return {}
    chosen = end(values.values(), key=lambda of_seed: float(np.mean(list(of_seed.values()))))
    a = by_seed(observations, finding.a)
    return {seed: a[seed] - chosen[seed] for seed in a if seed in chosen}


def _by_set(finding: Finding, observations: Sequence[Observation]) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """{seed: values of a and of b, a set each}, of the sets that have both."""
    a, b = select(observations, finding.a), select(observations, finding.b or finding.a)
    found = {}
    for seed in distinct(a, "seed"):
        sides = [
            {name: by_seed(side, {"seed": seed, "set": name}).get(seed) for name in distinct(side, "set")}
            for side in (a, b)
        ]
        names = [name for name in sides[0] if sides[0][name] is not None and sides[1].get(name) is not None]
        if names:
            of_a, of_b = (np.array([side[name] for name in names], float) for side in sides)
            found[seed] = of_a, of_b
    return found


def _largest_difference(finding: Finding, observations: Sequence[Observation]) -> dict[int, float]:
    return {seed: float(np.abs(a - b).max()) for seed, (a, b) in _by_set(finding, observations).items()}


def _share_above(finding: Finding, observations: Sequence[Observation]) -> dict[int, float]:
    """The share of sets on which a is above b."""
    return {seed: float(np.mean(a > b)) for seed, (a, b) in _by_set(finding, observations).items()}


def _correlation(finding: Finding, observations: Sequence[Observation]) -> dict[int, float]:
    """Of a and b over sets."""
    pairs = {seed: sides for seed, sides in _by_set(finding, observations).items() if len(sides[0]) > 2}
    return {seed: float(np.corrcoef(a, b)[0, 1]) for seed, (a, b) in pairs.items()}


def _median(finding: Finding, observations: Sequence[Observation]) -> dict[int, float]:
    """Over sets, of a."""
    return {seed: float(np.median(a)) for seed, (a, _) in _by_set(finding, observations).items()}


def curve(observations: Sequence[Observation], where: Mapping[str, Any], x: str, seed: int) -> tuple[list, list]:
    """x ascending, and the mean of what is selected at each."""
    chosen = select(observations, {**where, "seed": seed})
    places = sorted(distinct(chosen, x))
    return places, [by_seed(chosen, {x: place})[seed] for place in places]


def log_fit(observations: Sequence[Observation], where: Mapping[str, Any], x: str) -> dict[int, Any]:
    """{seed: the line through log10 of 1 less the value over log10 of x}, as scipy's linregress returns it."""
    fits = {}
    for seed in distinct(select(observations, where), "seed"):
        places, values = curve(observations, where, x, seed)
        errors = 1 - np.array(values)
        if len(places) > 2 and errors.min() > 0:
            fits[seed] = stats.linregress(np.log10(places), np.log10(errors))
    return fits


def _log_slope(finding: Finding, observations: Sequence[Observation]) -> dict[int, float]:
    return {seed: float(fit.slope) for seed, fit in log_fit(observations, finding.a, finding.x).items()}


def _log_r2(finding: Finding, observations: Sequence[Observation]) -> dict[int, float]:
    return {seed: float(fit.rvalue**2) for seed, fit in log_fit(observations, finding.a, finding.x).items()}


def first_reach(places: Sequence[float], values: Sequence[float], level: float) -> float:
    """Where a curve first reaches a level, linear in the logarithm of x between its points; infinite if nowhere."""
    for i, value in enumerate(values):
        if value >= level:
            if i == 0:
                return float(places[0])
            share = (level - values[i - 1]) / (value - values[i - 1])
            return float(math.exp(math.log(places[i - 1]) * (1 - share) + math.log(places[i]) * share))
    return math.inf


def _ratio_to_reach(finding: Finding, observations: Sequence[Observation]) -> dict[int, float]:
    """The x at which b first reaches its own last value, over the x at which a reaches it; 0 where a never does."""
    ratios = {}
    for seed in distinct(select(observations, finding.a), "seed"):
        a, b = (curve(observations, where, finding.x, seed) for where in (finding.a, finding.b))
        if a[0] and b[0]:
            level = b[1][-1]
            ratios[seed] = first_reach(*b, level) / first_reach(*a, level)
    return ratios


def _matching_shots(finding: Finding, observations: Sequence[Observation]) -> dict[int, float]:
    """Labels a class at which the mean over sets of the few-shot curve a reaches the mean of b, zero-shot's; the ends
    of the curve where it starts above or stays below. Only sets with all of the numbers count."""
    every = distinct(select(observations, finding.a), "shots")
    shared = _shared_sets(observations, finding.b, *({**finding.a, "shots": number} for number in every))
    shots = {}
    for seed, target in by_seed(observations, {**finding.b, **shared}).items():
        places, values = curve(observations, {**finding.a, **shared}, "shots", seed)
        if places:
            shots[seed] = float(labels_to_match(target, places, values)["labels_per_class"])
    return shots


STATISTICS: dict[str, Callable[[Finding, Sequence[Observation]], dict[int, float]]] = {
    "mean": _mean,
    "difference": _difference,
    "difference_to_best": _difference_to_best,
    "difference_to_worst": _difference_to_worst,
    "largest_difference": _largest_difference,
    "share_above": _share_above,
    "correlation": _correlation,
    "median": _median,
    "log_slope": _log_slope,
    "log_r2": _log_r2,
    "ratio_to_reach": _ratio_to_reach,
    "matching_shots": _matching_shots,
}
