import re
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pairs import MESHES, all_reduced, assert_same, compiled, mesh, some_features, with_gradients

from clip_jax.losses import contrastive_loss, normalize, sharded_contrastive_loss, streamed_contrastive_loss


@lru_cache
def sharded(shape):
    return partial(sharded_contrastive_loss, mesh=mesh(shape))


@lru_cache
def streamed(shape, block_size):
    return partial(streamed_contrastive_loss, mesh=mesh(shape), block_size=block_size)


LOSSES = {
    "dense": contrastive_loss,
    "1 device": sharded((1, 1, 1)),
    "8 devices": sharded((4, 2, 1)),
    "streamed, 1 device": streamed((1, 1, 1), 7),
    "streamed, 8 devices": streamed((4, 2, 1), 2),
}


def plain_loss(image, text, logit_scale):
    """The definition by a double loop over float64 numbers."""
    N, scale = len(image), np.exp(float(logit_scale))
    logits = [[scale * float(np.dot(image[i], text[j])) for j in range(N)] for i in range(N)]
    columns = [list(column) for column in zip(*logits)]

    def cross_entropy(rows):
        return np.mean([np.log(sum(np.exp(logit) for logit in row)) - row[i] for i, row in enumerate(rows)])

    def accuracy(rows):
        return np.mean([all(row[i] > logit for j, logit in enumerate(row) if j != i) for i, row in enumerate(rows)])

    metrics = {"image_to_text_accuracy": accuracy(logits), "text_to_image_accuracy": accuracy(columns)}
    return (cross_entropy(logits) + cross_entropy(columns)) / 2, metrics


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", LOSSES)
def test_equals_open_clip(goldens, name):
    golden = np.load(goldens / "loss_softmax" / "expected.npz")
    (loss, _), grads = with_gradients(LOSSES[name])(
        *(golden[k] for k in ("image_embeds", "text_embeds", "logit_scale"))
    )
    np.testing.assert_allclose(loss, golden["loss"], rtol=0, atol=1e-12)
    for grad, key in zip(grads, ("d_image", "d_text", "d_logit_scale")):
        np.testing.assert_allclose(grad, golden[key], rtol=0, atol=1e-12, err_msg=key)


@pytest.mark.usefixtures("x64")
def test_equals_a_double_loop():
    image, text = some_features(23, dtype=np.float64)
    loss, metrics = contrastive_loss(image, text, jnp.asarray(1.7))
    expected_loss, expected_metrics = plain_loss(image, text, 1.7)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-13)
    for name, share in expected_metrics.items():
        np.testing.assert_allclose(metrics[name], share, rtol=1e-6, err_msg=name)
    assert 0 < expected_metrics["image_to_text_accuracy"] != expected_metrics["text_to_image_accuracy"] < 1


@pytest.fixture(scope="module")
def dense():
    return with_gradients(contrastive_loss)


@pytest.mark.parametrize("shape", MESHES)
def test_sharded_equals_dense(dense, shape):
    loss = with_gradients(sharded(shape))
    N = 24 if shape[1] == 1 else 40
    image, text = some_features(N, dtype=jnp.bfloat16)
    assert image.dtype == jnp.float32
    # Measured: 3e-7, and 1.2e-6 at the largest scale, where logits of ±100 cancel: float64 sides with the sharded.
    for logit_scale, tolerance in ((0.3, 1e-6), (np.log(1 / 0.07), 1e-6), (np.log(100), 4e-6)):
        args = (image, text, np.float32(logit_scale))
        assert_same(loss(*args), dense(*args), tolerance)


@pytest.mark.parametrize("shape", [(1, 1, 1), (4, 2, 1)])
def test_bfloat16_features_are_compared_in_float32(dense, shape):
    image, text = (z.astype(jnp.bfloat16) for z in some_features(40))
    (loss, metrics), (*d_features, d_scale) = with_gradients(sharded(shape))(image, text, np.float32(3))
    assert (loss.dtype, d_features[0].dtype, d_features[1].dtype) == (jnp.float32, jnp.bfloat16, jnp.bfloat16)
    expected, (*e_features, e_scale) = dense(*(z.astype(np.float32) for z in (image, text)), np.float32(3))
    assert_same(((loss, metrics), (d_scale,)), (expected, (e_scale,)), 2e-6)  # measured: 7e-7
    for grad, expected_grad in zip(d_features, e_features):  # half a unit in the last place, 2**-9, and room
        np.testing.assert_allclose(grad.astype(np.float32), expected_grad, rtol=2**-8, atol=1e-7)


def test_normalised_features_have_unit_length():
    features = np.random.default_rng(0).normal(size=(5, 7)) * [[1e-3], [1], [10], [1e3], [1e5]]
    np.testing.assert_allclose(
        normalize(jnp.asarray(features, np.float32)),
        features / np.sqrt((features**2).sum(axis=1, keepdims=True)),
        rtol=1e-6,
    )


@pytest.mark.parametrize("name", LOSSES)
def test_the_largest_logit_scale_stays_finite(name):
    image, _ = some_features(24)
    loss, scale = with_gradients(LOSSES[name]), np.float32(np.log(100))
    (best, _), best_grads = loss(image, image, scale)
    (worst, _), worst_grads = loss(image, -image, scale)
    # Every row of the second holds its positive, -100, and its largest logit, which the log-sum-exp is close to.
    largest = np.max(-100 * np.asarray(image) @ np.asarray(image).T, axis=1)
    assert 0 <= best < 1e-3
    assert 100 + largest.mean() <= worst <= 100 + largest.mean() + np.log(24)
    assert all(np.isfinite(grad).all() for grad in (*best_grads, *worst_grads))


@pytest.mark.parametrize("name", LOSSES)
def test_a_collapsed_model_matches_nothing(name):
    loss = jax.jit(LOSSES[name])
    # Many vectors of many channels: were the positives rounded in another order than the rest, some would win.
    for seed in range(20):
        image, text = (np.broadcast_to(z, (40, 97)) for z in some_features(1, E=97, seed=seed))
        value, metrics = loss(image, text, np.float32(1.3))
        np.testing.assert_allclose(value, np.log(40), rtol=1e-6)
        assert set(map(float, metrics.values())) == {0.0}, seed


@pytest.mark.parametrize("name", LOSSES)
def test_ties_count_against_the_model(name):
    # Texts 3 and 11 are one vector; image 3 points along it, and so does image 11, half as long.
    image, text = np.eye(24, dtype=np.float32), np.eye(24, dtype=np.float32)
    text[11], image[11] = text[3], image[3] / 2
    _, metrics = jax.jit(LOSSES[name])(image, text, np.float32(2))
    # Both images see two equal texts; text 3 finds its image, text 11 finds the other's.
    np.testing.assert_allclose(metrics["image_to_text_accuracy"], 22 / 24, rtol=1e-6)
    np.testing.assert_allclose(metrics["text_to_image_accuracy"], 23 / 24, rtol=1e-6)


@pytest.mark.parametrize(("shape", "n"), [((8, 1, 1), 3), ((2, 2, 2), 6)])
def test_every_logit_is_computed_once(shape, n):
    args = (*some_features(24), np.float32(1))
    products = re.compile(r":f32\[([\d,]+)\]\S* = dot_general")
    forward = str(jax.make_jaxpr(sharded(shape))(*args))
    assert products.findall(forward) == [f"{n},24"]
    assert "Precision.HIGHEST" in forward
    # The backward pass adds one product for each side's gradient.
    both = str(jax.make_jaxpr(jax.value_and_grad(sharded(shape), argnums=(0, 1), has_aux=True))(*args))
    assert sorted(products.findall(both)) == sorted([f"{n},24", f"{n},13", "24,13"])


def test_the_full_form_gathers_once_scatters_once_and_reduces_only_columns():
    text = compiled(sharded((4, 2, 1)), 24, 13).as_text()
    assert re.findall(r"(\S+\[[\d,]*\])\S* all-gather\(", text) == ["f32[24,13]"]
    assert re.findall(r"(\S+\[[\d,]*\])\S* reduce-scatter\(", text) == ["f32[3,13]"]
    # Columns: largest logit, sum of exponentials, largest of the others. Scalars: the loss, the correct matches each
    # way, and the gradient of the scale through the logits and through the positives.
    assert all_reduced(text) == {"f32[24]": 3, "f32[]": 3, "s32[]": 2}
    assert "all-to-all" not in text
    assert "collective-permute" not in text
