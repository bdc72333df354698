import io
import itertools
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from input_pipeline.transforms import MIN_SIDE, decode_image, random_square_crop, resize_and_center_crop

GOLDENS = Path(__file__).parents[1] / "goldens" / "preprocess"


def encode(image: Image.Image, form: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_evaluation_transform_reproduces_the_reference(number):
    config = json.loads((GOLDENS / "config.json").read_text())
    expected = np.load(GOLDENS / "expected.npz")[f"pixels_{number}"]
    image = resize_and_center_crop(decode_image((GOLDENS / f"{number}.png").read_bytes()), config["image_size"])
    assert image.dtype == np.uint8
    normalised = (image / 255 - config["mean"]) / config["std"]
    np.testing.assert_allclose(normalised.transpose(2, 0, 1), expected, atol=1e-6, rtol=0)


def test_evaluation_crop_offsets_round_half_to_even():
    for longer, offset in ((16, 2), (18, 4)):  # halves of 5 and 7
        pixels = noise(11, longer, 3)
        np.testing.assert_array_equal(resize_and_center_crop(pixels, 11), pixels[:, offset : offset + 11])
        pixels = noise(longer, 11, 3)
        np.testing.assert_array_equal(resize_and_center_crop(Image.fromarray(pixels), 11), pixels[offset : offset + 11])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not an image"),
        (b"<html>404</html>", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 30 30\n%%EndComments\n", "not an image"),
        (encode(Image.fromarray(noise(31, 37, 3)), "JPEG")[:-200], "truncated or broken image"),
        (encode(Image.fromarray(noise(31, 37, 3)), "JPEG", progressive=True)[:900], "truncated or broken image"),
        (encode(Image.fromarray(noise(31, 37, 3)))[:-200], "truncated or broken image"),
        (encode(Image.fromarray(noise(8, 808, 3))), "image too narrow: 808x8 pixels, at most 100 times"),
        (encode(Image.fromarray(noise(1, 1, 3))), "image too small: 1x1 pixels, at least 8"),
        (encode(Image.fromarray(noise(31, MIN_SIDE - 1, 3))), "image too small: 7x31 pixels"),
        (
            encode(Image.fromarray(np.full((11, 13), np.nan, np.float32)), "TIFF"),
            "image of values nan to nan",
        ),
        (
            encode(Image.fromarray(np.full((11, 13), -0.5, np.float32)), "TIFF"),
            "image of values -0.5 to",
        ),
        (
            encode(Image.fromarray(np.full((11, 13), 70000, np.int32)), "TIFF"),
            "image of values 70000 to",
        ),
    ],
)
def test_unusable_images_are_refused_with_the_reason(data, reason):
    assert not ImageFile.LOAD_TRUNCATED_IMAGES  # or Pillow would pad with grey
    with pytest.raises(ValueError, match=reason):
        decode_image(data)


@pytest.mark.parametrize(("width", "height"), [(8209, 8209), (30011, 30011)])  # ours, and Pillow's own limit
def test_a_decompression_bomb_is_refused_before_it_is_unpacked(width, height):
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    with pytest.raises(ValueError, match="image too large"):
        decode_image(bomb)


def test_the_smallest_image_is_accepted_exactly():
    pixels = noise(MIN_SIDE, MIN_SIDE, 3)
    np.testing.assert_array_equal(np.asarray(decode_image(encode(Image.fromarray(pixels)))), pixels)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "RGBA"])
def test_every_mode_becomes_rgb_as_pillow_converts_it(mode):
    image = Image.fromarray(noise(13, 13, 3)).convert(mode)
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.fromarray(noise(13, 13, seed=1)))
    decoded = decode_image(encode(image))
    expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(resize_and_center_crop(decoded, 13), expected)
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(random_square_crop(decoded, 13, 1.0, rng.random(3)), expected)


def test_cmyk_jpeg_becomes_rgb():
    colour = Image.new("RGB", (13, 17), (200, 40, 90))
    decoded = decode_image(encode(colour.convert("CMYK"), "JPEG", quality=100))
    assert np.abs(resize_and_center_crop(decoded, 11).astype(int) - (200, 40, 90)).max() <= 3  # JPEG's loss


def test_16_bit_greyscale_is_scaled_not_clipped():
    values = np.linspace(0, 65535, 11 * 13).round().reshape(11, 13).astype(np.uint16)
    expected = np.repeat(np.rint(values / 257)[..., None], 3, axis=2)
    for data in (encode(Image.fromarray(values)), encode(Image.fromarray(values.astype(np.int32)), "TIFF")):
        np.testing.assert_array_equal(np.asarray(decode_image(data)), expected)


@pytest.mark.parametrize(
    ("dtype", "brightest"),
    [*itertools.product((np.uint16, np.int32, np.float32), (255, 4095, 65535)), (np.float32, 1)],
)
def test_greyscale_of_more_bits_is_scaled_from_its_own_range(dtype, brightest):
    values = np.linspace(0, brightest, 256).reshape(16, 16)
    data = encode(Image.fromarray((values if dtype == np.float32 else values.round()).astype(dtype)), "TIFF")
    decoded = np.asarray(decode_image(data))[..., 0].ravel()
    assert np.abs(decoded - np.arange(256.0)).max() <= (1 if brightest == 4095 else 0)
    assert decoded.max() == 255


def test_a_dim_picture_of_32_bits_keeps_its_brightness():
    values = np.arange(0, 253, 2, np.int32).reshape(-1, 1).repeat(11, axis=1)
    np.testing.assert_array_equal(np.asarray(decode_image(encode(Image.fromarray(values), "TIFF")))[..., 0], values)


def test_full_scale_crop_is_an_exact_window_at_every_position():
    pixels = noise(11, 16, 3)
    rng = np.random.default_rng(0)
    crops = {random_square_crop(Image.fromarray(pixels), 11, 1.0, rng.random(3)).tobytes() for _ in range(200)}
    assert crops == {pixels[:, left : left + 11].tobytes() for left in range(6)}
    tall = {random_square_crop(pixels.transpose(1, 0, 2).copy(), 11, 1.0, rng.random(3)).tobytes() for _ in range(200)}
    assert tall == {pixels[:, left : left + 11].transpose(1, 0, 2).tobytes() for left in range(6)}


def test_crop_is_the_antialiased_resize_of_its_box():
    image = Image.fromarray(noise(41, 67, 3))
    for seed in range(5):
        scale, horizontal, vertical = np.random.default_rng(seed).random(3)
        side = round((0.5 + 0.5 * scale) * 41)
        left, top = int(horizontal * (67 - side + 1)), int(vertical * (41 - side + 1))
        expected = image.resize((19, 19), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
        crop = random_square_crop(image, 19, 0.5, np.random.default_rng(seed).random(3))
        assert crop.dtype == np.uint8
        np.testing.assert_array_equal(crop, np.asarray(expected))


def test_crop_sides_and_positions_are_uniform():
    # Each pixel holds its own place, so the corners of a crop tell its box.
    rows, columns = np.meshgrid(np.arange(101), np.arange(103), indexing="ij")
    image = np.stack([rows, columns, rows], -1).astype(np.uint8)
    rng = np.random.default_rng(0)
    sides, centres = [], []
    for _ in range(2000):
        crop = random_square_crop(image, 50, 0.4, rng.random(3)).astype(float)
        sides.append((crop[-1, 0, 0] - crop[0, 0, 0]) * 50 / 49)
        centres.append(crop.mean((0, 1))[:2])
    # Uniform in [0.4, 1] * 101: mean 70.7, deviation 17.5; the means of 2000 are within 4 standard errors.
    assert abs(np.mean(sides) - 70.7) < 4 * 17.5 / 2000**0.5
    assert abs(np.std(sides) - 17.5) < 1
    assert min(sides) > 38
    np.testing.assert_allclose(np.mean(centres, 0), [50, 51], atol=1)


def test_drawn_arrays_of_the_right_size_pass_untouched():
    pixels = noise(13, 13, 3)
    assert random_square_crop(pixels, 13, 1.0, np.random.default_rng(0).random(3)) is pixels


@pytest.mark.parametrize("min_scale", [0.0, -0.5, 1.5, float("nan")])
def test_scale_out_of_range_is_refused(min_scale):
    with pytest.raises(ValueError, match=r"min_scale must be in \(0, 1\]"):
        random_square_crop(noise(13, 13, 3), 11, min_scale, np.random.default_rng(0).random(3))
