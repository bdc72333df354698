"""Scores of prompts by models that predict captions, against images and prompts taken one by one."""

import dataclasses
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from clip_jax.distributed.sharding import ShardingConfig, make_mesh
from clip_jax.evaluation.in_training import make_encoder
from clip_jax.evaluation.metrics.zero_shot import class_scores
from clip_jax.inference.caption_scorer import CaptionScorer, word_shares
from clip_jax.inference.encoder import Encoder
from clip_jax.models import ModelConfig, TextConfig, VisionConfig
from clip_jax.models.variables import init_variables, model_graph

SOT, EOT, L, V = 29, 30, 9, 31
CLIP = ModelConfig(
    embed_dim=14,
    vision=VisionConfig(width=12, depth=1, num_heads=2, mlp_dim=22, image_size=10, patch_size=5),
    text=TextConfig(width=20, depth=1, num_heads=4, mlp_dim=26, context_length=L, vocab_size=V, eot_token=EOT),
)
# Two templates, "{}" and "1 2 {}"; names of one to three words, one of them a word of the template.
NAMES = ([5], [6, 7], [6, 7, 8], [2], [9, 9])
TEMPLATES = ([], [1, 2])


def rows_of(texts):
    rows = np.zeros((len(texts), L), np.int32)
    for row, words in zip(rows, texts):
        row[: len(words) + 2] = [SOT, *words, EOT]
    return rows


PROMPTS = np.stack([rows_of([[*template, *name] for template in TEMPLATES]) for name in NAMES])  # [M, T, L]


@cache
def variables(kind):
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: init_variables(dataclasses.replace(CLIP, head=kind), jax.random.key(0)))
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: np.float32(rng.normal(size=leaf.shape) * 0.4 + (path[-1].key == "scale")), shapes
    )


def make_scorer(kind, batch_size=4, num_devices=2):
    mesh = make_mesh(ShardingConfig(), jax.devices()[:num_devices])
    scorer = make_encoder(dataclasses.replace(CLIP, head=kind), mesh, batch_size)
    assert isinstance(scorer, CaptionScorer)
    scorer.variables = variables(kind)
    return scorer


def some_images(count):
    return np.random.default_rng(1).integers(0, 256, (count, 10, 10, 3), np.uint8)


def words_by_hand(name, template):
    """The different words of a prompt without those in all prompts of its template, unless nothing is left."""
    bags = [{*template, *other} for other in NAMES]
    own = {*template, *name}
    return own - set.intersection(*bags) or own


def test_words_that_all_prompts_of_a_template_share_do_not_count():
    shares = word_shares(PROMPTS, EOT, V)
    expected = np.zeros((len(NAMES), V))
    for row, name in zip(expected, NAMES):
        for template in TEMPLATES:
            for word in words_by_hand(name, template):
                row[word] += 1 / len(words_by_hand(name, template)) / len(TEMPLATES)
    np.testing.assert_allclose(shares, expected, rtol=1e-6)
    assert words_by_hand([5], [1, 2]) == {5}
    assert words_by_hand([2], [1, 2]) == {1, 2}


@pytest.mark.parametrize("kind", ["bag_of_words", "language_model"])
def test_scores_are_those_of_one_image_and_one_prompt_at_a_time(kind):
    scorer = make_scorer(kind)
    features = scorer.images(some_images(7))  # of which the last batch is padded
    model = nnx.merge(model_graph(dataclasses.replace(CLIP, head=kind)), variables(kind))
    np.testing.assert_allclose(features, model.encode_image(jnp.asarray(some_images(7))), rtol=0, atol=1e-5)

    @jax.jit
    def log_p_of(feature, text):
        return jax.nn.log_softmax(model.caption_logits(feature[None], text[None])[0])

    expected = np.zeros((7, len(NAMES)))
    for n, feature in enumerate(features):
        for m, name in enumerate(NAMES):
            for t, template in enumerate(TEMPLATES):
                log_p = np.asarray(log_p_of(feature, PROMPTS[m, t]))
                if kind == "bag_of_words":
                    score = np.mean([log_p[word] for word in words_by_hand(name, template)])
                else:
                    score = sum(log_p[i, token] for i, token in enumerate([*template, *name, EOT]))
                expected[n, m] += score / len(TEMPLATES)
    other = make_scorer(kind, 8, 4)
    np.testing.assert_allclose(other.score(other.images(some_images(7)), PROMPTS), expected, rtol=0, atol=3e-5)
    scores = scorer.score(features, PROMPTS)
    assert (scores.shape, scores.dtype) == ((7, 5), np.float32)
    np.testing.assert_allclose(scores, expected, rtol=0, atol=3e-5)  # of up to 60; measured 1e-5
    assert np.abs(scores[0] - scores[1]).max() > 0.1  # the image decides


def test_a_class_of_several_names_has_their_mean():
    def score(prompts):
        np.testing.assert_array_equal(prompts, np.arange(18).reshape(3, 2, 3))
        return np.array([[1.0, 2.0, 6.0], [3.0, 0.0, 1.0]])

    def tokenize(texts):
        assert texts == ["an ant", "ant", "an bee", "bee", "an wasp", "wasp"]
        return np.arange(18).reshape(6, 3)

    scores = class_scores(score, tokenize, ["ant", ("bee", "wasp")], ["an {}", "{}"])
    np.testing.assert_array_equal(scores, [[1, 4], [3, 0.5]])


def test_clip_keeps_its_encoder():
    assert type(make_encoder(CLIP, make_mesh(ShardingConfig(), jax.devices()[:1]), 4)) is Encoder
