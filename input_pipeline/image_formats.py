"""Which pictures can be read here: the formats, and the suffixes that their files have.

AVIF and JPEG 2000 depend on how Pillow was built; HEIC, as iPhones write it, needs the extra `heic`.
"""

from PIL import features

try:
    import pillow_heif
except ImportError:
    pillow_heif = None
else:
    pillow_heif.register_heif_opener()

# Of Pillow's other readers some start external programs (EPS runs Ghostscript).
_EVERYWHERE = {
    "JPEG": ("jpg", "jpeg", "jpe", "jfif", "jif", "pjpeg", "pjp"),
    "PNG": ("png", "apng"),
    "WEBP": ("webp",),
    "GIF": ("gif",),
    "BMP": ("bmp", "dib"),
    "TIFF": ("tif", "tiff"),
    "PPM": ("ppm", "pgm", "pbm", "pnm"),
}
_BY_BUILD = {"avif": ("AVIF", ("avif",)), "jpg_2000": ("JPEG2000", ("jp2", "j2k", "j2c", "jpc", "jpf", "jpx"))}
HEIC_SUFFIXES = ("heic", "heif", "hif")

_SUFFIXES = dict(_EVERYWHERE)
_SUFFIXES |= {form: suffixes for name, (form, suffixes) in _BY_BUILD.items() if features.check(name)}
if pillow_heif is not None:
    _SUFFIXES["HEIF"] = HEIC_SUFFIXES
# Of one stem's pictures in a tar the first of these is taken: jpg, jpeg, png and webp come first.
_FIRST = ("jpg", "jpeg", "png", "webp")

FORMATS = tuple(_SUFFIXES)  # Pillow's names
IMAGE_SUFFIXES = (*_FIRST, *(x for suffixes in _SUFFIXES.values() for x in suffixes if x not in _FIRST))


def is_picture_name(name: str) -> bool:
    """Whether a file's name has the suffix of a picture that can be read here, in any case."""
    return name.rpartition(".")[2].lower() in IMAGE_SUFFIXES and "." in name
