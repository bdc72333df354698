"""What the shapes of a state dict tell of the architecture."""

import math
from collections.abc import Mapping
from typing import Any, get_args

from clip_jax.models import PUBLISHED, ModelConfig, ResNetConfig, TextConfig, VisionConfig
from clip_jax.pretrained.layouts import LayoutName

Shapes = Mapping[str, tuple[int, ...]]
TRUNK_POSITIONS = "visual.trunk.pos_embed"  # [1, positions, D], of timm's towers
HEAD_DIM = 64  # of all of OpenAI's models; others say it in their config
ACTIVATIONS = get_args(ModelConfig.__annotations__["activation"])


def layout_of(shapes: Shapes) -> LayoutName:
    """Which layout a state dict has, by its keys; ValueError when it is none that is known."""
    if any(key.startswith("visual.") for key in shapes):
        for prefix, layout in (("", "open_clip"), ("text.", "open_clip_custom")):
            if f"{prefix}token_embedding.weight" in shapes:
                return layout  # type: ignore[return-value]
    if "vision_model.head.probe" in shapes:
        return "hf_siglip"
    if "text_model.embeddings.token_embedding.weight" in shapes and "visual_projection.weight" in shapes:
        return "hf_clip"
    raise ValueError(
        "the state dict has none of the known layouts (OpenAI and open_clip, transformers' CLIPModel and SiglipModel); "
        f"its first keys are {sorted(shapes)[:3]}"
    )


def inferred_sizes(shapes: Shapes, layout: LayoutName) -> dict[str, Any]:
    """What the shapes tell of the architecture, by the names our config has; None where the key for it is missing.

    Raises:
      ValueError: the image positions are no square.
    """
    if layout in ("open_clip", "open_clip_custom"):
        prefix = "text." if layout == "open_clip_custom" else ""
        vision, text, mlp = "visual.transformer.resblocks.", f"{prefix}transformer.resblocks.", "0.mlp.c_fc.weight"
        patches, positions, num_prefix = "visual.conv1.weight", "visual.positional_embedding", 1
        tokens, text_positions = f"{prefix}token_embedding.weight", f"{prefix}positional_embedding"
        embed_dim = f"{prefix}text_projection", 1
        if f"{prefix}text_projection.weight" in shapes:
            embed_dim = f"{prefix}text_projection.weight", 0
        if TRUNK_POSITIONS in shapes:
            return _timm_sizes(shapes, tokens, text_positions, text, embed_dim)
    else:
        vision, text, mlp = "vision_model.encoder.layers.", "text_model.encoder.layers.", "0.mlp.fc1.weight"
        patches = "vision_model.embeddings.patch_embedding.weight"
        positions, num_prefix = "vision_model.embeddings.position_embedding.weight", int(layout == "hf_clip")
        tokens = "text_model.embeddings.token_embedding.weight"
        text_positions = "text_model.embeddings.position_embedding.weight"
        embed_dim = "text_projection.weight" if layout == "hf_clip" else "text_model.head.weight", 0
    dimensions = {"embed_dim": embed_dim, "text.vocab_size": (tokens, 0), "text.width": (tokens, 1)}
    dimensions |= {"text.context_length": (text_positions, 0), "text.mlp_dim": (text + mlp, 0)}
    sizes: dict[str, Any] = {"text.depth": _count(shapes, text)}
    if any(key.startswith("visual.layer1.") for key in shapes):
        positions = "visual.attnpool.positional_embedding"
        dimensions["vision.stem_width"] = ("visual.layer1.0.conv1.weight", 0)
        sizes["vision.stages"] = tuple(_count(shapes, f"visual.layer{stage}.") for stage in (1, 2, 3, 4))
        stride: Any = 32
    else:
        dimensions |= {"vision.width": (patches, 0), "vision.patch_size": (patches, 3)}
        dimensions["vision.mlp_dim"] = (vision + mlp, 0)
        sizes["vision.depth"] = _count(shapes, vision)
        stride = _dimension(shapes, patches, 3)
    sizes |= {name: _dimension(shapes, key, axis) for name, (key, axis) in dimensions.items()}
    if "text.cls_emb" in shapes and sizes["text.context_length"]:
        sizes["text.context_length"] -= 1  # CoCa's class token
    num_positions: Any = _dimension(shapes, positions, 0)
    is_known = stride is not None and num_positions is not None
    sizes["vision.image_size"] = stride * _square_root(num_positions - num_prefix) if is_known else None
    return sizes


def _timm_sizes(
    shapes: Shapes, tokens: str, text_positions: str, text: str, embed_dim: tuple[str, int]
) -> dict[str, Any]:
    """Those of a model whose image tower is timm's."""
    trunk, patches = "visual.trunk", "visual.trunk.patch_embed.proj.weight"
    dimensions = {
        "embed_dim": embed_dim,
        "text.vocab_size": (tokens, 0),
        "text.width": (tokens, 1),
        "text.context_length": (text_positions, 0),
        "text.mlp_dim": (f"{text}0.mlp.c_fc.weight", 0),
        "vision.width": (patches, 0),
        "vision.patch_size": (patches, 3),
        "vision.mlp_dim": (f"{trunk}.blocks.0.mlp.fc1.weight", 0),
    }
    sizes: dict[str, Any] = {name: _dimension(shapes, key, axis) for name, (key, axis) in dimensions.items()}
    sizes |= {"text.depth": _count(shapes, text), "vision.depth": _count(shapes, f"{trunk}.blocks.")}
    num_prefix = int(f"{trunk}.cls_token" in shapes)
    if f"{trunk}.norm_pre.weight" in shapes:
        sizes["vision.has_class_token"] = bool(num_prefix)
        sizes["vision.pool_mlp_dim"] = _dimension(shapes, f"{trunk}.attn_pool.mlp.fc1.weight", 0)
    num_positions = _dimension(shapes, TRUNK_POSITIONS, 1)
    if None not in (num_positions, sizes["vision.patch_size"]):
        # Where the sides are no multiple of the patch, the config says by how much.
        sizes["vision.grid_size"] = _square_root(num_positions - num_prefix)  # type: ignore[operator]
    return sizes


def _dimension(shapes: Shapes, key: str, axis: int) -> int | None:
    shape = shapes.get(key, ())
    return shape[axis] if axis < len(shape) else None


def _count(shapes: Shapes, prefix: str) -> int:
    numbers = {key.removeprefix(prefix).split(".")[0] for key in shapes if key.startswith(prefix)}
    return len([number for number in numbers if number.isdigit()])


def _square_root(num_positions: int) -> int:
    root = math.isqrt(max(num_positions, 0))
    if root < 1 or root * root != num_positions:
        raise ValueError(f"the state dict fits no model: its {num_positions} image positions are no square")
    return root


def check_sizes(config: ModelConfig, sizes: Mapping[str, Any], source: str) -> None:
    """ValueError that lists every size in which a config differs from the weights, as far as these tell it."""
    wrong = []
    for name, size in sizes.items():
        section, _, field = name.rpartition(".")
        said = getattr(getattr(config, section) if section else config, field, None)
        if size not in (None, said):
            wrong.append(f"{name} is {said} in {source} and {size} in the weights")
    if wrong:
        raise ValueError(f"config and weights do not belong together: {'; '.join(wrong)}")


def config_from_sizes(sizes: Mapping[str, Any], layout: LayoutName, activation: str | None) -> ModelConfig:
    """The config of a state dict that came without one, for OpenAI's architectures.

    Heads are those of the published tower of these sizes, or have 64 channels each as in OpenAI's code; layer norm's
    eps is 1e-5, the class token is read, and the end token is the last of the vocabulary.

    Raises:
      ValueError: no activation is given, which shapes do not tell; or they do not tell all the rest.
    """
    if layout == "hf_siglip" or "vision.grid_size" in sizes:
        raise ValueError("there is no config beside the weights, and shapes do not tell all of a model like SigLIP")
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"there is no config beside the weights, and shapes do not tell the activation, which is {activation!r}: "
            "say activation='quick_gelu' for OpenAI's own weights or 'gelu' for most of open_clip's"
        )
    if unknown := [name for name, size in sizes.items() if size is None]:
        raise ValueError(
            f"the state dict fits no model: the keys that tell {', '.join(unknown)} are missing or misshapen"
        )
    vision = {name.removeprefix("vision."): size for name, size in sizes.items() if name.startswith("vision.")}
    text = {name.removeprefix("text."): size for name, size in sizes.items() if name.startswith("text.")}
    if "stages" in vision:
        tower: Any = ResNetConfig(**vision, num_heads=32 * vision["stem_width"] // HEAD_DIM)
    else:
        tower = VisionConfig(**vision, num_heads=_published_heads(vision) or max(vision["width"] // HEAD_DIM, 1))
    return ModelConfig(
        embed_dim=sizes["embed_dim"],
        vision=tower,
        text=TextConfig(**text, num_heads=max(text["width"] // HEAD_DIM, 1), eot_token=text["vocab_size"] - 1),
        activation=activation,  # type: ignore[arg-type]
    )


def _published_heads(tower: Mapping[str, int]) -> int | None:
    """Of the published image tower with these sizes, at whatever resolution."""
    names = ("width", "depth", "mlp_dim", "patch_size")
    towers = [config.vision for config in PUBLISHED.values() if isinstance(config.vision, VisionConfig)]
    return next((t.num_heads for t in towers if all(getattr(t, name) == tower[name] for name in names)), None)
