"""Small models of every family, with prime and distinct sizes where the family allows them."""

import functools
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

from clip_jax.models import ModelConfig, ResNetConfig, TextConfig, VisionConfig
from clip_jax.models.variables import Variables, init_variables
from clip_jax.pretrained import ImageTransform, Pretrained

TEXT = TextConfig(width=22, depth=3, num_heads=2, mlp_dim=29, context_length=13, vocab_size=31, eot_token=30)
VIT = VisionConfig(width=15, depth=2, num_heads=3, mlp_dim=19, image_size=15, patch_size=5)
SIGLIP_TEXT = TextConfig(
    width=22,
    depth=3,
    num_heads=2,
    mlp_dim=29,
    context_length=13,
    vocab_size=31,
    eot_token=1,
    causal=False,
    pooling="last",
    projection_bias=True,
)
SIGLIP_VISION = VisionConfig(
    width=21, depth=2, num_heads=3, mlp_dim=19, image_size=15, patch_size=5, pooling="attention"
)
MEAN = VisionConfig(width=15, depth=2, num_heads=3, mlp_dim=19, image_size=15, patch_size=5, pooling="mean")
CLIPA = VisionConfig(width=15, depth=2, num_heads=3, mlp_dim=19, image_size=15, patch_size=5, pooling="mean_then_norm")
LAST = TextConfig(
    width=22,
    depth=3,
    num_heads=2,
    mlp_dim=29,
    context_length=13,
    vocab_size=31,
    eot_token=1,
    causal=False,
    pooling="last",
)
PERCEPTION = VisionConfig(
    width=24,
    depth=2,
    num_heads=3,
    mlp_dim=19,
    image_size=15,
    patch_size=5,
    pooling="perception",
    pool_heads=2,
    pool_mlp_dim=23,
    rotary_grid=5,
)
RESNET = ResNetConfig(image_size=64, stages=(2, 1, 3, 1), stem_width=2, num_heads=4)
MODELS = {
    "vit": ModelConfig(embed_dim=7, vision=VIT, text=TEXT),
    "vit_with_bias": ModelConfig(embed_dim=7, vision=VIT, text=TEXT, activation="gelu", logit_bias_init=-3.0),
    "mean": ModelConfig(embed_dim=7, vision=MEAN, text=TEXT, layer_norm_eps=1e-6),
    "clipa": ModelConfig(embed_dim=7, vision=CLIPA, text=LAST, activation="gelu"),
    "perception": ModelConfig(embed_dim=7, vision=PERCEPTION, text=TEXT, activation="gelu", layer_norm_eps=1e-5),
    "resnet": ModelConfig(embed_dim=7, vision=RESNET, text=TEXT, layer_norm_eps=1e-6),
    "siglip": ModelConfig(
        embed_dim=21,
        vision=SIGLIP_VISION,
        text=SIGLIP_TEXT,
        activation="gelu_tanh",
        layer_norm_eps=1e-6,
        logit_bias_init=-10.0,
        image_mean=(0.5, 0.5, 0.5),
        image_std=(0.5, 0.5, 0.5),
    ),
}


@functools.cache  # tracing takes a tenth of a second, and many tests want the same few models
def shapes_of(config: ModelConfig) -> Variables:
    return jax.eval_shape(lambda: init_variables(config, jax.random.key(0)))


def random_pretrained(config: ModelConfig, seed: int = 0, transform: ImageTransform | None = None) -> Pretrained:
    """Every array off its trivial value, gains and variances around 1, counts of batches positive."""
    rng = np.random.default_rng(seed)

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        name = path[-1].key
        if name == "count":
            return rng.integers(1, 1000, size=leaf.shape).astype(leaf.dtype)
        noise = rng.uniform(-0.3, 0.3, size=leaf.shape)
        return np.asarray(noise + (name in ("scale", "var", "logit_scale")), leaf.dtype)

    variables = jax.tree_util.tree_map_with_path(draw, shapes_of(config))
    return Pretrained(config=config, variables=variables, transform=transform or ImageTransform(), folder=Path())


@pytest.fixture(scope="session")
def models() -> dict[str, ModelConfig]:
    return MODELS


@pytest.fixture(scope="session")
def make_pretrained() -> Callable[..., Pretrained]:
    return random_pretrained
