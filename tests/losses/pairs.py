"""Helpers of the loss tests: pairs of features, meshes, comparisons, compiled programs."""

import re
from collections import Counter
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from clip_jax.distributed.sharding import ShardingConfig, batch_sharding, make_mesh
from clip_jax.losses import normalize

MESHES = [(1, 1, 1), (2, 1, 1), (4, 1, 1), (2, 2, 1), (8, 1, 1), (4, 2, 1), (2, 2, 2), (1, 4, 2)]


@lru_cache
def mesh(shape):
    data, fsdp, tensor = shape
    return make_mesh(ShardingConfig(data=data, fsdp=fsdp, tensor=tensor), jax.devices()[: data * fsdp * tensor])


def with_gradients(loss, num_scalars=1):
    return jax.jit(jax.value_and_grad(loss, argnums=range(2 + num_scalars), has_aux=True))


def some_features(N, E=13, dtype=np.float32, seed=0):
    """Pairs that match better than chance but not always, normalised."""
    image, text = np.random.default_rng(seed).normal(size=(2, N, E))
    return normalize(jnp.asarray(image, dtype)), normalize(jnp.asarray(text + 0.5 * image, dtype))


def assert_same(results, expected, tolerance):
    (loss, metrics), grads = results
    (expected_loss, expected_metrics), expected_grads = expected
    np.testing.assert_allclose(loss, expected_loss, rtol=tolerance, atol=tolerance)
    assert metrics.keys() == expected_metrics.keys() == {"image_to_text_accuracy", "text_to_image_accuracy"}
    for name in metrics:
        np.testing.assert_allclose(metrics[name], expected_metrics[name], rtol=1e-6, err_msg=name)
    for name, grad, expected_grad in zip(("image", "text", "logit_scale", "logit_bias"), grads, expected_grads):
        np.testing.assert_allclose(grad, expected_grad, rtol=tolerance, atol=tolerance, err_msg=name)


def compiled(loss, N, E, num_scalars=1):
    """Value and gradient of a loss of float32 features, compiled for the eight devices of its mesh."""
    mesh = loss.keywords["mesh"]
    features = jax.ShapeDtypeStruct((N, E), jnp.float32, sharding=batch_sharding(mesh))
    scalar = jax.ShapeDtypeStruct((), jnp.float32, sharding=NamedSharding(mesh, P()))
    return with_gradients(loss, num_scalars).lower(features, features, *[scalar] * num_scalars).compile()


def all_reduced(text):
    """Number of arrays of each type that the all-reduces of a compiled program reduce, combined or not."""
    results = re.findall(r" = (\(?[^=]*?) all-reduce(?:-start)?\(", text)
    return Counter(array for result in results for array in re.findall(r"\w+\[[\d,]*\]", result))
