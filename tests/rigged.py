"""A model of known answers: real towers, encoder and padding, with weights that read the answer off the picture.

A picture is black but for its first row, whose pixel c says how well class c fits: the brighter, the higher its score.
"""

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from clip_jax.distributed.sharding import ShardingConfig, make_mesh
from clip_jax.inference.api import Model, Preprocess
from clip_jax.models import ModelConfig, TextConfig, VisionConfig
from clip_jax.models.variables import init_variables
from clip_jax.pretrained import ImageTransform

SIZE, EMBED_DIM, WIDTH = 8, 8, 16
NAMES = ("ant", "bee", "cow", "dog", "emu", "fox", "gnu")
LOGIT_SCALE = 4.0
TOWER = {"width": WIDTH, "depth": 1, "num_heads": 2, "mlp_dim": 32}
CONFIG = ModelConfig(
    embed_dim=EMBED_DIM,
    vision=VisionConfig(image_size=SIZE, patch_size=SIZE, pooling="mean", **TOWER),
    text=TextConfig(context_length=11, vocab_size=300, eot_token=3, **TOWER),
)


class RiggedTokenizer:
    """A row holds the number of the class that the text names; after "a photo of a" the next class is meant."""

    num_truncated = 0

    def fingerprint(self) -> dict[str, str]:
        return {"kind": "rigged"}

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        found = []
        for text in texts:
            number = next((c for c, name in enumerate(NAMES) if name in text.split(".")[0].split()), 0)
            found.append((number + text.startswith("a photo of a")) % len(NAMES))
        return np.array(found, np.int32)[:, None]


@functools.cache
def rigged_model(batch_size: int = 4, num_devices: int = 1) -> tuple[Model, Preprocess, RiggedTokenizer]:
    variables = jax.device_get(init_variables(CONFIG, jax.random.key(0)))
    visual = variables["visual"]
    for block in (visual["transformer"]["blocks"]["attn"]["out"], visual["transformer"]["blocks"]["mlp"]["fc_out"]):
        for name in block:
            block[name] = np.zeros_like(block[name])
    for name in ("class_embedding", "positional_embedding"):
        visual[name] = np.zeros_like(visual[name])
    kernel = np.zeros((SIZE * SIZE * 3, WIDTH), np.float32)
    kernel[np.arange(SIZE) * 3, np.arange(SIZE)] = 1  # the red of the first row
    visual["patch_embedding"]["kernel"] = kernel
    variables["visual_projection"]["kernel"] = np.eye(WIDTH, EMBED_DIM, dtype=np.float32)
    variables["logit_scale"] = np.log(np.float32(LOGIT_SCALE))
    mesh = make_mesh(ShardingConfig(), jax.devices()[:num_devices])
    model = Model(CONFIG, variables, mesh, batch_size)
    model.encoder.texts = lambda tokens: np.eye(EMBED_DIM, dtype=np.float32)[tokens[:, 0]]  # type: ignore[method-assign]
    return model, Preprocess(SIZE, ImageTransform()), RiggedTokenizer()


def save_picture(file: Path, order: Sequence[int]) -> None:
    """A picture whose best class is order[0], the next order[1], ...; classes not named tie for the last place."""
    pixels = np.zeros((SIZE, SIZE, 3), np.uint8)
    for place, c in enumerate(order):
        pixels[0, c] = 250 - 30 * place
    # So that no two pictures are equal; no class is read there.
    pixels[SIZE - 1, :, 2] = list(hashlib.sha256(str(file).encode()).digest()[:SIZE])
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)
