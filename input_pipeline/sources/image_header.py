"""The size of an image from its first bytes, without decoding it."""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image

# Pillow's other readers are for rarer formats; some start external programs (EPS runs Ghostscript).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
HEADER_BYTES = 2**16  # hold the size of nearly every image; a JPEG with a large preview in front needs the whole file


def header_size(read: Callable[[int], bytes]) -> tuple[int, int]:
    """Width and height in pixels, of what `read` gives: at most so many first bytes of an encoded image.

    Raises ValueError for what is no image.
    """
    header = read(HEADER_BYTES)
    try:
        return _open(header)
    except ValueError:
        if len(header) < HEADER_BYTES:
            raise
    return _open(read(2**62))


def image_size(image: bytes | np.ndarray) -> tuple[int, int]:
    """Width and height of a record's image, encoded or uint8 [H, W, 3]. Raises ValueError for what is no image."""
    if isinstance(image, np.ndarray):
        height, width = image.shape[:2]
        return width, height
    return _open(image)


def _open(data: bytes) -> tuple[int, int]:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return image.size
    except Exception as error:  # hostile bytes make Pillow raise OSError, SyntaxError, struct.error, ...
        raise ValueError(f"no image header that can be read: {error}") from error
