"""Patch dropout against the same tower on a smaller picture, made of the patches that are kept."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from clip_jax.models import ModelConfig, TextConfig, VisionConfig
from clip_jax.models.vision_transformer import VisionTransformer, choose_patches

TEXT = TextConfig(width=12, depth=1, num_heads=3, mlp_dim=19, context_length=7, vocab_size=31, eot_token=30)
VISION = VisionConfig(width=18, depth=2, num_heads=3, mlp_dim=23, image_size=20, patch_size=5, patch_dropout=0.75)
B = 3


def model_config(**changes):
    return ModelConfig(embed_dim=18, vision=dataclasses.replace(VISION, **changes), text=TEXT)


def tower(config, params=None):
    """A tower and its parameters, random ones off their trivial start where none are given."""
    graph, state = nnx.split(nnx.eval_shape(lambda: VisionTransformer(config, nnx.Rngs(0))))
    rng = np.random.default_rng(0)
    shapes = nnx.to_pure_dict(state)
    drawn = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32) * 0.3, shapes)
    return jax.jit(lambda p, *args: nnx.merge(graph, p)(*args), static_argnums=2), params or drawn


def some_images():
    return np.random.default_rng(1).normal(size=(B, 20, 20, 3)).astype(np.float32)


def some_keys(count=B, seed=3):
    return jax.random.split(jax.random.key(seed), count)


@pytest.mark.parametrize("pooling", ["class_token", "mean", "attention"])
def test_the_features_are_those_of_the_kept_patches_at_their_positions(pooling):
    config = model_config(pooling=pooling)
    encode, params = tower(config)
    features = encode(params, some_images(), True, some_keys())
    small, _ = tower(model_config(pooling=pooling, image_size=10, patch_dropout=0.0))
    kept = np.asarray(choose_patches(some_keys(), 16, 4))
    prefix = 0 if pooling == "attention" else 1
    for image, choice, feature in zip(some_images(), kept, features):
        patches = [image[5 * (i // 4) : 5 * (i // 4) + 5, 5 * (i % 4) : 5 * (i % 4) + 5] for i in choice]
        picture = np.block([[[patches[0]], [patches[1]]], [[patches[2]], [patches[3]]]])
        table = params["positional_embedding"]
        positions = np.concatenate([table[:prefix], table[prefix:][choice]])
        expected = small({**params, "positional_embedding": positions}, picture[None], False, None)[0]
        np.testing.assert_allclose(feature, expected, rtol=1e-5, atol=1e-5)


def test_every_image_has_its_own_choice_and_every_patch_the_same_chance():
    kept = np.asarray(choose_patches(some_keys(4000), 9, 4))
    assert kept.shape == (4000, 4)
    assert all(len(set(row)) == 4 for row in kept.tolist())
    shares = np.bincount(kept.ravel(), minlength=9) / 4000
    np.testing.assert_allclose(shares, 4 / 9, atol=0.04)  # five standard deviations
    assert len({tuple(sorted(row)) for row in kept.tolist()}) == 126  # all choices of 4 of 9
    np.testing.assert_array_equal(choose_patches(some_keys(4000)[17:19], 9, 4), kept[17:19])  # whatever the batch


def test_evaluation_sees_all_patches():
    config = model_config()
    encode, params = tower(config)
    plain, _ = tower(model_config(patch_dropout=0.0))
    features = encode(params, some_images(), False, None)
    np.testing.assert_array_equal(features, plain(params, some_images(), False, None))
    np.testing.assert_array_equal(features, plain(params, some_images(), True, None))
    assert np.abs(features - encode(params, some_images(), True, some_keys())).max() > 0.01


def test_training_without_keys_is_refused():
    encode, params = tower(model_config())
    with pytest.raises(ValueError, match=r"training with vision\.patch_dropout needs a random key for each image"):
        encode(params, some_images(), True, None)


def test_gradients_of_positions_are_summed_in_float32():
    """Each kept patch adds to its position's gradient: in bfloat16 the hundredth addend would be lost."""
    config = dataclasses.replace(model_config(depth=1), compute_dtype="bfloat16")
    encode, params = tower(config)
    images = np.repeat(some_images()[:1], 512, axis=0)
    keys = jax.random.wrap_key_data(jnp.tile(jax.random.key_data(some_keys(1)), (512, 1)))  # all keep the same

    def gradient(count):
        def total(positions):
            features = encode({**params, "positional_embedding": positions}, images[:count], True, keys[:count])
            return features.astype(jnp.float32).sum()

        return jax.jit(jax.grad(total))(params["positional_embedding"])

    one, many = gradient(1), gradient(512)
    largest = np.abs(one).max()
    assert largest > 0.1
    np.testing.assert_allclose(many[1:] / 512, one[1:], atol=0.01 * largest)


@pytest.mark.parametrize(("share", "kept"), [(0.0, 16), (0.5, 8), (0.75, 4), (0.9, 2)])
def test_the_number_of_kept_patches_is_static(share, kept):
    assert dataclasses.replace(VISION, patch_dropout=share).num_kept_patches == kept


@pytest.mark.parametrize("share", [-0.1, 1.0, 0.97])
def test_a_share_that_leaves_nothing_is_refused(share):
    rule = "leave at least one of the 16 patches of an image" if share == 0.97 else r"lie in \[0, 1\)"
    message = rf"vision.patch_dropout={share} must {rule}$"
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(VISION, patch_dropout=share)
