from math import comb

import pytest

from clip_jax.evaluation.metrics.binomial import p_greater, share


def at_least(right, count, p):
    return sum(comb(count, k) * p**k * (1 - p) ** (count - k) for k in range(right, count + 1))


@pytest.mark.parametrize(("right", "count", "confidence"), [(3, 11, 0.95), (7, 13, 0.995), (0, 5, 0.9), (5, 5, 0.995)])
def test_the_ends_of_the_interval_leave_half_the_doubt_on_each_side(right, count, confidence):
    found = share(right, count, confidence)
    assert found["accuracy"] == right / count
    half = (1 - confidence) / 2
    if right == 0:
        assert found["low"] == 0
    else:
        assert at_least(right, count, found["low"]) == pytest.approx(half, rel=1e-9)
    if right == count:
        assert found["high"] == 1
    else:
        assert 1 - at_least(right + 1, count, found["high"]) == pytest.approx(half, rel=1e-9)


def test_no_trials_tell_nothing():
    assert share(0, 0) == {"right": 0, "count": 0, "accuracy": None, "low": 0, "high": 1}


def test_one_tailed_p_value_by_the_sum():
    assert p_greater(9, 11, 0.6) == pytest.approx(at_least(9, 11, 0.6), rel=1e-12)
    assert p_greater(0, 11, 0.6) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((4, 3), "^4 right of 3 is no share: give counts with 0 <= right <= count$"),
        ((-1, 3), "^-1 right of 3 is no share"),
        ((1, 3, 95), "^confidence is 95, expected a number between 0 and 1, such as 0.95$"),
    ],
)
def test_bad_numbers_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        share(*arguments)
