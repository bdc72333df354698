"""Pictures prepared as the files beside the weights say, compared with the pixels of the packages that wrote them."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from PIL import Image

import clip_jax
from clip_jax.models import normalize_images
from clip_jax.pretrained import ImageTransform, load_pretrained, save_pretrained
from clip_jax.pretrained.transform import transform_from_hf

HF = ["hf5_clip_processor", "hf5_siglip_processor", "hf_metaclip2", "hf_siglip2"]
OPEN_CLIP = ["openclip_clipa", "openclip_coca", "openclip_metaclip2", "openclip_siglip_timm", "openclip_siglip2_timm"]


def pixels_of(folder):
    pretrained = load_pretrained(folder)
    with Image.open(folder / "photo.png") as photo:
        square = pretrained.transform(photo.copy(), pretrained.config.vision.image_size)
    return np.asarray(normalize_images(square, pretrained.config)).transpose(2, 0, 1)


@pytest.mark.parametrize("golden", [*HF, *OPEN_CLIP])
def test_a_photograph_gives_their_pixels(goldens, golden):
    expected = np.load(goldens / golden / "expected.npz")
    theirs = expected["pixel_values_pil"][0] if golden in HF else expected["photo_pixels"]
    np.testing.assert_allclose(pixels_of(goldens / golden), theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("golden", HF)
def test_a_photograph_gives_their_features(goldens, golden):
    model, preprocess, _ = clip_jax.load(goldens / golden)
    features = model.encode_image(np.stack([preprocess(goldens / golden / "photo.png")]))
    expected = np.load(goldens / golden / "expected.npz")["image_features_pil"]
    np.testing.assert_allclose(features, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("golden", ["hf5_clip_processor", "hf_siglip2", "openclip_clipa"])
def test_what_is_written_anew_prepares_a_photograph_alike(goldens, golden, tmp_path):
    pretrained = load_pretrained(goldens / golden)
    save_pretrained(
        dataclasses.replace(pretrained, origin=None), tmp_path / "own", "huggingface" if golden in HF else "open_clip"
    )
    shutil.copy(goldens / golden / "photo.png", tmp_path / "own")
    np.testing.assert_array_equal(pixels_of(tmp_path / "own"), pixels_of(goldens / golden))


def test_open_clip_has_no_word_for_a_cut_out_of_more(goldens, tmp_path):
    with pytest.raises(ValueError, match="resized to 40 pixels, and the centre of 32 is cut out, which open_clip"):
        save_pretrained(load_pretrained(goldens / "hf5_clip_processor"), tmp_path / "out", "open_clip")


def test_pixels_that_are_not_normalised(goldens, tmp_path):
    folder = shutil.copytree(goldens / "hf5_siglip_processor", tmp_path / "model")
    settings = json.loads((folder / "processor_config.json").read_text())
    settings["image_processor"]["do_normalize"] = False
    (folder / "processor_config.json").write_text(json.dumps(settings))
    pixels = pixels_of(folder)
    assert 0 <= pixels.min() < 0.2
    assert 0.8 < pixels.max() <= 1


def test_order_and_rounding_of_the_two_libraries():
    """torchvision rounds half to even and converts colours last; transformers floors, and converts first."""
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 256, (7, 4, 4), np.uint8)  # 3 more than the cut: 1.5
    ours = ImageTransform()(Image.fromarray(rows[..., :3]), 4)
    theirs = transform_from_hf({}, 4, True, "")(Image.fromarray(rows[..., :3]), 4)
    np.testing.assert_array_equal(ours, rows[2:6, :, :3])
    np.testing.assert_array_equal(theirs, rows[1:5, :, :3])
    transparent = Image.fromarray(np.concatenate([rows, rows], axis=1), "RGBA")
    squash = ImageTransform(resize_mode="squash")
    first = dataclasses.replace(squash, library="transformers")(transparent, 3)
    np.testing.assert_array_equal(first, squash(transparent.convert("RGB"), 3))
    assert (first != squash(transparent, 3)).any()


def test_features_on_the_disk_are_those_of_the_transform():
    assert ImageTransform().settings == {}
    changed = ImageTransform(interpolation="bilinear", resize_size=40, library="transformers")
    assert changed.settings == {"interpolation": "bilinear", "resize_size": 40, "library": "transformers"}
