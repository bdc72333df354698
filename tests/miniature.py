"""A run of configs/tiny.py so small that a step takes milliseconds, for tests."""

import io

import numpy as np
from PIL import Image

from configs.tiny import get_config

MINIATURE = {
    "model": {"embed_dim": 16},
    "vision": {"image_size": 16, "patch_size": 8, "width": 16, "depth": 1, "num_heads": 2, "mlp_dim": 32},
    "text": {"context_length": 8, "vocab_size": 300, "width": 16, "depth": 1, "num_heads": 2, "mlp_dim": 32},
    "data": {"num_examples": 101, "num_validation": 11, "num_workers": 0},
    "optimizer": {"warmup_steps": 2, "learning_rate": 1e-3},
    "train": {"global_batch_size": 8, "total_steps": 70, "checkpoint_every": 10, "evaluate_every": 20},
    "evaluation": {"zero_shot": ("scenes/digit",), "num_examples": 13, "batch_size": 8},
}


def miniature(**changes) -> dict:
    """configs/tiny.py so small that a step takes milliseconds, with section__key=value."""
    sections = get_config().to_dict()
    for section, keys in MINIATURE.items():
        sections[section] |= keys
    for name, value in changes.items():
        section, _, key = name.partition("__")
        sections[section][key] = value
    return sections


def picture(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (19, 23, 3), np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()
