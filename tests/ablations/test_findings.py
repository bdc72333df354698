"""Statistics of observations with known answers, and what is said of them."""

import math

import pytest

from clip_jax.ablations import findings
from clip_jax.ablations.findings import overall, sentence
from clip_jax.ablations.observations import as_table
from clip_jax.ablations.spec import Finding
from clip_jax.ablations.statistics import Bound, reach


def finding(statistic="difference", a=None, b=None, low=-math.inf, high=math.inf, unit="points", x="", words="w"):
    return Finding(statistic=statistic, a=a or {}, b=b or {}, low=low, high=high, unit=unit, x=x, words=words)


def judge(finding, rows, runs=None):
    return findings.judge(finding, as_table(rows), None if runs is None else as_table(runs))


def saw(*rows):
    """Rows of (arm, seed, set, value, more)."""
    return [
        {"arm": arm, "seed": seed, "set": name, "value": value, **(more[0] if more else {})}
        for arm, seed, name, value, *more in rows
    ]


OF_SEEDS = {
    "new": [(0.5, 0.7), (0.6, 0.8), (0.7, 0.9)],  # on the sets s and t
    "old": [(0.3, 0.7), (0.5, 0.5), (0.4, 0.8)],
}
PAIRS = saw(
    *(
        (arm, seed, name, value)
        for arm, seeds in OF_SEEDS.items()
        for seed, pair in enumerate(seeds)
        for name, value in zip("st", pair)
    )
)
NEW, OLD = {"arm": "new"}, {"arm": "old"}


def test_a_difference_is_taken_seed_by_seed_over_all_sets():
    found = judge(finding(a=NEW, b=OLD, low=0), PAIRS)
    assert found.values == pytest.approx({0: 0.1, 1: 0.2, 2: 0.2})
    assert found.mean == pytest.approx(0.5 / 3)
    error = (0.01 / 3) ** 0.5 / 3**0.5  # the sample variance of 0.1, 0.2, 0.2 is a three-hundredth
    assert found.standard_error == pytest.approx(error)
    assert (found.low, found.high) == pytest.approx((0.5 / 3 - 2 * error, 0.5 / 3 + 2 * error))
    assert found.student_low == pytest.approx(0.5 / 3 - 4.302653 * error)  # t of two degrees of freedom
    assert found.verdict == "holds"


def test_a_set_that_one_side_lacks_does_not_move_a_difference():
    more = [*PAIRS, *saw(*(("new", seed, "u", 0.0) for seed in range(3)))]
    assert judge(finding(a=NEW, b=OLD), more).values == pytest.approx({0: 0.1, 1: 0.2, 2: 0.2})
    apart = judge(finding(a={**NEW, "set": "t"}, b={**NEW, "set": ("s", "u")}), more)  # other sets on purpose
    assert apart.values == pytest.approx({0: 0.7 - 0.25, 1: 0.8 - 0.3, 2: 0.9 - 0.35})


@pytest.mark.parametrize(
    ("ends", "verdict"),
    [
        ({"low": 0.0}, "holds"),
        ({"low": 0.15}, "undecided"),  # an end of the range within two errors of the mean
        ({"low": 0.24}, "does not hold"),
        ({"high": 0.09}, "does not hold"),
        ({"low": 0.0, "high": 0.24}, "holds"),
        ({"low": 0.0, "high": 0.2}, "undecided"),
    ],
)
def test_a_finding_holds_where_two_errors_either_way_lie_within_its_range(ends, verdict):
    assert judge(finding(a=NEW, b=OLD, **ends), PAIRS).verdict == verdict  # 0.167, from 0.1 to 0.233


def test_no_difference_at_all_is_not_one_beyond_two_errors():
    same = [row for row in PAIRS if row["arm"] == "new"] + [
        {**row, "arm": "old"} for row in PAIRS if row["arm"] == "new"
    ]
    assert judge(finding(a=NEW, b=OLD, low=0), same).verdict == "does not hold"
    assert judge(finding(a=NEW, b=OLD, low=-0.03, high=0.03), same).verdict == "holds"


def test_one_seed_decides_nothing():
    found = judge(finding(a=NEW, b=OLD, low=0), [row for row in PAIRS if row["seed"] == 0])
    assert (found.mean, found.low, found.verdict) == (pytest.approx(0.1), None, "undecided")
    assert sentence([found]) == "Undecided here: w +10.0 points (one seed, which has no error)."
    nothing = judge(finding(a={"arm": "none"}, b=OLD, low=0), PAIRS)
    assert sentence([nothing]) == "Undecided here: w: nothing was measured."


def test_the_sentence_tells_by_how_much_and_how_sure():
    results = [judge(finding(a=NEW, b=OLD, low=0, words="new less old:"), PAIRS)]
    assert sentence(results) == (
        "Holds here: new less old: +16.7 points (+10.0 to +23.3 by two standard errors over 3 seeds; asked: more than "
        "+0.0)."
    )
    results.append(judge(finding("mean", a=NEW, high=0.1, unit="percent"), PAIRS))
    assert overall(results) == "does not hold"
    assert sentence(results).startswith("Does not hold here: new less old: ")
    assert sentence(results).endswith(
        "w 70.0 % (58.5 to 81.5 by two standard errors over 3 seeds; asked: less than 10.0)."
    )


def test_the_best_and_the_worst_of_several_are_those_of_the_mean_over_seeds():
    rows = [*PAIRS, *saw(("odd", 0, "s", 0.9), ("odd", 1, "s", 0.0), ("odd", 2, "s", 0.1))]
    both = {"arm": ("old", "odd")}  # 0.53 and 0.33
    assert judge(finding("difference_to_best", a=NEW, b=both), rows).values == pytest.approx({0: 0.1, 1: 0.2, 2: 0.2})
    assert judge(finding("difference_to_worst", a=NEW, b=both), rows).values == pytest.approx({0: -0.3, 1: 0.7, 2: 0.7})


def test_statistics_over_sets():
    def values(statistic, **sides):
        return judge(finding(statistic, **sides), PAIRS).values

    assert values("largest_difference", a=NEW, b=OLD) == pytest.approx({0: 0.2, 1: 0.3, 2: 0.3})
    assert values("share_above", a=NEW, b=OLD) == {0: 0.5, 1: 1.0, 2: 1.0}  # an equal is not above
    assert values("median", a=NEW) == pytest.approx({0: 0.6, 1: 0.7, 2: 0.8})
    line = saw(
        *((arm, 0, name, value) for arm, of in (("x", (1, 2, 4)), ("y", (7, 5, 1))) for name, value in zip("stu", of))
    )
    found = judge(finding("correlation", a={"arm": "x"}, b={"arm": "y"}), line)
    assert found.values == pytest.approx({0: -1.0})


def test_the_log_log_fit_of_a_power_law():
    law = saw(*((str(x), 0, "s", 1 - 0.8 * x**-0.25, {"compute": x}) for x in (1, 3, 10, 44)))
    assert judge(finding("log_slope", x="compute"), law).mean == pytest.approx(-0.25)
    assert judge(finding("log_r2", x="compute"), law).mean == pytest.approx(1)
    bent = [{**row, "value": 0.5} if row["compute"] == 10 else row for row in law]
    assert judge(finding("log_r2", x="compute"), bent).mean < 0.99


def test_how_much_less_reaches_the_same():
    curve = [(100, 0.1), (200, 0.3), (400, 0.5)]
    rows = saw(
        *(("slow", 0, "s", value, {"samples_seen": x}) for x, value in curve),
        *(("fast", 0, "s", value + 0.2, {"samples_seen": x}) for x, value in curve),
    )
    slow, fast = {"arm": "slow"}, {"arm": "fast"}
    ratio = finding("ratio_to_reach", a=fast, b=slow, x="samples_seen")
    assert judge(ratio, rows).mean == pytest.approx(2)  # 0.5 at 200 instead of 400
    assert reach([100, 200, 400], [0.1, 0.3, 0.5], 0.4).value == pytest.approx(200 * 2**0.5)  # half-way in the log
    assert reach([100, 200], [0.1, 0.3], 0.05) == Bound(100, "at most")
    assert reach([100, 200], [0.1, 0.3], 0.5) == Bound(200, "at least")


def curves(fast, slow, seeds=3, chance=0.1):
    """Evaluations at 100, 200 and 400 images."""
    places = (100, 200, 400)
    rows = [("fast", *row) for row in zip(places, fast)] + [("slow", *row) for row in zip(places, slow)]
    return saw(
        *((arm, k, "s", value, {"samples_seen": x, "chance": chance}) for k in range(seeds) for arm, x, value in rows)
    )


@pytest.mark.parametrize(
    ("fast", "slow", "relation", "value", "ends", "low", "verdict"),
    [
        ((0.6, 0.7, 0.8), (0.1, 0.3, 0.5), "at least", 4, (4, None), 3.9, "holds"),  # there at its first evaluation
        ((0.6, 0.7, 0.8), (0.1, 0.3, 0.5), "at least", 4, (4, None), 10, "undecided"),  # 10 may be true
        ((0.1, 0.2, 0.3), (0.1, 0.3, 0.5), "at most", 1, (None, 1), 2, "does not hold"),  # it never is
        ((0.1, 0.2, 0.3), (0.1, 0.3, 0.5), "at most", 1, (None, 1), 0.5, "undecided"),
        ((0.1, 0.3, 0.5), (0.1, 0.3, 0.5), "equal", 1, (1, 1), 0.5, "holds"),
    ],
)
def test_a_level_beyond_the_evaluations_gives_a_bound(fast, slow, relation, value, ends, low, verdict):
    ratio = finding("ratio_to_reach", {"arm": "fast"}, {"arm": "slow"}, low=low, x="samples_seen", unit="times")
    found = judge(ratio, curves(fast, slow))
    assert (found.relation, found.mean, found.verdict) == (relation, pytest.approx(value), verdict)
    assert (found.low, found.high) == pytest.approx(ends)
    if relation == "at least":
        assert sentence([found]).endswith(
            f": w at least 4 times (4 and more by two standard errors over 3 seeds; asked: more than {low})."
        )


def test_a_level_at_chance_is_no_level_to_reach():
    ratio = finding("ratio_to_reach", {"arm": "fast"}, {"arm": "slow"}, low=1, x="samples_seen", unit="times")
    found = judge(ratio, curves((0.1, 0.3, 0.5), (0.1, 0.1, 0.1)))
    assert (found.mean, found.verdict) == (None, "undecided")
    assert sentence([found]) == "Undecided here: w: the level to reach, 10.0%, is not above chance, 10.0%."
    one = [*curves((0.1, 0.3, 0.5), (0.1, 0.1, 0.6), seeds=1)]  # above at one seed of three, by chance
    others = [row for row in curves((0.1, 0.3, 0.5), (0.1, 0.1, 0.1)) if row["seed"]]
    found = judge(ratio, [*one, *others])
    assert set(found.left_out.values()) == {"the level to reach is not above chance by two standard errors"}
    both = judge(ratio, curves((0.6, 0.7, 0.8), (0.5, 0.5, 0.5)))
    assert set(both.left_out.values()) == {"both have the level at their first point"}


def test_bounds_from_both_sides_decide_nothing():
    above, below = curves((0.6, 0.7, 0.8), (0.1, 0.3, 0.5), 1), curves((0.1, 0.2, 0.3), (0.1, 0.3, 0.5), 2)
    ratio = finding("ratio_to_reach", {"arm": "fast"}, {"arm": "slow"}, low=3, x="samples_seen", unit="times")
    found = judge(ratio, [*above, *(row for row in below if row["seed"] == 1)])
    assert (found.relation, found.low, found.high, found.verdict) == (None, None, None, "undecided")
    assert sentence([found]) == (
        "Undecided here: w at least 4, at most 1 by seed (bounds from both sides, which have no mean; asked: more than "
        "3)."
    )


def line(*arms, seeds=3, bent=()):
    """A power law over arms named by their compute, and the runs that there should be."""
    rows = saw(*((str(x), k, "s", 1 - 0.8 * x**-0.25, {"compute": x}) for k in range(seeds) for x in arms))
    return [row for row in rows if (row["arm"], row["seed"]) not in bent]


SWEEP = [{"arm": str(x), "seed": seed, "compute": x} for seed in range(3) for x in (1, 3, 10, 44)]


def test_a_seed_without_all_its_runs_is_left_out():
    slope = finding("log_slope", x="compute", high=0, unit="number", words="slope")
    found = judge(slope, line(1, 3, 10, 44, bent=[("44", 1)]), SWEEP)
    assert (list(found.values), found.left_out) == ([0, 2], {1: "without 44"})
    assert sentence([found]) == (
        "Holds here: slope -0.25 (-0.25 to -0.25 by two standard errors over 2 seeds; asked: less than 0; 1 left out: "
        "without 44)."
    )
    few = judge(slope, line(1, 3, 10, 44, bent=[("44", 1), ("3", 2)]), SWEEP)
    assert (few.verdict, few.left_out) == ("undecided", {1: "without 44", 2: "without 3"})
    best = finding("difference_to_best", {"arm": "1"}, {"arm": ("3", "10")}, low=-1)
    assert judge(best, line(1, 3, 10), SWEEP).verdict == "holds"  # 44 is not of this finding
    assert judge(best, line(1, 3), SWEEP).left_out == dict.fromkeys(range(3), "without 10")


def test_what_is_not_a_number_is_left_out_and_said():
    rows = [{**row, "value": math.nan} if row["seed"] == 1 else row for row in PAIRS]
    found = judge(finding(a=NEW, b=OLD, low=0), rows)
    assert (list(found.values), found.left_out) == ([0, 2], {1: "not a finite number"})


def test_a_number_without_a_range_decides_nothing():
    reported = judge(finding(a=NEW, b=OLD), PAIRS)
    assert reported.verdict == "reported only"
    assert overall([reported]) == "undecided"
    assert overall([reported, judge(finding(a=NEW, b=OLD, low=0), PAIRS)]) == "holds"


def test_the_labels_that_match_zero_shot_on_average():
    rows = saw(
        *(("m", 0, name, value, {"what": "few_shot", "shots": n}) for n, pair in {1: (0.2, 0.4), 4: (0.6, 0.8)}.items()
          for name, value in zip("st", pair)),
        ("m", 0, "s", 0.4, {"what": "zero_shot"}), ("m", 0, "t", 0.6, {"what": "zero_shot"}),
        ("m", 0, "u", 0.9, {"what": "zero_shot"}), ("m", 0, "u", 0.9, {"what": "few_shot", "shots": 1}),
    )  # fmt: skip
    match = finding("matching_shots", a={"what": "few_shot"}, b={"what": "zero_shot"}, unit="number")
    assert judge(match, rows).mean == pytest.approx(2)  # 0.5 lies half-way from 0.3 to 0.7: the root of 1 times 4
