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

from clip_jax.config.experiment import OptimizerConfig
from clip_jax.distributed.sharding import ShardingConfig, make_mesh, place_batch
from clip_jax.losses import LossConfig, contrastive_loss, make_loss, normalize
from clip_jax.models import ModelConfig, TextConfig, VisionConfig
from clip_jax.models.batch_norm import BatchNorm
from clip_jax.models.variables import init_variables, join_variables, model_graph, split_variables
from clip_jax.training.optimizer import make_optimizer
from clip_jax.training.state import TrainState, state_shardings, variable_shardings
from clip_jax.training.step import encode, join_rows, loss_and_gradient, make_train_step, split_rows

N = 48  # pairs: 3 microbatches of 2 on each of 8 devices
DEVICES = (2, 2, 2)
VIT = ModelConfig(
    embed_dim=14,
    vision=VisionConfig(width=8, depth=1, num_heads=2, mlp_dim=22, image_size=15, patch_size=5, patch_dropout=0.5),
    text=TextConfig(width=12, depth=1, num_heads=2, mlp_dim=26, context_length=7, vocab_size=31, eot_token=30),
    compute_dtype="float64",
    param_dtype="float64",
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


def collectives(compiled):
    """Kind and type of each."""
    kinds = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
    return [(kind, shape) for shape, kind in re.findall(rf"= (.*?) ({kinds})(?:-start)?\(", compiled.as_text())]


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
    """((loss, (metrics, statistics)), gradient) as the train step has them, and the collectives they take."""
    mesh, graph = mesh_of(shape), model_graph(config)
    variables = some_variables(config)
    params, batch_stats = split_variables(jax.device_put(variables, variable_shardings(variables, mesh)))
    with jax.set_mesh(mesh):
        gradient = partial(loss_and_gradient, partial(encode, graph, {}), make_loss(LossConfig(), mesh))
        gradient = jax.jit(partial(gradient, num_microbatches=num_microbatches))
        rows = place_batch(some_rows(config), mesh)
        compiled = gradient.lower(params, batch_stats, rows).compile()
        return jax.device_get(compiled(params, batch_stats, rows)), collectives(compiled)


def assert_close(tree, expected, tolerance, excluded=()):
    """Each leaf's largest error against its largest value."""
    tree, expected = flatten_dict(tree, sep="/"), flatten_dict(expected, sep="/")
    assert tree.keys() == expected.keys()
    leaves = {name: leaf for name, leaf in expected.items() if name not in excluded}
    errors = {name: np.abs(tree[name] - leaf).max() / np.abs(leaf).max() for name, leaf in leaves.items()}
    assert not {name: error for name, error in errors.items() if not error < tolerance}


@functools.cache
def whole_batch(config):
    """The definition, without the code under test: one device, all rows at once, the dense loss."""
    graph, (params, batch_stats) = model_graph(config), split_variables(some_variables(config))
    rows = some_rows(config)

    def loss(params):
        model = nnx.merge(graph, join_variables(params, batch_stats))
        images = normalize(model.encode_image(rows["image"], train=True, keys=rows["key"]))
        return contrastive_loss(images, normalize(model.encode_text(rows["text"])), params["logit_scale"])[0]

    return jax.device_get(jax.jit(jax.value_and_grad(loss))(params))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("num_microbatches", "shape"),
    [
        (3, DEVICES),
        pytest.param(2, (8, 1, 1), marks=pytest.mark.nightly),
        pytest.param(48, (1, 1, 1), marks=pytest.mark.nightly),
    ],
)
def test_every_gradient_is_that_of_the_whole_batch(num_microbatches, shape):
    ((value, _), grads), moved = sharded(VIT, num_microbatches, shape)
    expected, expected_grads = whole_batch(VIT)
    np.testing.assert_allclose(value, expected, rtol=1e-14)
    assert grads["logit_scale"] != 0
    assert_close(grads, expected_grads, 1e-11)  # measured: 2e-14 at most
    if shape == (8, 1, 1):  # the loss gathers one side's features and scatters their gradient, and that is all
        gathered = [kind_and_type for kind_and_type in moved if kind_and_type[0] != "all-reduce"]
        assert [kind for kind, _ in gathered] == ["all-gather", "reduce-scatter"], gathered
        assert gathered[0][1].startswith("f64[48,14]")


class Normed(nnx.Module):
    """A convolution's worth of channels, a batch norm, a mean: the least that has running statistics."""

    def __init__(self, statistics):
        self.conv = nnx.Conv(3, 5, (2, 2), param_dtype=jnp.float64, rngs=nnx.Rngs(0))
        self.norm = BatchNorm(5, VIT, statistics)

    def __call__(self, images):
        return jnp.sin(self.norm(self.conv(images), train=True)).mean((1, 2))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("statistics", "num_groups"), [("global", 1), ("per_device", 8)])
def test_batch_norms_see_a_microbatch_at_a_time_and_the_first_pass_alone_moves_them(statistics, num_groups):
    rng = np.random.default_rng(1)
    images, texts = rng.normal(size=(N, 4, 3, 3)), rng.normal(size=(N, 5))
    graph, *states = nnx.split(Normed(statistics), nnx.Param, nnx.BatchStat)
    params, batch_stats = map(nnx.to_pure_dict, states)

    def encode(params, batch_stats, rows):
        model = nnx.merge(graph, join_variables(params, batch_stats))
        return model(rows), nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

    def loss(_, features):
        return contrastive_loss(normalize(features), normalize(texts), jnp.log(7.0))

    mesh = mesh_of((8, 1, 1))
    with jax.set_mesh(mesh):
        gradient = jax.jit(partial(loss_and_gradient, encode, loss, num_microbatches=3))
        (value, (_, moved)), grads = gradient(params, batch_stats, place_batch({"rows": images}, mesh)["rows"])

    def by_hand(params):
        """The rows of each microbatch, and within it of each group, normalised by their own statistics."""
        features, mean = jnp.zeros((N, 5)), batch_stats["norm"]["mean"]
        for m in range(3):
            group_means = []
            for rows in np.split(np.arange(m, N, 3), num_groups):
                x = nnx.merge(graph, join_variables(params, batch_stats)).conv(images[rows])
                group_means.append(x.mean((0, 1, 2)))
                x = (x - x.mean((0, 1, 2))) / jnp.sqrt(x.var((0, 1, 2)) + 1e-5)
                x = x * params["norm"]["scale"] + params["norm"]["bias"]
                features = features.at[rows].set(jnp.sin(x).mean((1, 2)))
            mean = 0.9 * mean + 0.1 * jnp.mean(jnp.stack(group_means), axis=0)
        return loss(params, features)[0], mean

    (expected, mean), expected_grads = jax.value_and_grad(by_hand, has_aux=True)(params)
    np.testing.assert_allclose(value, expected, rtol=1e-13)
    # Nothing goes through the convolution's bias, which the norm takes away again.
    assert_close(grads, expected_grads, 1e-10, excluded=("conv/bias",))
    np.testing.assert_allclose(moved["norm"]["mean"], mean, rtol=0, atol=1e-14)
    assert moved["norm"]["count"] == 3


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
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["first"], expected_metrics["first"], rtol=1e-6)
    assert_close(grads, expected_grads, 1e-5)
    assert seen == 0 + 1 + 2 + 3


def test_gradients_are_summed_in_float32_and_have_the_parameters_dtype():
    rows = jnp.concatenate([jnp.full(1, 256.0), jnp.ones(63)])  # in bfloat16, 256 + 1 is 256

    def encode(w, _, rows):
        return w * rows.astype(w.dtype), None

    def loss(w, features):
        return features.astype(jnp.float32).sum() + 0 * w.astype(jnp.float32), None

    _, grad = loss_and_gradient(encode, loss, jnp.ones((), jnp.bfloat16), None, rows, 64)
    assert grad.dtype == jnp.bfloat16
    assert float(grad) == 320  # 319, rounded once


def test_microbatches_are_every_mth_row_and_are_joined_in_order():
    rows = np.arange(24).reshape(12, 2)
    parts = np.asarray(split_rows(rows, 3))
    np.testing.assert_array_equal(parts[1], rows[1::3])
    np.testing.assert_array_equal(join_rows(parts), rows)


@pytest.mark.parametrize("shape", [pytest.param((8, 1, 1), marks=pytest.mark.nightly), DEVICES])
def test_no_row_moves_to_another_device(shape):
    mesh = mesh_of(shape)
    with jax.set_mesh(mesh):
        rows = place_batch({"image": some_rows(VIT)["image"]}, mesh)["image"]
        parts = jax.jit(partial(split_rows, num_microbatches=3)).lower(rows).compile()
        back = jax.jit(lambda rows: join_rows(split_rows(rows, 3) + 1)).lower(rows).compile()
        assert collectives(parts) == collectives(back) == []
        assert parts(rows).sharding.shard_shape((3, N // 3, 15, 15, 3))[:2] == (
            3,
            N // 3 // mesh.shape["data"] // mesh.shape["fsdp"],
        )
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
def test_steps_in_microbatches_equal_those_of_the_whole_batch_with_dropped_patches():
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


@pytest.mark.nightly
def test_memory_is_that_of_one_microbatch():
    """Temporaries of the compiled step on one device; a quarter of the batch at a time."""
    tower = {"width": 32, "depth": 3, "num_heads": 2, "mlp_dim": 128}
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


def test_other_patches_are_dropped_at_another_step():
    config = dataclasses.replace(VIT, compute_dtype="float32", param_dtype="float32")
    step, start = make_step(config, 1, (1, 1, 1))
    start, shardings = jax.device_get(start), jax.tree.map(lambda leaf: leaf.sharding, start)
    mesh, rows = mesh_of((1, 1, 1)), some_rows(config)

    def loss(**changes):
        state = jax.device_put(dataclasses.replace(start, **changes), shardings)
        with jax.set_mesh(mesh):
            return float(step(state, place_batch({"image": rows["image"], "text": rows["text"]}, mesh))[1]["loss"])

    assert loss() == loss()  # nothing but the state decides
    assert len({loss(), loss(step=np.int32(1)), loss(step=np.int32(2)), loss(rng=np.array([3, 6], np.uint32))}) == 4
