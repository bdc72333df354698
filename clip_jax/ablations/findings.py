"""Whether a finding of the paper holds: one statistic a seed, its mean, its error, and the range it should lie in."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from clip_jax.ablations.observations import Observation, distinct, select
from clip_jax.ablations.spec import Finding
from clip_jax.ablations.statistics import STATISTICS, Bound, Relation, summary

HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "undecided"
TOLD = "told"  # of a number without a range, which says more of the figure and decides nothing
NOTHING = "nothing was measured"


def judge(
    finding: Finding, observations: Sequence[Observation], runs: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """A finding's result, ready for JSON.

    Args:
      finding: what is asked.
      observations: what the runs that are done saw.
      runs: arm, seed and facts of each run of the sweep, done or not. A seed counts only where all runs that the
        finding is of are there: a line through three sizes of five is another line.

    Returns:
      words, statistic, unit, range (low and high, None for no end), values {seed: number}, relations {seed: "equal",
      "at least" or "at most"}, left_out {seed: why it has no number}, relation (of the mean; None where some seeds
      have a bound from below, others from above), mean, standard_error, low and high (two standard errors either way,
      None where the bounds have no end), student_low and student_high (95 %), verdict. Of one seed there is no error,
      and nothing is decided; without values mean is None.
    """
    left_out = _incomplete(finding, observations, runs)
    kept = [found for found in observations if found["seed"] not in left_out]
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
    found = {**summary([bound.value for bound in bounds.values()])}
    relation = _of_all({bound.relation for bound in bounds.values()})
    if relation in ("at least", None):
        found["high"] = found["student_high"] = None
    if relation in ("at most", None):
        found["low"] = found["student_low"] = None
    ends = [end if math.isfinite(end) else None for end in (finding.low, finding.high)]
    return {
        "words": finding.words,
        "statistic": finding.statistic,
        "unit": finding.unit,
        "range": ends,
        "values": {str(seed): bound.value for seed, bound in bounds.items()},
        "relations": {str(seed): bound.relation for seed, bound in bounds.items()},
        "left_out": {str(seed): left_out[seed] for seed in sorted(left_out)},
        "relation": relation,
        **found,
        "verdict": _verdict(found, ends),
    }


def _incomplete(
    finding: Finding, observations: Sequence[Observation], runs: Sequence[Mapping[str, Any]]
) -> dict[int, str]:
    """{seed: which of the runs that a finding is of are missing}. Runs that are there, of which none has what is
    asked, are not."""
    done = {(found["arm"], found["seed"]) for found in observations}
    missing: dict[int, list[str]] = {}
    for side in [finding.a, *([finding.b] if finding.b else [])]:
        have = {(found["arm"], found["seed"]) for found in select(observations, side)}
        known = {key: value for key, value in side.items() if runs and key in runs[0]}  # others are of observations
        of_side = [(run["arm"], run["seed"]) for run in select([dict(run) for run in runs], known)]
        for seed in sorted({seed for _, seed in of_side}):
            asked = [run for run in of_side if run[1] == seed]
            lacking = [run for run in asked if run not in have]
            if len(lacking) < len(asked) or not done.issuperset(lacking):
                missing.setdefault(seed, []).extend(arm for arm, _ in lacking)
    return {seed: f"without {', '.join(dict.fromkeys(arms))}" for seed, arms in missing.items() if arms}


def _of_all(relations: set[Relation]) -> Relation | None:
    """What the mean of such numbers is; None where it has no bound."""
    if relations <= {"equal"}:
        return "equal"
    return "at least" if "at most" not in relations else "at most" if "at least" not in relations else None


def _verdict(found: Mapping[str, Any], ends: Sequence[float | None]) -> str:
    from_, to = ends
    if from_ is None and to is None:
        return TOLD
    if found["standard_error"] is None:
        return UNDECIDED
    low, high = found["low"], found["high"]  # beyond two errors: an end itself is not within
    if (from_ is None or (low is not None and from_ < low)) and (to is None or (high is not None and high < to)):
        return HOLDS
    below = from_ is not None and high is not None and high <= from_
    above = to is not None and low is not None and low >= to
    return FAILS if below or above else UNDECIDED


def overall(results: Sequence[Mapping[str, Any]]) -> str:
    """Of several findings: it holds when all do, does not when one does not; numbers without a range do not count."""
    verdicts = [result["verdict"] for result in results if result["verdict"] != TOLD]
    return FAILS if FAILS in verdicts else UNDECIDED if UNDECIDED in verdicts or not verdicts else HOLDS


def sentence(results: Sequence[Mapping[str, Any]]) -> str:
    """Does it hold here, by how much, with what uncertainty."""
    begins = {HOLDS: "Holds here", FAILS: "Does not hold here", UNDECIDED: "Undecided here"}[overall(results)]
    return f"{begins}: {'; '.join(_clause(result) for result in results)}."


def _clause(result: Mapping[str, Any]) -> str:
    reasons = "; ".join(dict.fromkeys(result["left_out"].values()))
    if result["mean"] is None:
        return f"{result['words'].rstrip(':,')}: {reasons or NOTHING}"
    unit, relation, seeds = result["unit"], result["relation"], len(result["values"])
    without = f"; {len(result['left_out'])} left out: {reasons}" if reasons else ""
    told = result["words"] if relation in ("equal", None) else f"{result['words']} {relation}"
    told = f"{told} {number(result['mean'], unit)}"
    if relation is None:
        told = f"{result['words']} {', '.join(seed_values(result))} by seed"
    if result["standard_error"] is None:
        return f"{told} (one seed, which has no error{without})"
    low, high = (None if result[end] is None else number(result[end], unit, bare=True) for end in ("low", "high"))
    ends = f"{low} to {high}" if low and high else f"{low} and more" if low else f"{high} and less" if high else ""
    ends = f"{ends} by two standard errors over {seeds} seeds" if ends else "bounds from both sides, which have no mean"
    asked = f"; asked: {describe_range(result)}" if result["range"] != [None, None] else ""
    return f"{told} ({ends}{asked}{without})"


def seed_values(result: Mapping[str, Any]) -> list[str]:
    """The number of each seed in words, with what it is where it is a bound."""
    relations = ("" if relation == "equal" else f"{relation} " for relation in result["relations"].values())
    values = result["values"].values()
    return [before + number(value, result["unit"], bare=True) for before, value in zip(relations, values)]


def describe_range(result: Mapping[str, Any]) -> str:
    """Where a finding should lie, in words; empty where anywhere."""
    low, high = (None if end is None else number(end, result["unit"], bare=True) for end in result["range"])
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
