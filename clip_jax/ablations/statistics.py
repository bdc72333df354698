"""What a finding counts: a number a seed, or the reason why there is none."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from clip_jax.ablations.observations import by_seed, distinct, mean_over, select
from clip_jax.ablations.spec import Finding, Where
from clip_jax.evaluation.metrics.few_shot import labels_to_match, student_interval

Relation = Literal["equal", "at least", "at most"]
ERRORS = 2  # standard errors either way


class Bound(NamedTuple):
    """A number that is known, or that is at least or at most this: the measurements end where it lies."""

    value: float
    relation: Relation


Found = Mapping[int, float | Bound | str] | pd.Series  # of each seed; words are the reason why it has no number
Statistic = Callable[[Finding, pd.DataFrame], Found]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Of the values of some seeds: mean, standard error, its ends by two of these and by Student's 95 %. None where
    there are too few values."""

    mean: float | None = None
    standard_error: float | None = None
    low: float | None = None
    high: float | None = None
    student_low: float | None = None
    student_high: float | None = None

    @property
    def error(self) -> float:
        """Either way: two standard errors, 0 of one seed."""
        return ERRORS * (self.standard_error or 0.0)


def summarize(values: Sequence[float] | pd.Series) -> Summary:
    """The summary of a value a seed."""
    values = list(values)
    if len(values) < 2:
        return Summary(mean=float(values[0]) if values else None)
    mean, low, high = student_interval(values)
    error = float(np.std(values, ddof=1) / len(values) ** 0.5)
    ends = {"low": mean - ERRORS * error, "high": mean + ERRORS * error}
    return Summary(mean=mean, standard_error=error, student_low=low, student_high=high, **ends)


def _difference(finding: Finding, observations: pd.DataFrame) -> Found:
    """a less b, seed by seed: the same seed is the same data and the same first parameters. Where they have sets in
    common these alone count, so that a set without a probe does not move the average of the other side."""
    shared = _shared_sets(observations, finding.a, finding.b)
    return less(*(by_seed(observations, {**where, **shared}) for where in (finding.a, finding.b)))


def less(a: pd.Series, b: pd.Series) -> pd.Series:
    """a less b, of the seeds that both have."""
    a, b = a.align(b, join="inner")
    return a - b


def _shared_sets(observations: pd.DataFrame, *sides: Where) -> dict[str, Any]:
    """What selects the sets that all sides have; nothing where there are none."""
    names = [distinct(select(observations, side), "set") for side in sides]
    shared = [name for name in names[0] if all(name in others for others in names)]
    return {"set": shared} if shared else {}


def _difference_to(end: Callable, finding: Finding, observations: pd.DataFrame) -> Found:
    """a less the one of b's arms that is best (worst) by the mean over seeds."""
    arms = distinct(select(observations, finding.b), "arm")
    rivals = [by_seed(observations, {**finding.b, "arm": arm}) for arm in arms]
    return less(by_seed(observations, finding.a), end(rivals, key=np.mean)) if rivals else {}


def _over_sets(value: Callable[[np.ndarray, np.ndarray], float], least: int = 1) -> Statistic:
    """A statistic of the values of a and b on the sets that have both, at least so many; without b these are 0."""

    def statistic(finding: Finding, observations: pd.DataFrame) -> Found:
        a, b = (mean_over(select(observations, where), "seed", "set") for where in (finding.a, finding.b))
        both = pd.concat([a, b if finding.b else 0 * a], axis=1, join="inner")
        pairs = {seed: pair.to_numpy().T for seed, pair in both.groupby("seed")}
        return {seed: float(value(*pair)) for seed, pair in pairs.items() if len(pair[0]) >= least}

    return statistic


def curve(observations: pd.DataFrame, where: Where, x: str, seed: int) -> tuple[list, list]:
    """x ascending, and the mean of what is selected at each."""
    means = mean_over(select(observations, {**where, "seed": seed}), x).sort_index()
    return list(means.index), list(means)


def log_fit(observations: pd.DataFrame, where: Where, x: str) -> dict[int, Any]:
    """{seed: the line through log10 of 1 less the value over log10 of x}, as scipy's linregress returns it."""
    fits = {}
    for seed in distinct(select(observations, where), "seed"):
        xs, values = curve(observations, where, x, seed)
        errors = 1 - np.array(values)
        if len(xs) > 2 and errors.min() > 0:
            fits[seed] = stats.linregress(np.log10(xs), np.log10(errors))
    return fits


def _of_fits(finding: Finding, observations: pd.DataFrame, value: Callable[[Any], float]) -> Found:
    return {seed: float(value(fit)) for seed, fit in log_fit(observations, finding.a, finding.x).items()}


def reach(xs: Sequence[float], values: Sequence[float], level: float) -> Bound:
    """Where a curve first reaches a level, linear in the logarithm of x between its points; at most the first point
    where it is there already, at least the last where it never is: beyond the curve nothing is made up."""
    first = next((i for i, value in enumerate(values) if value >= level), None)
    if first is None:
        return Bound(float(xs[-1]), "at least")
    if first == 0:
        return Bound(float(xs[0]), "at most")
    share = (level - values[first - 1]) / (values[first] - values[first - 1])
    return Bound(math.exp(math.log(xs[first - 1]) * (1 - share) + math.log(xs[first]) * share), "equal")


def _ratio_to_reach(finding: Finding, observations: pd.DataFrame) -> Found:
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
        level, chance = b[1][-1], float(np.nan_to_num(last.get("chance", pd.Series([0.0])).astype(float)).mean())
        margins.append(level - chance)
        at_chance = f"the level to reach, {level:.1%}, is not above chance, {chance:.1%}"
        ratios[seed] = _ratio(reach(*b, level), reach(*a, level)) if level > chance else at_chance
    error = summarize(margins).standard_error
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


def _matching_shots(finding: Finding, observations: pd.DataFrame) -> Found:
    """Labels a class at which the mean over sets of the few-shot curve a reaches the mean of b, zero-shot's; a bound
    where it starts above or stays below. Only sets with all of the numbers count."""
    every = distinct(select(observations, finding.a), "shots")
    shared = _shared_sets(observations, finding.b, *({**finding.a, "shots": number} for number in every))
    shots: dict[int, Bound] = {}
    relations: dict[str, Relation] = {"equal": "equal", "at most": "at most", "more than": "at least"}
    for seed, target in by_seed(observations, {**finding.b, **shared}).items():
        xs, values = curve(observations, {**finding.a, **shared}, "shots", seed)
        if xs:
            found = labels_to_match(target, xs, values)
            shots[seed] = Bound(float(found["labels_per_class"]), relations[found["relation"]])
    return shots


STATISTICS: dict[str, Statistic] = {
    "mean": lambda finding, observations: by_seed(observations, finding.a),
    "difference": _difference,
    "difference_to_best": partial(_difference_to, max),
    "difference_to_worst": partial(_difference_to, min),
    "largest_difference": _over_sets(lambda a, b: np.abs(a - b).max()),
    "share_above": _over_sets(lambda a, b: np.mean(a > b)),
    "correlation": _over_sets(lambda a, b: np.corrcoef(a, b)[0, 1], least=3),
    "median": _over_sets(lambda a, _: np.median(a)),
    "log_slope": lambda finding, observations: _of_fits(finding, observations, lambda fit: fit.slope),
    "log_r2": lambda finding, observations: _of_fits(finding, observations, lambda fit: fit.rvalue**2),
    "ratio_to_reach": _ratio_to_reach,
    "matching_shots": _matching_shots,
}
