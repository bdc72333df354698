"""What a state holds besides parameters: frozen towers, a moving average, running statistics; and what a step does."""

import dataclasses
from contextlib import closing
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict

from clip_jax.config.experiment import OptimizerConfig
from clip_jax.distributed.sharding import ShardingConfig, make_mesh, place_batch
from clip_jax.losses import LossConfig, make_loss
from clip_jax.models import ModelConfig, ResNetConfig, TextConfig, VisionConfig
from clip_jax.models.variables import init_variables, join_variables, model_graph, split_variables, tower_variables
from clip_jax.planning.flops import count_flops
from clip_jax.training.checkpoint import Checkpointer
from clip_jax.training.optimizer import make_optimizer
from clip_jax.training.state import TrainState, abstract_state, init_state, moved_average, with_variables
from clip_jax.training.step import encode, loss_and_gradient, make_train_step

N = 16
TEXT = TextConfig(width=12, depth=1, num_heads=2, mlp_dim=26, context_length=7, vocab_size=31, eot_token=30)
VIT = ModelConfig(
    embed_dim=14, vision=VisionConfig(width=8, depth=1, num_heads=2, mlp_dim=22, image_size=15, patch_size=5), text=TEXT
)
RESNET = dataclasses.replace(VIT, vision=ResNetConfig(image_size=32, stages=(1, 2, 1, 1), stem_width=2, num_heads=4))
OPTIMIZER = OptimizerConfig(
    learning_rate=1e-2,
    weight_decay=0.2,
    b1=0.9,
    b2=0.98,
    eps=1e-6,
    warmup_steps=1,
    max_logit_scale=100.0,
    first_moment_dtype="bfloat16",
    ema_decay=0.3,
    frozen=("visual",),
)


def schedule(step):
    return 1e-2


def mesh_of(data, fsdp, tensor):
    return make_mesh(ShardingConfig(data=data, fsdp=fsdp, tensor=tensor), jax.devices()[: data * fsdp * tensor])


def some_batch(size, seed=0):
    rng = np.random.default_rng(seed)
    text = rng.integers(1, 30, size=(N, 7)).astype(np.int32)
    text[:, 6] = 30
    return {"image": rng.integers(256, size=(N, size, size, 3), dtype=np.uint8), "text": text}


def some_variables(config, seed=0):
    """Parameters and statistics off their trivial start."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        start = path[-1].key in ("scale", "var")
        return (rng.uniform(-0.3, 0.3, size=leaf.shape) + start).astype(leaf.dtype)

    shapes = jax.eval_shape(lambda: init_variables(config, jax.random.key(0)))
    return {**jax.tree_util.tree_map_with_path(draw, shapes), "logit_scale": np.float32(np.log(5))}


def assert_equal(tree, expected):
    assert jax.tree.structure(tree) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, tree, expected)


def test_a_frozen_tower_has_no_moments_and_is_among_the_variables():
    optimizer = make_optimizer(OPTIMIZER, schedule)
    state = abstract_state(VIT, optimizer, mesh_of(2, 2, 2), frozen=("visual",))
    assert set(state.frozen) == {"visual", "visual_projection"}
    assert set(state.params) == set(state.opt_state[0].mu) == {"text", "text_projection", "logit_scale"}
    assert {leaf.dtype for leaf in jax.tree.leaves(state.opt_state[0].mu)} == {jnp.bfloat16.dtype}
    assert {leaf.dtype for leaf in jax.tree.leaves(state.opt_state[0].nu)} == {jnp.float32.dtype}
    everything = abstract_state(VIT, optimizer, mesh_of(2, 2, 2))
    assert (everything.frozen, everything.ema) == ({}, {})
    assert jax.tree.structure(state.variables) == jax.tree.structure(everything.variables)
    kernel = ("transformer", "blocks", "mlp", "fc_in", "kernel")
    flat, all_flat = flatten_dict(state.frozen["visual"]), flatten_dict(everything.params["visual"])
    assert flat[kernel].sharding == all_flat[kernel].sharding != flat[("class_embedding",)].sharding


def test_the_average_forgets_its_start_sooner_than_later():
    old = {"w": np.float32(100), "count": np.int32(7)}
    average = moved_average(old, {"w": np.float32(0), "count": np.int32(8)}, 0.9, jnp.int32(0))
    np.testing.assert_allclose(average["w"], 10, rtol=1e-6)  # the first step's decay is 1 / 10
    assert int(average["count"]) == 8
    late = moved_average(old, {"w": np.float32(0), "count": np.int32(8)}, 0.9, jnp.int32(10_000))
    np.testing.assert_allclose(late["w"], 90, rtol=1e-6)
    same = moved_average(old, old, 0.999, jnp.int32(3))
    assert float(same["w"]) == 100  # exactly: what does not move does not drift
    assert moved_average({}, old, 0.0, jnp.int32(0)) == {}


def test_the_average_of_bfloat16_parameters_is_float32():
    config = dataclasses.replace(VIT, param_dtype="bfloat16", compute_dtype="bfloat16")
    state = abstract_state(config, make_optimizer(OPTIMIZER, schedule), mesh_of(1, 1, 1), has_ema=True)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.bfloat16.dtype}
    assert {leaf.dtype for leaf in jax.tree.leaves(state.ema)} == {jnp.float32.dtype}


@pytest.fixture(scope="module")
def trained():
    """A ResNet's frozen tower under a step that has everything else as well: each state of three, on the host."""
    mesh, graph, optimizer = mesh_of(2, 2, 2), model_graph(RESNET), make_optimizer(OPTIMIZER, schedule)
    target = abstract_state(RESNET, optimizer, mesh, frozen=("visual",), has_ema=True)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, target)
    state = init_state(RESNET, optimizer, 0, mesh, frozen=("visual",), has_ema=True)
    state = with_variables(state, some_variables(RESNET))
    step = make_train_step(graph, optimizer, schedule, 100.0, shardings, num_microbatches=2, ema_decay=0.3)
    states, metrics = [jax.device_get(state)], []
    with jax.set_mesh(mesh):
        for seed in range(3):
            state, row = step(state, place_batch(some_batch(32, seed), mesh))
            assert jax.tree.map(lambda leaf: leaf.sharding, state) == shardings
            states.append(jax.device_get(state))
            metrics.append(jax.device_get(row))
    assert step._cache_size() == 1
    return states, metrics, target, state


def test_given_variables_fill_every_part_of_the_state(trained):
    (start, *_), _, _, _ = trained
    given = some_variables(RESNET)
    params, batch_stats = split_variables(given)
    assert_equal(join_variables(start.params, start.frozen), params)
    assert_equal(start.batch_stats, batch_stats)
    assert_equal(start.variables, given)


def test_a_frozen_resnet_stays_as_it_is_to_the_bit(trained):
    (start, *_, end), _, _, _ = trained
    assert_equal(end.frozen, start.frozen)
    assert_equal(end.batch_stats, start.batch_stats)
    moved = jax.tree.map(lambda new, old: np.abs(new - old).max() > 1e-3, end.params, start.params)
    assert all(jax.tree.leaves(moved))


@pytest.mark.nightly
def test_the_loss_sees_the_running_statistics_of_a_frozen_resnet(trained):
    (start, *_), (metrics, *_), _, _ = trained
    batch, mesh = some_batch(32), mesh_of(1, 1, 1)
    model = nnx.merge(model_graph(RESNET), start.variables)
    features = model.encode_image(batch["image"]), model.encode_text(batch["text"])
    with jax.set_mesh(mesh):
        loss, _ = make_loss(LossConfig(), mesh)(start.params, features)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)


def test_the_average_follows_the_parameters_and_is_what_is_evaluated(trained):
    states, _, _, _ = trained
    average = jax.tree.map(np.float64, states[0].params)
    for step, state in enumerate(states[1:]):
        decay = min(0.3, (1 + step) / (10 + step))
        average = jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, average, state.params)  # noqa: B023
    params, batch_stats = split_variables(states[-1].ema)
    jax.tree.map(lambda own, a: np.testing.assert_allclose(own, a, rtol=1e-5, atol=1e-6), params, average)
    assert_equal(batch_stats, states[-1].batch_stats)
    assert_equal(states[-1].variables, join_variables(states[-1].ema, states[-1].frozen))
    without = dataclasses.replace(states[-1], ema={})
    assert_equal(split_variables(without.variables)[0], join_variables(states[-1].params, states[-1].frozen))


@pytest.mark.parametrize("shape", [pytest.param((2, 2, 2), marks=pytest.mark.nightly), (4, 1, 2)])
def test_a_state_with_every_part_is_saved_and_restored_to_the_bit(trained, tmp_path, shape):
    *_, state = trained
    target = abstract_state(
        RESNET, make_optimizer(OPTIMIZER, schedule), mesh_of(*shape), frozen=("visual",), has_ema=True
    )
    with closing(Checkpointer(tmp_path)) as checkpointer:
        checkpointer.save(3, state, {"next_index": 5})
        checkpointer.wait()
        restored = checkpointer.restore(target)
    assert restored is not None
    assert isinstance(restored[0], TrainState)
    assert jax.tree.map(lambda leaf: (leaf.dtype, leaf.sharding), restored[0]) == jax.tree.map(
        lambda leaf: (leaf.dtype, leaf.sharding), target
    )
    assert_equal(jax.device_get(restored[0]), jax.device_get(state))


@pytest.mark.parametrize("frozen", ["visual", pytest.param("text", marks=pytest.mark.nightly)])
def test_the_gradient_of_a_frozen_tower_is_not_computed(frozen):
    graph, mesh = model_graph(VIT), mesh_of(1, 1, 1)
    params, _ = split_variables(some_variables(VIT))
    rows = some_batch(15) | {"key": np.zeros((N, 2), np.uint32)}

    def flops(towers):
        still = tower_variables(params, towers)
        learning = {name: value for name, value in params.items() if name not in still}
        gradient = partial(loss_and_gradient, partial(encode, graph, still), make_loss(LossConfig(), mesh))
        with jax.set_mesh(mesh):
            return count_flops(lambda p: gradient(p, {}, rows, 1)[1], learning)

    def forward(model):
        return model.encode_image(rows["image"]) if frozen == "visual" else model.encode_text(rows["text"])

    once = count_flops(lambda: forward(nnx.merge(graph, params)))
    # A backward pass costs twice the forward one, but that pixels need no gradient; and the loss's, one product more.
    pixels = 2 * N * 9 * 75 * 8 if frozen == "visual" else 0
    assert flops(()) - flops((frozen,)) == 2 * once - pixels + 2 * N * N * 14


def test_under_accumulation_a_frozen_tower_is_encoded_once(trained):
    """The second pass, which needs no features, leaves it out."""
    graph, mesh = model_graph(RESNET), mesh_of(1, 1, 1)
    params, batch_stats = split_variables(some_variables(RESNET))
    still = tower_variables(params, ("visual",))
    learning = {name: value for name, value in params.items() if name not in still}
    rows = some_batch(32) | {"key": np.zeros((N, 2), np.uint32)}
    gradient = partial(loss_and_gradient, partial(encode, graph, still), make_loss(LossConfig(), mesh))
    with jax.set_mesh(mesh):
        compiled = jax.jit(partial(gradient, num_microbatches=2)).lower(learning, batch_stats, rows).compile()
        once = jax.jit(lambda *args: encode(graph, still, *args)).lower(learning, batch_stats, rows).compile()
    convolutions = 3 + 5  # of the stem, and 3×3 in each block
    assert compiled.as_text().count(" convolution(") == once.as_text().count(" convolution(") == convolutions
