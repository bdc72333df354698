"""Packed captions against the same captions one a row: features, gradients, and what devices tell each other."""

import dataclasses
import re
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict

from clip_jax.distributed.sharding import ShardingConfig, make_mesh, place_batch
from clip_jax.models import CLIP, ModelConfig, PackedText, TextConfig, VisionConfig
from clip_jax.models.variables import init_variables, model_graph
from clip_jax.training.state import variable_shardings
from input_pipeline.packing import pack_text

END, L, N = 60, 13, 48
TINY = ModelConfig(
    embed_dim=14,
    vision=VisionConfig(width=12, depth=1, num_heads=2, mlp_dim=20, image_size=5, patch_size=5),
    text=TextConfig(width=24, depth=2, num_heads=4, mlp_dim=44, context_length=L, vocab_size=61, eot_token=END),
    compute_dtype="float64",
    param_dtype="float64",
)
COTANGENT = np.random.default_rng(1).normal(size=(N, TINY.embed_dim))
LENGTHS = {
    "random": np.random.default_rng(0).integers(3, L + 1, N),
    "full rows": np.full(N, L),
    "two that fill a row": np.tile([L - 4, 4], N // 2),
    "shortest": np.full(N, 2),
}
pytestmark = pytest.mark.usefixtures("x64")


def some_text(lengths, seed=0):
    rng = np.random.default_rng(seed)
    text = np.zeros((len(lengths), L), np.int32)
    for row, length in zip(text, lengths):
        row[:length] = [1, *rng.integers(2, END, length - 2), END]
    return text


def pack(text, **options) -> PackedText:
    return PackedText(**pack_text(text, END, **options))


@pytest.fixture(scope="module")
def params():
    """Values off their trivial start; drawn by NumPy because JAX compiles for seconds to draw them."""
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        shapes = jax.eval_shape(lambda: init_variables(TINY, jax.random.key(0)))
    draw = lambda path, leaf: rng.normal(size=leaf.shape) * 0.2 + (path[-1].key == "scale")  # noqa: E731
    return jax.tree_util.tree_map_with_path(draw, shapes)


@cache
def features_and_gradients(config=TINY):
    """(variables, text, cotangent [N, E]) -> features [N, E] and the gradient of every text parameter."""
    graph = model_graph(config)

    def score(variables, text, cotangent):
        features = nnx.merge(graph, variables).encode_text(text)
        return jnp.sum(features * cotangent), features

    @jax.jit
    def run(variables, text, cotangent):
        grads, features = jax.grad(score, has_aux=True)(variables, text, cotangent)
        return features, {name: grads[name] for name in ("text", "text_projection")}

    return run


def run(params, text, config=TINY, cotangent=COTANGENT):
    return jax.device_get(features_and_gradients(config)(params, text, cotangent))


def assert_same(result, expected, rtol=1e-12):
    """Each array's largest error against its largest value; measured 1e-15."""
    result, expected = (
        {"features": features, **flatten_dict(grads, sep="/")} for features, grads in (result, expected)
    )
    assert result.keys() == expected.keys()
    assert len(expected) == 18
    for name, array in expected.items():
        assert np.abs(array).max() > 1e-6, name
        error = np.abs(result[name] - array).max() / np.abs(array).max()
        assert error < rtol, f"{name} {error}"


@pytest.fixture(scope="module")
def unpacked(params):
    """Features and gradients of each text of LENGTHS, one caption a row, on one device."""
    with jax.enable_x64(True):
        return {name: run(params, some_text(lengths)) for name, lengths in LENGTHS.items()}


@pytest.mark.parametrize("name", LENGTHS)
def test_features_and_every_gradient_are_those_of_captions_alone(params, unpacked, name):
    packed = pack(some_text(LENGTHS[name]))
    rows_expected = {"full rows": N, "two that fill a row": N // 2, "shortest": N // (L // 2)}
    assert packed.tokens.shape[1] == rows_expected.get(name, packed.tokens.shape[1]) <= N
    assert_same(run(params, packed), unpacked[name])


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 4, 1), (2, 2, 2)])
@pytest.mark.parametrize("is_packed", [True, False])
def test_on_eight_devices_which_exchange_parameters_and_their_gradients_alone(params, unpacked, is_packed, shape):
    mesh = make_mesh(ShardingConfig(**dict(zip(("data", "fsdp", "tensor"), shape))))
    text = some_text(LENGTHS["random"])
    text = pack(text, num_groups=8, row_length=31) if is_packed else text
    shardings = variable_shardings(params, mesh)
    with jax.set_mesh(mesh):
        batch = place_batch({"text": text, "cotangent": COTANGENT}, mesh)
        args = jax.device_put(params, shardings), batch["text"], batch["cotangent"]
        compiled = features_and_gradients().lower(*args).compile()
        features, grads = compiled(*args)
    assert_same(jax.device_get((features, grads)), unpacked["random"])
    assert features.sharding.shard_shape(features.shape)[0] == N // mesh.shape["data"] // mesh.shape["fsdp"]
    if mesh.shape["tensor"] > 1:  # which adds up activations between devices, packed or not
        return
    collective = r"= (.*?) (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
    found = re.findall(collective, compiled.as_text())
    assert {kind for _, kind in found} == {"all-reduce", "all-gather"} - ({"all-gather"} if shape[1] == 1 else set())
    known = {shape for leaf in jax.tree.leaves(params) for shape in (leaf.shape, leaf.shape[1:])}  # a layer's, too
    known = {tuple(sorted(shape)) for shape in known}  # gradients may come transposed
    moved = {shape for shapes, _ in found for shape in re.findall(r"\w+\[([\d,]*)\]", shapes)}
    assert {tuple(sorted(map(int, shape.split(",")))) for shape in moved} <= known


@pytest.mark.parametrize("options", [{"num_groups": 4}, {"row_length": 31}, {"rows": 40}])
def test_in_groups_in_longer_rows_and_with_rows_to_spare(params, unpacked, options):
    assert_same(run(params, pack(some_text(LENGTHS["random"]), **options)), unpacked["random"])


def test_rematerialised(params, unpacked):
    config = dataclasses.replace(TINY, remat="full")
    assert_same(run(params, pack(some_text(LENGTHS["random"])), config), unpacked["random"])


def test_nothing_leaks_from_one_caption_to_another(params):
    lengths = LENGTHS["random"]
    text = some_text(lengths)
    before, _ = run(params, pack(text))
    for changed in (0, 7, N - 1):
        other = text.copy()
        other[changed, : lengths[changed]] = some_text(lengths, seed=2)[changed, : lengths[changed]]
        after, _ = run(params, pack(other))
        is_same = np.all(before == after, axis=1)
        np.testing.assert_array_equal(is_same, np.arange(N) != changed)


def test_what_lies_in_empty_places_does_not_matter(params):
    packed = pack(some_text(LENGTHS["random"]), rows=40)
    empty = packed.segments == 0
    assert empty.sum() > 100
    dirty = dataclasses.replace(
        packed, tokens=np.where(empty, END, packed.tokens), positions=np.where(empty, L - 1, packed.positions)
    )
    assert_same(run(params, dirty), run(params, packed))


def test_a_tower_that_sees_its_padding_does_not_pack():
    text = pack(some_text(LENGTHS["shortest"]))
    for changes in ({"causal": False}, {"pooling": "last"}):
        config = dataclasses.replace(TINY, text=dataclasses.replace(TINY.text, **changes))
        with pytest.raises(ValueError, match="packed text needs a causal tower that is read at the end token"):
            nnx.eval_shape(lambda config=config: CLIP(config, nnx.Rngs(0)).encode_text(text))
