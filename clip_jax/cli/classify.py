"""Tells which labels fit pictures: `clip-jax classify cat.jpg --model=ViT-B/32 --labels "a cat,a dog"`.

Softmax over the labels; a model with a logit bias (SigLIP) gives each label a probability of its own. A label with a
comma in it stands in double quotes.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags
from PIL import Image

from clip_jax.cli import common_flags
from clip_jax.inference.api import Model, load
from clip_jax.tables import format_table
from input_pipeline.transforms import decode_image

POSITIONAL = "IMAGE..."

flags.declare_key_flag("model")
flags.declare_key_flag("activation")
LABELS = flags.DEFINE_list("labels", None, "What the pictures may show, as 'a cat,a dog'.")
TEMPLATE = flags.DEFINE_string("template", "{}", "Sentence around each label, as 'a photo of {}.'.")
TOP = flags.DEFINE_integer("top", 5, "Labels shown of each picture.", lower_bound=1)
JSON = flags.DEFINE_bool("json", False, "A line of JSON for each picture instead of a table.")

IMAGES_AT_ONCE = 64


def make_prompts(labels: Sequence[str], template: str) -> list[str]:
    """The text for each label; ValueError for fewer than two, empty or equal labels, or a template without {}."""
    labels = [label.strip() for label in labels]
    if "" in labels:
        raise ValueError(f"label {labels.index('') + 1} of {len(labels)} is empty")
    if duplicates := sorted({label for label in labels if labels.count(label) > 1}):
        raise ValueError(f"{duplicates[0]!r} is given twice among the labels: each one must differ")
    if len(labels) < 2:
        raise ValueError(f"at least two labels are needed, not {len(labels)}: for instance --labels='a cat,a dog'")
    if "{}" not in template:
        raise ValueError(f"the template {template!r} has no {{}} where the label goes")
    return [template.replace("{}", label) for label in labels]


def read_image(path: str) -> Image.Image:
    """ValueError that names the path where there is no picture to be had."""
    file = Path(path)
    if file.is_dir():
        raise ValueError(f"{path} is a folder: clip-jax embed is for folders, this command for single pictures")
    if not file.is_file():
        raise ValueError(f"{path} does not exist")
    try:
        return decode_image(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def classify(model: Model, images: np.ndarray, text: np.ndarray) -> np.ndarray:
    """Probabilities of the labels.

    Args:
      images: uint8 [N, S, S, 3].
      text: int32 [C, L], a prompt for each label.

    Returns:
      float64 [N, C]; rows sum to 1, unless the model has a logit_bias: then each value stands for itself.
    """
    logits = np.asarray(model(images, text)[0], np.float64)  # [N, C]
    if model.logit_bias is not None:
        return np.exp(-np.logaddexp(0, -logits))
    return np.exp(logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True))


def main(paths: Sequence[str]) -> int:
    """Runs the command; see the module's docstring."""
    if not paths:
        raise ValueError("no images: for instance clip-jax classify cat.jpg --labels='a cat,a dog'")
    labels = [label.strip() for label in common_flags.required(LABELS, "'a cat,a dog'")]
    prompts = make_prompts(labels, TEMPLATE.value)
    name = common_flags.required(common_flags.MODEL, "ViT-B/32")
    for path in paths:
        read_image(path)  # and again below, rather than hold them all
    model, preprocess, tokenize = load(name, activation=common_flags.ACTIVATION.value)
    text = tokenize(prompts)
    if len(np.unique(text, axis=0)) < len(text):
        raise ValueError(f"two of the labels {', '.join(labels)} are the same tokens to this model: leave one out")
    if tokenize.num_truncated:
        print(f"{tokenize.num_truncated} labels are cut off at the model's context length", file=sys.stderr)
    for start in range(0, len(paths), IMAGES_AT_ONCE):
        some = paths[start : start + IMAGES_AT_ONCE]
        images = np.stack([preprocess(read_image(path)) for path in some])
        for path, probabilities in zip(some, classify(model, images, text)):
            print(describe(path, labels, probabilities, TOP.value, JSON.value))
    return 0


def describe(path: str, labels: Sequence[str], probabilities: np.ndarray, top: int, as_json: bool) -> str:
    """The `top` labels of one picture, best first, as a table or a line of JSON."""
    best = np.argsort(-probabilities, kind="stable")[:top]
    rows = [(labels[i], float(probabilities[i])) for i in best]
    if as_json:
        return json.dumps({"image": path, "probabilities": dict(rows)})
    return f"{path}\n{format_table(('label', 'probability'), rows)}\n"
