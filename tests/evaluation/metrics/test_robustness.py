import json

import numpy as np
import pytest

from clip_jax.evaluation.metrics.robustness import MEAN, fit_logits, robustness_metrics


def sigmoid(x):
    return float(1 / (1 + np.exp(-x)))


def models(slope=1.5, intercept=-0.75):
    """Reference models exactly on a line in logits: sketch by the arguments, photo at 0.5 below."""
    logits = {"weak": -1.0, "middle": 0.25, "strong": 1.5}
    return {
        name: {"plain": sigmoid(x), "sketch": sigmoid(slope * x + intercept), "photo": sigmoid(x - 0.5)}
        for name, x in logits.items()
    }


def test_a_model_on_the_line_has_no_effective_robustness_and_one_above_has_the_difference():
    scores = {"plain": (500, 1000), "sketch": (700, 1000), "photo": (round(1000 * sigmoid(-0.5)), 1000)}
    metrics = robustness_metrics("plain", scores, models(), baseline="strong")
    sketch, photo = metrics["shifts"]["sketch"], metrics["shifts"]["photo"]
    assert sketch["fit"] == {"slope": pytest.approx(1.5), "intercept": pytest.approx(-0.75), "models": 3}
    assert sketch["predicted"] == pytest.approx(sigmoid(-0.75))  # logit(0.5) is 0
    assert sketch["effective_robustness"] == pytest.approx(0.7 - sigmoid(-0.75))
    assert sketch["effective_robustness_low"] == pytest.approx(sketch["low"] - sigmoid(-0.75))
    assert sketch["effective_robustness_high"] == pytest.approx(sketch["high"] - sigmoid(-0.75))
    assert sketch["low"] < 0.7 < sketch["high"]
    assert sketch["relative_robustness"] == pytest.approx(0.7 - sigmoid(1.5))
    assert photo["effective_robustness"] == pytest.approx(0, abs=5e-4)  # the accuracy is a count of a thousand
    assert metrics["reference"]["name"] == "plain"
    assert metrics["reference"]["accuracy"] == 0.5
    assert json.loads(json.dumps(metrics)) == metrics


def test_the_mean_of_shifts_is_fitted_to_the_models_means():
    reference_models = {**models(), "half measured": {"plain": 0.9, "sketch": 0.1}}
    scores = {"plain": (500, 1000), "sketch": (700, 1000), "photo": (400, 500)}
    mean = robustness_metrics("plain", scores, reference_models, baseline="weak")["shifts"][MEAN]
    points = [(m["plain"], (m["sketch"] + m["photo"]) / 2) for m in models().values()]
    slope, intercept = fit_logits(points)
    assert mean["accuracy"] == pytest.approx(0.75)
    assert mean["fit"] == {"slope": slope, "intercept": intercept, "models": 3}
    assert mean["effective_robustness"] == pytest.approx(0.75 - sigmoid(intercept))
    assert mean["relative_robustness"] == pytest.approx(0.75 - points[0][1])
    assert mean["low"] is mean["effective_robustness_high"] is mean["count"] is None


def test_the_fit_is_that_of_least_squares():
    rng = np.random.default_rng(0)
    points = rng.uniform(0.1, 0.9, (11, 2))
    logits = np.log(points / (1 - points))
    expected = np.linalg.lstsq(np.column_stack([logits[:, 0], np.ones(11)]), logits[:, 1], rcond=None)[0]
    np.testing.assert_allclose(fit_logits([(x, y) for x, y in points.tolist()]), expected, rtol=1e-12)


def test_all_or_nothing_right_on_the_reference_counts_as_half_an_image_less_or_more():
    for right, accuracy in ((1000, 0.9995), (0, 0.0005)):
        metrics = robustness_metrics("plain", {"plain": (right, 1000), "photo": (0, 7)}, models())
        assert metrics["shifts"]["photo"]["predicted"] == pytest.approx(
            sigmoid(np.log(accuracy / (1 - accuracy)) - 0.5)
        )
        assert metrics["reference"]["accuracy"] == right / 1000


def test_without_two_reference_accuracies_there_is_no_fit_and_it_says_so():
    scores = {"plain": (5, 10), "sketch": (7, 10)}
    one = {"a": {"plain": 0.5, "sketch": 0.4}, "b": {"plain": 0.5, "sketch": 0.3}}
    for reference_models, number in ((one, 1), ({}, 0), ({"a": {"sketch": 0.5}}, 0)):
        sketch = robustness_metrics("plain", scores, reference_models)["shifts"]["sketch"]
        assert sketch["accuracy"] == 0.7
        assert sketch["fit"] is sketch["effective_robustness"] is sketch["relative_robustness"] is None
        assert sketch["note"] == (
            f"a fit needs reference models of two different accuracies on the reference set, got {number}"
        )
    sketch = robustness_metrics("plain", scores, {**models(), "c": {"plain": 0.5}}, baseline="c")["shifts"]["sketch"]
    assert sketch["note"] == "baseline 'c' has no accuracy on sketch"
    assert sketch["relative_robustness"] is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reference": "plane"}, "^the reference set 'plane' has no score: there are 'plain', 'sketch'$"),
        ({"scores": {"plain": (1, 2)}}, "^no shifts to measure: only the reference set 'plain' has a score$"),
        ({"scores": {"plain": (1, 2), "sketch": (0, 0)}}, "^set 'sketch' has no images: leave it out of robustness$"),
        ({"scores": {"plain": (1, 2), MEAN: (1, 2)}}, "^a set is named 'mean of shifts', which is"),
        ({"scores": {"plain": (3, 2), "sketch": (1, 2)}}, "^3 right of 2 is no share"),
        ({"baseline": "best"}, "^baseline 'best' is not among the reference models: weak, middle, strong$"),
        (
            {"reference_models": {"a": {"plain": 76.2}}},
            "^reference model 'a' has accuracy 76.2 on 'plain': expected a share strictly between 0 and 1",
        ),
        ({"reference_models": {"a": {"plain": float("nan")}}}, "^reference model 'a' has accuracy nan on 'plain'"),
    ],
)
def test_bad_input_is_refused(changes, message):
    arguments = {"reference": "plain", "scores": {"plain": (5, 10), "sketch": (7, 10)}, "reference_models": models()}
    with pytest.raises(ValueError, match=message):
        robustness_metrics(**{**arguments, **changes})
