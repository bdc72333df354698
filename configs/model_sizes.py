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


def _sizes(embed_dim: int, vision: dict[str, Any], text: dict[str, Any]) -> Sizes:
    return {"model": {"embed_dim": embed_dim}, "vision": vision, "text": text}


def _resnet(image_size: int, stages: tuple[int, ...], stem_width: int) -> dict[str, Any]:
    return {"image_size": image_size, "stages": stages, "stem_width": stem_width, "num_heads": stem_width // 2}


def _vit(image_size: int, patch_size: int, width: int, depth: int, num_heads: int, **mlp: int) -> dict[str, Any]:
    tower = {"width": width, "depth": depth, "num_heads": num_heads, **mlp}
    return {"image_size": image_size, "patch_size": patch_size, **tower}


def _text(width: int, depth: int, num_heads: int) -> dict[str, Any]:
    tower = {"width": width, "depth": depth, "num_heads": num_heads}
    return {"context_length": 77, "vocab_size": 49_408, **tower}


def _siglip(image_size: int, patch_size: int, context_length: int, **tower: int) -> Sizes:
    text = {"context_length": context_length, "vocab_size": 32_000, **tower}
    return _sizes(tower["width"], {"image_size": image_size, "patch_size": patch_size, **tower}, text)


OPENAI: dict[str, Sizes] = {
    "RN50": _sizes(1024, _resnet(224, (3, 4, 6, 3), 64), _text(512, 12, 8)),
    "RN101": _sizes(512, _resnet(224, (3, 4, 23, 3), 64), _text(512, 12, 8)),
    "RN50x4": _sizes(640, _resnet(288, (4, 6, 10, 6), 80), _text(640, 12, 10)),
    "RN50x16": _sizes(768, _resnet(384, (6, 8, 18, 8), 96), _text(768, 12, 12)),
    "RN50x64": _sizes(1024, _resnet(448, (3, 15, 36, 10), 128), _text(1024, 12, 16)),
    "ViT-B/32": _sizes(512, _vit(224, 32, 768, 12, 12), _text(512, 12, 8)),
    "ViT-B/16": _sizes(512, _vit(224, 16, 768, 12, 12), _text(512, 12, 8)),
    "ViT-L/14": _sizes(768, _vit(224, 14, 1024, 24, 16), _text(768, 12, 12)),
    "ViT-L/14@336px": _sizes(768, _vit(336, 14, 1024, 24, 16), _text(768, 12, 12)),
}
OPEN_CLIP: dict[str, Sizes] = {
    "ViT-H/14": _sizes(1024, _vit(224, 14, 1280, 32, 16), _text(1024, 24, 16)),
    "ViT-g/14": _sizes(1024, _vit(224, 14, 1408, 40, 16, mlp_dim=6144), _text(1024, 24, 16)),
    "ViT-bigG/14": _sizes(1280, _vit(224, 14, 1664, 48, 16, mlp_dim=8192), _text(1280, 32, 20)),
}
SO400M = {"width": 1152, "depth": 27, "num_heads": 16, "mlp_dim": 4304}
SIGLIP: dict[str, Sizes] = {
    "SigLIP-B/16": _siglip(224, 16, 64, width=768, depth=12, num_heads=12),
    "SigLIP-SO400M/14": _siglip(224, 14, 16, **SO400M),
    "SigLIP-SO400M/14@384px": _siglip(384, 14, 64, **SO400M),
}
MODEL_SIZES = {**OPENAI, **OPEN_CLIP, **SIGLIP}


def set_sizes(config: ConfigDict, name: str) -> ConfigDict:
    """The config with the sizes of a published model; its image tower has to be of the same kind."""
    for section, sizes in MODEL_SIZES[name].items():
        config[section].update(sizes)
    return config
