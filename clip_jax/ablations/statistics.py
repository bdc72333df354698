"""What a finding counts: a number a seed, or the reason why there is none."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy import stats

from clip_jax.ablations.observations import Observation, by_seed, distinct, select
from clip_jax.ablations.spec import Finding
from clip_jax.evaluation.metrics.few_shot import labels_to_match, student_interval

Relation = Literal["equal", "at least", "at most"]
ERRORS = 2  # standard errors either way


class Bound(NamedTuple):
    """A number that is known, or that is at least or at most this: the measurements end where it lies."""

    value: float
    relation: Relation


Found = Mapping[int, float | Bound | str]  # of each seed; words are the reason why it has no number


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


def _mean(finding: Finding, observations: Sequence[Observation]) -> Found:
    return by_seed(observations, finding.a)


def _difference(finding: Finding, observations: Sequence[Observation]) -> Found:
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


def _difference_to_best(finding: Finding, observations: Sequence[Observation]) -> Found:
    """a less the one of b's arms that is best by the mean over seeds."""
    return _difference_to(max, finding, observations)


def _difference_to_worst(finding: Finding, observations: Sequence[Observation]) -> Found:
    return _difference_to(min, finding, observations)


def _difference_to(end: Callable, finding: Finding, observations: Sequence[Observation]) -> Found:
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


def _largest_difference(finding: Finding, observations: Sequence[Observation]) -> Found:
    """Of a set, either way; without b the largest a itself."""
    pairs = _by_set(finding, observations).items()
    return {seed: float(np.abs(a - b if finding.b else a).max()) for seed, (a, b) in pairs}


def _share_above(finding: Finding, observations: Sequence[Observation]) -> Found:
    """The share of sets on which a is above b."""
    return {seed: float(np.mean(a > b)) for seed, (a, b) in _by_set(finding, observations).items()}


def _correlation(finding: Finding, observations: Sequence[Observation]) -> Found:
    """Of a and b over sets."""
    pairs = {seed: sides for seed, sides in _by_set(finding, observations).items() if len(sides[0]) > 2}
    return {seed: float(np.corrcoef(a, b)[0, 1]) for seed, (a, b) in pairs.items()}


def _median(finding: Finding, observations: Sequence[Observation]) -> Found:
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


def _log_slope(finding: Finding, observations: Sequence[Observation]) -> Found:
    return {seed: float(fit.slope) for seed, fit in log_fit(observations, finding.a, finding.x).items()}


def _log_r2(finding: Finding, observations: Sequence[Observation]) -> Found:
    return {seed: float(fit.rvalue**2) for seed, fit in log_fit(observations, finding.a, finding.x).items()}


def reach(places: Sequence[float], values: Sequence[float], level: float) -> Bound:
    """Where a curve first reaches a level, linear in the logarithm of x between its points; at most the first place
    where it is there already, at least the last where it never is: beyond the curve nothing is made up."""
    first = next((i for i, value in enumerate(values) if value >= level), None)
    if first is None:
        return Bound(float(places[-1]), "at least")
    if first == 0:
        return Bound(float(places[0]), "at most")
    share = (level - values[first - 1]) / (values[first] - values[first - 1])
    return Bound(math.exp(math.log(places[first - 1]) * (1 - share) + math.log(places[first]) * share), "equal")


def _ratio_to_reach(finding: Finding, observations: Sequence[Observation]) -> Found:
    """The x at which b first reaches its own last value, over the x at which a reaches it; a bound where one of them
    lies beyond its curve. No number where the level is not above chance: nothing was learned that could be reached
    sooner. Chance counts as 0 where it is not known, as of probes."""
    ratios: dict[int, float | Bound | str] = {}
    margins = []
    for seed in distinct(select(observations, finding.b), "seed"):
        a, b = (curve(observations, where, finding.x, seed) for where in (finding.a, finding.b))
        if not (a[0] and b[0]):
            continue
        last = select(observations, {**finding.b, "seed": seed, finding.x: b[0][-1]})
        level, chance = b[1][-1], float(np.mean([found.get("chance", 0.0) for found in last]))
        margins.append(level - chance)
        at_chance = f"the level to reach, {level:.1%}, is not above chance, {chance:.1%}"
        ratios[seed] = _ratio(reach(*b, level), reach(*a, level)) if level > chance else at_chance
    error = summary(margins)["standard_error"]
    if error is not None and np.mean(margins) <= ERRORS * error and max(margins) > 0:
        return dict.fromkeys(ratios, "the level to reach is not above chance by two standard errors")
    return ratios


def _ratio(of_b: Bound, of_a: Bound) -> Bound | str:
    """b over a, where b reaches its own level somewhere."""
    value = of_b.value / of_a.value
    if (of_b.relation, of_a.relation) == ("at most", "at most"):
        return "both have the level at their first point"
    if "equal" == of_a.relation == of_b.relation:
        return Bound(value, "equal")
    return Bound(value, "at least" if of_a.relation == "at most" else "at most")


def _matching_shots(finding: Finding, observations: Sequence[Observation]) -> Found:
    """Labels a class at which the mean over sets of the few-shot curve a reaches the mean of b, zero-shot's; a bound
    where it starts above or stays below. Only sets with all of the numbers count."""
    every = distinct(select(observations, finding.a), "shots")
    shared = _shared_sets(observations, finding.b, *({**finding.a, "shots": number} for number in every))
    shots: dict[int, Bound] = {}
    relations: dict[str, Relation] = {"equal": "equal", "at most": "at most", "more than": "at least"}
    for seed, target in by_seed(observations, {**finding.b, **shared}).items():
        places, values = curve(observations, {**finding.a, **shared}, "shots", seed)
        if places:
            found = labels_to_match(target, places, values)
            shots[seed] = Bound(float(found["labels_per_class"]), relations[found["relation"]])
    return shots


STATISTICS: dict[str, Callable[[Finding, Sequence[Observation]], Found]] = {
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
