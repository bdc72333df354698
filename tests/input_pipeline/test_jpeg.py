import io

import numpy as np
import pytest
from PIL import Image

from input_pipeline import jpeg
from input_pipeline.jpeg import decode_jpeg, random_jpeg_crop
from input_pipeline.transforms import decode_image, random_square_crop


def photograph(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth shapes with edges and a little noise: a spectrum that falls, as a photograph's does."""
    rng = np.random.default_rng(seed)
    layers = [rng.integers(0, 256, (max(2, height // s), max(2, width // s), 3), np.uint8) for s in (64, 16, 5)]
    large, middle, small = (
        np.asarray(Image.fromarray(layer).resize((width, height), Image.Resampling.BICUBIC), float) for layer in layers
    )
    return Image.fromarray((0.7 * large + 0.2 * middle + 0.1 * small).astype(np.uint8))


def encode(image: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **{"quality": 92, **options})
    return buffer.getvalue()


def exact_crop(data: bytes, image_size: int, min_scale: float, numbers: np.ndarray) -> np.ndarray:
    return random_square_crop(decode_image(data), image_size, min_scale, numbers)


def mean_difference(data: bytes, image_size: int, min_scale: float, seed: int) -> float:
    numbers = np.random.default_rng(seed).random(3)
    crop = random_jpeg_crop(data, image_size, min_scale, numbers)
    assert crop is not None
    assert (crop.shape, crop.dtype) == ((image_size, image_size, 3), np.uint8)
    return float(np.abs(crop.astype(int) - exact_crop(data, image_size, min_scale, numbers)).mean())


@pytest.mark.parametrize(
    ("size", "image_size", "options", "limit"),
    [
        ((181, 131), 83, {"subsampling": 2}, 0.15),  # decoded whole: the resize alone differs, by its rounding
        ((181, 131), 127, {}, 0.15),  # enlarged, mostly
        ((397, 281), 61, {"subsampling": 0}, 0.5),  # decoded at 1/2
        ((607, 407), 37, {"progressive": True}, 0.9),  # at 1/4 or 1/8
    ],
)
def test_the_quick_crop_is_the_exact_one_but_for_a_little(size, image_size, options, limit):
    data = encode(photograph(*size), **options)
    differences = [mean_difference(data, image_size, 0.5, seed) for seed in range(8)]
    assert max(differences) < limit, differences


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_square_of_the_right_size_is_the_decoded_window(mode):
    data = encode(photograph(67, 41).convert(mode))
    numbers = np.array([0.5, 0.7, 0.3])
    np.testing.assert_array_equal(random_jpeg_crop(data, 41, 1.0, numbers), exact_crop(data, 41, 1.0, numbers))


def test_without_the_vector_resize_pillow_does_it(monkeypatch):
    data = encode(photograph(97, 61))
    numbers = np.random.default_rng(0).random(3)
    monkeypatch.setattr(jpeg, "resizer", None)
    np.testing.assert_array_equal(random_jpeg_crop(data, 37, 0.9, numbers), exact_crop(data, 37, 0.9, numbers))
    assert list(jpeg.libraries()) == ["simplejpeg"]


def test_what_is_no_plain_whole_jpeg_is_left_to_pillow():
    image = photograph(67, 41)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    bomb = encode(image).replace(b"\x00\x29\x00\x43", b"\xff\x00\xff\x00")  # height and width of its frame: 65,280 each
    strip = encode(image.resize((808, 8)))
    for data in (b"", b"<html>", buffer.getvalue(), encode(image.convert("CMYK")), bomb, strip):
        assert random_jpeg_crop(data, 31, 1.0, np.zeros(3)) is None
    with pytest.raises(ValueError, match="image too large"):
        decode_image(bomb)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}])
def test_a_jpeg_cut_off_anywhere_is_never_filled_with_grey(options):
    data = encode(photograph(67, 41), **options)
    taken = [
        end for end in range(0, len(data) - 2, 7) if random_jpeg_crop(data[:end], 17, 1.0, np.zeros(3)) is not None
    ]
    assert taken == []  # all but the end marker is needed


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_whole_pictures_are_pillow_s(mode):
    data = encode(photograph(67, 41).convert(mode))
    pixels = decode_jpeg(data)
    assert pixels.dtype == np.uint8
    # The same libjpeg-turbo gives the same pixels; between versions 1 was seen.
    np.testing.assert_allclose(pixels.astype(int), np.asarray(decode_image(data).convert("RGB"), int), atol=1)
    for other in (data[:-20], b"", encode(photograph(67, 41).convert("CMYK"))):
        assert decode_jpeg(other) is None
