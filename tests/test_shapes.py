"""Shapes in signatures are checked in tests, across the arguments of a call and its result, and only in tests."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from clip_jax.distributed.sharding import make_mesh
from clip_jax.evaluation.metrics.classification import metric_score
from clip_jax.losses import contrastive_loss, streamed_sigmoid_loss
from clip_jax.models.transformer import attention
from clip_jax.models.vision_transformer import choose_patches


@pytest.mark.parametrize("text_shape", [(6, 7), (5, 8), (5, 7, 1)])
def test_features_of_another_shape_are_refused(text_shape):
    with pytest.raises(TypeCheckError, match="text_features"):
        contrastive_loss(jnp.ones((5, 7)), jnp.ones(text_shape), jnp.zeros(()))


def test_features_of_another_dtype_are_refused():
    with pytest.raises(TypeCheckError, match="image_features"):
        contrastive_loss(jnp.ones((5, 7), int), jnp.ones((5, 7)), jnp.zeros(()))


def test_a_wrong_shape_is_refused_while_a_program_is_traced():
    loss = lambda *args: streamed_sigmoid_loss(*args, mesh=make_mesh(), block_size=3)  # noqa: E731
    features = jax.ShapeDtypeStruct((8, 7), jnp.float32)
    scalar, vector = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((), (1,)))
    jax.eval_shape(loss, features, features, scalar, scalar)
    with pytest.raises(TypeCheckError, match="logit_bias"):
        jax.eval_shape(loss, features, features, scalar, vector)


def test_a_result_of_another_shape_is_refused(monkeypatch):
    keys = jax.random.split(jax.random.key(0), 3)
    assert choose_patches(keys, 11, 5).shape == (3, 5)
    monkeypatch.setattr(jnp, "argsort", lambda noise, axis: noise.argsort(axis).T)
    with pytest.raises(TypeCheckError, match="return value"):
        choose_patches(keys, 11, 5)


def test_segments_are_one_to_a_position():
    x = jnp.ones((2, 5, 3, 7))
    with pytest.raises(TypeCheckError, match="segments"):
        attention(x, x, x, causal=True, segments=jnp.zeros((2, 4), int))


def test_users_are_not_checked():
    code = "import sys; from clip_jax import load; print('beartype' in sys.modules, 'jaxtyping' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output == "False True\n"


def test_a_measure_refuses_scores_of_another_number_of_images():
    with pytest.raises(TypeCheckError, match="scores"):
        metric_score("accuracy", np.zeros(5, int), np.ones((4, 3)))
