"""JPEG bytes to a square crop, fast: the most expensive step of training on the host.

libjpeg-turbo decodes, at 1/2, 1/4 or 1/8 of the size where that still holds more pixels than the crop, and the
antialiased resize, which costs Pillow as much as decoding, runs on the processor's vector units. Pillow's decoder,
`transforms.random_square_crop`, stays the definition and takes whatever is not a plain, whole JPEG.
"""

import importlib.metadata

import numpy as np
import simplejpeg
from PIL import Image

from input_pipeline.transforms import check_sides, random_square

try:
    import cykooz_resizer as resizer
except ImportError:  # it has no wheel for Linux on ARM: Pillow's resize, the same filter, is slower
    resizer = None

# By which libjpeg-turbo decodes with vector instructions; sizes in between, as 5/8, take longer than the whole picture.
REDUCTIONS = (8, 4, 2)
# The reduced square's side over the crop's, at least. Nearer to 1 libjpeg's sharper filter remains, and the mean
# difference from the exact crops of photographs is up to 3 of 255.
MARGIN = 1.25
# What libjpeg turns into RGB; Pillow resizes the others (CMYK, YCCK) before it converts them.
COLORSPACES = ("YCbCr", "RGB", "Gray")


def random_jpeg_crop(data: bytes, image_size: int, min_scale: float, numbers: np.ndarray) -> np.ndarray | None:
    """The crop that `random_square_crop` makes of the decoded picture, but for a small difference of the pixels.

    Over 60 of Flickr8k's photographs its mean is 0.2 of 255 from 500x375 pixels to crops of 224, 0.7 from 1000x750,
    where most of it comes from decoding at half the size, and never above 1.4 for crops of 64 to 336.

    Args:
      data: any bytes.
      image_size: S in pixels.
      min_scale: in (0, 1].
      numbers: the three of `random_square`.

    Returns:
      uint8 [S, S, 3]; None for what is not a plain, sound JPEG: `decode_image` reads it, or says what is wrong.
    """
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        check_sides(width, height)  # before anything is unpacked
        if colorspace not in COLORSPACES:
            return None
        square = random_square(width, height, min_scale, numbers)
        factor = next((f for f in REDUCTIONS if square.side >= f * MARGIN * image_size), 1)
        least = {"min_width": -(-width // factor), "min_height": -(-height // factor), "min_factor": factor}
        pixels = simplejpeg.decode_jpeg(data, "RGB", **least)
    except ValueError:  # a warning of libjpeg's, too: truncated data would be filled with grey
        return None
    left, top, side = (part / factor for part in square)
    return antialiased(pixels, (image_size, image_size), (left, top, left + side, top + side))


def decode_jpeg(data: bytes) -> np.ndarray | None:
    """All pixels of a plain, whole JPEG, uint8 [H, W, 3], the same as Pillow's where both have the same libjpeg-turbo;
    None for other bytes, as of `random_jpeg_crop`."""
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        check_sides(width, height)
        return simplejpeg.decode_jpeg(data, "RGB") if colorspace in COLORSPACES else None
    except ValueError:
        return None


def antialiased(pixels: np.ndarray, size: tuple[int, int], box: tuple[float, float, float, float]) -> np.ndarray:
    """A part of a picture in another size, by antialiased bicubic; within a level of Pillow's, and 4 times as fast.

    Args:
      pixels: uint8 [H, W, 3].
      size: width w and height h of the result.
      box: left, top, right and lower edge of the part, in fractions of pixels.

    Returns:
      uint8 [h, w, 3].
    """
    if resizer is None:
        return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC, box=box))
    (height, width), (left, top, right, lower) = pixels.shape[:2], box
    picture = resizer.ImageData(width, height, resizer.PixelType.U8x3, pixels.tobytes())
    resized = resizer.ImageData(*size, resizer.PixelType.U8x3)
    options = resizer.ResizeOptions(
        resize_alg=resizer.ResizeAlg.convolution(resizer.FilterType.catmull_rom),  # Pillow's bicubic
        crop_box=resizer.CropBox(left, top, right - left, lower - top),
    )
    resizer.Resizer().resize(picture, resized, options)  # one a call: a shared one must not serve two threads at once
    return np.frombuffer(resized.get_buffer(), np.uint8).reshape(size[1], size[0], 3)


def libraries() -> dict[str, str]:
    """The versions that decide the pixels, beside Pillow's: another libjpeg, or another resize, makes other ones."""
    names = ("simplejpeg", *(["cykooz-resizer"] if resizer else ()))
    return {name: importlib.metadata.version(name) for name in names}
