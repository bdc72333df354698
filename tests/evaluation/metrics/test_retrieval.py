from itertools import combinations

import numpy as np
import pytest
from benchmarks.retrieval import whole_matrix_ranks

from clip_jax.evaluation.metrics.retrieval import _ranks, caption_embeddings, recall_at_k, top_matches


def random_set(seed=0, N=23, M=61, E=17):
    """Random embeddings, uneven numbers of captions, texts in no order."""
    rng = np.random.default_rng(seed)
    image_of_text = rng.permutation(np.concatenate([np.arange(N), rng.integers(N, size=M - N)]))
    images, texts = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in rng.normal(size=(2, M, E)))
    return images[:N].astype(np.float32), texts.astype(np.float32), image_of_text


def recall_only(metrics):
    return {key: value for key, value in metrics.items() if "_r@" in key and not key.endswith("_chance")}


def test_a_rigged_model_of_known_recall():
    # Texts are unit vectors, so an image's embedding is its scores. Image 0 owns texts 0 and 1, and so on.
    image_of_text = np.array([0, 0, 1, 1, 2, 2])
    images = np.array([[1, 6, 5, 4, 3, 2], [6, 5, 4, 3, 2, 1], [6, 5, 4, 3, 2, 1]], np.float32)
    metrics = recall_at_k(images, np.eye(6), image_of_text, ks=(1, 2, 3, 5))
    # Ranks of the images 0, 2, 4. Texts by column: 0 is third, 1 first; 2 and 3 behind image 0, then tied; 4 and 5
    # behind image 0, then tied, so third.
    assert recall_only(metrics) == {
        "image_to_text_r@1": 1 / 3,
        "image_to_text_r@2": 1 / 3,
        "image_to_text_r@3": 2 / 3,
        "image_to_text_r@5": 1,
        "text_to_image_r@1": 1 / 6,
        "text_to_image_r@2": 1 / 6,
        "text_to_image_r@3": 1,
        "text_to_image_r@5": 1,
    }
    assert (metrics["image_to_text_median_rank"], metrics["text_to_image_median_rank"]) == (3, 3)


def test_a_perfect_model():
    image_of_text = np.array([2, 0, 1, 0])
    metrics = recall_at_k(np.eye(3), np.eye(3)[image_of_text], image_of_text, ks=(1,))
    assert recall_only(metrics) == {"image_to_text_r@1": 1, "text_to_image_r@1": 1}


@pytest.mark.parametrize("value", [0.0, 1.0, np.nan])
def test_a_collapsed_model_gets_nothing(value):
    metrics = recall_at_k(np.full((13, 1), value), np.ones((26, 1)), np.repeat(np.arange(13), 2), ks=(1, 5, 10))
    assert set(recall_only(metrics).values()) == {0}
    assert (metrics["image_to_text_median_rank"], metrics["text_to_image_median_rank"]) == (25, 13)


def test_the_same_caption_under_two_images_is_a_tie():
    metrics = recall_at_k(np.eye(2), np.array([[1, 0], [1, 0], [0, 1]]), np.array([0, 1, 1]), ks=(1, 2))
    assert metrics["image_to_text_r@1"] == 1 / 2
    assert metrics["image_to_text_r@2"] == 1
    assert metrics["text_to_image_r@1"] == 2 / 3


def test_a_tie_among_own_captions_costs_nothing():
    metrics = recall_at_k(np.eye(2), np.array([[1, 0], [1, 0], [0, 1]]), np.array([0, 0, 1]), ks=(1,))
    assert metrics["image_to_text_r@1"] == 1


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_recall_agrees_with_a_double_loop_over_argsort(seed):
    images, texts, image_of_text = random_set(seed)
    scores = images @ texts.T
    metrics = recall_at_k(images, texts, image_of_text, ks=(1, 3, 7))
    for k in (1, 3, 7):
        image_hits = [i in image_of_text[np.argsort(-scores[i])[:k]] for i in range(len(images))]
        text_hits = [image_of_text[t] in np.argsort(-scores[:, t])[:k] for t in range(len(texts))]
        assert 0 < sum(text_hits) < len(texts)
        assert metrics[f"image_to_text_r@{k}"] == pytest.approx(np.mean(image_hits))
        assert metrics[f"text_to_image_r@{k}"] == pytest.approx(np.mean(text_hits))


@pytest.mark.parametrize("chunk_size", [5, 22, 23, 1024])
def test_tiles_equal_the_whole_matrix_at_uneven_sizes(chunk_size):
    images, texts, image_of_text = random_set()
    for ranks, whole in zip(
        _ranks(images, texts, image_of_text, chunk_size), whole_matrix_ranks(images, texts, image_of_text)
    ):
        assert len(set(whole.tolist())) > 5
        np.testing.assert_array_equal(ranks, whole)
    for one, other in zip(top_matches(images, texts, 5, chunk_size), top_matches(images, texts, 5, 10_000)):
        np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.mark.parametrize("chunk_size", [128, 1024])
def test_ties_of_real_numbers_survive_the_tiles(chunk_size):
    # Rows that stand in many places of many tiles, next to sums of 331 products: one bit's difference would lose ties.
    images, texts, image_of_text = random_set(seed=1, N=301, M=1201, E=331)
    rng = np.random.default_rng(2)
    images, texts = images[rng.integers(101, size=301)], texts[rng.integers(401, size=1201)]
    images[7], texts[11] = np.nan, np.nan
    expected = exact_ranks(images, texts, image_of_text)
    np.testing.assert_array_equal(_ranks(images, texts, image_of_text, chunk_size)[0], expected[0])
    np.testing.assert_array_equal(_ranks(images, texts, image_of_text, chunk_size)[1], expected[1])


def exact_ranks(images, texts, image_of_text):
    """By the scores of each different image and text once, so that equal ones are equal."""
    unique_images, image = np.unique(images, axis=0, return_inverse=True)
    unique_texts, text = np.unique(texts, axis=0, return_inverse=True)
    scores = (unique_images.astype(np.float64) @ unique_texts.astype(np.float64).T)[np.ix_(image, text)]
    own = image_of_text == np.arange(len(images))[:, None]
    best_own = np.where(own, scores, -np.inf).max(axis=1, keepdims=True)
    own_score = scores[image_of_text, np.arange(len(texts))]
    return np.sum(~(scores < best_own) & ~own, axis=1), np.sum(~(scores < own_score) & ~own, axis=0)


def test_the_prompt_goes_before_every_caption():
    seen = []

    def tokenize(texts):
        seen.extend(texts)
        return np.array([[len(text)] for text in texts], np.int32)

    for prefix in ("a photo of", "a photo of "):
        embeddings = caption_embeddings(lambda tokens: tokens / 2, tokenize, ["a dog", "two cats"], prefix)
        np.testing.assert_array_equal(embeddings, np.array([[8], [9.5]], np.float32))
        assert embeddings.dtype == np.float32
    assert seen == ["a photo of a dog", "a photo of two cats"] * 2
    caption_embeddings(lambda tokens: tokens, tokenize, [" a dog"])
    assert seen[4:] == [" a dog"]


def test_image_to_text_chance_by_counting_every_draw():
    image_of_text = np.array([0, 1, 1, 2, 2, 2, 2])
    images, texts = np.ones((3, 2)), np.ones((7, 2))
    for k in (1, 2, 3, 6):
        draws = [set(image_of_text[list(draw)]) for draw in combinations(range(7), k)]
        expected = np.mean([[i in draw for draw in draws] for i in range(3)])
        metrics = recall_at_k(images, texts, image_of_text, ks=(k,))
        assert metrics[f"image_to_text_r@{k}_chance"] == pytest.approx(expected, rel=1e-12)
        assert metrics[f"text_to_image_r@{k}_chance"] == pytest.approx(min(1, k / 3))


def test_chance_of_five_captions_among_a_thousand_images():
    metrics = recall_at_k(np.ones((1000, 1)), np.ones((5000, 1)), np.repeat(np.arange(1000), 5), ks=(1, 10))
    assert metrics["image_to_text_r@1_chance"] == pytest.approx(5 / 5000)
    assert metrics["image_to_text_r@10_chance"] == pytest.approx(0.00996, abs=1e-5)
    assert metrics["text_to_image_r@10_chance"] == pytest.approx(0.01)


def test_k_beyond_the_candidates_is_recall_one_at_chance_one():
    metrics = recall_at_k(-np.eye(3), np.eye(3), np.arange(3), ks=(2, 3, 10))
    assert metrics["image_to_text_r@2"] == 0
    for k in (3, 10):
        assert {metrics[key] for key in metrics if f"r@{k}" in key} == {1}


def test_top_matches_best_first_ties_to_the_lower_index():
    candidates = np.array([[1, 0], [3, 0], [0, 5], [3, 0]], np.float32)
    indices, scores = top_matches(np.array([[1, 0], [0, 1]]), candidates, k=3)
    np.testing.assert_array_equal(indices, [[1, 3, 0], [2, 0, 1]])
    np.testing.assert_array_equal(scores, [[3, 3, 1], [5, 0, 0]])
    ones = np.random.default_rng(0).permutation(1009) < 211  # enough for an unstable sort to show
    order = np.concatenate([np.flatnonzero(ones), np.flatnonzero(~ones)])
    np.testing.assert_array_equal(top_matches(np.ones((1, 1)), 1.0 * ones[:, None], k=1009)[0], [order])
    assert top_matches(np.eye(2), candidates, k=9)[0].shape == (2, 4)


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize(
    ("image_of_text", "options", "message"),
    [
        ([0, 1, 2], {}, r"image_of_text has shape \(3,\) for 5 texts"),
        ([0.0, 1.0, 2.0, 0.0, 0.0], {}, "image_of_text must be integers, got float64"),
        ([0, 1, 2, 3, 0], {}, r"text 3 belongs to image 3, outside 0\.\.2"),
        ([0, 1, -1, 2, 0], {}, "text 2 belongs to image -1"),
        ([0, 2, 2, 0, 0], {}, "image 1 has no text; leave the 1 images without text out"),
        ([0, 1, 2, 0, 0], {"ks": (1, 0)}, r"k of at least 1, got ks=\(1, 0\)"),
        ([0, 1, 2, 0, 0], {"ks": ()}, r"k of at least 1, got ks=\(\)"),
        ([0, 1, 2, 0, 0], {"chunk_size": 0}, "chunk_size must be at least 1, got 0"),
    ],
)
def test_bad_input_is_refused(image_of_text, options, message):
    with pytest.raises(ValueError, match=message):
        recall_at_k(np.ones((3, 2)), np.ones((5, 2)), np.array(image_of_text), **options)


@pytest.mark.usefixtures("shapes_unchecked")
def test_embeddings_of_different_sizes_are_refused():
    with pytest.raises(ValueError, match=r"embeddings of different sizes: \(3, 2\) and \(3, 7\)"):
        recall_at_k(np.ones((3, 2)), np.ones((3, 7)), np.arange(3))


def test_top_matches_refuses_k_below_one():
    with pytest.raises(ValueError, match="k of at least 1, got 0"):
        top_matches(np.eye(2), np.eye(2), 0)
