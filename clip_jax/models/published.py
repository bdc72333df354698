"""The published models by name: the paper's nine, open_clip's larger ones and SigLIP's.

Reference: Radford et al. 2021, tables 19 and 20; Cherti et al. 2022, https://arxiv.org/abs/2212.07143 (H, g, bigG);
Zhai et al. 2023, https://arxiv.org/abs/2303.15343 (SigLIP).
"""

from typing import Any

from clip_jax.models.config import ModelConfig, ResNetConfig, TextConfig, VisionConfig

CLIP_VOCAB_SIZE = 49408


def _text(width: int, depth: int = 12) -> TextConfig:
    return TextConfig(
        width=width,
        depth=depth,
        num_heads=width // 64,
        mlp_dim=4 * width,
        context_length=77,
        vocab_size=CLIP_VOCAB_SIZE,
        eot_token=CLIP_VOCAB_SIZE - 1,
    )


def _resnet(embed_dim: int, image_size: int, stages: tuple[int, ...], stem_width: int, text: TextConfig) -> ModelConfig:
    vision = ResNetConfig(image_size=image_size, stages=stages, stem_width=stem_width, num_heads=stem_width // 2)
    return ModelConfig(embed_dim=embed_dim, vision=vision, text=text)


def _vit(
    embed_dim: int,
    image_size: int,
    patch_size: int,
    width: int,
    depth: int,
    text: TextConfig,
    num_heads: int | None = None,
    mlp_dim: int | None = None,
    **shared: Any,
) -> ModelConfig:
    vision = VisionConfig(
        image_size=image_size,
        patch_size=patch_size,
        width=width,
        depth=depth,
        num_heads=num_heads or width // 64,
        mlp_dim=mlp_dim or 4 * width,
    )
    return ModelConfig(embed_dim=embed_dim, vision=vision, text=text, **shared)


def _siglip(
    image_size: int, patch_size: int, width: int, depth: int, num_heads: int, mlp_dim: int, context_length: int
) -> ModelConfig:
    tower = {"width": width, "depth": depth, "num_heads": num_heads, "mlp_dim": mlp_dim}
    return ModelConfig(
        embed_dim=width,
        vision=VisionConfig(image_size=image_size, patch_size=patch_size, pooling="attention", **tower),
        text=TextConfig(
            context_length=context_length,
            vocab_size=32_000,
            eot_token=1,
            causal=False,
            pooling="last",
            projection_bias=True,
            **tower,
        ),
        activation="gelu_tanh",
        layer_norm_eps=1e-6,
        logit_scale_init=10.0,
        logit_bias_init=-10.0,
        image_mean=(0.5, 0.5, 0.5),
        image_std=(0.5, 0.5, 0.5),
    )


OPENAI: dict[str, ModelConfig] = {
    "RN50": _resnet(1024, 224, (3, 4, 6, 3), 64, _text(512)),
    "RN101": _resnet(512, 224, (3, 4, 23, 3), 64, _text(512)),
    "RN50x4": _resnet(640, 288, (4, 6, 10, 6), 80, _text(640)),
    "RN50x16": _resnet(768, 384, (6, 8, 18, 8), 96, _text(768)),
    "RN50x64": _resnet(1024, 448, (3, 15, 36, 10), 128, _text(1024)),
    "ViT-B/32": _vit(512, 224, 32, 768, 12, _text(512)),
    "ViT-B/16": _vit(512, 224, 16, 768, 12, _text(512)),
    "ViT-L/14": _vit(768, 224, 14, 1024, 24, _text(768)),
    "ViT-L/14@336px": _vit(768, 336, 14, 1024, 24, _text(768)),
}
PUBLISHED: dict[str, ModelConfig] = {
    **OPENAI,
    "ViT-H/14": _vit(1024, 224, 14, 1280, 32, _text(1024, 24), num_heads=16, activation="gelu"),
    "ViT-g/14": _vit(1024, 224, 14, 1408, 40, _text(1024, 24), num_heads=16, mlp_dim=6144, activation="gelu"),
    "ViT-bigG/14": _vit(1280, 224, 14, 1664, 48, _text(1280, 32), num_heads=16, mlp_dim=8192, activation="gelu"),
    "SigLIP-B/16": _siglip(224, 16, 768, 12, 12, 3072, 64),
    "SigLIP-SO400M/14": _siglip(224, 14, 1152, 27, 16, 4304, 16),
    "SigLIP-SO400M/14@384px": _siglip(384, 14, 1152, 27, 16, 4304, 64),
}
