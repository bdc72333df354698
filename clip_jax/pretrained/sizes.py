"""What the shapes of a state dict tell of the architecture."""

import math
from collections.abc import Mapping
from typing import Any

from clip_jax.models import PUBLISHED, ModelConfig, ResNetConfig, TextConfig, VisionConfig
from clip_jax.pretrained.layouts import LayoutName

Shapes = Mapping[str, tuple[int, ...]]
HEAD_DIM = 64  # of all of OpenAI's models; others say it in their config


def layout_of(shapes: Shapes) -> LayoutName:
    """Which layout a state dict has, by its keys; ValueError when it is none that is known."""
    if "token_embedding.weight" in shapes and any(key.startswith("visual.") for key in shapes):
        return "open_clip"
    if "vision_model.head.probe" in shapes:
        return "hf_siglip"
    if "text_model.embeddings.token_embedding.weight" in shapes and "visual_projection.weight" in shapes:
        return "hf_clip"
    raise ValueError(
        "the state dict has none of the known layouts (OpenAI and open_clip, transformers' CLIPModel and SiglipModel); "
        f"its first keys are {sorted(shapes)[:3]}"
    )


def inferred_sizes(shapes: Shapes, layout: LayoutName) -> dict[str, Any]:
    """What the shapes tell of the architecture, by the names our config has; ValueError where they fit no model."""
    try:
        return _open_clip_sizes(shapes) if layout == "open_clip" else _hf_sizes(shapes)
    except (KeyError, IndexError) as error:
        raise ValueError(f"the state dict fits no model: {error} is missing or of another shape") from None


def _open_clip_sizes(shapes: Shapes) -> dict[str, Any]:
    text = _text_sizes(shapes, "token_embedding.weight", "positional_embedding", "transformer.resblocks.", "mlp.c_fc")
    sizes = {"embed_dim": shapes["text_projection"][1], **text}
    if "visual.attnpool.positional_embedding" in shapes:
        stages = tuple(_count(shapes, f"visual.layer{stage}.") for stage in (1, 2, 3, 4))
        grid = _square_root(shapes["visual.attnpool.positional_embedding"][0] - 1)
        stem_width = shapes["visual.layer1.0.conv1.weight"][0]
        return sizes | {"vision.stages": stages, "vision.stem_width": stem_width, "vision.image_size": 32 * grid}
    return sizes | _vit_sizes(
        shapes, "visual.conv1.weight", "visual.positional_embedding", 1, "visual.transformer.resblocks.", "mlp.c_fc"
    )


def _hf_sizes(shapes: Shapes) -> dict[str, Any]:
    embeddings = "text_model.embeddings"
    names = (f"{embeddings}.token_embedding.weight", f"{embeddings}.position_embedding.weight")
    is_clip = "text_projection.weight" in shapes
    embeddings = "vision_model.embeddings"
    return {
        "embed_dim": shapes["text_projection.weight" if is_clip else "text_model.head.weight"][0],
        **_text_sizes(shapes, *names, "text_model.encoder.layers.", "mlp.fc1"),
        **_vit_sizes(
            shapes,
            f"{embeddings}.patch_embedding.weight",
            f"{embeddings}.position_embedding.weight",
            int(is_clip),
            "vision_model.encoder.layers.",
            "mlp.fc1",
        ),
    }


def _text_sizes(shapes: Shapes, tokens: str, positions: str, blocks: str, mlp: str) -> dict[str, int]:
    return {
        "text.vocab_size": shapes[tokens][0],
        "text.width": shapes[tokens][1],
        "text.context_length": shapes[positions][0],
        "text.depth": _count(shapes, blocks),
        "text.mlp_dim": shapes[f"{blocks}0.{mlp}.weight"][0],
    }


def _vit_sizes(shapes: Shapes, patches: str, positions: str, num_prefix: int, blocks: str, mlp: str) -> dict[str, int]:
    patch_size = shapes[patches][3]
    return {
        "vision.width": shapes[patches][0],
        "vision.patch_size": patch_size,
        "vision.image_size": patch_size * _square_root(shapes[positions][0] - num_prefix),
        "vision.depth": _count(shapes, blocks),
        "vision.mlp_dim": shapes[f"{blocks}0.{mlp}.weight"][0],
    }


def _count(shapes: Shapes, prefix: str) -> int:
    numbers = {key.removeprefix(prefix).split(".")[0] for key in shapes if key.startswith(prefix)}
    return len([number for number in numbers if number.isdigit()])


def _square_root(num_positions: int) -> int:
    root = math.isqrt(max(num_positions, 0))
    if root < 1 or root * root != num_positions:
        raise ValueError(f"the state dict fits no model: its {num_positions} image positions are no square")
    return root


def check_sizes(config: ModelConfig, sizes: Mapping[str, Any], source: str) -> None:
    """ValueError that lists every size in which a config differs from the weights."""
    wrong = []
    for name, size in sizes.items():
        section, _, field = name.rpartition(".")
        said = getattr(getattr(config, section) if section else config, field, None)
        if name == "vision.image_size" and isinstance(config.vision, VisionConfig):
            said = config.vision.grid_size * config.vision.patch_size  # the weights know no rest that is cut off
        if said != size:
            wrong.append(f"{name} is {said} in {source} and {size} in the weights")
    if wrong:
        raise ValueError(f"config and weights do not belong together: {'; '.join(wrong)}")


def config_from_sizes(sizes: Mapping[str, Any], activation: str | None) -> ModelConfig:
    """The config of a state dict in the OpenAI layout that came without one.

    Heads are those of the published model with these sizes, or have 64 channels each as in OpenAI's code.

    Raises:
      ValueError: no activation is given; shapes do not tell it.
    """
    if activation is None:
        raise ValueError(
            "there is no config beside the weights, and shapes do not tell the activation: say "
            "activation='quick_gelu' for OpenAI's own weights or 'gelu' for most of open_clip's"
        )
    vision = {name.removeprefix("vision."): size for name, size in sizes.items() if name.startswith("vision.")}
    text = {name.removeprefix("text."): size for name, size in sizes.items() if name.startswith("text.")}
    heads = next((c.vision.num_heads for c in PUBLISHED.values() if _has_sizes(c, sizes)), None)
    if "stages" in vision:
        tower: Any = ResNetConfig(**vision, num_heads=heads or 32 * vision["stem_width"] // HEAD_DIM)
    else:
        tower = VisionConfig(**vision, num_heads=heads or max(vision["width"] // HEAD_DIM, 1))
    return ModelConfig(
        embed_dim=sizes["embed_dim"],
        vision=tower,
        text=TextConfig(**text, num_heads=max(text["width"] // HEAD_DIM, 1), eot_token=text["vocab_size"] - 1),
        activation=activation,  # type: ignore[arg-type]
    )


def _has_sizes(config: ModelConfig, sizes: Mapping[str, Any]) -> bool:
    try:
        check_sizes(config, sizes, "")
    except ValueError:
        return False
    return True
