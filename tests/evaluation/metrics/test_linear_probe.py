import json

import numpy as np
import pytest
from test_logistic_regression import drawn, peer, several_labels

from clip_jax.evaluation.metrics import linear_probe as probe
from clip_jax.evaluation.metrics.linear_probe import STRENGTHS, linear_probe, search_strength, split_off_validation
from clip_jax.evaluation.metrics.logistic_regression import Split, fit_logistic, logits_of


def accuracy(labels, logits):
    return float(np.mean(logits.argmax(1) == labels))


def test_strengths_are_eighths_of_decades():
    assert (len(STRENGTHS), STRENGTHS[0], STRENGTHS[48], STRENGTHS[96]) == (97, 1e-6, 1, 1e6)
    np.testing.assert_allclose(np.diff(np.log10(STRENGTHS)), 1 / 8, atol=1e-12)


@pytest.mark.parametrize("peak", [0, 37, 96])
def test_the_search_finds_a_peak_in_a_few_rounds(peak):
    rounds = []

    def score(places):
        rounds.append(list(places))
        return [-abs(place - peak) for place in places]

    assert search_strength(score) == peak
    assert rounds[0] == [0, 16, 32, 48, 64, 80, 96]  # 1e-6, 1e-4, ... 1e6
    if peak == 37:
        assert rounds[1:] == [[24, 40], [36, 44], [34, 38], [37, 39]]  # 36 and 38 are equal, and 38 is stronger
    seen = [place for places in rounds for place in places]
    assert len(seen) == len(set(seen)) <= 15


def test_of_equals_the_strongest_is_taken():
    assert search_strength(lambda places: [0.5] * len(places)) == 96
    assert search_strength(lambda places: [min(place, 20) for place in places], full_sweep=True) == 96


@pytest.mark.parametrize("several", [pytest.param(False, marks=pytest.mark.nightly), True])
def test_the_probe_is_the_best_strength_fitted_again_on_train_and_validation(several):
    make = several_labels if several else drawn
    train, validation, test = make(211, 17, 5), make(50, 17, 5, seed=1), make(499, 17, 5, seed=2)
    metric = (lambda labels, logits: float(np.mean(labels == (logits > 0)))) if several else accuracy
    found = linear_probe(train, validation, test, 5, metric=metric)
    assert json.loads(json.dumps(found)) == found
    assert (found["num_train"], found["num_validation"], found["count"]) == (211, 50, 499)
    assert found["converged"]
    assert len(found["sweep"]) <= 15

    best = next(row for row in found["sweep"] if row["strength"] == found["strength"])
    for row in (found["sweep"][0], best, found["sweep"][-1]):
        fit = fit_logistic(train, 5, [row["strength"]])
        logits = logits_of(fit.weights[0], fit.biases[0], validation.features)
        assert row["objective"] == pytest.approx(fit.objective[0], rel=1e-3, abs=1e-6)
        if row["strength"] > 1e-6:  # the weakest leaves the weights to the rounding of each step
            assert row["validation_score"] == pytest.approx(metric(validation.labels, logits), abs=1e-9)
    assert found["validation_score"] == max(row["validation_score"] for row in found["sweep"])
    assert 1e-6 < found["strength"] < 1e6

    features, labels = (np.concatenate(pair) for pair in zip(train, validation))
    if several:
        parts = [peer(features, labels[:, c], found["strength"]) for c in range(5)]
        weights, bias = (np.concatenate(part, axis=-1) for part in zip(*parts))
    else:
        weights, bias = peer(features, labels, found["strength"])
    assert found["score"] == pytest.approx(metric(test.labels, test.features @ weights + bias), abs=1e-9)


@pytest.mark.parametrize("every", [16, pytest.param(1, marks=pytest.mark.nightly)])
def test_the_whole_sweep(every, monkeypatch):
    strengths = STRENGTHS[::every]
    monkeypatch.setattr(probe, "STRENGTHS", strengths)
    train, validation, test = drawn(211, 17, 5), drawn(50, 17, 5, seed=1), drawn(47, 17, 5, seed=2)
    found = linear_probe(train, validation, test, 5, metric=accuracy, full_sweep=True)
    assert [row["strength"] for row in found["sweep"]] == list(strengths)
    scores = [row["validation_score"] for row in found["sweep"]]
    assert strengths.index(found["strength"]) == max(i for i, score in enumerate(scores) if score == max(scores))
    assert (np.diff([row["objective"] for row in found["sweep"]]) > -1e-3).all()  # more penalty, more to pay


def test_without_validation_a_fifth_of_each_class_is_held_out():
    train = Split(np.arange(24, dtype=np.float32)[:, None], np.repeat([0, 1, 2, 3], [15, 5, 3, 1]))
    rest, held_out = split_off_validation(train, seed=3)
    np.testing.assert_array_equal(np.bincount(held_out.labels, minlength=4), [3, 1, 1, 0])
    assert sorted(np.concatenate([rest.features, held_out.features])[:, 0]) == list(range(24))
    np.testing.assert_array_equal(train.labels[held_out.features[:, 0].astype(int)], held_out.labels)
    np.testing.assert_array_equal(split_off_validation(train, seed=3)[1].features, held_out.features)
    assert split_off_validation(train, seed=4)[1].features.tolist() != held_out.features.tolist()
    found = linear_probe(drawn(261, 17, 5), None, drawn(7, 17, 5, seed=2), 5, metric=accuracy)
    assert (found["num_train"], found["num_validation"]) == (211, 50)


def test_a_class_of_one_image_each_leaves_nothing_to_hold_out():
    with pytest.raises(
        ValueError, match=r"^no class of train has two images to split a validation split off: give one$"
    ):
        linear_probe(drawn(3, 5, 3), None, drawn(7, 5, 3), 3, metric=accuracy)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"test": drawn(7, 4, 3)},
            "features of test are 4 wide and those of train 5: encode both with the same model",
        ),
        (
            {"validation": several_labels(7, 5, 3)},
            r"labels of validation have shape \(7, 3\) and those of train \(61,\): one label an image, int \[N\], or "
            r"several, bool \[N, C\], in all splits",
        ),
        ({"test": Split(np.ones((2, 5)), np.array([0, 3]))}, r"label 3 of row 1 of test is outside 0\.\.2"),
        (
            {"validation": Split(np.array([[1.0] * 5, [np.inf] * 5]), np.array([0, 1]))},
            "features of validation are not finite in row 1: leave that image out, or fix its encoder",
        ),
        (
            {"train": drawn(7, 5, 2)},
            "class 2 has no images in train: add some, or leave out the 1 classes without images",
        ),
    ],
)
def test_splits_that_do_not_fit_are_refused(changed, message):
    splits = {"train": drawn(61, 5, 3), "validation": drawn(7, 5, 3), "test": drawn(7, 5, 3), **changed}
    with pytest.raises(ValueError, match=f"^{message}$"):
        linear_probe(**splits, num_classes=3, metric=accuracy)
