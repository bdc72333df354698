"""Which of some labels fit pictures: softmax over the labels, or a probability each."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from clip_jax.inference.api import Model
from input_pipeline.transforms import decode_image


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
