"""Models that predict captions: what they read and what they do not, whole rows against token after token."""

import dataclasses
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict

from clip_jax.models import ModelConfig, TextConfig, VisionConfig
from clip_jax.models.variables import init_variables, model_graph

EOT = 30
CLIP = ModelConfig(
    embed_dim=14,
    vision=VisionConfig(width=12, depth=1, num_heads=2, mlp_dim=22, image_size=10, patch_size=5),
    text=TextConfig(width=20, depth=2, num_heads=4, mlp_dim=26, context_length=7, vocab_size=31, eot_token=EOT),
)
BAG, LANGUAGE = (dataclasses.replace(CLIP, head=head) for head in ("bag_of_words", "language_model"))


@cache
def model(config):
    """With parameters off their trivial start, in float32."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: init_variables(config, jax.random.key(0)))
    draw = jax.tree_util.tree_map_with_path(
        lambda path, leaf: np.float32(rng.normal(size=leaf.shape) * 0.4 + (path[-1].key == "scale")), shapes
    )
    return nnx.merge(model_graph(config), draw)


@partial(jax.jit, static_argnums=0)
def logits_of(config, features, text):
    return model(config).caption_logits(features, text)


def some_text(count=3):
    rng = np.random.default_rng(1)
    text = rng.integers(1, 30, size=(count, 7)).astype(np.int32)
    text[np.arange(count), 2 + np.arange(count) % 5] = EOT
    return text


def some_features(count=3):
    return jnp.asarray(np.random.default_rng(2).normal(size=(count, 14)), jnp.float32)


def test_a_sequence_is_predicted_as_token_after_token():
    """Teacher forcing gives at each place what a model gives that has read so far and no further."""
    text, features = some_text(), some_features()
    logits = logits_of(LANGUAGE, features, text)
    assert logits.shape == (3, 6, 31)
    for length in (2, 5):
        prefix = logits_of(LANGUAGE, features, text[:, : length + 1])
        np.testing.assert_allclose(
            prefix[:, -1], logits[:, length - 1], rtol=0, atol=1e-5
        )  # of up to 12; measured 2e-6


def test_a_place_reads_the_image_and_all_before_it_but_not_the_start_token():
    text, features = some_text(), some_features()
    logits = logits_of(LANGUAGE, features, text)
    for place in range(7):
        other = text.copy()
        other[:, place] = text[:, place] % 29 + 1
        moved = np.abs(logits_of(LANGUAGE, features, other) - logits).max(axis=(0, 2)) > 1e-3
        # logits [:, i] are of the token at i + 1.
        np.testing.assert_array_equal(moved, np.arange(6) >= (place or 6))
    moved = np.abs(logits_of(LANGUAGE, features[::-1], text) - logits).max(axis=(0, 2))
    assert moved[0] > 0.1
    assert (moved > 1e-2).all()


def test_the_bag_is_a_linear_layer_of_the_image_features():
    text, features = some_text(), np.asarray(some_features())
    layer = model(BAG).word_logits
    expected = features.astype(np.float64) @ np.asarray(layer.kernel[...]) + np.asarray(layer.bias[...])
    logits = logits_of(BAG, jnp.asarray(features), text)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-6)  # of up to 6; measured 5e-7
    np.testing.assert_array_equal(logits, logits_of(BAG, jnp.asarray(features), text[::-1]))


@pytest.mark.parametrize("config", [BAG, LANGUAGE])
def test_the_image_encoder_is_clips_and_the_rest_is_what_predicts(config):
    params, clip = (
        {name: leaf.shape for name, leaf in flatten_dict(shapes, sep="/").items()}
        for shapes in (jax.eval_shape(lambda c=c: init_variables(c, jax.random.key(0))) for c in (config, CLIP))
    )
    head = {name: shape for name, shape in params.items() if not name.startswith("visual")}
    assert params.keys() - head.keys() == {name for name in clip if name.startswith("visual")}
    assert all(params[name] == shape for name, shape in clip.items() if name in params)
    if config is BAG:
        assert head == {"word_logits/kernel": (14, 31), "word_logits/bias": (31,)}
    else:
        text = {name for name in clip if name.startswith("text/")}
        assert head.keys() == text | {"prefix_projection/kernel", "prefix_projection/bias"}


def test_one_seed_starts_all_from_the_same_image_tower():
    def embedding(config):
        start = jax.jit(lambda key: init_variables(config, key)["visual"]["positional_embedding"])
        return start(jax.random.key(5))

    clip, *others = map(embedding, (CLIP, BAG, LANGUAGE))
    for other in others:
        np.testing.assert_array_equal(clip, other)


@pytest.mark.parametrize("config", [BAG, LANGUAGE])
def test_logits_of_a_bfloat16_model_are_sums_in_float32(config):
    narrow = nnx.merge(
        model_graph(dataclasses.replace(config, compute_dtype="bfloat16")), nnx.to_pure_dict(nnx.state(model(config)))
    )
    features = jnp.asarray(some_features(), jnp.bfloat16)
    logits = narrow.caption_logits(features, jnp.asarray(some_text()))
    assert logits.dtype == jnp.float32
    expected = logits_of(config, features.astype(jnp.float32), some_text())
    # Of up to 12; the language model's activations are bfloat16, measured 0.37. Rounded logits would hold 8 bits alone.
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-6 if config is BAG else 0.5)
    assert (logits.astype(jnp.bfloat16) != logits).mean() > 0.9


def test_a_language_model_needs_a_causal_tower():
    text = dataclasses.replace(CLIP.text, causal=False)
    with pytest.raises(ValueError, match=r"text.causal=False with text.pooling='eot': a language model needs a causal"):
        dataclasses.replace(LANGUAGE, text=text)
