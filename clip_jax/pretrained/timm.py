"""Image towers that open_clip names and timm builds: SigLIP's and the Perception Encoder's, by name or by their shapes.

Facts read off https://github.com/huggingface/pytorch-image-models (models/vision_transformer.py, models/eva.py).
"""

import dataclasses
import json
import math
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
HEAD_WIDTH = 64  # of a tower whose name is in no table; `guessed` says so


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
        family = next((what for start, what in TABLE["refused"].items() if name.startswith(start)), "")
        raise ValueError(
            f"clip_jax has no image tower {name!r} with timm_pool={json.get('timm_pool')!r}"
            f"{f', {family}' if family else ''}: of timm's it has those of SigLIP (vit_*_siglip_*) and of the "
            "Perception Encoder (vit_pe_core_*), with timm_pool='map'"
        )
    perceives = json.get("timm_proj") != "none"
    family = TABLE["pe_core" if perceives else "siglip"]
    known = family.get(found["size"])
    shaped = {key.removeprefix("vision."): size for key, size in sizes.items() if key.startswith("vision.") and size}
    if known is None and ("width" not in shaped or (perceives and "num_heads" not in _arguments(json))):
        raise ValueError(
            f"timm_model_name={name!r} is no size that clip_jax knows ({', '.join(family)}), and shapes do not tell "
            'its heads: add "timm_model_kwargs": {"num_heads": ..., "attn_pool_num_heads": ...} to vision_cfg'
        )
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
    return _with_arguments(fields, activation, _arguments(json), name)


def guessed(json: Mapping[str, Any]) -> str:
    """What `timm_tower` takes for granted of an open_clip vision_cfg, in a sentence; "" where nothing."""
    name, arguments = json.get("timm_model_name", ""), _arguments(json)
    found = NAME.fullmatch(name)
    if found is None or found["size"] in TABLE["siglip"] or json.get("timm_proj") != "none":
        return ""
    taken = ["heads of 64 channels"] if "num_heads" not in arguments else []
    taken += ["the text tower's activation"] if "act_layer" not in arguments else []
    if not taken:
        return ""
    return f"timm_model_name={name!r} is no size that clip_jax knows, and is taken to have {' and '.join(taken)}"


def _arguments(json: Mapping[str, Any]) -> Mapping[str, Any]:
    return json.get("timm_model_kwargs") or {}


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


def timm_json(vision: VisionConfig, activation: str) -> dict[str, Any]:
    """The vision_cfg of open_clip for a tower: by name where timm has one, else with timm's arguments.

    open_clip up to 3.3 does not read arguments. Raises ValueError for a tower that timm does not have.
    """
    perceives, vision = vision.pooling == "perception", _plain(vision)
    if not perceives and (vision.pool_heads, vision.pool_mlp_dim) != (vision.num_heads, vision.mlp_dim):
        raise ValueError("timm's SigLIP tower has as many heads and channels in its pooling as in its blocks")
    json = {"timm_model_pretrained": False, "timm_pool": "map", "timm_proj": None if perceives else "none"}
    for name in TABLE["names"]:
        found = timm_tower({"timm_model_name": name, **json}, {}) if ("pe_core" in name) == perceives else None
        if found is not None and (_plain(found.vision), found.activation) == (vision, activation):
            return {"timm_model_name": name, **json}
    arguments = {theirs: getattr(vision, ours) for theirs, ours in ARGUMENTS.items()}
    arguments |= {theirs: ratio(vision.width, getattr(vision, ours)) for theirs, ours in RATIOS.items()}
    if perceives:
        name, arguments["ref_feat_shape"] = "vit_pe_core_base_patch16_224", [vision.rotary_grid] * 2
    else:
        name = "vit_base_patch16_siglip_224"
        arguments = {theirs: size for theirs, size in arguments.items() if not theirs.startswith("attn_pool")}
        arguments["class_token"] = False
    return {"timm_model_name": name, **json, "timm_model_kwargs": arguments | {"act_layer": activation}}


def _plain(vision: VisionConfig) -> VisionConfig:
    """The same tower without settings of training, and with every size named."""
    return dataclasses.replace(
        vision,
        position_init_scale=1.0,
        patch_dropout=0.0,
        pool_heads=vision.pool_heads or vision.num_heads,
        pool_mlp_dim=vision.pool_mlp_dim or vision.mlp_dim,
        rotary_grid=vision.rotary_grid or vision.grid_size,
    )


def ratio(width: int, mlp_dim: int) -> float:
    """The number that gives mlp_dim where open_clip and timm truncate its product with the width."""
    found = mlp_dim / width
    while int(width * found) < mlp_dim:
        found = math.nextafter(found, math.inf)
    return found
