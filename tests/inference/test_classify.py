import io
import json
import re

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from PIL import Image

from clip_jax.cli import classify as classify_module
from clip_jax.cli.classify import describe
from clip_jax.inference import api
from clip_jax.inference.classify import classify, make_prompts, read_image
from input_pipeline.transforms import resize_and_center_crop

IMAGE_SIZE = 8
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


class StubModel:
    """Logits are the mean of the colour channel that a text names with its first byte, in [0, 1], times a scale."""

    def __init__(self, logit_bias: float | None = None):
        self.logit_bias = logit_bias
        self.batches: list[int] = []

    def __call__(self, images, text):
        assert (images.dtype, images.shape[1:]) == (np.uint8, (IMAGE_SIZE, IMAGE_SIZE, 3))
        self.batches.append(len(images))
        channels = [b"rgb".index(bytes([row[0]])) for row in text]
        logits = 3 * images.mean((1, 2))[:, channels].astype(np.float32) / 255 + (self.logit_bias or 0)
        return logits, logits.T


class StubTokenize:
    def __init__(self) -> None:
        self.num_truncated = 0
        self.seen: list[str] = []

    def __call__(self, texts):
        self.seen += texts
        self.num_truncated += sum(len(text) > 20 for text in texts)
        return np.array([[*text.removeprefix("a photo of ").encode()[:3]] for text in texts], np.int32)


def picture(colour: tuple[int, int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (11, 13), colour).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def pictures(tmp_path) -> dict[str, str]:
    for name, colour in COLOURS.items():
        (tmp_path / f"{name}.png").write_bytes(picture(colour))
    return {name: str(tmp_path / f"{name}.png") for name in COLOURS}


@pytest.fixture
def command(monkeypatch):
    """Runs the command on a stub of a model; returns what it was given and what it asked for."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()

    def run(paths, model=None, **values):
        tokenize, loaded = StubTokenize(), []

        def load(name, activation):
            loaded.append(name)
            return model or StubModel(), lambda image: resize_and_center_crop(image, IMAGE_SIZE), tokenize

        monkeypatch.setattr(api, "load", load)
        values = {"model": "some model", "labels": ["red", "green", "blue"], **values}
        try:
            with flagsaver.flagsaver(**values):
                assert classify_module.main(paths) == 0
        finally:
            run.loaded, run.prompts = loaded, tokenize.seen

    return run


def test_the_best_labels_of_each_picture(pictures, command, capsys):
    command([pictures["green"], pictures["blue"]], top=2)
    high = np.exp(3) / (np.exp(3) + 2)
    low = 1 / (np.exp(3) + 2)
    expected = [
        pictures["green"],
        "label  probability",
        "-----  -----------",
        f"green        {high:.3f}",
        f"red          {low:.3f}",
        "",
        pictures["blue"],
        "label  probability",
        "-----  -----------",
        f"blue         {high:.3f}",
        f"red          {low:.3f}",
        "",
    ]
    assert capsys.readouterr().out.splitlines() == expected
    assert command.loaded == ["some model"]


def test_json_lines_have_all_digits(pictures, command, capsys):
    command([pictures["red"], pictures["blue"]], json=True)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["image"] for line in lines] == [pictures["red"], pictures["blue"]]
    assert list(lines[1]["probabilities"]) == ["blue", "red", "green"]  # equal ones as they were given
    np.testing.assert_allclose(
        list(lines[1]["probabilities"].values()), np.array([np.exp(3), 1, 1]) / (np.exp(3) + 2), rtol=1e-12
    )


def test_a_sigmoid_model_judges_each_label_by_itself(pictures, command, capsys):
    command([pictures["red"]], StubModel(logit_bias=-2.0), json=True)
    found = json.loads(capsys.readouterr().out)["probabilities"]
    assert found == pytest.approx(
        {"red": 1 / (1 + np.exp(-1)), "green": 1 / (1 + np.exp(2)), "blue": 1 / (1 + np.e**2)}
    )


class FarModel(StubModel):
    def __call__(self, images, text):
        return np.array([[1e4, -1e4]], np.float32), None


@pytest.mark.parametrize("logit_bias", [None, 0.0])
def test_probabilities_of_far_logits_do_not_overflow(logit_bias):
    with np.errstate(all="raise", under="ignore"):
        found = classify(FarModel(logit_bias), np.zeros(0), np.zeros(0))
    np.testing.assert_array_equal(found, [[1, 0]])


def test_many_pictures_are_taken_in_turn_and_in_order(pictures, command, capsys, monkeypatch):
    monkeypatch.setattr(classify_module, "IMAGES_AT_ONCE", 3)
    names = ["red", "blue", "green", "green", "red", "blue", "red"]
    model = StubModel()
    command([pictures[name] for name in names], model, json=True)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [max(line["probabilities"], key=line["probabilities"].get) for line in lines] == names
    assert model.batches == [3, 3, 1]


def test_labels_stand_in_the_template(pictures, command, capsys):
    command([pictures["red"]], labels=[" red ", "green"], template="a photo of {} {x}, {}.", json=True)
    assert command.prompts == ["a photo of red {x}, red.", "a photo of green {x}, green."]
    captured = capsys.readouterr()
    assert list(json.loads(captured.out)["probabilities"]) == ["red", "green"]
    assert captured.err == "2 labels are cut off at the model's context length\n"


@pytest.mark.parametrize(
    ("labels", "template", "message"),
    [
        ([], "{}", "at least two labels are needed, not 0: for instance --labels='a cat,a dog'"),
        (["a cat"], "{}", "at least two labels are needed, not 1: for instance --labels='a cat,a dog'"),
        (["a cat", " ", "a dog"], "{}", "label 2 of 3 is empty"),
        (["a cat", "a dog", "a cat "], "{}", "'a cat' is given twice among the labels: each one must differ"),
        (["a cat", "a dog"], "a photo", "the template 'a photo' has no {} where the label goes"),
    ],
)
def test_labels_and_templates_that_make_no_sense(labels, template, message, pictures, command):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make_prompts(labels, template)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        command([pictures["red"]], labels=labels, template=template)
    assert command.loaded == []


def test_what_is_no_picture_is_named_before_the_model_is_loaded(pictures, command, tmp_path, capsys):
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "cut.png").write_bytes(picture((1, 2, 3))[:50])
    for name, message in {
        "missing.png": "{} does not exist",
        "": "{} is a folder: clip-jax embed is for folders, this command for single pictures",
        "text.png": "{}: not an image of a known format (JPEG, PNG, WEBP, GIF, BMP, TIFF, PPM, AVIF, JPEG2000); 10 ",
        "cut.png": "{}: truncated or broken image: ",
    }.items():
        path = str(tmp_path / name)
        with pytest.raises(ValueError, match=f"^{re.escape(message.format(path))}"):
            command([pictures["red"], path])
        assert command.loaded == []
        with pytest.raises(ValueError, match=f"^{re.escape(message.format(path))}"):
            read_image(path)
    with pytest.raises(ValueError, match=r"^no images: for instance clip-jax classify cat\.jpg"):
        command([])
    assert command.loaded == []
    assert capsys.readouterr().out == ""


def test_top_may_be_more_than_there_are():
    assert describe("a.png", ["x", "y"], np.array([0.25, 0.75]), 5, as_json=False).splitlines() == [
        "a.png",
        "label  probability",
        "-----  -----------",
        "y            0.750",
        "x            0.250",
    ]
