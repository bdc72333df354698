import io
import json

import numpy as np
import pytest
from PIL import Image

from clip_jax.evaluation.metrics.binomial import p_greater, share
from clip_jax.evaluation.metrics.overlap import (
    PERCEPTUAL_SIZE,
    contamination,
    nearest_images,
    pairs_around,
    perceptual_embedding,
)


def photo(seed, width=211, height=157):
    """Smooth random colours, as photographs are from afar."""
    small = np.random.default_rng(seed).integers(256, size=(7, 9, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def embedded(image):
    return perceptual_embedding(np.asarray(image))


def random_set(seed, count, E=13):
    x = np.random.default_rng(seed).normal(size=(count, E))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def recompressed(image, quality):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


def test_a_near_duplicate_is_nearer_than_any_other_picture():
    training = np.stack([embedded(photo(seed)) for seed in range(101)])
    original = photo(37)
    width, height = original.size
    changed = {
        "smaller": original.resize((64, 48)),
        "another aspect": original.resize((90, 157)),
        "recompressed": recompressed(original, 20),
        "brighter": original.point(lambda v: 255 * (v / 255) ** 0.7),
        "cropped": original.crop((4, 3, width - 4, height - 3)),
        "turned": original.rotate(2, Image.Resampling.BICUBIC),
    }
    index, similarity = nearest_images(np.stack([embedded(image) for image in changed.values()]), training)
    np.testing.assert_array_equal(index, [37] * len(changed))
    between = training @ training.T - 2 * np.eye(101)
    assert between.max() < 0.35  # measured 0.323
    assert similarity.min() > 0.96, dict(zip(changed, similarity))  # measured 0.966, the turn
    mirrored = np.asarray(original)[:, ::-1]
    assert nearest_images(embedded(mirrored)[None], training)[1] < 0.35
    np.testing.assert_allclose(embedded(mirrored[:, ::-1]), training[37], atol=1e-6)


def test_the_embedding_is_the_weighted_low_frequencies():
    pixels = np.asarray(photo(3, 32, 32))  # of this size nothing is reduced
    channels = np.asarray(Image.fromarray(pixels).convert("YCbCr"), np.float64)
    expected = []
    for u in range(8):
        for v in range(8):
            if (u, v) != (0, 0):
                wave = np.outer(*(np.cos(np.pi * f * (np.arange(32) + 0.5) / 32) for f in (u, v)))
                size = np.sqrt((1 + (u > 0)) * (1 + (v > 0))) / 32
                expected += [np.hypot(u, v) * size * np.sum(channels[..., c] * wave) for c in range(3)]
    found = perceptual_embedding(pixels)
    assert (found.shape, found.dtype) == ((PERCEPTUAL_SIZE,), np.float32)
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected), atol=1e-6)  # float32 sums


def test_pictures_of_one_colour_are_similar_to_nothing():
    plain = np.full((40, 50, 3), 77, np.uint8)
    plain[::2, 0] += 1
    np.testing.assert_array_equal(perceptual_embedding(plain), np.zeros(PERCEPTUAL_SIZE))
    assert nearest_images(perceptual_embedding(plain)[None], perceptual_embedding(plain)[None]) == (0, 0)


@pytest.mark.parametrize("chunk_size", [7, 1024])
def test_nearest_in_chunks_is_the_nearest_of_all(chunk_size, tmp_path):
    evaluation, training = random_set(0, 23), random_set(1, 61)
    evaluation[5] = 0
    np.save(tmp_path / "training.npy", training)
    index, similarity = nearest_images(evaluation, np.load(tmp_path / "training.npy", mmap_mode="r"), chunk_size)
    scores = evaluation @ training.T
    np.testing.assert_array_equal(index, scores.argmax(axis=1))
    np.testing.assert_allclose(similarity, scores.max(axis=1), atol=3e-7)  # sums of 13 in another order
    assert (index.dtype, similarity.dtype) == (np.int64, np.float32)


def test_rows_that_fill_up_a_chunk_are_never_the_nearest():
    index, similarity = nearest_images(-np.eye(3, dtype=np.float32)[:1], np.eye(3, dtype=np.float32)[[0] * 5], 2)
    assert (index[0], similarity[0]) == (0, -1)


def test_pairs_on_both_sides_of_the_threshold():
    similarity = np.array([0.1, 0.9, 0.5, 0.7, 0.6, 0.2, 0.95])
    np.testing.assert_array_equal(pairs_around(similarity, 0.6, 4), [3, 4, 2, 5])
    np.testing.assert_array_equal(pairs_around(similarity, 0.99, 3), [6, 1, 3])
    np.testing.assert_array_equal(pairs_around(similarity, 0, 3), [2, 5, 0])
    np.testing.assert_array_equal(pairs_around(similarity, 0.6, 99), [6, 1, 3, 4, 2, 5, 0])


def test_contamination_of_known_counts():
    similarity = np.repeat([0.9, 0.8, 0.3], [3, 8, 40])
    correct = np.concatenate([np.ones(3, bool), np.arange(8) < 6, np.arange(40) < 20])
    result = contamination(correct, similarity, 0.8)
    assert result["all"] == share(29, 51, 0.995)
    assert result["overlap"] == share(9, 11, 0.995)
    assert result["clean"] == share(20, 40, 0.995)
    assert result["overlap_share"] == 11 / 51
    assert result["overlap_minus_clean"] == pytest.approx(9 / 11 - 1 / 2)
    assert result["overlap_minus_clean_low"] == pytest.approx(share(9, 11, 0.995)["low"] - 1 / 2)
    assert result["overlap_minus_clean_high"] == pytest.approx(share(9, 11, 0.995)["high"] - 1 / 2)
    assert result["all_minus_clean"] == pytest.approx(29 / 51 - 1 / 2)
    assert result["p_value"] == p_greater(9, 11, 0.5)
    assert json.loads(json.dumps(result)) == result


def test_what_needs_an_empty_part_is_none():
    correct, similarity = np.array([True, False]), np.array([0.2, 0.4])
    clean = contamination(correct, similarity, 0.5)
    assert (clean["overlap_share"], clean["all_minus_clean"], clean["overlap"]["accuracy"]) == (0, 0, None)
    assert clean["overlap_minus_clean"] is clean["p_value"] is None
    full = contamination(correct, similarity, 0.1)
    assert (full["overlap_share"], full["overlap"]["accuracy"]) == (1, 0.5)
    assert full["all_minus_clean"] is full["overlap_minus_clean_low"] is full["p_value"] is None


NAN = float("nan")


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: perceptual_embedding(np.zeros((4, 4), np.uint8)),
            r"^a picture must be uint8 \[H, W, 3\], got uint8 \[4, 4\]",
        ),
        (lambda: perceptual_embedding(np.zeros((4, 4, 3))), r"got float64 \[4, 4, 3\]$"),
        (lambda: perceptual_embedding(np.zeros((0, 4, 3), np.uint8)), r"got uint8 \[0, 4, 3\]$"),
        (
            lambda: nearest_images(np.eye(2), np.eye(3)),
            r"^evaluation embeddings \[2, 2\] and training embeddings \[3, 3\] do not match: expected \[N, E\] and",
        ),
        (
            lambda: nearest_images(np.eye(2), np.zeros((0, 2))),
            "^no training images to compare: their embeddings are empty$",
        ),
        (lambda: nearest_images(np.eye(2), np.eye(2), 0), "^chunk_size must be at least 1, got 0$"),
        (
            lambda: nearest_images(np.eye(2), np.array([[1, 0], [0, 1], [NAN, 0]]), 2),
            "^training embedding 2 has norm nan, expected 1, or 0 for a picture without features: divide by the norm",
        ),
        (lambda: nearest_images(2 * np.eye(2), np.eye(2)), "^evaluation embedding 0 has norm 2, expected 1"),
        (lambda: pairs_around(np.ones(3), 0.5, 0), "^count must be at least 1, got 0$"),
        (
            lambda: pairs_around(np.array([1, NAN]), 0.5),
            "^similarity of image 1 is not a number: its features are broken$",
        ),
        (lambda: contamination(np.ones(2), np.ones(2), 0.5), "^correct must be bool, one an image, got float64$"),
        (
            lambda: contamination(np.ones(2, bool), np.ones(3), 0.5),
            r"^correct \[2\] and similarity \[3\] do not match: expected \[N\] each$",
        ),
        (
            lambda: contamination(np.ones(0, bool), np.ones(0), 0.5),
            "^no images to compare: the evaluation set is empty$",
        ),
        (lambda: contamination(np.ones(2, bool), np.array([NAN, 1]), 0.5), "^similarity of image 0 is not a number"),
        (lambda: contamination(np.ones(2, bool), np.ones(2), NAN), "^the threshold is not a number$"),
        (lambda: contamination(np.ones(2, bool), np.ones(2), 0.5, 1.0), "^confidence is 1.0, expected"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
