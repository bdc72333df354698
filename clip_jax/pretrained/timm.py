"""Image towers that open_clip names and timm builds: SigLIP's and the Perception Encoder's, by name or by their shapes.

Facts read off https://github.com/huggingface/pytorch-image-models (models/vision_transformer.py, models/eva.py).
"""

import json
import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any, NamedTuple

from clip_jax.models import VisionConfig

TABLE = json.loads((files("clip_jax.pretrained") / "timm_towers.json").read_text())
NAME = re.compile(r"vit_(?:(?P<core>pe_core)_)?(?P<size>\w+)_patch(?P<patch>\d+)_(?:siglip_)?(?P<image>\d+)")
POOL_HEADS = 8  # of every Perception Encoder
# timm's arguments that open_clip's timm_model_kwargs can give, and our names; those of a ratio times the width below.
ARGUMENTS = {"embed_dim": "width", "depth": "depth", "num_heads": "num_heads", "patch_size": "patch_size",
    "img_size": "image_size", "class_token": "has_class_token", "attn_pool_num_heads": "pool_heads"}  # fmt: skip
RATIOS = {"mlp_ratio": "mlp_dim", "attn_pool_mlp_ratio": "pool_mlp_dim"}
ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_tanh", "quick_gelu": "quick_gelu"}
HEAD_WIDTH = 64  # of a tower whose name is in no table


class TimmTower(NamedTuple):
    """An image tower and its activation; None where neither name nor shapes tell it."""

    vision: VisionConfig
    activation: str | None


def timm_tower(json: Mapping[str, Any], sizes: Mapping[str, Any]) -> TimmTower:
    """The tower of an open_clip vision_cfg that names one of timm's.

    sizes: what the shapes of the weights tell, see `sizes.inferred_sizes`; {} without weights.

    Raises ValueError for a tower of another kind, or one that neither the table nor the shapes tell.
    """
    name = json["timm_model_name"]
    found = NAME.fullmatch(name)
    if json.get("timm_pool") != "map" or found is None:
        raise ValueError(
            f"clip_jax has no image tower {name!r} with timm_pool={json.get('timm_pool')!r}: of timm's it has those of "
            "SigLIP (vit_*_siglip_*) and of the Perception Encoder (vit_pe_core_*), with timm_pool='map'"
        )
    perceives = json.get("timm_proj") != "none"
    family = TABLE["pe_core" if perceives else "siglip"]
    known = family.get(found["size"])
    shaped = {key.removeprefix("vision."): size for key, size in sizes.items() if key.startswith("vision.") and size}
    if known is None and "width" not in shaped:
        raise ValueError(f"timm_model_name={name!r} is no size that clip_jax knows: {', '.join(family)}")
    tower = known or {"num_heads": max(shaped["width"] // HEAD_WIDTH, 1)}
    own = {"image_size": json.get("image_size", int(found["image"])), "patch_size": int(found["patch"])}
    if perceives:
        pool_mlp_dim = shaped.get("pool_mlp_dim") or 4 * {**shaped, **tower}["width"]
        own |= {"pooling": "perception", "pool_heads": POOL_HEADS, "pool_mlp_dim": pool_mlp_dim}
    else:
        own["pooling"] = "attention"
    names = ("width", "depth", "mlp_dim", *(["has_class_token"] if perceives else []))
    fields = {key: shaped[key] for key in names if key in shaped} | tower | own
    activation = None if known is None and not perceives else "gelu_tanh" if name in TABLE["tanh"] else "gelu"
    return _with_arguments(fields, activation, json.get("timm_model_kwargs") or {}, name)


def _with_arguments(
    fields: dict[str, Any], activation: str | None, arguments: Mapping[str, Any], name: str
) -> TimmTower:
    """The tower with timm's own arguments, where a config gives some."""
    same = {"global_pool": "map", "attn_type": "rope", "use_pre_transformer_norm": True, "use_rot_pos_emb": True,
        "rope_grid_offset": 1.0, "rope_grid_indexing": "xy"}  # fmt: skip
    others = [
        f"{key}={value!r}"
        for key, value in arguments.items()
        if key not in {*ARGUMENTS, *RATIOS, "act_layer", "ref_feat_shape"} and same.get(key) != value
    ]
    if others or arguments.get("act_layer", "gelu") not in ACTIVATIONS:
        raise ValueError(f"timm_model_kwargs of {name!r} have what clip_jax has not: {', '.join(others) or arguments}")
    fields |= {ours: arguments[key] for key, ours in ARGUMENTS.items() if key in arguments}
    fields |= {ours: int(fields["width"] * arguments[key]) for key, ours in RATIOS.items() if key in arguments}
    if fields["pooling"] == "attention":
        fields.pop("has_class_token", None)
    if "ref_feat_shape" in arguments:
        fields["rotary_grid"] = arguments["ref_feat_shape"][0]
    return TimmTower(VisionConfig(**fields), ACTIVATIONS.get(arguments.get("act_layer", ""), activation))


def timm_name(vision: VisionConfig, activation: str) -> str | None:
    """The name that timm has for a tower; None for one that it does not have."""
    perceives = vision.pooling == "perception"
    for size, known in TABLE["pe_core" if perceives else "siglip"].items():
        if all(getattr(vision, key) == value for key, value in known.items()):
            kind = "pe_core_" if perceives else ""
            tail = "" if perceives else "siglip_"
            name = f"vit_{kind}{size}_patch{vision.patch_size}_{tail}{vision.image_size}"
            is_tanh = name in TABLE["tanh"]
            return name if is_tanh == (activation == "gelu_tanh") else None
    return None
