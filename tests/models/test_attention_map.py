"""The maps are what the towers compute with: each output is had again from the weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from clip_jax.distributed.sharding import ShardingConfig, make_mesh
from clip_jax.inference.api import Model
from clip_jax.models import ModelConfig, ResNetConfig, TextConfig, VisionConfig
from clip_jax.models.variables import init_variables, model_graph

TEXT = TextConfig(width=16, depth=1, num_heads=2, mlp_dim=32, context_length=5, vocab_size=9, eot_token=8)
VIT = VisionConfig(width=16, depth=3, num_heads=2, mlp_dim=32, image_size=12, patch_size=4)
SIGLIP = dataclasses.replace(VIT, pooling="attention")
RESNET = ResNetConfig(image_size=64, stages=(1, 1, 1, 1), stem_width=2, num_heads=2)


def mixed(weights, values, rest=0.0):
    """What heads take with weights [B, H, P] of values [B, P, H, K], and with what is left of 1 of rest [B, H, K]."""
    return jnp.einsum("bhp,bphk->bhk", weights, values) + (1 - weights.sum(-1))[..., None] * rest


def class_token(visual, images, weights):
    x = visual._embed(images, train=False)
    graph, stacked = nnx.split(visual.transformer.blocks)
    *before, last = (nnx.merge(graph, jax.tree.map(lambda leaf, i=i: leaf[i], stacked)) for i in range(VIT.depth))
    for block in before:
        x = block(x)
    values = last.attn.qkv(last.ln_1(x))[:, :, 2]  # [B, P + 1, H, K]
    token = x[:, 0] + last.attn.out(mixed(weights, values[:, 1:], values[:, 0]))
    return visual.ln_post(token + last.mlp(last.ln_2(token)))


def attention_head(visual, images, weights):
    head, x = visual.attention_head, visual.ln_post(visual.transformer(visual._embed(images, train=False)))
    pooled = head.out(mixed(weights, head.value(x)))
    return pooled + head.mlp(head.ln(pooled))


def attention_pool(visual, images, weights):
    pool = visual.attention_pool
    values = pool.value(pool._embed(visual._grid(images, train=False)))
    return pool.out(mixed(weights, values[:, 1:], values[:, 0]))


def make(vision):
    config = ModelConfig(embed_dim=vision.width if vision is SIGLIP else 6, vision=vision, text=TEXT)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: init_variables(config, jax.random.key(0)))
    variables = jax.tree.map(lambda leaf: np.abs(rng.normal(size=leaf.shape, scale=0.3)).astype(leaf.dtype), shapes)
    images = rng.integers(0, 256, (2, vision.image_size, vision.image_size, 3), np.uint8)
    return config, variables, images


@pytest.mark.parametrize(
    ("vision", "again", "grid"),
    [(VIT, class_token, 3), (SIGLIP, attention_head, 3), (RESNET, attention_pool, 2)],
    ids=["class token", "attention head", "attention pool"],
)
def test_the_map_is_what_the_feature_takes(vision, again, grid):
    config, variables, images = make(vision)

    @jax.jit
    def compare(variables, images):
        model = nnx.merge(model_graph(config), variables)
        pixels = model._normalized(images)
        weights = model.visual.pooling_weights(pixels)
        feature = again(model.visual, pixels, weights)
        return feature, model.pool_image(images), weights, model.attention_map(images)

    feature, expected, weights, maps = map(np.asarray, compare(variables, images))
    np.testing.assert_allclose(feature, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    np.testing.assert_allclose(maps, weights.mean(1).reshape(2, grid, grid), atol=1e-6)
    assert np.ptp(weights) > 0.01


def test_the_loaded_model_has_it_too():
    config, variables, images = make(VIT)
    model = Model(config, variables, make_mesh(ShardingConfig(), jax.devices()[:1]), batch_size=4)
    assert model.attention_map(images).shape == (2, 3, 3)
    with pytest.raises(ValueError, match=r"expected \[N, 12, 12, 3\]"):
        model.attention_map(images[:, :8])


def test_a_mean_has_no_map():
    config, variables, images = make(dataclasses.replace(VIT, pooling="mean"))
    with pytest.raises(ValueError, match=r"vision.pooling='mean' weighs all patches equally"):
        jax.eval_shape(nnx.merge(model_graph(config), variables).attention_map, images)
