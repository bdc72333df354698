"""The sizes of the published models, by name; configs, `clip_jax.models.PUBLISHED` and ablations read them here.

For instance MODEL_SIZES["RN50"]["vision"]["image_size"] is 224. Sections and keys are those of a config: image_size and
patch_size in pixels, widths in channels, depth and stages in blocks, context_length in tokens. mlp_dim is named only
where it is not 4 * width.

Reference: Radford et al. 2021, tables 19 and 20 (OPENAI); Cherti et al. 2022, https://arxiv.org/abs/2212.07143
(OPEN_CLIP); Zhai et al. 2023, https://arxiv.org/abs/2303.15343 (SIGLIP).
"""

from typing import Any

from ml_collections import ConfigDict

Sizes = dict[str, dict[str, Any]]

CLIP_TEXT = {"context_length": 77, "vocab_size": 49_408}
TEXT_512 = {**CLIP_TEXT, "width": 512, "depth": 12, "num_heads": 8}
TEXT_640 = {**CLIP_TEXT, "width": 640, "depth": 12, "num_heads": 10}
TEXT_768 = {**CLIP_TEXT, "width": 768, "depth": 12, "num_heads": 12}
TEXT_1024 = {**CLIP_TEXT, "width": 1024, "depth": 12, "num_heads": 16}
BASE = {"width": 768, "depth": 12, "num_heads": 12}
LARGE = {"width": 1024, "depth": 24, "num_heads": 16}
SO400M = {"width": 1152, "depth": 27, "num_heads": 16, "mlp_dim": 4304}

OPENAI: dict[str, Sizes] = {
    "RN50": {
        "model": {"embed_dim": 1024},
        "vision": {"image_size": 224, "stages": (3, 4, 6, 3), "stem_width": 64, "num_heads": 32},
        "text": TEXT_512,
    },
    "RN101": {
        "model": {"embed_dim": 512},
        "vision": {"image_size": 224, "stages": (3, 4, 23, 3), "stem_width": 64, "num_heads": 32},
        "text": TEXT_512,
    },
    "RN50x4": {
        "model": {"embed_dim": 640},
        "vision": {"image_size": 288, "stages": (4, 6, 10, 6), "stem_width": 80, "num_heads": 40},
        "text": TEXT_640,
    },
    "RN50x16": {
        "model": {"embed_dim": 768},
        "vision": {"image_size": 384, "stages": (6, 8, 18, 8), "stem_width": 96, "num_heads": 48},
        "text": TEXT_768,
    },
    "RN50x64": {
        "model": {"embed_dim": 1024},
        "vision": {"image_size": 448, "stages": (3, 15, 36, 10), "stem_width": 128, "num_heads": 64},
        "text": TEXT_1024,
    },
    "ViT-B/32": {
        "model": {"embed_dim": 512},
        "vision": {"image_size": 224, "patch_size": 32, **BASE},
        "text": TEXT_512,
    },
    "ViT-B/16": {
        "model": {"embed_dim": 512},
        "vision": {"image_size": 224, "patch_size": 16, **BASE},
        "text": TEXT_512,
    },
    "ViT-L/14": {
        "model": {"embed_dim": 768},
        "vision": {"image_size": 224, "patch_size": 14, **LARGE},
        "text": TEXT_768,
    },
    "ViT-L/14@336px": {
        "model": {"embed_dim": 768},
        "vision": {"image_size": 336, "patch_size": 14, **LARGE},
        "text": TEXT_768,
    },
}
OPEN_CLIP: dict[str, Sizes] = {
    "ViT-H/14": {
        "model": {"embed_dim": 1024},
        "vision": {"image_size": 224, "patch_size": 14, "width": 1280, "depth": 32, "num_heads": 16},
        "text": {**CLIP_TEXT, **LARGE},
    },
    "ViT-g/14": {
        "model": {"embed_dim": 1024},
        "vision": {"image_size": 224, "patch_size": 14, "width": 1408, "depth": 40, "num_heads": 16, "mlp_dim": 6144},
        "text": {**CLIP_TEXT, **LARGE},
    },
    "ViT-bigG/14": {
        "model": {"embed_dim": 1280},
        "vision": {"image_size": 224, "patch_size": 14, "width": 1664, "depth": 48, "num_heads": 16, "mlp_dim": 8192},
        "text": {**CLIP_TEXT, "width": 1280, "depth": 32, "num_heads": 20},
    },
}
SIGLIP: dict[str, Sizes] = {
    "SigLIP-B/16": {
        "model": {"embed_dim": 768},
        "vision": {"image_size": 224, "patch_size": 16, **BASE},
        "text": {"context_length": 64, "vocab_size": 32_000, **BASE},
    },
    "SigLIP-SO400M/14": {
        "model": {"embed_dim": 1152},
        "vision": {"image_size": 224, "patch_size": 14, **SO400M},
        "text": {"context_length": 16, "vocab_size": 32_000, **SO400M},
    },
    "SigLIP-SO400M/14@384px": {
        "model": {"embed_dim": 1152},
        "vision": {"image_size": 384, "patch_size": 14, **SO400M},
        "text": {"context_length": 64, "vocab_size": 32_000, **SO400M},
    },
}
MODEL_SIZES = {**OPENAI, **OPEN_CLIP, **SIGLIP}


def set_sizes(config: ConfigDict, name: str) -> ConfigDict:
    """The config with the sizes of a published model; its image tower has to be of the same kind."""
    for section, sizes in MODEL_SIZES[name].items():
        config[section].update(sizes)
    return config
