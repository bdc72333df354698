import re
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pairs import MESHES, all_reduced, assert_same, compiled, mesh, some_features, with_gradients

from clip_jax.losses import contrastive_loss, normalize, streamed_contrastive_loss

BLOCK_SIZES = [1, 2, 3, 5, 1000]  # of the 5 to 40 rows of a device


@lru_cache
def streamed(shape, block_size):
    return partial(streamed_contrastive_loss, mesh=mesh(shape), block_size=block_size)


@pytest.fixture(scope="module")
def dense():
    return with_gradients(contrastive_loss)


# Every mesh, and every block size on one device and on eight.
CASES = [(shape, BLOCK_SIZES[i % 4]) for i, shape in enumerate(MESHES)]
CASES += [(shape, size) for shape in ((1, 1, 1), (4, 2, 1)) for size in BLOCK_SIZES if (shape, size) not in CASES]


@pytest.mark.parametrize(("shape", "block_size"), CASES)
def test_streamed_equals_dense(dense, shape, block_size):
    loss = with_gradients(streamed(shape, block_size))
    image, text = some_features(40)
    # Measured: 6e-8, 1.3e-6 and, where the log-sum-exp of logits of ±100 is rounded between the passes, 7e-6 with
    # blocks of one row and 3e-6 with more; the dense form, too, is then 1e-6 from float64.
    for logit_scale, tolerance in ((0.3, 3e-7), (np.log(1 / 0.07), 3e-6), (np.log(100), 1.5e-5)):
        args = (image, text, np.float32(logit_scale))
        assert_same(loss(*args), dense(*args), tolerance)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("shape", "block_size"), [((1, 1, 1), 7), ((4, 2, 1), 3), ((2, 2, 2), 3)])
def test_streamed_equals_dense_in_float64(shape, block_size):
    args = (*some_features(40, dtype=np.float64), np.log(1 / 0.07))
    assert_same(with_gradients(streamed(shape, block_size))(*args), with_gradients(contrastive_loss)(*args), 1e-13)


@pytest.mark.parametrize(("shape", "block_size"), [((1, 1, 1), 7), ((4, 2, 1), 3)])
def test_bfloat16_features_are_compared_in_float32(dense, shape, block_size):
    image, text = (z.astype(jnp.bfloat16) for z in some_features(40))
    (loss, metrics), (d_image, d_text, d_scale) = with_gradients(streamed(shape, block_size))(
        image, text, np.float32(3)
    )
    assert (loss.dtype, d_image.dtype, d_text.dtype) == (jnp.float32, jnp.bfloat16, jnp.bfloat16)
    expected, (e_image, e_text, e_scale) = dense(*(z.astype(np.float32) for z in (image, text)), np.float32(3))
    assert_same(((loss, metrics), (d_scale,)), (expected, (e_scale,)), 2e-6)
    for grad, expected_grad in ((d_image, e_image), (d_text, e_text)):  # half a unit in the last place, 2**-9, and room
        np.testing.assert_allclose(grad.astype(np.float32), expected_grad, rtol=2**-8, atol=1e-7)


def test_the_gradient_follows_what_comes_before_and_after():
    image, text = (3 * z for z in some_features(40))

    def a_step(loss):
        value = lambda zi, zt, t: -2.5 * loss(normalize(zi), normalize(zt), t / 3)[0]  # noqa: E731
        return jax.jit(jax.grad(value, argnums=(0, 1, 2)))

    for grad, expected in zip(*(a_step(f)(image, text, 7.0) for f in (streamed((4, 2, 1), 3), contrastive_loss))):
        np.testing.assert_allclose(grad, expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("shape", [(1, 1, 1), (8, 1, 1)])
def test_one_pair_a_device(dense, shape):
    args = (*some_features(shape[0]), np.float32(2))
    assert_same(with_gradients(streamed(shape, 256))(*args), dense(*args), 1e-6)


def test_a_block_has_at_least_one_row():
    with pytest.raises(
        ValueError, match=r"^block_size=0 must be at least 1: it is how many rows are computed at once$"
    ):
        streamed((2, 1, 1), 0)(*some_features(4), 0.0)


@pytest.mark.parametrize(("shape", "n"), [((8, 1, 1), 12), ((2, 2, 2), 24)])
def test_only_blocks_are_computed(shape, n):
    jaxpr = jax.make_jaxpr(jax.value_and_grad(streamed(shape, 5), argnums=(0, 1), has_aux=True))
    text = str(jaxpr(*some_features(96), np.float32(1)))
    b = 4 if n == 12 else 5
    # The logits, forward and again, and the gradients of both sides.
    products = re.findall(r":f32\[([\d,]+)\]\S* = dot_general", text)
    assert sorted(products) == sorted([f"{b},{n}"] * 2 + [f"{b},13", f"13,{n}"])
    assert text.count("Precision.HIGHEST") == 2 * len(products)


def scans(jaxpr):
    """The bodies of all scans, those inside of other equations included."""
    for eqn in jaxpr.eqns:
        inner = [getattr(value, "jaxpr", value) for value in eqn.params.values()]
        inner = [value for value in inner if hasattr(value, "eqns")]
        if eqn.primitive.name == "scan":
            yield from inner
        for body in inner:
            yield from scans(body)


def test_sends_and_blocks_do_not_wait_for_each_other():
    jaxpr = jax.make_jaxpr(jax.value_and_grad(streamed((8, 1, 1), 5), argnums=(0, 1), has_aux=True))
    rounds = 0
    for body in scans(jaxpr(*some_features(96), np.float32(1)).jaxpr):
        sends = [eqn for eqn in body.eqns if eqn.primitive.name == "ppermute"]
        blocks = [eqn for eqn in body.eqns if eqn.primitive.name == "scan"]
        if sends:
            rounds += 1
            (block,) = blocks
            assert len(sends) == 3  # what travels: features, and two values a text or one and a gradient
            for send in sends:
                assert set(send.invars) <= set(body.invars)
                assert not set(map(id, send.outvars)) & set(map(id, block.invars))
    assert rounds == 2  # for the loss and for its gradients


def test_memory_is_linear_and_far_below_the_matrix():
    loss = streamed((4, 2, 1), 16)
    programs = {N: compiled(loss, N, 32) for N in (2048, 4096, 8192)}
    temporaries = {N: program.memory_analysis().temp_size_in_bytes for N, program in programs.items()}
    slopes = [(temporaries[2 * N] - temporaries[N]) / N for N in (2048, 4096)]
    assert slopes[0] == pytest.approx(slopes[1], rel=0.02)
    assert temporaries[8192] < 8 * 4 * (8192 // 8) * 32 + 4 * 4 * 16 * (8192 // 8)  # 8 feature arrays, 4 blocks
    assert temporaries[8192] < 4 * 8192**2 / 8 / 25
    text = programs[2048].as_text()
    assert re.search("all-gather|reduce-scatter|all-to-all", text) is None
    assert all_reduced(text) == {"f32[]": 2, "s32[]": 2}  # the loss, the scale's gradient; the correct matches each way
