"""Pictures stored turned: training turns them where asked, `prepare` applies the EXIF tag or keeps it."""

import io

import numpy as np
import pytest
from PIL import Image

from input_pipeline.prepare.transform import Settings, open_record, prepare_record
from input_pipeline.transforms import exif_orientation, turn_upright

RED, BLUE = (250, 10, 10), (10, 10, 250)


def stored(orientation: int, form: str = "JPEG", size: tuple[int, int] = (40, 24)) -> bytes:
    """A picture whose upper quarter is red once it is upright, as a camera stores it."""
    upright = Image.new("RGB", size, BLUE)
    upright.paste(RED, (0, 0, size[0], size[1] // 4))
    turns = [Image.Transpose(turn) for turn in Image.Transpose]
    turned = next(t for t in (upright, *map(upright.transpose, turns)) if turn_upright(t, orientation) == upright)
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    turned.save(buffer, form, exif=exif, **({"quality": 98, "subsampling": 0} if form == "JPEG" else {}))
    return buffer.getvalue()


def is_upright(data: bytes) -> bool:
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    red = pixels[..., 0] > pixels[..., 2]
    return bool(red[: len(red) // 5].all() and not red[len(red) // 3 :].any())


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_the_tag_is_read_in_every_format(form, orientation):
    assert exif_orientation(stored(orientation, form)) == orientation
    assert exif_orientation(stored(1, form)[:-1]) == 1


@pytest.mark.parametrize("data", [b"", b"Exif", stored(6)[:30], b"\xff\xd8\xff\xe1Exif" + bytes(40)])
def test_a_tag_that_cannot_be_read_is_none(data):
    assert exif_orientation(data) == 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_size", [0, 12])
def test_prepare_turns_upright_where_asked_and_else_keeps_the_tag(orientation, image_size):
    record = {"id": "a", "image": stored(orientation), "captions": ("a flag",)}
    _, facts = open_record(record)
    assert facts.orientation == orientation
    kept = prepare_record(record, Settings(image_size=image_size)).record["image"]
    assert exif_orientation(kept) == orientation
    assert is_upright(kept) == (orientation in (1, 2))
    made = prepare_record(record, Settings(image_size=image_size, orient=True)).record["image"]
    assert exif_orientation(made) == 1
    assert is_upright(made)
    with Image.open(io.BytesIO(made)) as image:
        assert image.size == ((40, 24) if image_size == 0 else (20, 12))
