import io
import tarfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from clip_jax.config.experiment import EvaluationConfig
from clip_jax.distributed.sharding import ShardingConfig, make_mesh
from clip_jax.evaluation.in_training import Evaluator, as_row, as_table
from clip_jax.evaluation.suite import labelled_sets, splits
from clip_jax.inference.encoder import Encoder
from clip_jax.models import CLIP, ModelConfig, TextConfig, VisionConfig
from clip_jax.models.variables import init_variables, model_graph
from input_pipeline.scenes import LabelledScenes, SceneSource
from input_pipeline.sources import WebDatasetSource
from input_pipeline.tokenizers import SentencePieceTokenizer
from input_pipeline.vocabulary import train_sentencepiece

IMAGE_SIZE, CONTEXT_LENGTH, VOCAB_SIZE = 16, 11, 300
TOLERANCE = 2e-6  # float32 sums of other batch sizes, in another order; differences of up to 4e-7 were seen


@pytest.fixture(scope="module")
def model() -> ModelConfig:
    tower = {"width": 16, "depth": 1, "num_heads": 2, "mlp_dim": 32}
    return ModelConfig(
        embed_dim=13,
        vision=VisionConfig(image_size=IMAGE_SIZE, patch_size=8, **tower),
        text=TextConfig(context_length=CONTEXT_LENGTH, vocab_size=VOCAB_SIZE, eot_token=3, **tower),
    )


@pytest.fixture(scope="module")
def params(model):
    return init_variables(model, jax.random.key(0))


@pytest.fixture(scope="module")
def make_encoder(model, params):
    def make(batch_size: int, num_devices: int = 8) -> Encoder:
        mesh = make_mesh(ShardingConfig(), jax.devices()[:num_devices])
        encoder = Encoder(model, mesh, batch_size)
        encoder.variables = params
        return encoder

    return make


@pytest.fixture(scope="module")
def encoder(make_encoder) -> Encoder:
    return make_encoder(8)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> SentencePieceTokenizer:
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    source = SceneSource(0, 101, IMAGE_SIZE)
    train_sentencepiece((text for i in range(len(source)) for text in source.captions(i)), VOCAB_SIZE, file)
    return SentencePieceTokenizer(file, CONTEXT_LENGTH)


def images(count: int) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (count, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)


def texts(count: int) -> np.ndarray:
    rows = np.random.default_rng(8).integers(4, VOCAB_SIZE, (count, CONTEXT_LENGTH), np.int32)
    rows[np.arange(count), 2 + np.arange(count) % (CONTEXT_LENGTH - 2)] = 3
    return rows


def settings(**changes) -> EvaluationConfig:
    values = {"zero_shot": ("scenes/digit",), "data_dir": "", "templates": "", "num_examples": 13, "batch_size": 8}
    return EvaluationConfig(**{**values, **changes})


@pytest.mark.parametrize("count", [1, 7, 8, 9, 19])
def test_any_number_is_encoded_as_one_by_one(count, encoder):
    for encode, rows in ((encoder.images, images(count)), (encoder.texts, texts(count))):
        features = encode(rows)
        assert (features.shape, features.dtype) == ((count, 13), np.float32)
        np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-6)
        one_by_one = np.concatenate([encode(row[None]) for row in rows])
        np.testing.assert_allclose(features, one_by_one, atol=TOLERANCE)
        assert count == 1 or np.abs(features[0] - features[1]).max() > 1e-3  # so that an equality says something


@pytest.mark.parametrize("count", [1, 8, 11])
def test_one_pass_gives_features_before_and_after_the_projection(count, encoder, model, params):
    module: CLIP = nnx.merge(model_graph(model), params)
    pooled, embeddings = encoder.pooled_images(images(count))
    np.testing.assert_allclose(pooled, module.pool_image(jnp.asarray(images(count))), atol=TOLERANCE)
    np.testing.assert_allclose(embeddings, encoder.images(images(count)), atol=TOLERANCE)
    assert pooled.shape == (count, 16)


def test_the_rows_that_fill_up_a_batch_do_not_show(encoder):
    rows = images(11)
    np.testing.assert_array_equal(encoder.images(rows)[8:], encoder.images(np.concatenate([rows, rows[:5]]))[8:11])


def test_features_are_those_of_the_model(encoder, model, params):
    module: CLIP = nnx.merge(model_graph(model), params)
    for encode, reference, rows in (
        (encoder.images, module.encode_image, images(5)),
        (encoder.texts, module.encode_text, texts(5)),
    ):
        expected = np.array(reference(jnp.asarray(rows)))
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
        np.testing.assert_allclose(encode(rows), expected, atol=TOLERANCE)


@pytest.mark.parametrize("batch_size", [3, 8])
def test_eight_devices_encode_as_one(batch_size, encoder, make_encoder):
    alone = make_encoder(batch_size, num_devices=1)
    np.testing.assert_allclose(encoder.images(images(10)), alone.images(images(10)), atol=TOLERANCE)
    np.testing.assert_allclose(encoder.texts(texts(10)), alone.texts(texts(10)), atol=TOLERANCE)


def test_a_stream_is_encoded_batch_by_batch(encoder):
    taken = 0

    def stream():
        nonlocal taken
        for row in images(30):
            taken += 1
            yield row

    def failing():
        yield from images(9)
        assert taken == 0
        raise RuntimeError("the disk is gone")

    with pytest.raises(RuntimeError, match="the disk is gone"):
        encoder.images(failing())
    assert len(encoder.images(stream())) == taken == 30


def test_nothing_to_encode_is_refused(encoder):
    with pytest.raises(ValueError, match="there is nothing to encode"):
        encoder.images([])


def test_results_of_drawn_scenes(encoder, tokenizer, params):
    validation = SceneSource(0, 17, IMAGE_SIZE, split="validation")
    evaluator = Evaluator(
        settings(zero_shot=("scenes/digit", "scenes/shape")), encoder, tokenizer, validation, IMAGE_SIZE
    )
    results = evaluator(params)
    assert list(results) == ["zero_shot", "retrieval"]
    assert list(results["zero_shot"]) == ["scenes/digit", "scenes/shape"]
    for name, metrics in results["zero_shot"].items():
        source = LabelledScenes(name.removeprefix("scenes/"), 13, IMAGE_SIZE)
        assert metrics["count"] == 13
        names = source.class_names or ()
        assert tuple(metrics["per_class"]) == names
        assert metrics["chance"] == 1 / len(names)
        assert metrics["skipped"] == []
        counts = np.bincount([source[i]["label"] for i in range(13)], minlength=len(names))
        hits = sum(count * (share or 0) for count, share in zip(counts, metrics["per_class"].values()))
        assert metrics["top1"] == pytest.approx(hits / 13)
    retrieval = results["retrieval"]
    assert (retrieval["images"], retrieval["captions"], retrieval["skipped"]) == (13, 65, [])
    assert retrieval["text_to_image_r@10_chance"] == pytest.approx(10 / 13)
    assert evaluator(params) == results

    row = as_row(results)
    assert row["evaluation/scenes/shape/top1"] == results["zero_shot"]["scenes/shape"]["top1"]
    assert row["evaluation/retrieval/image_to_text_r@1"] == retrieval["image_to_text_r@1"]
    assert len(row) == 2 * 2 + 12
    assert all(isinstance(value, float) for value in row.values())


def test_zero_examples_means_all(encoder, tokenizer, params, monkeypatch):
    monkeypatch.setattr(labelled_sets, "NUM_SCENES", 19)
    validation = SceneSource(0, 17, IMAGE_SIZE, split="validation")
    results = Evaluator(settings(num_examples=0), encoder, tokenizer, validation, IMAGE_SIZE)(params)
    assert results["zero_shot"]["scenes/digit"]["count"] == 19
    assert results["retrieval"]["images"] == 17


def test_the_tables_show_numbers_beside_chance(encoder, tokenizer, params):
    validation = SceneSource(0, 17, IMAGE_SIZE, split="validation")
    results = Evaluator(settings(), encoder, tokenizer, validation, IMAGE_SIZE)(params)
    lines = [line.split() for line in as_table(results).splitlines()]
    digits = results["zero_shot"]["scenes/digit"]
    numbers = [f"{digits[key]:.3f}" for key in ("top1", "top5", "mean_per_class", "chance")]
    assert ["scenes/digit", *numbers, "10", "13", "0"] in lines
    chances = [f"{results['retrieval'][f'text_to_image_r@{k}_chance']:.3f}" for k in (1, 5, 10)]
    assert ["text", "to", "image,", "chance", *chances] in lines
    assert "retrieval (13 images, 65 captions)" in as_table({**results, "zero_shot": {}})


def test_templates_change_the_classifier(encoder, tokenizer, params, monkeypatch):
    prompts: list[str] = []

    def tokenize(names):
        prompts.extend(names)
        return tokenizer(names)

    def classes(templates: str) -> set[str]:
        prompts.clear()
        validation = SceneSource(0, 7, IMAGE_SIZE, split="validation")
        evaluator = Evaluator(settings(templates=templates), encoder, tokenizer, validation, IMAGE_SIZE)
        monkeypatch.setattr(evaluator, "_tokenizer", tokenize)
        evaluator(params)
        return set(prompts)

    names = LabelledScenes("digit", 1, IMAGE_SIZE).class_names or ()
    assert set(names) <= classes("bare")
    assert {f"a photo of a {name}." for name in names} <= classes("one")
    own = LabelledScenes("digit", 1, IMAGE_SIZE).templates
    assert {template.format(name) for template in own for name in names} <= classes("")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"zero_shot": ("digit",)},
            "^data set 'digit' is unknown: use a name of the paper's sets, 'scenes/NAME', 'skl",
        ),
        ({"zero_shot": ("scenes/cats",)}, "^labelled set 'cats' of the drawn scenes is unknown: choose one of"),
        ({"zero_shot": ("tfds/nothing/test",)}, "^no prepared dataset 'nothing' in '.'; prepare it with: python -c"),
        ({"templates": "imagenet"}, "^no prompt templates named 'imagenet': choose one of bare, "),
    ],
)
def test_sets_and_templates_are_looked_for_at_once(changes, message, encoder, tokenizer):
    validation = SceneSource(0, 7, IMAGE_SIZE, split="validation")
    with pytest.raises(ValueError, match=message):
        Evaluator(settings(**changes), encoder, tokenizer, validation, IMAGE_SIZE)


@pytest.mark.parametrize("first_class", ["cat", "zebra"])
def test_training_measures_any_set_that_a_suite_names(first_class, encoder, tokenizer, params, tmp_path):
    for i, name in enumerate((first_class, "sea_horse", "sea_horse")):
        file = tmp_path / "photos" / name / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images(3)[i]).save(file)
    (tmp_path / "photos" / "sea_horse" / "broken.png").write_bytes(b"no picture")
    name = f"folder:{tmp_path}/photos"
    validation = SceneSource(0, 7, IMAGE_SIZE, split="validation")
    metrics = Evaluator(settings(zero_shot=(name,)), encoder, tokenizer, validation, IMAGE_SIZE)(params)["zero_shot"]
    assert set(metrics[name]["per_class"]) == {first_class, "sea horse"}
    assert (metrics[name]["count"], [record for record, _ in metrics[name]["skipped"]]) == (3, ["sea_horse/broken.png"])


def test_a_set_of_several_labels_an_image_is_refused(encoder, tokenizer, tmp_path, monkeypatch):
    (tmp_path / "voc2007" / "test" / "cat").mkdir(parents=True)
    Image.fromarray(images(1)[0]).save(tmp_path / "voc2007" / "test" / "cat" / "0.png")
    config = settings(zero_shot=("voc2007",), data_dir=str(tmp_path))
    monkeypatch.setattr(splits.FolderSource, "multi_label", True, raising=False)
    with pytest.raises(ValueError, match="zero_shot set 'voc2007' has several labels an image: use a suite"):
        Evaluator(config, encoder, tokenizer, SceneSource(0, 7, IMAGE_SIZE, split="validation"), IMAGE_SIZE)


def write_tar(path: Path, count: int, cut: tuple[int, ...]) -> Path:
    with tarfile.open(path, "w") as tar:
        for i in range(count):
            buffer = io.BytesIO()
            pixels = np.random.default_rng(i).integers(0, 256, (19, 23, 3), np.uint8)
            Image.fromarray(pixels).save(buffer, "JPEG")
            for name, data in (
                (f"{i}.jpg", buffer.getvalue()[: 300 if i in cut else None]),
                (f"{i}.txt", b"one red square"),
            ):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path


def test_broken_records_are_left_out_and_listed(encoder, tokenizer, params, tmp_path):
    validation = WebDatasetSource(str(write_tar(tmp_path / "a.tar", 9, cut=(0, 5))))
    config = settings(zero_shot=(), num_examples=0)
    retrieval = Evaluator(config, encoder, tokenizer, validation, IMAGE_SIZE)(params, pictures=tmp_path)["retrieval"]
    assert (retrieval["images"], retrieval["captions"]) == (7, 7)
    assert [record_id for record_id, _ in retrieval["skipped"]] == ["a/0", "a/5"]
    assert all("truncated or broken image" in reason for _, reason in retrieval["skipped"])
    assert {file.name for file in tmp_path.glob("*.png")} == {"similarity.png", "retrieval.png"}


def test_data_of_which_nothing_can_be_used_is_refused(encoder, tokenizer, params, tmp_path):
    validation = WebDatasetSource(str(write_tar(tmp_path / "a.tar", 2, cut=(0, 1))))
    with pytest.raises(
        ValueError, match="none of the 2 pictures of held-out pairs can be used; the first is a/0: trunc"
    ):
        Evaluator(settings(zero_shot=()), encoder, tokenizer, validation, IMAGE_SIZE)(params)
