"""Each metric against known answers worked out by hand, and against the definition written slowly."""

import numpy as np
import pytest

from clip_jax.evaluation.metrics.classification import ranks
from clip_jax.evaluation.metrics.statistics import (
    bootstrap_interval,
    calibration,
    eleven_point_map,
    mean_accuracy,
    mean_per_class,
    roc_auc,
)

RNG = np.random.default_rng(0)


def repeated(weights, *arrays):
    """The arrays with each example as often as its weight says: what weights mean."""
    return [np.repeat(array, weights.astype(int), axis=0) for array in arrays]


def test_ranks_count_ties_and_nan_against_the_model():
    scores = [[3, 2, 1, 0], [1, 1, 0, 2], [5, 5, 5, 5], [1, np.nan, 0, 2], [1, np.nan, 0, 2]]
    assert ranks(np.array(scores), np.array([0, 1, 2, 1, 3])).tolist() == [0, 2, 3, 3, 1]


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        (np.zeros((2, 3)), np.array([0]), r"labels have shape \(1,\) for 2 examples, expected \(2,\)"),
        (np.zeros((0, 3)), np.zeros(0, int), "no examples to measure: the evaluation set is empty"),
        (np.zeros((2, 3)), np.array([0.0, 1.0]), "labels must be integers, got float64"),
        (np.zeros((2, 3)), np.array([0, 3]), r"label 3 of example 1 is outside 0\.\.2, the range of the 3 class names"),
        (np.zeros(3), np.array([0]), r"scores have shape \(3,\), expected \[N, C\]"),
    ],
)
def test_bad_labels_are_named(scores, labels, message):
    with pytest.raises(ValueError, match=message):
        ranks(scores, labels)


def test_mean_per_class_weighs_classes_alike_and_leaves_out_those_without_images():
    labels, correct = np.array([4, 0, 4, 0, 4, 4, 1]), np.array([1, 0, 1, 1, 0, 1, 0], bool)
    assert mean_per_class(correct, labels) == pytest.approx((1 / 2 + 0 + 3 / 4) / 3)
    # Weight 0 takes class 1 out.
    weights = np.array([1, 3, 1, 1, 2, 0, 0.0])
    assert mean_per_class(correct, labels, weights) == pytest.approx((1 / 4 + 2 / 4) / 2)


def slow_average_precision(scores, relevant):
    """VOC 2007's, by its words: sort, walk, and for each recall take the best precision from there on."""
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], relevant[i]))
    points, found = [], 0
    for seen, i in enumerate(order, 1):
        found += int(relevant[i])
        points.append((found, found / seen))
    total = found
    return sum(max(p for f, p in points if 10 * f >= tenth * total) for tenth in range(11)) / 11


def test_eleven_point_map_of_a_known_ranking():
    # Relevant at places 1, 3 and 6 of 6: precision 1 to recall 1/3, 2/3 to 2/3, 1/2 to 1. Recalls 0 to .3 read 1
    # (four points), .4 to .6 read 2/3 (three), .7 to 1 read 1/2 (four).
    scores, relevant = np.array([[6.0, 5, 4, 3, 2, 1]]).T, np.array([[1, 0, 1, 0, 0, 1]]).T
    assert eleven_point_map(scores, relevant) == pytest.approx((4 + 3 * 2 / 3 + 4 / 2) / 11)
    # All equal: the relevant ones come last.
    assert eleven_point_map(np.zeros((4, 1)), np.array([[1, 1, 0, 0]]).T) == pytest.approx(1 / 2)


def test_eleven_point_map_is_the_slow_one_with_weights_and_a_class_without_examples():
    scores, relevant = RNG.integers(0, 7, (53, 5)).astype(float), RNG.random((53, 5)) < 0.3
    relevant[:, 2] = False
    weights = RNG.integers(0, 4, (3, 53)).astype(float)
    values = eleven_point_map(scores, relevant, weights)
    for value, weight in zip(values, weights):
        s, r = repeated(weight, scores, relevant)
        expected = np.mean([slow_average_precision(s[:, c], r[:, c]) for c in (0, 1, 3, 4)])
        assert value == pytest.approx(expected, abs=1e-12)


def test_roc_auc_is_the_share_of_pairs_in_order_with_ties_worth_half():
    scores, positive = RNG.integers(0, 9, 61).astype(float), RNG.random(61) < 0.4

    def slow(scores, positive):
        up, down = scores[positive][:, None], scores[~positive]
        return np.mean((up > down) + (up == down) / 2)

    assert roc_auc(scores, positive) == pytest.approx(slow(scores, positive), abs=1e-12)
    assert roc_auc(np.zeros(5), np.arange(5) < 2) == 0.5
    weights = RNG.integers(0, 4, (4, 61)).astype(float)
    weights[3] = positive
    values = roc_auc(scores, positive, weights)
    np.testing.assert_allclose(values[:3], [slow(*repeated(w, scores, positive)) for w in weights[:3]], atol=1e-12)
    assert np.isnan(values[3])  # no negative left


def test_calibration_bins_and_error():
    # Bins of a quarter: (0.5, 0.75] holds .6 and .75, one of them right; (0.75, 1] holds 1, wrong.
    found = calibration(np.array([0.6, 0.75, 1.0, 0.0]), np.array([1, 0, 0, 1]), num_bins=4)
    assert found.count.tolist() == [1, 0, 2, 1]
    np.testing.assert_allclose(found.confidence, [0, np.nan, 0.675, 1])
    np.testing.assert_allclose(found.accuracy, [1, np.nan, 0.5, 0])
    assert found.error == pytest.approx((1 + 2 * 0.175 + 1) / 4)


def test_a_calibrated_model_has_little_error():
    confidence = RNG.random(20_011)
    found = calibration(confidence, RNG.random(20_011) < confidence)
    assert found.error < 0.015  # 15 bins of 1,334: the mean deviation of a bin's share is 0.009 or less


def test_bootstrap_interval_is_that_of_the_mean_and_repeats():
    values = RNG.random(503)

    def statistic(weights):
        return mean_accuracy(values, weights)

    interval = bootstrap_interval(statistic, 503, num_resamples=4000, seed=3)
    half = 1.96 * values.std() / 503**0.5
    np.testing.assert_allclose(interval, (values.mean() - half, values.mean() + half), atol=0.1 * half)
    assert interval == bootstrap_interval(statistic, 503, num_resamples=4000, seed=3)
    assert interval != bootstrap_interval(statistic, 503, num_resamples=4000, seed=4)


def test_kinds_of_examples_are_drawn_as_the_examples_themselves_would_be():
    labels = np.repeat([0, 1, 2], [101, 307, 53])
    correct = RNG.random(461) < np.array([0.2, 0.5, 0.9])[labels]
    each = bootstrap_interval(lambda w: mean_per_class(correct, labels, w), 461, num_resamples=4000)
    kinds = np.stack([np.bincount(labels[correct == right], minlength=3) for right in (False, True)]).ravel()
    of_kind = np.tile(np.arange(3), 2)
    by_kind = bootstrap_interval(
        lambda w: mean_per_class(np.repeat([False, True], 3), of_kind, w), kinds, num_resamples=4000
    )
    np.testing.assert_allclose(by_kind, each, atol=0.004)  # the interval is 0.09 wide; two seeds differ by 0.002


def test_ignored_examples_count_neither_way():
    scores, relevant = RNG.normal(size=(31, 3)), RNG.random((31, 3)) < 0.4
    ignored = RNG.random((31, 3)) < 0.3
    expected = [slow_average_precision(scores[k, c], relevant[k, c]) for c in range(3) for k in [~ignored[:, c]]]
    assert eleven_point_map(scores, relevant, ignored=ignored) == pytest.approx(np.mean(expected), abs=1e-12)


def test_bootstrap_draws_are_of_the_whole_set_and_uneven_parts_are_whole(monkeypatch):
    seen = []
    monkeypatch.setattr("clip_jax.evaluation.metrics.statistics.RESAMPLED_AT_ONCE", 7 * 11)
    bootstrap_interval(lambda w: seen.append(w) or w[:, 0], 11, num_resamples=17)
    weights = np.concatenate(seen)
    assert [len(w) for w in seen] == [7, 7, 3]
    assert (weights.sum(axis=1) == 11).all()
    assert len(np.unique(weights, axis=0)) == 17


def test_a_bootstrap_of_meaningless_input_is_refused():
    with pytest.raises(ValueError, match="a bootstrap of 0 examples"):
        bootstrap_interval(lambda w: w[:, 0], 0)
    with pytest.raises(ValueError, match="NaN in every draw"):
        bootstrap_interval(lambda w: np.full(len(w), np.nan), 5)


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: roc_auc(np.ones(3), np.ones(3, bool)), "all 3 examples are positive: there is no ROC curve"),
        (
            lambda: roc_auc(np.array([1, np.nan]), np.array([1, 0])),
            r"1 of 2 scores are not finite, the first at \(1,\)",
        ),
        (lambda: eleven_point_map(np.ones((3, 2)), np.zeros((3, 2))), "no class has a relevant example"),
        (lambda: eleven_point_map(np.ones((3, 2)), np.zeros((2, 2))), r"must both be \[N, C\]"),
        (lambda: calibration(np.array([0.5, 1.5]), np.ones(2)), r"confidence must lie in \[0, 1\], found 1.5"),
        (lambda: calibration(np.array([0.5, np.nan]), np.ones(2)), r"confidence must lie in \[0, 1\], found nan"),
    ],
)
def test_what_has_no_value_is_an_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()
