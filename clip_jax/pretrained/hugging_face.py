"""Converts the configs of transformers' CLIPModel, MetaClip2Model and SiglipModel to ours and back."""

import math
from collections.abc import Mapping
from typing import Any

from clip_jax.models import ModelConfig, ResNetConfig, TextConfig, VisionConfig
from clip_jax.pretrained.layouts import LayoutName
from clip_jax.pretrained.transform import ImageTransform, mean_std, only, transform_from_hf

HF_ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}
HF_NAMES = {ours: theirs for theirs, ours in HF_ACTIVATIONS.items()}
HF_SIZES = {"width": "hidden_size", "depth": "num_hidden_layers", "num_heads": "num_attention_heads",
    "mlp_dim": "intermediate_size"}  # fmt: skip
# transformers does not write values at their defaults.
HF_CLIP_DEFAULTS: dict[str, Any] = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
HF_SIGLIP_DEFAULTS: dict[str, Any] = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
HF_PATCH_SIZE = {"clip": 32, "metaclip_2": 32, "siglip": 16}
HF_VISION_DEFAULTS: dict[str, Any] = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "image_size": 224}  # fmt: skip
HF_TEXT_DEFAULTS: dict[str, dict[str, Any]] = {
    "clip": {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8,
             "max_position_embeddings": 77, "vocab_size": 49408, "eos_token_id": 49407},
    "siglip": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
               "max_position_embeddings": 64, "vocab_size": 32000, "eos_token_id": 1},
}  # fmt: skip
HF_TEXT_DEFAULTS["metaclip_2"] = HF_TEXT_DEFAULTS["clip"] | {"eos_token_id": 49407}
# What differs in the nearest other models.
REFUSED = {
    "siglip2": ": SigLIP 2 of flexible resolution (NaFlex) takes pictures of any shape as rows of patches; those of a "
    "fixed size have model_type='siglip'",
    "altclip": ": its text tower is XLM-R",
    "chinese_clip": ": its text tower is BERT",
    "align": ": its towers are EfficientNet and BERT",
    "blip": ": its text tower attends to the image",
    "clipseg": ": it has a decoder of masks",
    "vision-text-dual-encoder": ": its towers are any two models",
}


def config_from_hf(
    json: Mapping[str, Any], images: Mapping[str, Any], source: str = "preprocessor_config.json"
) -> tuple[ModelConfig, ImageTransform]:
    """From transformers' config.json and the settings of its image processor, {} without any.

    source: the file that these settings are from.

    Raises:
      ValueError: none of these models, or something that these models do not have.
    """
    kind = json.get("model_type")
    if kind not in HF_TEXT_DEFAULTS:
        known = ", ".join(map(repr, HF_TEXT_DEFAULTS))
        raise ValueError(f"config.json has model_type={kind!r}; clip_jax reads {known}{REFUSED.get(str(kind), '')}")
    is_clip = kind != "siglip"
    defaults = HF_CLIP_DEFAULTS if is_clip else HF_SIGLIP_DEFAULTS
    vision = defaults | HF_VISION_DEFAULTS | {"patch_size": HF_PATCH_SIZE[kind]}
    vision |= json.get("vision_config", {}) | (json.get("vision_config_dict") or {})
    text = defaults | HF_TEXT_DEFAULTS[kind] | json.get("text_config", {}) | (json.get("text_config_dict") or {})
    if unknown := {tower["hidden_act"] for tower in (vision, text)} - set(HF_ACTIVATIONS):
        raise ValueError(f"config.json has hidden_act={min(unknown)!r}; clip_jax has {', '.join(HF_ACTIVATIONS)}")
    own, of_text = (HF_ACTIVATIONS[tower["hidden_act"]] for tower in (vision, text))
    eot = text["eos_token_id"] if is_clip else 1  # SigLIP's tokenizer has it there; the model does not read it
    mean, std = mean_std(images, "image_mean", "image_std", None if is_clip else (0.5, 0.5, 0.5))
    config = ModelConfig(
        embed_dim=json.get("projection_dim", 512) if is_clip else text.get("projection_size", text["hidden_size"]),
        vision=VisionConfig(
            image_size=vision["image_size"],
            patch_size=vision["patch_size"],
            pooling="class_token" if is_clip else "attention",
            **_hf_tower(vision),
        ),
        text=TextConfig(
            context_length=text["max_position_embeddings"],
            vocab_size=text["vocab_size"],
            # CLIPModel takes the 2 of older configs for the highest id, MetaClip2Model as it stands.
            eot_token=text["vocab_size"] - 1 if kind == "clip" and eot == 2 else eot,
            causal=is_clip,
            pooling="eot" if is_clip else "last",
            projection_bias=not is_clip,
            **_hf_tower(text),
        ),
        activation=own,  # type: ignore[arg-type]
        text_activation="" if of_text == own else of_text,  # type: ignore[arg-type]
        layer_norm_eps=only({tower["layer_norm_eps"] for tower in (vision, text)}, "layer_norm_eps"),
        logit_bias_init=None if is_clip else -10.0,
        image_mean=mean,
        image_std=std,
    )
    return config, transform_from_hf(images, config.vision.image_size, is_clip, source)


def _hf_tower(json: Mapping[str, Any]) -> dict[str, Any]:
    return {ours: json[theirs] for ours, theirs in HF_SIZES.items()}


def hf_layout(config: ModelConfig) -> LayoutName:
    """The layout of this model in transformers; raises ValueError if there is none."""
    vision, text = config.vision, config.text
    if config.projection == "mlp":
        raise ValueError("model.projection='mlp': neither open_clip nor transformers has a CLIP with such projections")
    if isinstance(vision, ResNetConfig):
        raise ValueError("transformers has no model for the paper's ResNets: write them in the open_clip format")
    siglip = [vision.pooling == "attention", not text.causal, text.pooling == "last", text.projection_bias]
    siglip.append(config.logit_bias_init is not None)
    if vision.pooling not in ("class_token", "attention") or len(set(siglip)) > 1:
        raise ValueError(
            "transformers has CLIPModel (class token, causal text, no logit bias) and SiglipModel (attention pooling, "
            "all text positions seen, last position, biased text projection, logit bias), and nothing in between: "
            "write this model in the open_clip format"
        )
    return "hf_siglip" if siglip[0] else "hf_clip"


def hf_json(config: ModelConfig) -> dict[str, Any]:
    """config.json of transformers' CLIPModel, MetaClip2Model or SiglipModel."""
    layout = hf_layout(config)
    vision, text = config.vision, config.text
    assert isinstance(vision, VisionConfig)
    tokens = {"vocab_size": text.vocab_size, "max_position_embeddings": text.context_length}
    sizes = [
        {theirs: getattr(tower, ours) for ours, theirs in HF_SIZES.items()}
        | {"hidden_act": HF_NAMES[config.activation_of(tower)], "layer_norm_eps": config.layer_norm_eps}
        for tower in (vision, text)
    ]
    pixels = {"image_size": vision.image_size, "patch_size": vision.patch_size, "num_channels": 3}
    if layout == "hf_siglip":
        return {
            "architectures": ["SiglipModel"],
            "model_type": "siglip",
            "dtype": config.param_dtype,
            "text_config": {"model_type": "siglip_text_model", **sizes[1], **tokens,
                            "projection_size": config.embed_dim, "pad_token_id": 1, "bos_token_id": 0,
                            "eos_token_id": text.eot_token},
            "vision_config": {"model_type": "siglip_vision_model", **sizes[0], **pixels},
        }  # fmt: skip
    # Of a vocabulary that may be padded: 2, for which transformers, too, reads the highest id.
    eos = 2 if text.reads_highest and text.vocab_size != HF_TEXT_DEFAULTS["clip"]["vocab_size"] else text.eot_token
    # CLIPModel takes an end token of 2 for the highest id; MetaClip2Model is the same model but for that.
    name, kind = (
        ("MetaClip2Model", "metaclip_2") if text.eot_token == 2 and not text.reads_highest else ("CLIPModel", "clip")
    )
    return {
        "architectures": [name],
        "model_type": kind,
        "dtype": config.param_dtype,
        "projection_dim": config.embed_dim,
        "logit_scale_init_value": math.log(config.logit_scale_init),
        "text_config": {"model_type": f"{kind}_text_model", **sizes[1], **tokens,
                        "projection_dim": config.embed_dim, "pad_token_id": 0,
                        "bos_token_id": max(text.eot_token - 1, 0), "eos_token_id": eos},
        "vision_config": {"model_type": f"{kind}_vision_model", **sizes[0], **pixels,
                          "projection_dim": config.embed_dim},
    }  # fmt: skip
