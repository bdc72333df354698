from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pairs import MESHES, all_reduced, assert_same, compiled, mesh, some_features, with_gradients

from clip_jax.losses import contrastive_loss, sharded_sigmoid_loss, sigmoid_loss, streamed_sigmoid_loss

SCALARS = [(0.3, -1.7), (np.log(10), -10), (np.log(100), -10), (np.log(100), 3)]


@lru_cache
def sharded(shape):
    return partial(sharded_sigmoid_loss, mesh=mesh(shape))


@lru_cache
def streamed(shape, block_size):
    return partial(streamed_sigmoid_loss, mesh=mesh(shape), block_size=block_size)


LOSSES = {
    "dense": sigmoid_loss,
    "1 device": sharded((1, 1, 1)),
    "8 devices": sharded((4, 2, 1)),
    "streamed, 1 device": streamed((1, 1, 1), 7),
    "streamed, 8 devices": streamed((4, 2, 1), 2),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", LOSSES)
def test_equals_open_clip(goldens, name):
    golden = np.load(goldens / "loss_sigmoid" / "expected.npz")
    keys = ("image_embeds", "text_embeds", "logit_scale", "logit_bias")
    (loss, _), grads = with_gradients(LOSSES[name], 2)(*(golden[key] for key in keys))
    np.testing.assert_allclose(loss, golden["loss"], rtol=0, atol=1e-12)
    for grad, key in zip(grads, ("d_image", "d_text", "d_logit_scale", "d_logit_bias")):
        np.testing.assert_allclose(grad, golden[key], rtol=0, atol=1e-12, err_msg=key)


@pytest.mark.usefixtures("x64")
def test_equals_a_double_loop():
    image, text = some_features(23, dtype=np.float64)
    scale, bias = np.exp(1.7), -2.3
    total = 0.0
    for i in range(23):
        for j in range(23):
            logit = scale * float(np.dot(image[i], text[j])) + bias
            total += np.log1p(np.exp(-logit if i == j else logit))
    loss, _ = sigmoid_loss(image, text, 1.7, bias)
    np.testing.assert_allclose(loss, total / 23, rtol=1e-13)


@pytest.fixture(scope="module")
def dense():
    return with_gradients(sigmoid_loss, 2)


FORMS = [(sharded, (shape,)) for shape in ((1, 1, 1), (8, 1, 1), (2, 2, 2))]
FORMS += [(streamed, (shape, (1, 2, 3, 5)[i % 4])) for i, shape in enumerate(MESHES)]
FORMS += [(streamed, ((1, 1, 1), 7)), (streamed, ((4, 2, 1), 1000))]


@pytest.mark.parametrize(("form", "how"), FORMS)
def test_all_forms_equal_the_dense(dense, form, how):
    loss = with_gradients(form(*how), 2)
    for logit_scale, logit_bias in SCALARS:
        args = (*some_features(40), np.float32(logit_scale), np.float32(logit_bias))
        assert_same(loss(*args), dense(*args), 4e-6)  # measured: 1.8e-6


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("form", "how"), [(sharded, ((2, 2, 2),)), (streamed, ((4, 2, 1), 3))])
def test_all_forms_equal_the_dense_in_float64(form, how):
    args = (*some_features(40, dtype=np.float64), np.log(100.0), -10.0)
    assert_same(with_gradients(form(*how), 2)(*args), with_gradients(sigmoid_loss, 2)(*args), 1e-13)


@pytest.mark.parametrize("name", LOSSES)
def test_bfloat16_features_are_compared_in_float32(dense, name):
    image, text = (z.astype(jnp.bfloat16) for z in some_features(40))
    scalars = (np.float32(np.log(10)), np.float32(-10))
    (loss, metrics), (*d_features, d_scale, d_bias) = with_gradients(LOSSES[name], 2)(image, text, *scalars)
    assert (loss.dtype, d_features[0].dtype, d_features[1].dtype) == (jnp.float32, jnp.bfloat16, jnp.bfloat16)
    expected, (*e_features, e_scale, e_bias) = dense(*(z.astype(np.float32) for z in (image, text)), *scalars)
    assert_same(((loss, metrics), (d_scale, d_bias)), (expected, (e_scale, e_bias)), 4e-6)
    for grad, expected_grad in zip(d_features, e_features):  # half a unit in the last place, 2**-9, and room
        np.testing.assert_allclose(grad.astype(np.float32), expected_grad, rtol=2**-8, atol=1e-7)


@pytest.mark.parametrize("form", [sharded((4, 2, 1)), streamed((4, 2, 1), 3)])
def test_the_gradient_follows_what_comes_after(dense, form):
    args = (*some_features(40), np.float32(1.5), np.float32(-1))
    grads = jax.jit(jax.grad(lambda *a: -2.5 * form(*a)[0], argnums=(0, 1, 2, 3)))(*args)
    for grad, expected in zip(grads, dense(*args)[1]):
        np.testing.assert_allclose(grad, -2.5 * expected, rtol=1e-5, atol=4e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_the_matches_are_those_of_the_contrastive_loss(name):
    # A bias this large would round most logits to a tie.
    image, text = some_features(40)
    _, expected = jax.jit(contrastive_loss)(image, text, np.float32(0))
    _, metrics = jax.jit(LOSSES[name])(image, text, np.float32(0), np.float32(-1e8))
    assert set(metrics) == set(expected)
    for key in expected:
        assert 0 < float(expected[key]) < 1
        np.testing.assert_allclose(metrics[key], expected[key], rtol=1e-6, err_msg=key)
    one = np.broadcast_to(image[:1], (40, 13))
    assert set(map(float, jax.jit(LOSSES[name])(one, one, np.float32(0), np.float32(0))[1].values())) == {0.0}


def test_a_block_has_at_least_one_row():
    with pytest.raises(ValueError, match="block_size=-1 must be at least 1"):
        streamed((2, 1, 1), -1)(*some_features(4), 0.0, 0.0)


def test_collectives_and_memory():
    full = compiled(sharded((4, 2, 1)), 24, 13, num_scalars=2).as_text()
    assert (full.count(" all-gather("), full.count(" reduce-scatter("), full.count(" collective-permute(")) == (1, 1, 0)
    # A column's largest other logit; the loss, the gradients of scale and bias; the correct matches each way.
    assert all_reduced(full) == {"f32[24]": 1, "f32[]": 3, "s32[]": 2}
    programs = {N: compiled(streamed((4, 2, 1), 16), N, 32, num_scalars=2) for N in (2048, 4096, 8192)}
    temporaries = {N: program.memory_analysis().temp_size_in_bytes for N, program in programs.items()}
    slopes = [(temporaries[2 * N] - temporaries[N]) / N for N in (2048, 4096)]
    assert slopes[0] == pytest.approx(slopes[1], rel=0.02)
    assert temporaries[8192] < 4 * 8192**2 / 8 / 25
    assert all_reduced(programs[2048].as_text()) == {"f32[]": 3, "s32[]": 2}
