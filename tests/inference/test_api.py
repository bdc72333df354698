"""`clip_jax.load` and what it gives: the API people know, on weights and numbers of other implementations."""

import io
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import clip_jax
from clip_jax.distributed.sharding import ShardingConfig, make_mesh
from clip_jax.inference import encoder as encoder_module
from clip_jax.inference.api import MissingTokenizer, Preprocess
from clip_jax.inference.encoder import TEXT_LENGTHS, Encoder
from clip_jax.models import PUBLISHED, TextConfig, VisionConfig, normalize_images
from clip_jax.models.variables import init_variables, model_graph
from clip_jax.pretrained import ImageTransform
from input_pipeline.vocabulary import train_sentencepiece

EOT = 95  # of openclip_vit
ATOL = 2e-6  # float32 sums in batches of other sizes; measured 5e-7


@pytest.fixture(scope="module")
def golden():
    return np.load(Path(__file__).parents[1] / "goldens" / "openclip_vit" / "expected.npz")


@pytest.fixture(scope="module")
def loaded():
    return clip_jax.load(Path(__file__).parents[1] / "goldens" / "openclip_vit", batch_size=8)


@pytest.fixture(scope="module")
def model(loaded):
    return loaded[0]


def some_images(N):
    return np.random.default_rng(0).integers(256, size=(N, 32, 32, 3), dtype=np.uint8)


def some_text(N, longest=16):
    """Rows that end at 3, 4, ..., longest."""
    rng = np.random.default_rng(1)
    text = np.zeros((N, 16), np.int32)
    for row in text:
        length = rng.integers(3, longest + 1)
        row[:length] = rng.integers(1, EOT, size=length)
        row[length - 1] = EOT
    return text


def test_logits_are_those_of_the_reference(model, golden):
    logits_per_image, logits_per_text = model(golden["images_nchw"].transpose(0, 2, 3, 1), golden["tokens"])
    # Measured 2e-6 on logits of up to 5.
    np.testing.assert_allclose(logits_per_image, golden["logits_per_image"], rtol=0, atol=1e-5)
    np.testing.assert_array_equal(logits_per_text, logits_per_image.T)


def test_features_are_not_normalised(model, golden):
    images, text = golden["images_nchw"].transpose(0, 2, 3, 1), golden["tokens"]
    np.testing.assert_allclose(model.encode_image(images), golden["image_features"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(model.encode_text(text), golden["text_features"], rtol=0, atol=1e-5)


def test_any_number_of_rows_is_encoded_as_one_by_one_by_few_programs(goldens):
    model, _, _ = clip_jax.load(goldens / "openclip_vit", batch_size=8)
    for count in (1, 2, 3, 8, 19):
        for encode, rows in ((model.encode_image, some_images(count)), (model.encode_text, some_text(count))):
            features = encode(rows)
            assert (features.shape, features.dtype) == ((count, 32), np.float32)
            alone = jnp.concatenate([encode(row[None]) for row in rows])
            np.testing.assert_allclose(features, alone, rtol=0, atol=ATOL)
    assert model._encoder._image._cache_size() == 4  # of 1, 2, 4 and 8 rows
    assert model._encoder._text._cache_size() <= 4 * 3  # of 8, 12 and 16 positions


def test_text_is_encoded_at_its_longest_row(model, monkeypatch):
    seen = []
    encode_batch = Encoder._encode_batch
    monkeypatch.setattr(
        Encoder, "_encode_batch", lambda self, f, rows: (seen.append(rows.shape), encode_batch(self, f, rows))[1]
    )
    text = np.concatenate([some_text(9), some_text(9, longest=7)])
    full = Encoder(model.config, model.mesh, 8, normalized=False, short_text=False)
    full.variables = model.variables
    expected = full.texts(text)
    assert seen == [(8, 16), (8, 16), (2, 16)]
    seen.clear()
    features = model.encode_text(text)
    lengths = np.sort(np.argmax(text == EOT, axis=1) + 1)
    static = [next(size for size in (*TEXT_LENGTHS, 16) if lengths[last] <= size) for last in (7, 15, 17)]
    assert seen == list(zip((8, 8, 2), static))
    assert static[0] == 8  # shorter than all
    np.testing.assert_allclose(features, expected, rtol=0, atol=ATOL)


def test_batches_halve_whatever_the_number_of_devices(model):
    for devices, batch_size, sizes in ((3, 256, [258, 129, 63, 30, 15, 6, 3]), (8, 9, [16, 8]), (1, 5, [5, 2, 1])):
        encoder = Encoder(model.config, make_mesh(devices=jax.devices()[:devices]), batch_size)
        assert encoder._batch_sizes == sizes
    with pytest.raises(ValueError, match="batch_size=0 must be at least 1"):
        clip_jax.load(Path(__file__).parents[1] / "goldens" / "openclip_vit", batch_size=0)


def test_a_mesh_that_does_not_fit_leaves_the_model_as_it_was(model):
    expected = model(some_images(2), some_text(2)).logits_per_image
    with pytest.raises(
        ValueError, match=r"sharding.tensor=8 does not divide the 4 of text/transformer/blocks/attn/out"
    ):
        model.place(make_mesh(ShardingConfig(data=1, tensor=8)))
    np.testing.assert_array_equal(model(some_images(2), some_text(2)).logits_per_image, expected)


def test_text_that_sees_what_follows_is_never_cut():
    tower = {"width": 12, "depth": 1, "num_heads": 2, "mlp_dim": 16}
    for changes in ({"causal": False}, {"pooling": "last"}):
        config = clip_jax.ModelConfig(
            embed_dim=5,
            vision=VisionConfig(image_size=8, patch_size=8, **tower),
            text=TextConfig(context_length=16, vocab_size=96, eot_token=EOT, **tower, **changes),
        )
        encoder = Encoder(config, make_mesh(devices=jax.devices()[:1]), 4, normalized=False)
        encoder.variables = init_variables(config, jax.random.key(0))
        expected = nnx.merge(model_graph(config), encoder.variables).encode_text(some_text(3, longest=5))
        np.testing.assert_allclose(encoder.texts(some_text(3, longest=5)), expected, rtol=0, atol=ATOL)


@pytest.mark.parametrize("shape", [pytest.param((8, 1, 1), marks=pytest.mark.nightly), (2, 2, 2)])
def test_one_line_places_the_model_on_several_devices(model, shape):
    images, text = some_images(11), some_text(11)
    expected = model(images, text).logits_per_image
    data, fsdp, tensor = shape
    try:
        placed = model.place(clip_jax.make_mesh(ShardingConfig(data=data, fsdp=fsdp, tensor=tensor)))
        assert placed is model
        kernel = model.variables["visual"]["transformer"]["blocks"]["mlp"]["fc_in"]["kernel"]
        assert kernel.addressable_shards[0].data.size == kernel.size // (fsdp * tensor)
        np.testing.assert_allclose(model(images, text).logits_per_image, expected, rtol=0, atol=2e-5)
    finally:
        model.place(make_mesh(devices=jax.devices()[:1]))


def test_a_fingerprint_tells_weights_apart(model):
    again, other = (clip_jax.load(Path(__file__).parents[1] / "goldens" / f"openclip_vit{n}")[0] for n in ("", "_gap"))
    assert again.fingerprint == model.fingerprint != other.fingerprint


def test_a_fingerprint_tells_configs_apart(goldens, tmp_path, model):
    folder = shutil.copytree(goldens / "openclip_vit", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quick_gelu": False}))
    assert clip_jax.load(folder)[0].fingerprint != model.fingerprint


def test_bfloat16_is_close(golden):
    half, _, _ = clip_jax.load(Path(__file__).parents[1] / "goldens" / "openclip_vit", compute_dtype="bfloat16")
    features = half.encode_image(golden["images_nchw"].transpose(0, 2, 3, 1))
    assert features.dtype == jnp.bfloat16
    error = np.linalg.norm(features.astype(np.float32) - golden["image_features"])
    assert 1e-4 < error / np.linalg.norm(golden["image_features"]) < 0.03  # measured 0.01


@pytest.mark.parametrize(
    ("images", "found"),
    [
        (np.zeros((2, 3, 32, 32), np.float32), "[2, 3, 32, 32]"),
        (np.zeros((32, 32, 3), np.uint8), "[32, 32, 3]"),
        (np.zeros((0, 32, 32, 3), np.uint8), "[0, 32, 32, 3]"),
        (np.zeros((1, 30, 32, 3), np.uint8), "[1, 30, 32, 3]"),
    ],
)
def test_images_of_another_shape_are_refused(model, images, found):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        model.encode_image(images)
    assert str(error.value) == (
        f"images have the shape {found}; expected [N, 32, 32, 3], as np.stack([preprocess(image), ...]) gives"
    )


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (some_images(2).astype(np.int32), "images are int32; expected uint8, or floating-point pixels already normal"),
        ([some_images(1)[0], np.zeros((32, 32, 3), np.float32)], "images are float32, uint8; expected uint8, or"),
        ([some_images(1)[0], np.zeros((30, 32, 3), np.uint8)], r"shape several: \[\(30, 32, 3\), \(32, 32, 3"),
    ],
)
def test_images_of_other_or_several_kinds_are_refused(model, images, message):
    with pytest.raises(ValueError, match=message):
        model.encode_image(images)


def test_a_precision_that_cannot_be_had_is_refused(goldens):
    with pytest.raises(ValueError, match="float64 needs JAX_ENABLE_X64=1 in the environment"):
        clip_jax.load(goldens / "openclip_vit", compute_dtype="float64")
    with pytest.raises(ValueError, match=r"model.compute_dtype='half' must be one of 'float32', 'bfloat16', 'float64'"):
        clip_jax.load(goldens / "openclip_vit", compute_dtype="half")


def test_siglip_reads_all_positions(goldens):
    model, _, _ = clip_jax.load(goldens / "hf_siglip")
    with pytest.raises(
        ValueError, match="text has 13 positions; this model reads the last of 16: use its own tokenize"
    ):
        model.encode_text(np.ones((1, 13), np.int32))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (np.zeros(16, np.int32), r"text is int32 \[16\]; expected int32 \[N, L\] as tokenize\(texts\) gives"),
        (np.zeros((0, 16), np.int32), r"text is int32 \[0, 16\]; expected"),
        (np.zeros((1, 16)), r"text is float64 \[1, 16\]; expected"),
        (
            np.full((1, 17), EOT),
            "text has 17 positions and ids from 95 to 95; the model has 16 positions and ids below 96",
        ),
        (np.full((1, 16), 96), "text has 16 positions and ids from 96 to 96"),
        (np.full((1, 16), -1), "text has 16 positions and ids from -1 to -1"),
        (np.array([[1, EOT], [1, 2]]), r"a row of text has no end token \(95\): use the model's own tokenize"),
    ],
)
def test_text_that_is_not_the_tokenizers_is_refused(model, text, message):
    with pytest.raises(ValueError, match=message):
        model.encode_text(text)


def test_preprocess_gives_the_references_pixels(goldens):
    folder = goldens / "preprocess"
    size = json.loads((folder / "config.json").read_text())["image_size"]
    expected = np.load(folder / "expected.npz")
    preprocess = Preprocess(size, ImageTransform())
    for i in range(4):
        images = [preprocess(folder / f"{i}.png"), preprocess(Image.open(folder / f"{i}.png"))]
        np.testing.assert_array_equal(images[0], images[1])
        pixels = normalize_images(jnp.asarray(images[0]), PUBLISHED["ViT-B/32"])
        np.testing.assert_allclose(pixels, expected[f"pixels_{i}"].transpose(1, 2, 0), rtol=0, atol=1e-6)


def test_a_squashed_picture_keeps_its_borders():
    picture = np.zeros((20, 40, 3), np.uint8)
    picture[:, :10] = 255
    squashed = Preprocess(16, ImageTransform(resize_mode="squash"))(picture)
    assert squashed.shape == (16, 16, 3)
    assert (squashed[:, 0] == 255).all()
    assert (squashed[:, 8:] == 0).all()
    assert (Preprocess(16, ImageTransform())(picture)[:, 1:] == 0).all()  # its left quarter was cut off


@pytest.mark.parametrize("picture", [np.zeros((0, 9, 3), np.uint8), Image.new("RGB", (0, 0)), Image.new("L", (9, 7))])
def test_pictures_without_a_size_are_refused(picture):
    with pytest.raises(ValueError, match="image too small: "):
        Preprocess(16, ImageTransform())(picture)


@pytest.mark.parametrize("thing", [np.zeros((9, 9), np.uint8), np.zeros((9, 9, 3)), 3, None, [1]])
def test_what_is_no_picture_is_refused(thing):
    with pytest.raises(ValueError, match=r"expected a PIL image, uint8 \[H, W, 3\] or a path, not "):
        Preprocess(16, ImageTransform())(thing)


def test_a_truncated_image_that_was_opened_is_refused():
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)).save(buffer, "JPEG")
    with pytest.raises(ValueError, match="truncated or broken image"):
        Preprocess(16, ImageTransform())(Image.open(io.BytesIO(buffer.getvalue()[:-300])))


def test_a_file_that_is_no_picture_is_named(tmp_path):
    (tmp_path / "cat.jpg").write_bytes(b"meow")
    preprocess = Preprocess(16, ImageTransform())
    with pytest.raises(ValueError, match=r"cat\.jpg cannot be read as a picture: not an image of a known format"):
        preprocess(tmp_path / "cat.jpg")
    with pytest.raises(ValueError, match=r"dog\.jpg cannot be read as a picture: .*No such file"):
        preprocess(tmp_path / "dog.jpg")


def test_weights_without_a_vocabulary_say_so_when_text_is_asked_for(loaded):
    tokenize = loaded[2]
    assert isinstance(tokenize, MissingTokenizer)
    with pytest.raises(ValueError, match="no vocabulary was found beside the weights"):
        tokenize(["a cat"])


@pytest.fixture
def exported(goldens, tmp_path):
    """Golden weights with a vocabulary of their own beside them."""
    shutil.copytree(goldens / "openclip_vit", tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["text_cfg"] |= {"pool_type": "eos", "eos_id": 3}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    train_sentencepiece(["a red circle", "a blue square", "two cats"], 48, tmp_path / "model" / "tokenizer.model")
    return tmp_path / "model"


def test_a_vocabulary_beside_the_weights_is_used(exported):
    model, _, tokenize = clip_jax.load(exported)
    assert (tokenize.kind, tokenize.context_length, tokenize.eot_token) == ("sentencepiece", 16, 3)
    assert model.encode_text(tokenize(["a red circle", ""])).shape == (2, 32)


def test_a_vocabulary_of_another_model_is_refused(exported):
    train_sentencepiece(["quick brown foxes jump over lazy dogs"] * 5, 97, exported / "tokenizer.model")
    config = json.loads((exported / "config.json").read_text())
    config["text_cfg"]["eos_id"] = 4
    (exported / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ValueError,
        match=r"tokenizer\.model, read as sentencepiece, is not this model's vocabulary: it has \d+ tokens with 3 as",
    ):
        clip_jax.load(exported)


def test_names():
    assert clip_jax.available_models()[:9] == [
        *("RN50", "RN101", "RN50x4", "RN50x16", "RN50x64"),
        *("ViT-B/32", "ViT-B/16", "ViT-L/14", "ViT-L/14@336px"),
    ]
    assert set(PUBLISHED) < set(clip_jax.available_models())
    assert all(hasattr(clip_jax, name) for name in clip_jax.__all__)
    assert tuple(sorted(encoder_module.TEXT_LENGTHS)) == encoder_module.TEXT_LENGTHS
