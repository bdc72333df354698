import hashlib
import io

import numpy as np
import pytest
from PIL import Image

from input_pipeline.prepare.statistics import DRAWN, Facts
from input_pipeline.prepare.transform import FilteredRecordError, Settings, open_record, prepare_record, shrink
from input_pipeline.scenes import SceneSource
from input_pipeline.sources import BrokenRecordError, Filters
from input_pipeline.transforms import resize_and_center_crop

SIZE = 53


def encode(image: Image.Image, form: str = "JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def picture(width: int, height: int, index: int = 0) -> Image.Image:
    """A drawn scene on noise, stretched: edges and texture, as in a photograph."""
    drawn = Image.fromarray(SceneSource(0, 99, 160)[index]["image"]).resize((width, height), Image.Resampling.BICUBIC)
    noise = np.random.default_rng(index).normal(0, 6, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(drawn) + noise, 0, 255).astype(np.uint8))


def record(image, captions=("a cat",), **more):
    return {"id": "one", "image": image, "captions": captions, **more}


@pytest.mark.parametrize(("width", "height"), [(211, 149), (149, 211), (54, 107), (400, 300)])
def test_shrinking_is_antialiased_bicubic(width, height):
    image = picture(width, height)
    shrunk = shrink(image, SIZE)
    shorter = min(width, height)
    size = (int(SIZE * width / shorter), int(SIZE * height / shorter))
    expected = np.asarray(image.resize(size, Image.Resampling.BICUBIC))
    assert shrunk.shape == expected.shape
    difference = np.abs(shrunk.astype(int) - expected)
    # 0.21 and 2 were seen, of rounding; Lanczos would differ by 0.44 on average, bilinear by 0.6.
    assert difference.mean() < 0.25
    assert difference.max() <= 2
    np.testing.assert_array_equal(resize_and_center_crop(shrunk, SIZE).shape, (SIZE, SIZE, 3))


def test_shrinking_an_array_is_that_of_its_picture():
    image = picture(97, 131)
    np.testing.assert_array_equal(
        shrink(np.asarray(image)[:, ::-1], 64), shrink(Image.fromarray(np.asarray(image)[:, ::-1]), 64)
    )


@pytest.mark.parametrize(("size", "image_size"), [((53, 71), 53), ((53, 71), 99), ((530, 710), 0)])
def test_nothing_is_enlarged(size, image_size):
    image = picture(*size)
    np.testing.assert_array_equal(shrink(image, image_size), np.asarray(image))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "CMYK"])
def test_alpha_weighs_the_resized_colours_as_in_the_reference(mode):
    image = picture(211, 149).convert(mode)
    if mode != "CMYK":
        image.putalpha(Image.fromarray(np.random.default_rng(0).integers(0, 256, (149, 211), np.uint8)))
    expected = np.asarray(image.resize((int(SIZE * 211 / 149), SIZE), Image.Resampling.BICUBIC).convert("RGB"))
    np.testing.assert_array_equal(shrink(image, SIZE), expected)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_what_is_small_enough_is_copied_byte_by_byte(form):
    data = encode(picture(SIZE, 71), form)
    prepared = prepare_record(record(data), Settings(image_size=SIZE))
    assert prepared.record == record(data)
    assert prepared.facts == Facts(width=SIZE, height=71, form=form, num_bytes=len(data))


def test_a_large_picture_becomes_a_small_jpeg_without_metadata():
    exif = Image.Exif()
    exif[0x010E] = "where it was taken"
    large = picture(211, 149)
    data = encode(large, exif=exif, icc_profile=b"a profile", quality=95)
    prepared = prepare_record(record(data, label=3, more=1), Settings(image_size=SIZE, quality=90))
    made = Image.open(io.BytesIO(prepared.record["image"]))
    assert (made.format, made.size, dict(made.getexif()), "icc_profile" in made.info) == ("JPEG", (75, 53), {}, False)
    assert {name: value for name, value in prepared.record.items() if name != "image"} == {
        "id": "one",
        "captions": ("a cat",),
        "label": 3,
    }
    # What quality 90 and halved colour leave of a small noisy picture: 3.4 levels were seen; 5.8 at quality 30.
    assert np.abs(np.asarray(made).astype(int) - shrink(Image.open(io.BytesIO(data)), SIZE)).mean() < 4
    assert prepared.facts == Facts(width=211, height=149, form="JPEG", num_bytes=len(data))
    assert len(prepare_record(record(data), Settings(image_size=SIZE, quality=30)).record["image"]) < len(
        prepared.record["image"]
    )


def test_a_small_picture_of_another_form_becomes_jpeg():
    prepared = prepare_record(record(encode(picture(SIZE, 71), "BMP")), Settings(image_size=SIZE))
    assert Image.open(io.BytesIO(prepared.record["image"])).format == "JPEG"
    assert prepared.facts.form == "BMP"


def test_a_drawn_picture_is_kept_exactly():
    drawn = SceneSource(0, 5, 48)[2]
    prepared = prepare_record(drawn, Settings())
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(prepared.record["image"]))), drawn["image"])
    assert prepared.facts == Facts(width=48, height=48, form=DRAWN, num_bytes=0)


def test_equal_pixels_are_equal_in_any_form():
    image = picture(SIZE, 71)
    png, webp, other = encode(image, "PNG"), encode(image, "WEBP", lossless=True), encode(picture(SIZE, 71, 1), "PNG")
    pixels = [prepare_record(record(data), Settings(image_size=SIZE)).pixels for data in (png, webp, other)]
    assert pixels[0] == pixels[1] != pixels[2]
    expected = hashlib.sha256(repr((71, SIZE, 3)).encode() + np.asarray(image).tobytes()).hexdigest()
    assert pixels[0] == expected[:32]
    flat = [np.full(shape, 7, np.uint8) for shape in ((8, 12, 3), (12, 8, 3))]  # as many equal bytes
    assert len({prepare_record(record(x), Settings()).pixels for x in flat}) == 2


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (record(encode(picture(31, 37))[:-300]), "truncated or broken image"),
        (record(b"<html>404</html>"), "not an image of a known format"),
        (record(b""), "not an image of a known format"),
        (record(encode(Image.new("RGB", (9000, 9000)), "PNG")), "image too large: 9000x9000"),
        (record(encode(picture(31, 7))), "image too small: 31x7"),
        (record(encode(picture(31, 37)), captions=()), "no caption"),
        (record(np.zeros((31, 37, 3), np.uint8), captions=()), "no caption"),
    ],
)
def test_a_broken_record_names_the_reason(broken, reason):
    with pytest.raises(BrokenRecordError, match=rf"^one: {reason}"):
        prepare_record(broken, Settings())


def test_a_label_is_enough_for_a_record_and_a_picture_for_a_look():
    data = encode(picture(31, 37))
    assert "label" in prepare_record(record(data, captions=(), label=0), Settings()).record
    assert open_record(record(data, captions=()))[1].form == "JPEG"


BOTH = ("a cat", "a big dog")


@pytest.mark.parametrize(
    ("filters", "left"),
    [
        ({"min_side": 31}, BOTH),
        ({"min_side": 32}, "a side below 32 pixels"),
        ({"max_aspect": 62 / 31}, BOTH),
        ({"max_aspect": 1.99}, "an aspect above 1.99"),
        ({"min_caption_length": 9}, BOTH[1:]),
        ({"min_caption_length": 10}, "a caption below 10 characters"),
        ({"max_caption_length": 5}, BOTH[:1]),
        ({"max_caption_length": 4}, "a caption above 4 characters"),
        ({"min_caption_length": 6, "max_caption_length": 8}, "a caption below 6 characters"),
        ({"caption_must_match": r"\bdog"}, BOTH[1:]),
        ({"caption_must_match": r"dog$", "max_caption_length": 5}, "a caption that does not match 'dog$'"),
    ],
)
def test_filters(filters, left):
    one = record(encode(picture(31, 62)), captions=BOTH)
    settings = Settings(image_size=16, filters=Filters(**filters))
    if isinstance(left, tuple):
        assert prepare_record(one, settings).record["captions"] == left
        return
    with pytest.raises(FilteredRecordError) as caught:
        prepare_record(one, settings)
    assert (caught.value.record_id, caught.value.reason) == ("one", left)
    if "caption" in left:  # a labelled record may have none
        assert prepare_record({**one, "captions": (), "label": 1}, settings).record["label"] == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Settings(image_size=7), "image_size=7 must be at least 8 pixels, or 0 to keep sizes"),
        (lambda: Settings(quality=101), r"quality=101 must lie in \[1, 100\]"),
        (lambda: Settings(filters=Filters(max_aspect=0.5)), "--max_aspect=0.5 must be at least 1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
