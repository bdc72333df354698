"""The loss that a config selects."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.distributed.sharding import ShardingConfig, make_mesh
from clip_jax.losses import LossConfig, contrastive_loss, make_loss, normalize, sigmoid_loss
from clip_jax.losses.config import chance_loss

N, E = 24, 13
PARAMS = {"logit_scale": np.float64(1.7), "logit_bias": np.float64(-2.3), "text": np.float64(0)}


def some_features():
    rng = np.random.default_rng(0)
    return 3 * rng.normal(size=(N, E)), rng.normal(size=(N, E))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("block_size", [0, 2, 7])
@pytest.mark.parametrize(("kind", "dense"), [("contrastive", contrastive_loss), ("sigmoid", sigmoid_loss)])
def test_each_choice_equals_its_definition_in_loss_metrics_and_gradients(kind, dense, block_size):
    mesh = make_mesh(ShardingConfig(data=2, fsdp=2), jax.devices()[:4])
    scalars = ["logit_scale", "logit_bias"] if kind == "sigmoid" else ["logit_scale"]

    def definition(params, features):
        return dense(*map(normalize, features), *(params[name] for name in scalars))

    chosen = make_loss(LossConfig(kind=kind, block_size=block_size), mesh)
    params, features = jax.tree.map(jnp.asarray, (PARAMS, some_features()))
    (value, metrics), grads = jax.jit(jax.value_and_grad(chosen, argnums=(0, 1), has_aux=True))(params, features)
    (expected, accuracies), expected_grads = jax.value_and_grad(definition, argnums=(0, 1), has_aux=True)(
        params, features
    )
    np.testing.assert_allclose(value, expected, rtol=1e-13)
    assert metrics.pop("chance_loss") == chance_loss(kind, N)
    assert {name: pytest.approx(float(x)) for name, x in accuracies.items()} == metrics
    jax.tree.map(lambda own, theirs: np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-13), grads, expected_grads)
    assert all(grads[0][name] != 0 for name in scalars)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("kind", "dense"), [("contrastive", contrastive_loss), ("sigmoid", sigmoid_loss)])
@pytest.mark.parametrize("N", [1, 7])
def test_chance_is_the_least_loss_of_a_single_answer(kind, dense, N):
    same = jnp.tile(jnp.eye(1, E, dtype=jnp.float64), (N, 1))
    biases = jnp.array([50.0]) if N == 1 else jnp.linspace(-4, 0, 4001)

    @jax.jit
    @jax.vmap
    def loss_at(bias):
        return dense(same, same, jnp.float64(0), *([bias] if kind == "sigmoid" else []))[0]

    losses = loss_at(biases).tolist()
    assert math.isclose(min(losses), chance_loss(kind, N), rel_tol=1e-6, abs_tol=1e-12)


def test_a_block_size_below_zero_is_refused():
    with pytest.raises(ValueError, match=r"loss.block_size=-1 must be at least 0"):
        LossConfig(block_size=-1)
