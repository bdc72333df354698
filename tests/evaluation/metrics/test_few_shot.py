import json

import numpy as np
import pytest
from test_linear_probe import accuracy
from test_logistic_regression import drawn, peer, several_labels

from clip_jax.evaluation.metrics.few_shot import few_shot, labels_to_match, student_interval

SPLITS = {"train": drawn(67, 7, 3), "validation": drawn(103, 7, 3, seed=1), "test": drawn(499, 7, 3, seed=2)}


def test_each_draw_is_a_regression_on_so_many_labels_of_each_class():
    found = few_shot(**SPLITS, num_classes=3, metric=accuracy, shots=(1, 5), num_seeds=2, seed=7)
    assert json.loads(json.dumps(found)) == found
    assert found["count"] == 499
    train, test = SPLITS["train"], SPLITS["test"]
    for row, number in zip(found["shots"], (1, 5)):
        assert row["labels_per_class"] == number
        assert row["converged"]
        for seed, score in zip((7, 8), row["scores"]):
            order = np.random.default_rng(seed).permutation(67)
            chosen = np.concatenate([[i for i in order if train.labels[i] == c][:number] for c in range(3)])
            weights, bias = peer(train.features[chosen], train.labels[chosen], row["strength"])
            # Of 499 images two at most lie so near a border that a fit within 1e-6 of the other's loss moves them.
            assert score == pytest.approx(accuracy(test.labels, test.features @ weights + bias), abs=2 / 499 + 1e-9)
        assert (row["score"], row["low"], row["high"]) == student_interval(row["scores"])


def test_students_interval():
    # 3.182446 is the 97.5 % quantile of t with 3 degrees of freedom, from the tables.
    half = 3.182446 * (5 / 3) ** 0.5 / 2
    assert student_interval([1, 2, 3, 4]) == pytest.approx((2.5, 2.5 - half, 2.5 + half), rel=1e-6)


@pytest.mark.parametrize(
    ("target", "labels", "relation"),
    [
        (0.3, 4, "equal"),  # halfway in score, halfway between 2 and 8 in the logarithm
        (0.4, 8, "equal"),
        (0.1, 2, "at most"),
        (0.2, 2, "equal"),
        (0.55, 16, "equal"),  # where the curve first gets there
        (0.7, 32, "more than"),
    ],
)
def test_labels_that_match_a_score(target, labels, relation):
    found = labels_to_match(target, [2, 8, 16, 32], [0.2, 0.4, 0.55, 0.5])
    assert found == {"labels_per_class": pytest.approx(labels), "relation": relation}


@pytest.mark.parametrize("labels", [[2, 1], [0, 1], [1], []])
def test_a_curve_that_is_none_is_refused(labels):
    with pytest.raises(ValueError, match=r"must be above 0, ascending, and as many as the 2 scores$"):
        labels_to_match(0.5, labels, [0.1, 0.2])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"shots": (1, 23)},
            "class 1 has 22 images in train, fewer than the 23 shots: leave out the shots above 22",
        ),
        ({"shots": (4, 2)}, r"shots=\(4, 2\) must be numbers of labels a class from 1 on, ascending"),
        ({"shots": ()}, r"shots=\(\) must be numbers of labels a class from 1 on, ascending"),
        ({"num_seeds": 1}, "num_seeds=1 must be at least 2: an interval needs two draws"),
        (
            {name: several_labels(61, 7, 3) for name in SPLITS},
            "few-shot needs one label an image, and train has several: K labels a class are not defined",
        ),
        (
            {"test": drawn(7, 4, 3)},
            "features of test are 4 wide and those of train 7: encode both with the same model",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused(changed, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        few_shot(**{**SPLITS, "num_classes": 3, "metric": accuracy, **changed})
