"""Converts open_clip's model configs to ours and back."""

from collections.abc import Mapping
from typing import Any

from clip_jax.models import ModelConfig, ResNetConfig, TextConfig, VisionConfig
from clip_jax.pretrained.layouts import LayoutName
from clip_jax.pretrained.timm import ratio, timm_json, timm_tower
from clip_jax.pretrained.transform import ImageTransform, mean_std, only, preprocess_cfg, transform_from_open_clip

# Keys of open_clip's configs that we do not read, with the values that have no effect.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attentional_pool": (False, None, True),
    "attn_pooler_heads": (8,),
    "pos_embed_type": ("learnable",),
    "ls_init_value": (None,),
    "patch_dropout": (0, 0.0),
    "output_tokens": (False, True),  # for the captioner alone
    "input_patchnorm": (False,),
    "embed_cls": (False, True),
    "correct_cls_mask": (False,),
    "pad_id": (0,),
    "proj_type": ("linear",),
    "nonscalar_logit_scale": (False,),
}
TANH = {"approximate": "tanh"}  # act_kwargs of a tower
TIMM_EPS = {"attention": 1e-6, "perception": 1e-5}  # of layer norms, by VisionConfig.pooling
IGNORED = {"hf_tokenizer_name", "tokenizer_kwargs", "init_logit_scale", "multimodal_cfg", "custom_text"}
IGNORED |= {"attn_pooler_queries", "timm_model_pretrained", "timm_drop", "timm_drop_path"}


def config_from_open_clip(
    json: Mapping[str, Any], sizes: Mapping[str, Any] | None = None
) -> tuple[ModelConfig, ImageTransform]:
    """From open_clip's JSON: a bare model config, or {"model_cfg", "preprocess_cfg"} as on the Hub.

    sizes: what the shapes of the weights tell, where there are some; see `sizes.inferred_sizes`.

    Raises:
      ValueError: lists every key that needs something these models do not have.
      LookupError: it is no config of an image and a text tower.
    """
    model: Mapping[str, Any] = json.get("model_cfg", json)
    images: Mapping[str, Any] = json.get("preprocess_cfg", {})
    if missing := {"vision_cfg", "text_cfg"} - set(model):
        given = ", ".join(sorted(map(str, model)))
        raise LookupError(f"no {' and no '.join(sorted(missing))}, but {given}: one image and one text tower are read")
    vision, text = model["vision_cfg"], model["text_cfg"]
    read_model = {"embed_dim", "quick_gelu", "vision_cfg", "text_cfg", "init_logit_bias"}
    is_timm = "timm_model_name" in vision
    if name := text.get("hf_model_name"):
        raise ValueError(
            f"this model's text tower is {name} of transformers; clip_jax has text towers of CLIP's kind alone, beside "
            "which the same image tower may be had: see `clip-jax models`"
        )
    read_vision = {"image_size", "layers", "width", "head_width", "mlp_ratio", "patch_size", "pool_type", "norm_kwargs"}
    read_vision |= {"no_ln_pre", "final_ln_after_pool", "act_kwargs"}
    read_vision |= {"attn_pooler_heads"} if vision.get("attentional_pool") else set()
    if is_timm:
        read_vision = {"image_size", "timm_model_name", "timm_pool", "timm_proj", "timm_model_kwargs"}
    read_text = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "pool_type", "eos_id"}
    read_text |= {"no_causal_mask", "norm_kwargs", "proj_bias", "act_kwargs"}
    unread = _unread("", model, read_model) + _unread("vision_cfg.", vision, read_vision)
    unread += _unread("text_cfg.", text, read_text)
    for name, pool, known in (("vision", vision, ("tok", "avg")), ("text", text, ("argmax", "eos", "last"))):
        if pool.get("pool_type", known[0]) not in known:
            unread.append(f"{name}_cfg.pool_type={pool['pool_type']!r}")
    norms = vision.get("no_ln_pre", False), vision.get("final_ln_after_pool", False)
    if norms != (False, False) and (norms != (True, True) or vision.get("pool_type") != "avg"):
        keys = ("no_ln_pre", "final_ln_after_pool", "pool_type")
        unread.append(f"vision_cfg.{', '.join(f'{key}={vision.get(key)!r}' for key in keys)} together")
    for name, cfg in (("vision", vision), ("text", text)):
        if cfg.get("act_kwargs") not in (None, {}, TANH):
            unread.append(f"{name}_cfg.act_kwargs={cfg['act_kwargs']!r}")
    if unread:
        raise ValueError(f"this model has parts that clip_jax does not have: {', '.join(unread)}")
    is_resnet = isinstance(vision.get("layers"), list | tuple)
    # A ResNet has no layer norm.
    eps = {(tower.get("norm_kwargs") or {}).get("eps", 1e-5) for tower in ([text] if is_resnet else [vision, text])}
    plain = "quick_gelu" if model.get("quick_gelu") else "gelu"
    activation, text_activation = ("gelu_tanh" if cfg.get("act_kwargs") == TANH else plain for cfg in (vision, text))
    width = vision.get("width", 768)
    head_width = vision.get("head_width", 64)
    if is_timm:
        tower: Any
        tower, found = timm_tower(vision, sizes or {})
        activation = found or text_activation
        eps = {(text.get("norm_kwargs") or {}).get("eps", 1e-5), TIMM_EPS[tower.pooling]}
    elif is_resnet:
        tower = ResNetConfig(
            image_size=vision.get("image_size", 224),
            stages=tuple(vision["layers"]),
            stem_width=width,
            num_heads=width * 32 // head_width,
        )
    else:
        tower = VisionConfig(
            image_size=vision.get("image_size", 224),
            patch_size=vision.get("patch_size", 16),
            width=width,
            depth=vision.get("layers", 12),
            num_heads=width // head_width,
            mlp_dim=int(width * vision.get("mlp_ratio", 4.0)),
            pooling=_pooling(vision),
            pool_heads=vision.get("attn_pooler_heads", 8) if vision.get("attentional_pool") else 0,
        )
    text_width, vocab_size = text.get("width", 512), text.get("vocab_size", 49408)
    mean, std = mean_std(images, "mean", "std", None)
    config = ModelConfig(
        embed_dim=model["embed_dim"],
        vision=tower,
        text=TextConfig(
            context_length=text.get("context_length", 77),
            vocab_size=vocab_size,
            width=text_width,
            depth=text.get("layers", 12),
            num_heads=text.get("heads", 8),
            mlp_dim=int(text_width * text.get("mlp_ratio", 4.0)),
            eot_token=_end_token(text, vocab_size),
            causal=not text.get("no_causal_mask", False),
            pooling="class_token" if text.get("embed_cls") else "last" if text.get("pool_type") == "last" else "eot",
            projection_bias=bool(text.get("proj_bias", False)),
        ),
        activation=activation,  # type: ignore[arg-type]
        text_activation="" if text_activation == activation else text_activation,  # type: ignore[arg-type]
        layer_norm_eps=only(eps, "layer_norm eps"),
        logit_bias_init=model.get("init_logit_bias"),
        image_mean=mean,
        image_std=std,
    )
    return config, transform_from_open_clip(images, config.vision.image_size)


def _pooling(vision: Mapping[str, Any]) -> Any:
    if vision.get("attentional_pool"):
        return "coca"
    if vision.get("pool_type", "tok") == "tok":
        return "class_token"
    return "mean_then_norm" if vision.get("final_ln_after_pool") else "mean"


def _end_token(text: Mapping[str, Any], vocab_size: int) -> int:
    """The id that features are read at; where they are read at the last position, SigLIP's."""
    return {"eos": text.get("eos_id", 2), "last": 1}.get(text.get("pool_type", ""), vocab_size - 1)


def _unread(section: str, given: Mapping[str, Any], read: set[str]) -> list[str]:
    others = {key: value for key, value in given.items() if key not in read | IGNORED}
    return [f"{section}{key}={value!r}" for key, value in others.items() if value not in NEUTRAL.get(key, ())]


def open_clip_json(config: ModelConfig, transform: ImageTransform) -> dict[str, Any]:
    """open_clip_config.json of a model; raises ValueError for a model that open_clip cannot express."""
    vision, text = config.vision, config.text
    if config.projection == "mlp":
        raise ValueError("model.projection='mlp': neither open_clip nor transformers has a CLIP with such projections")
    norm = {} if config.layer_norm_eps == 1e-5 else {"norm_kwargs": {"eps": config.layer_norm_eps}}
    own, of_text = config.activation, config.activation_of(text)
    if text.pooling == "class_token" or getattr(vision, "pooling", "") == "coca":
        raise ValueError("open_clip's CoCa has a captioner, which clip_jax does not have: keep the folder it came from")
    is_timm = _is_timm(config)
    # One flag is for both towers, but timm's have their own activation.
    if not is_timm and own != of_text and "quick_gelu" in (own, of_text):
        raise ValueError(f"open_clip has no model with {own} in the image tower and {of_text} in the text tower")
    tower: dict[str, Any]
    if isinstance(vision, ResNetConfig):
        tower = {"layers": list(vision.stages), "width": vision.stem_width, "patch_size": None}
    elif is_timm:
        if config.layer_norm_eps != TIMM_EPS[vision.pooling]:
            eps = TIMM_EPS[vision.pooling]
            raise ValueError(f"model.layer_norm_eps={config.layer_norm_eps}: timm's tower of this kind has {eps}")
        tower = timm_json(vision, own)
    else:
        tower = {"layers": vision.depth, "width": vision.width, "patch_size": vision.patch_size, **norm}
        tower |= _mlp_ratio(vision.width, vision.mlp_dim)
        tower |= {} if vision.pooling == "class_token" else {"pool_type": "avg"}
        tower |= {"no_ln_pre": True, "final_ln_after_pool": True} if vision.pooling == "mean_then_norm" else {}
        tower |= {"act_kwargs": TANH} if own == "gelu_tanh" else {}
    head_width = {} if is_timm else {"head_width": vision.width // vision.num_heads}
    pool: dict[str, Any] = {"pool_type": "last"} if text.pooling == "last" else {}
    if text.pooling == "eot" and text.eot_token != text.vocab_size - 1:
        pool = {"pool_type": "eos", "eos_id": text.eot_token}
    bias = {} if config.logit_bias_init is None else {"init_logit_bias": config.logit_bias_init}
    return {
        "model_cfg": {
            "embed_dim": config.embed_dim,
            "quick_gelu": of_text == "quick_gelu",
            **bias,
            **({"custom_text": True} if is_timm else {}),
            "vision_cfg": {"image_size": vision.image_size, **head_width, **tower},
            "text_cfg": {
                "context_length": text.context_length,
                "vocab_size": text.vocab_size,
                "width": text.width,
                "heads": text.num_heads,
                "layers": text.depth,
                **_mlp_ratio(text.width, text.mlp_dim),
                **norm,
                **pool,
                **({"proj_bias": True} if text.projection_bias else {}),
                **({"act_kwargs": TANH} if of_text == "gelu_tanh" else {}),
                **({} if text.causal else {"no_causal_mask": True}),
            },
        },
        "preprocess_cfg": preprocess_cfg(config, transform),
    }


def open_clip_layout(config: ModelConfig) -> LayoutName:
    """The layout that `open_clip_json` says: the custom one where timm builds the image tower."""
    return "open_clip_custom" if _is_timm(config) else "open_clip"


def _is_timm(config: ModelConfig) -> bool:
    return isinstance(config.vision, VisionConfig) and config.vision.pooling in TIMM_EPS


def _mlp_ratio(width: int, mlp_dim: int) -> dict[str, float]:
    return {} if mlp_dim == 4 * width else {"mlp_ratio": ratio(width, mlp_dim)}
