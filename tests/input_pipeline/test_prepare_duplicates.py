import io
import itertools

import numpy as np
import pytest
from PIL import Image

from input_pipeline.prepare.duplicates import (
    HASH_BYTES,
    MAX_BITS,
    MAX_COLOUR,
    are_near,
    find_exact,
    find_near,
    near_pairs,
    perceptual_hash,
)
from input_pipeline.scenes import SceneSource


def smooth(seed: int, side: int = 128) -> Image.Image:
    """A picture of large random patches, as photographs are from afar."""
    small = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), np.uint8)
    return Image.fromarray(small).resize((side * 4 // 3, side), Image.Resampling.BICUBIC)


def hash_of(image: Image.Image) -> bytes:
    return perceptual_hash(np.asarray(image.convert("RGB")))


def recompressed(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


def table_with(changes: list[tuple[int, int]]) -> np.ndarray:
    """A random look, and then one for each (bits, levels) that differs from it by so many bits and levels of colour."""
    rng = np.random.default_rng(3)
    table = np.tile(rng.integers(20, 200, HASH_BYTES, np.uint8), (1 + len(changes), 1))
    for row, (bits, levels) in zip(table[1:], changes):
        flipped = np.zeros(128, np.uint8)
        flipped[rng.choice(128, bits, replace=False)] = 1
        row[:16] ^= np.packbits(flipped)
        row[16:] += np.uint8(levels)
    return table


def test_the_definition_of_near():
    table = table_with([(MAX_BITS, MAX_COLOUR), (MAX_BITS + 1, 0), (0, MAX_COLOUR + 1), (0, 0)])
    left, right = are_near(table, np.zeros(4, int), np.arange(1, 5))
    assert (left.tolist(), right.tolist()) == ([0, 0], [1, 4])


def test_banding_finds_every_near_pair_that_comparing_all_finds():
    rng = np.random.default_rng(0)
    groups = [table_with([(int(bits), 1) for bits in rng.integers(0, 14, 40)]) for _ in range(3)]
    groups[1][:, :16] ^= 0x5A
    random_hashes = rng.integers(0, 256, (150, HASH_BYTES), np.uint8)
    random_hashes[:70, :8] = 0  # many share bands: pictures on plain ground
    scattered = random_hashes[[70, 70]]  # the most bits that may differ, in as many bands as they reach
    scattered[1, :16] ^= np.packbits(np.isin(np.arange(128), np.arange(MAX_BITS) * 12))
    table = np.unique(np.concatenate([*groups, random_hashes, scattered]), axis=0)
    every = np.array(list(itertools.combinations(range(len(table)), 2))).T
    expected = set(zip(*(x.tolist() for x in are_near(table, *every))))
    found = {tuple(sorted(p)) for left, right in near_pairs(table) for p in zip(left.tolist(), right.tolist())}
    assert len(expected) > 500
    assert found == expected


@pytest.mark.parametrize(
    "copy",
    [
        lambda image: recompressed(image, 75),
        lambda image: recompressed(image, 30),
        lambda image: image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC),
        lambda image: image.resize((100, 100), Image.Resampling.BICUBIC),
        lambda image: image.crop((1, 1, image.width - 1, image.height - 1)),
    ],
)
def test_copies_are_found_among_random_hashes(copy):
    images = [smooth(seed) for seed in range(60)]
    hashes = [hash_of(image) for image in images] + [hash_of(copy(image)) for image in images[:20]]
    assert find_near(hashes) == [[i, 60 + i] for i in range(20)]


def test_drawn_scenes_that_share_their_edges_differ_in_colour():
    source = SceneSource(0, 400, 64)
    hashes = [perceptual_hash(source[i]["image"]) for i in range(400)]
    without_colour = [x[:16] + bytes(27) if x else x for x in hashes]
    assert sum(map(len, find_near(without_colour))) == 63  # a plain ground, and few edges on it
    assert sum(map(len, find_near(hashes))) == 2  # a blue diamond and a cyan star, both on black


def test_a_group_is_a_connected_component():
    chain = table_with([(0, MAX_COLOUR), (0, 2 * MAX_COLOUR), (0, 5 * MAX_COLOUR)])
    hashes = [row.tobytes() for row in chain]
    assert find_near([hashes[3], hashes[2], b"", hashes[0], hashes[1]]) == [[1, 3, 4]]


def test_pictures_of_one_colour_are_near_nothing():
    assert hash_of(Image.new("RGB", (31, 47), "teal")) == b""
    assert len(hash_of(smooth(0))) == HASH_BYTES
    assert find_near([b"", b"", hash_of(smooth(0)), b""]) == []
    assert find_near([]) == []


def test_equal_hashes_are_one_group_of_any_size():
    one, other = hash_of(smooth(1)), hash_of(smooth(2))
    assert find_near([one, other] * 500) == [list(range(0, 1000, 2)), list(range(1, 1000, 2))]


def test_exact_duplicates_are_grouped_by_their_first_index():
    assert find_exact(["b", "a", "c", "a", "b", "a"]) == [[0, 4], [1, 3, 5]]
