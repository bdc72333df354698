import json

import numpy as np
import pytest

from clip_jax.evaluation.metrics.classification import classify, confusion
from clip_jax.evaluation.metrics.zero_shot import class_embeddings, zero_shot_metrics
from clip_jax.evaluation.prompts import load_templates, template_names

NAMES = ("cat", "dog", "emu")


def identity_tokens(texts):
    """Tokens that are positions in a table of texts, for encoders that look their answer up."""
    identity_tokens.table = list(texts)
    return np.arange(len(texts), dtype=np.int32)[:, None]


def encoder_of(vectors):
    return lambda tokens: np.array([vectors[identity_tokens.table[t]] for t in tokens[:, 0]], np.float32)


def test_every_template_meets_every_class_name():
    seen = []

    def tokenize(texts):
        seen.extend(texts)
        return np.zeros((len(texts), 7), np.int32)

    class_embeddings(lambda tokens: np.ones((len(tokens), 5), np.float32), tokenize, NAMES, ("{}", "the {}."))
    assert seen == ["cat", "the cat.", "dog", "the dog.", "emu", "the emu."]


def test_embeddings_are_normalised_averaged_and_normalised_again():
    vectors = {"cat": (30, 0), "the cat": (0, 2), "dog": (0, 5), "the dog": (3, -4)}
    found = class_embeddings(encoder_of(vectors), identity_tokens, ("cat", "dog"), ("{}", "the {}"))
    # dog: the mean of (0, 1) and (0.6, -0.8) is (0.3, 0.1). Unnormalised, cat would lean to (30, 2).
    expected = [[2**-0.5, 2**-0.5], [0.3 / 0.1**0.5, 0.1 / 0.1**0.5]]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_class_names_with_braces_are_taken_literally():
    vectors = {"a {} {0}": (0, 1), "a dog": (1, 0)}
    found = class_embeddings(encoder_of(vectors), identity_tokens, ("{} {0}", "dog"), ("a {}",))
    np.testing.assert_array_equal(found, [[0, 1], [1, 0]])


@pytest.mark.parametrize(
    ("names", "templates", "message"),
    [
        (("cat",), ("{}",), r"at least two class names, got \['cat'\]"),
        (("cat", "dog", "cat"), ("{}",), "class names appear more than once: 'cat'"),
        (NAMES, (), "no prompt template given"),
        (NAMES, ("{}", "a photo"), r"template 'a photo' needs exactly one \{\}"),
        (NAMES, ("{} and {}",), r"template '\{\} and \{\}' needs exactly one \{\}"),
    ],
)
def test_bad_names_and_templates_are_refused_before_encoding(names, templates, message):
    def encode(tokens):
        raise AssertionError("encoded all the same")

    with pytest.raises(ValueError, match=message):
        class_embeddings(encode, identity_tokens, names, templates)


def rigged(labels, scores):
    """Image embeddings and class embeddings (the identity) whose products are the scores."""
    return np.array(scores, np.float32), np.array(labels), np.eye(len(scores[0]), dtype=np.float32)


def test_metrics_of_a_rigged_model():
    images, labels, classes = rigged([0, 0, 0, 1], [[3, 2, 1], [1, 2, 3], [9, 1, 0], [5, 6, 4]])
    metrics = zero_shot_metrics(images, labels, classes, NAMES)
    assert metrics == {
        "top1": 3 / 4,
        "mean_per_class": pytest.approx((2 / 3 + 1) / 2),
        "per_class": {"cat": pytest.approx(2 / 3), "dog": 1.0, "emu": None},
        "chance": 1 / 3,
        "count": 4,
    }
    json.dumps(metrics, allow_nan=False)
    np.testing.assert_array_equal(confusion(classify(images, labels, classes)), [[2, 0, 1], [0, 1, 0], [0, 0, 0]])


def test_top5_needs_more_than_five_classes_and_counts_ranks_below_five():
    scores = np.arange(7, dtype=np.float32)[None].repeat(7, 0)  # class 6 best; class c has rank 6 - c
    names = tuple("abcdefg")
    metrics = zero_shot_metrics(scores, np.arange(7), np.eye(7, dtype=np.float32), names)
    assert (metrics["top1"], metrics["top5"]) == (1 / 7, 5 / 7)
    five = zero_shot_metrics(scores[:5, :5], np.arange(5), np.eye(5, dtype=np.float32), names[:5])
    assert "top5" not in five


def test_metrics_agree_with_argsort_where_nothing_ties():
    rng = np.random.default_rng(5)
    images, classes = rng.normal(size=(101, 13)), rng.normal(size=(11, 13))
    labels = rng.integers(11, size=101)
    order = np.argsort(-(images.astype(np.float32) @ classes.astype(np.float32).T), axis=1)
    metrics = zero_shot_metrics(images, labels, classes, [str(c) for c in range(11)])
    assert metrics["top1"] == pytest.approx(np.mean(order[:, 0] == labels))
    assert metrics["top5"] == pytest.approx(np.mean([label in row[:5] for label, row in zip(labels, order)]))
    matrix = confusion(classify(images, labels, classes))
    assert np.trace(matrix) / 101 == pytest.approx(metrics["top1"])
    np.testing.assert_array_equal(matrix.sum(axis=0), np.bincount(order[:, 0], minlength=11))


@pytest.mark.parametrize("score", [0.0, 1.0, np.nan])
def test_a_collapsed_model_gets_nothing(score):
    images, classes = np.full((7, 1), score), np.ones((7, 1))
    metrics = zero_shot_metrics(images, np.arange(7), classes, tuple("abcdefg"))
    assert (metrics["top1"], metrics["top5"]) == (0, 0)
    assert np.trace(confusion(classify(images, np.arange(7), classes))) == 0


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        ([0, 3], NAMES, r"label 3 of example 1 is outside 0\.\.2"),
        ([-1, 0], NAMES, "label -1 of example 0 is outside"),
        ([0, 1, 2], NAMES, r"labels have shape \(3,\) for 2 examples"),
        ([0.0, 1.0], NAMES, "labels must be integers, got float64"),
        ([0, 1], NAMES[:2], "2 class names for the scores of 3 classes"),
    ],
)
def test_bad_labels_are_refused(labels, names, message):
    with pytest.raises(ValueError, match=message):
        zero_shot_metrics(np.ones((2, 5)), np.array(labels), np.ones((3, 5)), names)


@pytest.mark.usefixtures("shapes_unchecked")
def test_embeddings_of_different_sizes_are_refused():
    with pytest.raises(ValueError, match=r"image embeddings \(2, 5\) and class embeddings \(3, 7\) differ in size"):
        zero_shot_metrics(np.ones((2, 5)), np.arange(2), np.ones((3, 7)), NAMES)


def test_an_empty_evaluation_set_is_refused():
    with pytest.raises(ValueError, match="the evaluation set is empty"):
        zero_shot_metrics(np.ones((0, 5)), np.zeros(0, int), np.ones((3, 5)), NAMES)


def test_template_sets():
    counts = {"bare": 1, "cifar10": 18, "imagenet7": 7, "imagenet80": 80, "one": 1, "scenes": 5}
    assert {name: len(load_templates(name)) for name in template_names()} == counts
    assert load_templates("bare") == ("{}",)
    assert load_templates("one") == ("a photo of a {}.",)
    assert set(load_templates("imagenet7")) <= set(load_templates("imagenet80"))
    for name in template_names():
        templates = load_templates(name)
        assert all(template.count("{}") == 1 for template in templates)
        assert len(set(templates)) == len(templates)


def test_an_unknown_template_set_names_the_known_ones():
    with pytest.raises(ValueError, match=r"named 'imagenet': choose one of bare, cifar10, imagenet7, imagenet80, one"):
        load_templates("imagenet")


def test_a_class_of_several_names_is_the_mean_of_all_their_prompts():
    vectors = {"cat": (1, 0), "a cat": (0, 1), "kitty": (0, 1), "a kitty": (0, 1), "dog": (1, 0), "a dog": (1, 0)}
    found = class_embeddings(encoder_of(vectors), identity_tokens, (("cat", "kitty"), "dog"), ("{}", "a {}"))
    np.testing.assert_allclose(found, [[0.1**0.5, 0.9**0.5], [1, 0]], rtol=1e-6)
    with pytest.raises(ValueError, match="class names appear more than once: 'dog'"):
        class_embeddings(encoder_of(vectors), identity_tokens, (("cat", "dog"), "dog"), ("{}",))
    with pytest.raises(ValueError, match="class 1 has no name"):
        class_embeddings(encoder_of(vectors), identity_tokens, ("cat", ()), ("{}",))
