"""Whether a finding of the paper holds: one statistic a seed, its mean, its error, and the range it should lie in."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import pandas as pd

from clip_jax.ablations.observations import distinct, select
from clip_jax.ablations.spec import Finding
from clip_jax.ablations.statistics import STATISTICS, Bound, Relation, Summary, summarize

HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "undecided"
REPORTED = "reported only"  # of a number without a range, which says more of the figure and decides nothing
NOTHING = "nothing was measured"


@dataclass(frozen=True, kw_only=True)
class Result(Summary):
    """A finding's numbers and verdict. Of one seed there is no error, and nothing is decided; without values mean is
    None. low, high, student_low and student_high are None where the bounds have no end.

    Attributes:
      range: low and high of the finding, None for no end.
      values: {seed: number}.
      relations: {seed: what the number is}; relation: of the mean, None where some seeds have a bound from below,
        others from above.
      left_out: {seed: why it has no number}.
    """

    words: str
    statistic: str
    unit: str
    range: tuple[float | None, float | None]
    values: dict[int, float]
    relations: dict[int, Relation]
    left_out: dict[int, str]
    relation: Relation | None
    verdict: str


def judge(finding: Finding, observations: pd.DataFrame, runs: pd.DataFrame | None = None) -> Result:
    """What is measured of a finding, and whether it holds.

    Args:
      finding: what is asked.
      observations: of the runs that are done.
      runs: arm, seed and facts of each run of the sweep, done or not. A seed counts only where all runs that the
        finding is of are there: a line through three sizes of five is another line.
    """
    left_out = {} if runs is None else _incomplete(finding, observations, runs)
    kept = observations[~observations["seed"].isin(list(left_out))]
    statistic = STATISTICS[finding.statistic](finding, kept)
    bounds: dict[int, Bound] = {}
    for seed in distinct(kept, "seed"):
        value = statistic.get(seed, finding.nothing or NOTHING)
        bound = value if isinstance(value, Bound | str) else Bound(value, "equal")
        if isinstance(bound, str):
            left_out[seed] = bound
        elif math.isfinite(bound.value):
            bounds[seed] = bound
        else:
            left_out[seed] = "not a finite number"
    relation = _of_all({bound.relation for bound in bounds.values()})
    summary = summarize([bound.value for bound in bounds.values()])
    if relation in ("at least", None):
        summary = replace(summary, high=None, student_high=None)
    if relation in ("at most", None):
        summary = replace(summary, low=None, student_low=None)
    low, high = (end if math.isfinite(end) else None for end in (finding.low, finding.high))
    return Result(
        words=finding.words,
        statistic=finding.statistic,
        unit=finding.unit,
        range=(low, high),
        values={seed: bound.value for seed, bound in bounds.items()},
        relations={seed: bound.relation for seed, bound in bounds.items()},
        left_out=dict(sorted(left_out.items())),
        relation=relation,
        verdict=_verdict(summary, low, high),
        **asdict(summary),
    )


def _incomplete(finding: Finding, observations: pd.DataFrame, runs: pd.DataFrame) -> dict[int, str]:
    """{seed: which of the runs that a finding is of are missing}. Runs that are there, of which none has what is
    asked, are not."""
    done = set(zip(observations["arm"], observations["seed"]))
    missing: dict[int, dict[str, None]] = {}
    for side in [finding.a, *([finding.b] if finding.b else [])]:
        seen = select(observations, side)
        have = set(zip(seen["arm"], seen["seed"]))
        known = {key: value for key, value in side.items() if key in runs}  # others are of observations
        for seed, of_seed in select(runs, known).groupby("seed"):
            lacking = [arm for arm in of_seed["arm"] if (arm, seed) not in have]
            if len(lacking) < len(of_seed) or any((arm, seed) not in done for arm in lacking):
                missing.setdefault(seed, {}).update(dict.fromkeys(lacking))
    return {seed: f"without {', '.join(arms)}" for seed, arms in missing.items() if arms}


def _of_all(relations: set[Relation]) -> Relation | None:
    """What the mean of such numbers is; None where it has no bound."""
    if relations <= {"equal"}:
        return "equal"
    return "at least" if "at most" not in relations else "at most" if "at least" not in relations else None


def _verdict(found: Summary, from_: float | None, to: float | None) -> str:
    if from_ is None and to is None:
        return REPORTED
    if found.standard_error is None:
        return UNDECIDED
    low, high = found.low, found.high  # beyond two errors: an end itself is not within
    if (from_ is None or (low is not None and from_ < low)) and (to is None or (high is not None and high < to)):
        return HOLDS
    below = from_ is not None and high is not None and high <= from_
    above = to is not None and low is not None and low >= to
    return FAILS if below or above else UNDECIDED


def overall(results: Sequence[Result]) -> str:
    """Of several findings: it holds when all do, does not when one does not; numbers without a range do not count."""
    verdicts = [result.verdict for result in results if result.verdict != REPORTED]
    return FAILS if FAILS in verdicts else UNDECIDED if UNDECIDED in verdicts or not verdicts else HOLDS


def sentence(results: Sequence[Result]) -> str:
    """Does it hold here, by how much, with what uncertainty."""
    return f"{overall(results).capitalize()} here: {'; '.join(_clause(result) for result in results)}."


def _clause(result: Result) -> str:
    reasons = "; ".join(dict.fromkeys(result.left_out.values()))
    if result.mean is None:
        return f"{result.words.rstrip(':,')}: {reasons or NOTHING}"
    without = f"; {len(result.left_out)} left out: {reasons}" if reasons else ""
    shown = ", ".join(seed_values(result)) + " by seed" if result.relation is None else number(result.mean, result.unit)
    shown = f"{label(result)} {shown}"
    if result.standard_error is None:
        return f"{shown} (one seed, which has no error{without})"
    low, high = (None if end is None else number(end, result.unit, bare=True) for end in (result.low, result.high))
    ends = f"{low} to {high}" if low and high else f"{low} and more" if low else f"{high} and less" if high else ""
    over = f"{ends} by two standard errors over {len(result.values)} seeds"
    asked = f"; asked: {describe_range(result)}" if result.range != (None, None) else ""
    return f"{shown} ({over if ends else 'bounds from both sides, which have no mean'}{asked}{without})"


def label(result: Result) -> str:
    """The words of a number, with what it is where it is a bound."""
    return result.words if result.relation in ("equal", None) else f"{result.words} {result.relation}"


def seed_values(result: Result) -> list[str]:
    """The number of each seed in words, with what it is where it is a bound."""
    relations = ("" if relation == "equal" else f"{relation} " for relation in result.relations.values())
    return [before + number(value, result.unit, bare=True) for before, value in zip(relations, result.values.values())]


def describe_range(result: Result) -> str:
    """Where a finding should lie, in words; empty where anywhere."""
    low, high = (None if end is None else number(end, result.unit, bare=True) for end in result.range)
    if low is None:
        return "" if high is None else f"less than {high}"
    return f"more than {low}" if high is None else f"between {low} and {high}"


def number(value: float, unit: str, bare: bool = False) -> str:
    """A value in its unit; bare: without the unit's name."""
    if unit == "points":
        return f"{100 * value:+z.1f}" + ("" if bare else " points")
    if unit == "percent":
        return f"{100 * value:z.1f}" + ("" if bare else " %")
    return f"{value:.3g}" + (" times" if unit == "times" and not bare else "")
