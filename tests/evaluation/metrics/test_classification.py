import numpy as np
import pytest

from clip_jax.evaluation.metrics.classification import (
    accuracies,
    classify,
    confident_mistakes,
    confusion,
    measure_scores,
    metric_score,
    multi_label_metrics,
    single_label_metrics,
)
from clip_jax.evaluation.metrics.statistics import eleven_point_map, roc_auc

RNG = np.random.default_rng(1)
NAMES = tuple("abcdefghijk")
QUICK = {"num_resamples": 200}


def rigged(labels, scores, scale=1.0, bias=None):
    """Class embeddings are the identity, so that the products are the scores."""
    scores = np.array(scores, np.float32)
    return classify(scores, np.array(labels), np.eye(scores.shape[1], dtype=np.float32), scale, bias)


def test_ranks_predictions_and_confidences_of_known_scores():
    scores = [[2, 1, 0], [3, 3, 1], [0, 1, 5], [3, 3, 1]]
    found = rigged([0, 1, 2, 0], scores, scale=2.0)
    assert found.rank.tolist() == [0, 1, 0, 1]
    assert found.predicted.tolist() == [0, 0, 2, 1]  # a tie is another class's
    softmax = np.exp(2.0 * np.array(scores))
    softmax /= softmax.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found.confidence, softmax[np.arange(4), [0, 0, 2, 1]], rtol=1e-6)
    sigmoid = rigged([0], [[2, 1, 0]], scale=2.0, bias=-3.0)
    np.testing.assert_allclose(sigmoid.confidence, 1 / (1 + np.exp(-1.0)), rtol=1e-6)


def test_chunks_of_any_size_and_the_plain_metrics_agree(monkeypatch):
    images, classes = RNG.normal(size=(103, 13)), RNG.normal(size=(11, 13))
    labels = RNG.integers(11, size=103)
    whole = classify(images, labels, classes, 3.0)
    monkeypatch.setattr("clip_jax.evaluation.metrics.classification.CHUNK", 10)
    parts = classify(images, labels, classes, 3.0)
    np.testing.assert_array_equal(whole.rank, parts.rank)
    np.testing.assert_array_equal(whole.predicted, parts.predicted)
    np.testing.assert_allclose(whole.confidence, parts.confidence, rtol=1e-5)
    np.testing.assert_array_equal(confusion(whole), confusion(parts))
    metrics, plain = single_label_metrics(parts, NAMES, "accuracy", QUICK), accuracies(whole, NAMES)
    for name in ("top1", "top5", "mean_per_class"):
        assert metrics[name]["value"] == pytest.approx(plain[name], abs=1e-12)
        assert metrics[name]["low"] < plain[name] < metrics[name]["high"]
    assert metrics["per_class"] == plain["per_class"]
    assert (metrics["value"], metrics["chance"]) == (metrics["top1"]["value"], 1 / 11)
    assert sum(metrics["calibration"]["count"]) == metrics["count"] == 103


def test_the_intervals_are_those_of_a_bootstrap_over_images():
    found = classify(RNG.normal(size=(301, 13)), RNG.integers(11, size=301), RNG.normal(size=(11, 13)), 3.0)
    metrics = single_label_metrics(found, NAMES, "accuracy", {"num_resamples": 4000})
    right = found.rank < 5
    drawn = right[RNG.integers(301, size=(4000, 301))].mean(axis=1)
    expected = np.quantile(drawn, [0.025, 0.975])
    np.testing.assert_allclose([metrics["top5"]["low"], metrics["top5"]["high"]], expected, atol=0.005)  # of 0.11


def test_a_class_without_images_has_no_accuracy_and_no_say():
    found = rigged([0, 0, 1], [[2, 1, 0], [0, 1, 2], [0, 1, 0]])
    metrics = single_label_metrics(found, ("a", "b", "c"), "mean_per_class", QUICK)
    assert metrics["per_class"] == {"a": 0.5, "b": 1.0, "c": None}
    assert metrics["images_per_class"] == [2, 1, 0]
    assert metrics["value"] == 0.75
    assert "top5" not in metrics


def test_roc_auc_ranks_by_how_much_higher_the_second_class_scores():
    scores = RNG.normal(size=(57, 2)).astype(np.float32)
    labels = RNG.integers(2, size=57)
    expected = roc_auc(scores[:, 1] - scores[:, 0], labels == 1)
    for found in (rigged(labels, scores, scale=100.0), rigged(labels, scores, scale=100.0, bias=-10.0)):
        metrics = single_label_metrics(found, ("no", "yes"), "roc_auc", QUICK)
        assert metrics["value"] == pytest.approx(expected, abs=1e-12)
        assert metrics["chance"] == 0.5
        assert metrics["low"] < expected < metrics["high"]


def test_several_labels_an_image_give_mean_average_precision():
    scores, labels, difficult = RNG.normal(size=(61, 4)), RNG.random((61, 4)) < 0.3, RNG.random((61, 4)) < 0.1
    labels[:, 3], difficult = False, difficult & ~labels
    metrics = multi_label_metrics(scores, labels, difficult, tuple("abcd"), QUICK)
    expected = eleven_point_map(scores, labels, ignored=difficult)
    assert metrics["value"] == pytest.approx(expected)
    assert metrics["low"] < expected < metrics["high"]
    assert metrics["per_class"]["d"] is None
    assert metrics["chance"] == pytest.approx(np.mean(labels.sum(0)[:3] / (~difficult).sum(0)[:3]))


@pytest.mark.parametrize("metric", ["accuracy", "mean_per_class", "mean_top1_top5"])
def test_a_probes_scores_are_measured_as_zero_shots(metric):
    scores, labels = RNG.normal(size=(101, 11)).astype(np.float32), RNG.integers(11, size=101)
    headline = single_label_metrics(rigged(labels, scores), NAMES, metric, QUICK)
    assert measure_scores(metric, labels, scores, QUICK) == {k: headline[k] for k in ("value", "low", "high")}
    assert metric_score(metric, labels, scores) == headline["value"]


def test_a_probes_scores_of_the_ranking_metrics():
    scores, labels = RNG.normal(size=(41, 2)), RNG.integers(2, size=41)
    assert metric_score("roc_auc", labels, scores) == pytest.approx(roc_auc(scores[:, 1] - scores[:, 0], labels == 1))
    several = RNG.random((41, 2)) < 0.5
    assert metric_score("eleven_point_map", several, scores) == pytest.approx(eleven_point_map(scores, several))


def test_labels_of_a_narrow_dtype_do_not_overflow():
    found = classify(np.eye(211)[[200, 8]], np.array([200, 7], np.uint8), np.eye(211), 1.0)
    assert confusion(found)[200, 200] == confusion(found)[7, 8] == 1
    assert confusion(found).sum() == 2


def test_the_most_confident_mistakes_come_first():
    found = rigged([0, 0, 0, 0], [[1, 2], [1, 9], [5, 1], [1, 4]])
    assert confident_mistakes(found, 2).tolist() == [1, 3]
    assert confident_mistakes(found, 9).tolist() == [1, 3, 0]


@pytest.mark.usefixtures("shapes_unchecked")
def test_nothing_is_measured_of_meaningless_input():
    with pytest.raises(ValueError, match="the metric 'roc_auc' is not one of a set of 3 classes"):
        single_label_metrics(rigged([0], [[1, 2, 3]]), tuple("abc"), "roc_auc", QUICK)
    with pytest.raises(ValueError, match=r"label 3 of example 0 is outside 0\.\.2"):
        rigged([3], [[1, 2, 3]])
    with pytest.raises(ValueError, match=r"image embeddings \(1, 3\) and class embeddings \(3, 4\) differ in size"):
        classify(np.ones((1, 3)), np.array([0]), np.ones((3, 4)), 1.0)
