"""A batch in parts has the loss and every gradient of the whole, whatever the loss is."""

import dataclasses
import functools
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict

from clip_jax.accumulation import join_rows, loss_and_gradient, split_rows
from clip_jax.losses import contrastive_loss, normalize
from clip_jax.models import ModelConfig, ResNetConfig, TextConfig, VisionConfig
from clip_jax.optimizer import OptimizerConfig, make_optimizer
from clip_jax.sharding import ShardingConfig, make_mesh, place_batch
from clip_jax.train_state import (
    TrainState,
    init_variables,
    join_variables,
    model_graph,
    split_variables,
    state_shardings,
    variable_shardings,
)
from clip_jax.train_step import encode, loss_fn, make_train_step

N = 48  # pairs: 3 microbatches of 2 on each of 8 devices
DEVICES = (2, 2, 2)
VIT = ModelConfig(
    embed_dim=14,
    vision=VisionConfig(width=8, depth=1, num_heads=2, mlp_dim=22, image_size=15, patch_size=5, patch_dropout=0.5),
    text=TextConfig(width=12, depth=1, num_heads=2, mlp_dim=26, context_length=7, vocab_size=31, eot_token=30),
    compute_dtype="float64",
    param_dtype="float64",
)
RESNET = dataclasses.replace(
    VIT,
    vision=ResNetConfig(image_size=32, stages=(1, 1, 1, 1), stem_width=2, num_heads=4, batch_norm="global"),
)


def mesh_of(shape):
    data, fsdp, tensor = shape
    return make_mesh(ShardingConfig(data=data, fsdp=fsdp, tensor=tensor), jax.devices()[: data * fsdp * tensor])


def some_rows(config, seed=0):
    rng = np.random.default_rng(seed)
    text = rng.integers(1, 30, size=(N, 7)).astype(np.int32)
    text[np.arange(N), rng.integers(3, 7, size=N)] = 30
    size = config.vision.image_size
    images = rng.integers(256, size=(N, size, size, 3), dtype=np.uint8)
    return {"image": images, "text": text, "key": rng.integers(2**32, size=(N, 2), dtype=np.uint32)}


def some_variables(config):
    """Parameters and statistics off their trivial start."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if leaf.dtype == np.int32:
            return np.zeros(leaf.shape, np.int32)
        start = path[-1].key in ("scale", "var")
        return (rng.uniform(-0.3, 0.3, size=leaf.shape) + start).astype(leaf.dtype)

    shapes = jax.eval_shape(lambda: init_variables(config, jax.random.key(0)))
    return {**jax.tree_util.tree_map_with_path(draw, shapes), "logit_scale": np.log(np.float64(5))}


def sharded(config, num_microbatches, shape):
    """((loss, (metrics, statistics)), gradient) as the train step has them."""
    mesh, graph = mesh_of(shape), model_graph(config)
    variables = some_variables(config)
    params, batch_stats = split_variables(jax.device_put(variables, variable_shardings(variables, mesh)))
    with jax.set_mesh(mesh):
        gradient = partial(loss_and_gradient, partial(encode, graph, {}), partial(loss_fn, mesh=mesh))
        gradient = jax.jit(partial(gradient, num_microbatches=num_microbatches))
        return jax.device_get(gradient(params, batch_stats, place_batch(some_rows(config), mesh)))


def assert_close(tree, expected, tolerance):
    """Each leaf's largest error against its largest value."""
    tree, expected = flatten_dict(tree, sep="/"), flatten_dict(expected, sep="/")
    assert tree.keys() == expected.keys()
    errors = {name: np.abs(tree[name] - leaf).max() / np.abs(leaf).max() for name, leaf in expected.items()}
    assert not {name: error for name, error in errors.items() if not error < tolerance}


@functools.cache
def reference(config, num_groups):
    """The definition, on one device without the code under test: each of the groups i, i + M, i + 2 M, ... of rows is
    encoded by itself, one dense loss over all of them, plain differentiation."""
    graph, (params, batch_stats) = model_graph(config), split_variables(some_variables(config))
    rows = some_rows(config)

    def loss(params):
        model = nnx.merge(graph, join_variables(params, batch_stats))
        groups = [{name: x[i::num_groups] for name, x in rows.items()} for i in range(num_groups)]
        features = [model(g["image"], g["text"], train=True, keys=g["key"]) for g in groups]
        images, texts = (normalize(jnp.concatenate(side)) for side in list(zip(*features))[:2])
        value, _ = contrastive_loss(images, texts, features[0].logit_scale)
        return value, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

    return jax.device_get(jax.jit(jax.value_and_grad(loss, has_aux=True))(params))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("num_microbatches", "shape"), [(3, DEVICES), (2, (8, 1, 1)), (48, (1, 1, 1))])
def test_every_gradient_is_that_of_the_whole_batch(num_microbatches, shape):
    (value, _), grads = sharded(VIT, num_microbatches, shape)
    (expected, _), expected_grads = reference(VIT, 1)
    np.testing.assert_allclose(value, expected, rtol=1e-14)
    assert grads["logit_scale"] != 0
    assert_close(grads, expected_grads, 1e-11)  # measured: 2e-14 at most


@pytest.mark.usefixtures("x64")
def test_batch_norms_see_one_microbatch_at_a_time_and_the_first_pass_alone_moves_them():
    (value, (_, moved)), grads = sharded(RESNET, 3, DEVICES)
    (expected, expected_moved), expected_grads = reference(RESNET, 3)
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    assert_close(grads, expected_grads, 1e-9)
    assert_close(moved, expected_moved, 1e-12)  # three moves in the order of the microbatches
    assert moved["visual"]["stem_1"]["norm"]["count"] == 3
    (whole, _), _ = reference(RESNET, 1)
    assert abs(whole - expected) > 1e-3  # the whole batch's statistics are others


@pytest.mark.usefixtures("x64")
def test_statistics_per_device_are_those_of_a_devices_part_of_a_microbatch():
    per_device = dataclasses.replace(RESNET, vision=dataclasses.replace(RESNET.vision, batch_norm="per_device"))
    (value, (_, moved)), grads = sharded(per_device, 3, (1, 1, 1))  # a device alone holds all of a microbatch
    expected, expected_grads = reference(RESNET, 3)
    np.testing.assert_allclose(value, expected[0], rtol=1e-12)
    assert_close(grads, expected_grads, 1e-9)
    assert_close(moved, expected[1], 1e-12)


def test_any_loss_and_any_features():
    """A loss that mixes all rows and reads parameters by itself, over features of two shapes."""
    rng = np.random.default_rng(0)
    params = {"weight": rng.normal(size=(5, 3)).astype(np.float32), "power": np.float32(0.7)}
    rows = {"a": rng.normal(size=(12, 5)).astype(np.float32), "b": np.arange(12, dtype=np.float32)}

    def encode(params, seen, rows):
        features = jnp.tanh(rows["a"] @ params["weight"])
        return {"wide": features, "narrow": features.sum(1) * rows["b"]}, seen + rows["b"][0]

    def loss(params, features):
        value = jnp.sum(jnp.outer(features["narrow"], jnp.arange(12)) @ features["wide"]) * params["power"] ** 2
        return value + jnp.sum(params["weight"]), {"first": features["narrow"][1]}

    def of(num_microbatches):
        return loss_and_gradient(encode, loss, params, jnp.zeros(()), rows, num_microbatches)

    (value, (metrics, seen)), grads = of(4)
    (expected, (expected_metrics, _)), expected_grads = of(1)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert metrics == expected_metrics
    assert_close(grads, expected_grads, 1e-6)
    assert seen == 0 + 1 + 2 + 3


def test_gradients_are_summed_in_float32_and_come_back_in_the_parameters_dtype():
    rows = jnp.concatenate([jnp.full(1, 256.0), jnp.ones(63)])  # in bfloat16, 256 + 1 is 256

    def encode(w, _, rows):
        return w * rows.astype(w.dtype), None

    def loss(w, features):
        return features.astype(jnp.float32).sum() + 0 * w.astype(jnp.float32), None

    _, grad = loss_and_gradient(encode, loss, jnp.ones((), jnp.bfloat16), None, rows, 64)
    assert grad.dtype == jnp.bfloat16
    assert float(grad) == 320  # 319, rounded once


def test_microbatches_are_every_mth_row_and_come_back_in_order():
    rows = np.arange(24).reshape(12, 2)
    parts = np.asarray(split_rows(rows, 3))
    np.testing.assert_array_equal(parts[1], rows[1::3])
    np.testing.assert_array_equal(join_rows(parts), rows)


def collectives(compiled):
    return re.findall(
        r"= \S+ (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)\(", compiled.as_text()
    )


@pytest.mark.parametrize("shape", [(8, 1, 1), DEVICES])
def test_no_row_moves_to_another_device(shape):
    mesh = mesh_of(shape)
    with jax.set_mesh(mesh):
        rows = place_batch({"image": some_rows(VIT)["image"]}, mesh)["image"]
        parts = jax.jit(partial(split_rows, num_microbatches=3)).lower(rows).compile()
        back = jax.jit(lambda rows: join_rows(split_rows(rows, 3) + 1)).lower(rows).compile()
        assert collectives(parts) == collectives(back) == []
        assert parts(rows).sharding.spec[1] == ("data", "fsdp")
        # The detector finds what contiguous microbatches would cost.
        contiguous = jax.jit(lambda rows: rows.reshape(3, -1, 15, 15, 3), out_shardings=parts(rows).sharding)
        assert collectives(contiguous.lower(rows).compile())


def make_state(config, optimizer):
    params, batch_stats = split_variables(some_variables(config))
    rng = np.array([3, 5], np.uint32)
    return TrainState(
        step=np.int32(0), params=params, batch_stats=batch_stats, opt_state=optimizer.init(params), rng=rng
    )


def make_step(config, num_microbatches, shape):
    """The whole train step, and a state it starts from."""
    optimizer = make_optimizer(
        OptimizerConfig(
            learning_rate=1e-2, weight_decay=0.2, b1=0.9, b2=0.98, eps=1e-6, warmup_steps=1, max_logit_scale=100.0
        ),
        lambda step: 1e-2,
    )
    state = make_state(config, optimizer)
    shardings = state_shardings(state, optimizer, mesh_of(shape))
    step = make_train_step(
        model_graph(config), optimizer, lambda step: 1e-2, 100.0, shardings, num_microbatches=num_microbatches
    )
    return step, jax.device_put(state, shardings)


@pytest.mark.usefixtures("x64")
def test_steps_in_parts_are_steps_of_the_whole_dropped_patches_included():
    mesh = mesh_of(DEVICES)

    def train(num_microbatches):
        step, state = make_step(VIT, num_microbatches, DEVICES)
        for seed in range(2):
            rows = some_rows(VIT, seed)
            with jax.set_mesh(mesh):
                batch = place_batch({"image": rows["image"], "text": rows["text"]}, mesh)
                state, metrics = step(state, batch)
        assert step._cache_size() == 1
        return jax.device_get((state, metrics))

    (state, metrics), (expected, expected_metrics) = train(3), train(1)
    assert metrics.keys() == expected_metrics.keys()
    for name, value in expected_metrics.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-10, err_msg=name)
    assert_close(state.params, expected.params, 1e-8)  # Adam divides small gradients by their size
    np.testing.assert_array_equal(state.rng, expected.rng)


def test_memory_is_that_of_one_microbatch():
    """Temporaries of the compiled step on one device; a quarter of the batch at a time."""
    tower = {"width": 32, "depth": 4, "num_heads": 4, "mlp_dim": 128}
    config = ModelConfig(
        embed_dim=16,
        vision=VisionConfig(image_size=32, patch_size=4, **tower),
        text=TextConfig(context_length=32, vocab_size=50, eot_token=49, **tower),
    )
    mesh = mesh_of((1, 1, 1))
    batch = {"image": np.zeros((64, 32, 32, 3), np.uint8), "text": np.full((64, 32), 49, np.int32)}

    def temporaries(num_microbatches):
        step, state = make_step(config, num_microbatches, (1, 1, 1))
        with jax.set_mesh(mesh):
            return step.lower(state, place_batch(batch, mesh)).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(4) < 0.35 * temporaries(1)
