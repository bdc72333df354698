import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from clip_jax.distributed.sharding import ShardingConfig, make_mesh
from clip_jax.evaluation.metrics.logistic_regression import Split, fit_logistic, logistic_objective, logits_of

STRENGTHS = (1e-5, 1e-3, 0.1, 1.0, 30.0, 1e6)


def drawn(N, D, C, seed=0):
    """Classes that overlap, off the origin, with channels of very different spread."""
    world, rng = np.random.default_rng(3), np.random.default_rng(seed)
    means = world.normal(size=(C, D))
    labels = rng.permutation(np.arange(N) % C)
    features = (0.6 * means[labels] + rng.normal(size=(N, D))) * np.logspace(0, -2, D) + 0.5
    return Split(features.astype(np.float32), labels)


def several_labels(N, D, C, seed=0):
    features, _ = drawn(N, D, C, seed)
    directions = np.random.default_rng(4).normal(size=(D, C)) * np.logspace(0, 2, D)[:, None]
    noise = np.random.default_rng(seed).normal(size=(N, C))
    return Split(features, (features - 0.5) @ directions + 3 * noise > 1)


def peer(features, labels, strength):
    """scikit-learn's minimum, run to the end in float64 on centred features: weights [D, C or 1], bias."""
    features = features.astype(np.float64)
    mean = features.mean(0)
    model = LogisticRegression(C=1 / strength, max_iter=100_000, tol=1e-10).fit(features - mean, labels)
    return model.coef_.T, model.intercept_ - mean @ model.coef_.T


def definition(weights, bias, split, strength):
    """The objective in plain float64, without the two-class case."""
    logits = split.features.astype(np.float64) @ np.asarray(weights, np.float64) + bias
    penalty = strength / 2 * np.sum(np.asarray(weights, np.float64) ** 2)
    if split.labels.ndim == 2:
        return np.sum(np.logaddexp(0, np.where(split.labels, -logits, logits))) + penalty
    own = logits[np.arange(len(logits)), split.labels]
    return np.sum(np.logaddexp.reduce(logits, axis=1) - own) + penalty


@pytest.mark.parametrize("split", [drawn(211, 17, 5), several_labels(211, 17, 5)])
def test_the_objective_is_the_definition(split):
    rng = np.random.default_rng(1)
    weights, bias = rng.normal(size=(17, 5)).astype(np.float32), rng.normal(size=5).astype(np.float32)
    found = logistic_objective(weights, bias, split.features, jnp.asarray(split.labels), 0.7)
    assert found == pytest.approx(definition(weights, bias, split, 0.7), rel=1e-6)


# Fewer rows than channels, too: there are axes on which nothing varies.
@pytest.mark.parametrize(("N", "D"), [pytest.param(211, 17, marks=pytest.mark.nightly), (37, 61)])
def test_objective_and_accuracy_are_those_of_scikit_learn(N, D):
    split, unseen = drawn(N, D, 5), drawn(1009, D, 5, seed=1)
    fit = fit_logistic(split, 5, STRENGTHS)
    assert fit.converged.all()
    for i, strength in enumerate(STRENGTHS):
        weights, bias = peer(*split, strength)
        least = definition(weights, bias, split, strength)
        # Measured: at most 3e-6 above, at the weakest strength, where the minimum is nearly flat.
        assert definition(fit.weights[i], fit.biases[i], split, strength) == pytest.approx(least, rel=1e-5)
        assert fit.objective[i] == pytest.approx(least, rel=1e-5)
        right = [np.mean(logits_of(w, b, unseen.features).argmax(1) == unseen.labels) for w, b in
                 ((weights, bias), (fit.weights[i], fit.biases[i]))]  # fmt: skip
        assert right[1] == pytest.approx(right[0], abs=(0.001 if N > D else 0.002) + 1e-9)  # a few rows leave more open


def test_two_classes_are_the_one_weight_vector_of_scikit_learn():
    split = drawn(211, 17, 2)
    fit = fit_logistic(split, 2, [0.3])
    weights, bias = peer(*split, 0.3)
    np.testing.assert_allclose(
        fit.weights[0, :, 1:] - fit.weights[0, :, :1], weights, atol=5e-4 * np.abs(weights).max()
    )
    one = definition(weights, bias, Split(split.features, split.labels[:, None] == 1), 0.3)
    assert fit.objective[0] == pytest.approx(one, rel=1e-5)
    found = logistic_objective(fit.weights[0], fit.biases[0], split.features, jnp.asarray(split.labels), 0.3)
    assert found == pytest.approx(one, rel=1e-5)


def test_several_labels_are_a_regression_a_class():
    split = several_labels(97, 11, 3)
    fit = fit_logistic(split, 3, [0.01, 1.0])
    for i, strength in enumerate((0.01, 1.0)):
        parts = [peer(split.features, split.labels[:, c], strength) for c in range(3)]
        weights, bias = (np.concatenate(part, axis=-1) for part in zip(*parts))
        least = definition(weights, bias, split, strength)
        assert definition(fit.weights[i], fit.biases[i], split, strength) == pytest.approx(least, rel=1e-5)


@pytest.mark.parametrize(
    "split", [drawn(211, 17, 5), pytest.param(several_labels(211, 17, 5), marks=pytest.mark.nightly)]
)
def test_eight_devices_fit_as_one(split):
    """211 rows are padded to 216; a common shift of the biases would hide them from one label an image."""
    alone = fit_logistic(split, 5, [0.1, 1.0])
    shared = fit_logistic(split, 5, [0.1, 1.0], mesh=make_mesh(ShardingConfig(data=4, fsdp=2)))
    np.testing.assert_allclose(shared.objective, alone.objective, rtol=1e-6)
    # Both stop within 1e-8 of the least objective; weights move with the root of it.
    np.testing.assert_allclose(shared.weights, alone.weights, atol=5e-4 * np.abs(alone.weights).max())


def test_strengths_at_once_are_those_in_a_row():
    """Five in groups of two, the last one filled up, in an order that is not theirs."""
    split, strengths = drawn(211, 17, 5), (1.0, 1e-2, 30.0, 1e-4, 0.1)
    row = fit_logistic(split, 5, strengths)
    groups = fit_logistic(split, 5, strengths, num_parallel=2)
    assert groups.weights.shape == (5, 17, 5)
    assert row.objective.argsort().tolist() == [3, 1, 4, 0, 2]
    np.testing.assert_allclose(groups.objective, row.objective, rtol=1e-6)


def test_a_fit_that_runs_out_of_iterations_says_so():
    fit = fit_logistic(drawn(211, 17, 5), 5, [1e-4], max_iterations=3)
    assert (fit.iterations.tolist(), fit.converged.tolist()) == ([3], [False])


def broken(**changes):
    split = drawn(11, 3, 2)
    features, labels = split.features.copy(), split.labels.copy()
    for name, (where, value) in changes.items():
        {"features": features, "labels": labels}[name][where] = value
    return Split(features, labels)


@pytest.mark.parametrize(
    ("split", "num_classes", "message"),
    [
        (drawn(11, 3, 1), 1, "a probe needs at least two classes, got num_classes=1"),
        (
            broken(labels=(slice(None), 1)),
            2,
            "class 0 has no images in the split: add some, or leave out the 1 classes without images",
        ),
        (broken(labels=(4, 2)), 2, r"label 2 of row 4 of the split is outside 0\.\.1"),
        (broken(labels=(4, -1)), 2, r"label -1 of row 4 of the split is outside 0\.\.1"),
        (
            broken(features=((7, 1), np.nan)),
            2,
            "features of the split are not finite in row 7: leave that image out, or fix its encoder",
        ),
        (
            Split(np.zeros((0, 3)), np.zeros(0, int)),
            2,
            r"features of the split have shape \(0, 3\), expected \[N, D\] with at least one image",
        ),
        (
            Split(np.zeros((4, 3)), np.zeros(5, int)),
            2,
            r"labels of the split are int64 of shape \(5,\) for 4 images of 2 classes: expected int \[4\], or of "
            r"several classes an image bool \[4, 2\]",
        ),
        (
            Split(np.zeros((2, 3)), np.array([[True, False], [True, True]])),
            2,
            "class 0 is in every image of the split: leave it out",
        ),
    ],
)
def test_what_cannot_be_fitted_is_refused(split, num_classes, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        fit_logistic(split, num_classes, [1.0])


def test_strengths_are_above_zero():
    with pytest.raises(ValueError, match=r"^strengths=\[1.0, 0\] must be numbers above 0, at least one$"):
        fit_logistic(drawn(11, 3, 2), 2, [1.0, 0])
