"""From encoded bytes to uint8 [S, S, 3]: decode, then the training crop or the evaluation crop; and sizes in headers.

Normalisation by mean and standard deviation happens on the device. EXIF orientation is ignored, as the reference does,
but for who asks `exif_orientation` and `turn_upright`.
"""

import io
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from input_pipeline.image_formats import FORMATS

MIN_SIDE = 8  # pixels; below this a picture holds nothing to learn from (tracking pixels, failed downloads)
MAX_ASPECT = 100  # a longer strip would grow beyond all memory when its shorter side is resized
MAX_PIXELS = 2**26  # about 8000x8000; more is a decompression bomb or a scan to be reduced beforehand
HEADER_BYTES = 2**16  # hold the size of nearly every image; a JPEG with a large preview in front needs the whole file
# The reference resizes in these modes and converts to RGB last: alpha weighs the resampled colours.
_CONVERTED_LAST = ("RGBA", "LA", "CMYK")
_TURNS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Square(NamedTuple):
    """A part of a picture, in pixels."""

    left: int
    top: int
    side: int


def decode_image(data: bytes) -> Image.Image:
    """Decodes a picture of one of FORMATS (of several frames the first); the result is fully loaded.

    Returns:
      An 8-bit image of mode RGB; but RGBA, LA and CMYK stay as they are, since the reference resizes them before it
      converts to RGB, and so do `random_square_crop` and `resize_and_center_crop`. Greyscale of more than 8 bits
      is scaled, not clipped, see `to_eight_bit`. A palette becomes RGB here, where the reference would resize it by
      nearest neighbour.

    Raises:
      ValueError: not an image, truncated or broken, a side below MIN_SIDE, more than MAX_PIXELS, or a pixel type that
        has no 8-bit reading (negative or above 65535).
    """
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        width, height = image.size
        if width * height <= MAX_PIXELS:
            image.load()
    except UnidentifiedImageError:
        raise ValueError(f"not an image of a known format ({', '.join(FORMATS)}); {len(data)} bytes") from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"image too large: {error}") from error
    except Exception as error:  # hostile bytes make Pillow raise OSError, SyntaxError, struct.error, ...
        raise ValueError(f"truncated or broken image: {error}") from error
    return to_eight_bit(check_size(image))


def exif_orientation(data: bytes) -> int:
    """The EXIF orientation of an encoded picture, 1 (upright) to 8; 1 where there is none, or another number."""
    marked = b"Exif" in data[:HEADER_BYTES] or b"eXIf" in data or b"EXIF" in data[-HEADER_BYTES:]
    if not marked and data[:4] not in (b"II*\0", b"MM\0*"):  # a TIFF's tags are its header
        return 1
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # hostile bytes; decoding says what is wrong with them
        return 1
    return orientation if orientation in _TURNS else 1


def turn_upright(image: Image.Image | np.ndarray, orientation: int) -> Image.Image:
    """A picture that is stored in an EXIF orientation, 1 to 8, as viewers show it."""
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    turn = _TURNS[orientation]
    return image if turn is None else image.transpose(turn)


def check_size(image: Image.Image) -> Image.Image:
    """The image itself; ValueError for one that is too large, too small or too narrow."""
    check_sides(*image.size)
    return image


def check_sides(width: int, height: int) -> None:
    """ValueError for a picture of so many pixels that is too large, too small or too narrow."""
    if width * height > MAX_PIXELS:
        raise ValueError(f"image too large: {width}x{height} pixels, at most {MAX_PIXELS} in all")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ValueError(f"image too narrow: {width}x{height} pixels, at most {MAX_ASPECT} times as long as wide")
    if min(width, height) < MIN_SIDE:
        raise ValueError(f"image too small: {width}x{height} pixels, at least {MIN_SIDE} on a side")


def random_square_crop(
    image: Image.Image | np.ndarray, image_size: int, min_scale: float, numbers: np.ndarray
) -> np.ndarray:
    """A square of random size and position, resized to image_size with antialiased bicubic.

    The paper's only augmentation is "a random square crop from resized images"; here the square is cut and resized in
    one step. Its side is uniform in [min_scale, 1] of the shorter side and its position uniform, both in whole pixels,
    so min_scale = 1 gives crops as high (or wide) as the image. A drawn array that is [S, S, 3] already comes back as
    it is with min_scale = 1.

    Args:
      image: PIL image, or uint8 [H, W, 3].
      image_size: S in pixels.
      min_scale: in (0, 1].
      numbers: three in [0, 1) that choose the side, the position along the width and that along the height.

    Returns:
      uint8 [S, S, 3].

    Reference: Radford et al. 2021, sec. 2.4 (the range of scales is not given there).
    """
    height, width = image.shape[:2] if isinstance(image, np.ndarray) else image.size[::-1]
    left, top, side = random_square(width, height, min_scale, numbers)
    if isinstance(image, np.ndarray):
        if height == width == side == image_size:
            return image
        image = Image.fromarray(image)
    box = (left, top, left + side, top + side)
    return _rgb_array(image.resize((image_size, image_size), Image.Resampling.BICUBIC, box=box))


def random_square(width: int, height: int, min_scale: float, numbers: np.ndarray) -> Square:
    """The square of `random_square_crop` in a picture of so many pixels, from three numbers in [0, 1)."""
    if not 0 < min_scale <= 1:
        raise ValueError(f"min_scale must be in (0, 1], not {min_scale}")
    scale, horizontal, vertical = numbers
    side = max(1, round((min_scale + (1 - min_scale) * scale) * min(height, width)))
    return Square(int(horizontal * (width - side + 1)), int(vertical * (height - side + 1)), side)


def resize_and_center_crop(
    image: Image.Image | np.ndarray,
    image_size: int,
    resize_size: int = 0,
    resample: Image.Resampling = Image.Resampling.BICUBIC,
    *,
    floored: bool = False,
) -> np.ndarray:
    """The reference's evaluation transform: shorter side to image_size (antialiased bicubic), centre crop, RGB.

    The rounding is torchvision's: the longer side is truncated, the crop's offset rounded half to even.

    image: PIL image, or uint8 [H, W, 3]. image_size: S in pixels. Returns uint8 [S, S, 3].
    resize_size: of the shorter side, at least S; 0: S. floored: the crop's offset, as in transformers.
    """
    resize_size = resize_size or image_size
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    width, height = image.size
    shorter = min(width, height)
    if shorter != resize_size:
        size = (int(resize_size * width / shorter), int(resize_size * height / shorter))
        image = image.resize(size, resample)
    width, height = image.size
    left, top = ((side - image_size) // 2 if floored else round((side - image_size) / 2) for side in (width, height))
    return _rgb_array(image.crop((left, top, left + image_size, top + image_size)))


def resize_squashed(
    image: Image.Image | np.ndarray, image_size: int, resample: Image.Resampling = Image.Resampling.BICUBIC
) -> np.ndarray:
    """The whole picture, its sides resized alike or not (antialiased bicubic), RGB: SigLIP's evaluation transform.

    image: PIL image, or uint8 [H, W, 3]. image_size: S in pixels. Returns uint8 [S, S, 3].
    """
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    return _rgb_array(image.resize((image_size, image_size), resample))


def to_eight_bit(image: Image.Image) -> Image.Image:
    """An image in one of the modes that `decode_image` returns.

    Grey values of more than 8 bits are scaled from their own range: the smallest of 0..255, 0..4095 (12 bits, as
    scanners and medical devices write) and 0..65535 that holds the brightest pixel; floats from 0..1 or one of these.

    Raises ValueError for a truncated image, and for values that are negative, not finite or above 65535.
    """
    try:
        image.load()
    except Exception as error:  # of an image that was opened and not yet read
        raise ValueError(f"truncated or broken image: {error}") from error
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return image if image.mode in _CONVERTED_LAST else image.convert("RGB")
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= 65535):  # NaN fails, too
        raise ValueError(f"greyscale image of values {low} to {high}: scale it to 0 to 65535, or to 0 to 1 as floats")
    ranges = (*((1,) if image.mode == "F" else ()), 255, 4095, 65535)
    brightest = next(limit for limit in ranges if high <= limit)
    grey = np.floor(values.astype(np.float64) * (255 / brightest) + 0.5).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


def _rgb_array(image: Image.Image) -> np.ndarray:
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def header_size(read: Callable[[int], bytes]) -> tuple[int, int]:
    """Width and height in pixels, of what `read` gives: at most so many first bytes of an encoded image.

    Raises ValueError for what is no image.
    """
    header = read(HEADER_BYTES)
    try:
        return _open_header(header)
    except ValueError:
        if len(header) < HEADER_BYTES:
            raise
    return _open_header(read(2**62))


def image_size(image: bytes | np.ndarray) -> tuple[int, int]:
    """Width and height of a record's image, encoded or uint8 [H, W, 3]. Raises ValueError for what is no image."""
    if isinstance(image, np.ndarray):
        height, width = image.shape[:2]
        return width, height
    return _open_header(image)


def _open_header(data: bytes) -> tuple[int, int]:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return image.size
    except Exception as error:  # hostile bytes make Pillow raise OSError, SyntaxError, struct.error, ...
        raise ValueError(f"no image header that can be read: {error}") from error
