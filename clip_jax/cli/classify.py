"""Ranks labels for pictures: `clip-jax classify cat.jpg --model=ViT-B/32 --labels "a cat,a dog"`.

Softmax over the labels; a model with a logit bias (SigLIP) gives each label a probability of its own. A label with a
comma in it stands in double quotes.
"""

import json
import sys
from collections.abc import Sequence

import numpy as np
from absl import flags

from clip_jax.cli import common_flags
from clip_jax.tables import format_table

POSITIONAL = "IMAGE..."

common_flags.declare("model", "activation")
LABELS = flags.DEFINE_list("labels", None, "Labels to choose from, as 'a cat,a dog'.")
TEMPLATE = flags.DEFINE_string("template", "{}", "Sentence around each label, as 'a photo of {}.'.")
TOP = flags.DEFINE_integer("top", 5, "Number of labels shown for each picture.", lower_bound=1)
JSON = flags.DEFINE_bool("json", False, "Output of one JSON line per picture instead of a table.", allow_override=True)

IMAGES_AT_ONCE = 64


def main(paths: Sequence[str]) -> int:
    """Runs the command; see the module's docstring."""
    from clip_jax.inference.api import load
    from clip_jax.inference.classify import classify, make_prompts, read_image

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
