"""The towers that newer models have; tests/pretrained compares their features with other implementations."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from clip_jax.distributed.sharding import param_specs
from clip_jax.models import ModelConfig, TextConfig, VisionConfig
from clip_jax.models.transformer import rotary_angles, rotate
from clip_jax.models.variables import init_variables, model_graph

VIT = VisionConfig(width=24, depth=2, num_heads=3, mlp_dim=19, image_size=15, patch_size=5)
TEXT = TextConfig(width=22, depth=2, num_heads=2, mlp_dim=29, context_length=6, vocab_size=31, eot_token=30)
TOWERS = {
    "mean_then_norm": dataclasses.replace(VIT, pooling="mean_then_norm"),
    "perception": dataclasses.replace(VIT, pooling="perception", pool_heads=2, pool_mlp_dim=23),
    "perception without a class token": dataclasses.replace(VIT, pooling="perception", has_class_token=False),
    "coca": dataclasses.replace(VIT, pooling="coca", pool_heads=2),
}


def make(vision, text=TEXT, **options):
    config = ModelConfig(embed_dim=10, vision=vision, text=text, **options)
    return config, model_graph(config), jax.jit(init_variables, static_argnums=0)(config, jax.random.key(0))


@pytest.mark.parametrize("tower", [pytest.param(x, marks=[pytest.mark.nightly] * ("without" in x)) for x in TOWERS])
def test_each_image_is_encoded_by_itself_and_differentiated(tower):
    config, graph, variables = make(TOWERS[tower])
    images = np.random.default_rng(0).integers(0, 256, (3, 15, 15, 3), np.uint8)
    encode = jax.jit(lambda variables, images: nnx.merge(graph, variables).encode_image(images))
    together = encode(variables, images)
    np.testing.assert_allclose(together[1:2], encode(variables, images[1:2]), rtol=0, atol=1e-5)
    assert not np.allclose(together[0], together[1], atol=1e-3)
    gradient = jax.grad(lambda variables: encode(variables, images).sum())(variables)
    for name, leaf in [*nnx.traversals.flatten_mapping(gradient["visual"]).items()]:
        assert np.isfinite(leaf).all(), name
        assert np.abs(leaf).max() > 0 or "bias" in name, name
    assert len(jax.tree.leaves(param_specs(variables))) == len(jax.tree.leaves(variables))  # a rule for each
    weights = nnx.merge(graph, variables)
    if config.vision.pooling != "mean_then_norm":
        assert (np.asarray(weights.attention_map(images)).sum((1, 2)) <= 1 + 1e-5).all()


def test_rotary_positions_are_relative():
    """The product of a query and a key depends on how far apart they are, along either axis."""
    grid, head_dim = 5, 8
    rng = np.random.default_rng(0)
    query, key = rng.normal(size=(2, head_dim))
    rows = np.broadcast_to(query, (1, 1 + grid**2, 1, head_dim)), np.broadcast_to(key, (1, 1 + grid**2, 1, head_dim))
    angles = rotary_angles(grid, head_dim)
    turned = [np.asarray(rotate(jnp.asarray(x, jnp.float32), angles))[0, :, 0] for x in rows]
    np.testing.assert_array_equal(turned[0][0], query.astype(np.float32))  # the class token is not turned
    products = (turned[0][1:] @ turned[1][1:].T).reshape(grid, grid, grid, grid)
    np.testing.assert_allclose(products[0, 0, 2, 3], products[1, 1, 3, 4], rtol=0, atol=1e-5)
    np.testing.assert_allclose(products[4, 3, 1, 2], products[3, 1, 0, 0], rtol=0, atol=1e-5)
    assert abs(products[0, 0, 2, 3] - products[0, 0, 3, 2]) > 1e-2


def test_rotary_positions_scale_to_the_grid_of_training():
    np.testing.assert_allclose(rotary_angles(4, 8, trained_grid=2)[5], rotary_angles(2, 8)[0], rtol=1e-12)


def test_turning_is_a_product_of_complex_numbers():
    rng = np.random.default_rng(1)
    x, angles = rng.normal(size=(2, 4, 3, 8)).astype(np.float32), rotary_angles(2, 8)
    expected = (x[..., ::2] + 1j * x[..., 1::2]) * np.exp(1j * angles)[:, None, :]
    turned = np.asarray(rotate(jnp.asarray(x), angles))
    np.testing.assert_allclose(turned[..., ::2] + 1j * turned[..., 1::2], expected, rtol=0, atol=1e-5)


def test_cocas_class_token_does_not_see_padding_but_for_one_position():
    """The mask is one position late, as in the weights."""
    text = dataclasses.replace(TEXT, pooling="class_token")
    _, graph, variables = make(VIT, text)
    row = np.array([[29, 5, 30, 0, 0, 0]], np.int32)
    noise = np.random.default_rng(0).normal(size=(2, TEXT.width))  # a constant is lost in the layer norms

    def features(**changes):
        parts = {name: variables["text"][name].at[rows].add(noise[: len(rows)]) for name, rows in changes.items()}
        return nnx.merge(graph, {**variables, "text": variables["text"] | parts}).encode_text(row)

    before = features()
    assert not np.allclose(before, features(positional_embedding=np.array([3])), atol=1e-3)
    np.testing.assert_allclose(before, features(positional_embedding=np.array([4, 5])), rtol=0, atol=1e-5)


def test_each_tower_has_its_activation():
    def features(**options):
        _, graph, variables = make(VIT, **options)
        model = nnx.merge(graph, variables)
        images = np.full((1, 15, 15, 3), 200, np.uint8)
        return np.asarray(model.encode_image(images)), np.asarray(model.encode_text(np.array([[29, 4, 30]], np.int32)))

    quick, exact = features(activation="quick_gelu"), features(activation="gelu")
    mixed = features(activation="quick_gelu", text_activation="gelu")
    np.testing.assert_array_equal(mixed[0], quick[0])
    np.testing.assert_array_equal(mixed[1], exact[1])
    assert not np.array_equal(quick[1], exact[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"has_class_token": False}, "vision.has_class_token=False needs vision.pooling='perception' or 'attention'"),
        ({"pool_heads": 2}, "vision.pool_heads=2 and pool_mlp_dim=0 are for a learned query"),
        ({"pooling": "perception", "pool_heads": 5}, "vision.pool_heads=5 does not divide vision.width=24"),
        ({"pooling": "perception", "num_heads": 4}, "over vision.num_heads=4 must be a multiple of 4"),
        (
            {"pooling": "perception", "patch_dropout": 0.5},
            "vision.patch_dropout is not for vision.pooling='perception'",
        ),
        ({"pooling": "coca", "pool_heads": 3}, "vision.pool_heads=3 does not divide model.embed_dim=10"),
    ],
)
def test_what_does_not_fit_together_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(embed_dim=10, vision=dataclasses.replace(VIT, **changes), text=TEXT)
