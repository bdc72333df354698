"""The layouts of transformers' CLIPModel, MetaClip2Model and SiglipModel.

Read off https://github.com/huggingface/transformers (models/clip, models/metaclip_2, models/siglip).
"""

import numpy as np

from clip_jax.models import ModelConfig, TransformerConfig, VisionConfig
from clip_jax.pretrained.entries import (
    Entry,
    as_token,
    from_heads,
    heads_of,
    linear,
    make,
    patches,
    same,
    scale_and_bias,
    stacked,
    transposed,
)


def _tower(config: TransformerConfig, theirs: str, ours: str) -> list[Entry]:
    """The blocks of both families."""
    heads, layers = heads_of(config), range(config.depth)
    key, path = f"{theirs}.encoder.layers.{{}}", f"{ours}/transformer/blocks"
    names = tuple(f"{key}.self_attn.{name}_proj" for name in "qkv")
    return [
        Entry(
            tuple(f"{name}.weight" for name in names),
            (f"{path}/attn/qkv/kernel",),
            lambda *qkv: [np.stack([x.T.reshape(-1, *heads) for x in qkv], axis=1)],
            lambda x: [x[:, i].reshape(len(x), -1).T for i in range(3)],
            layers,
        ),
        Entry(
            tuple(f"{name}.bias" for name in names),
            (f"{path}/attn/qkv/bias",),
            lambda *qkv: [np.stack([x.reshape(heads) for x in qkv])],
            lambda x: [x[i].ravel() for i in range(3)],
            layers,
        ),
        *from_heads(f"{key}.self_attn.out_proj", f"{path}/attn/out", heads, layers),
        *linear(f"{key}.mlp.fc1", f"{path}/mlp/fc_in", layers),
        *linear(f"{key}.mlp.fc2", f"{path}/mlp/fc_out", layers),
        *scale_and_bias(f"{key}.layer_norm1", f"{path}/ln_1", layers),
        *scale_and_bias(f"{key}.layer_norm2", f"{path}/ln_2", layers),
    ]


def _text(config: TransformerConfig) -> list[Entry]:
    return [
        same("text_model.embeddings.token_embedding.weight", "text/token_embedding/embedding"),
        same("text_model.embeddings.position_embedding.weight", "text/positional_embedding"),
        *_tower(config, "text_model", "text"),
        *scale_and_bias("text_model.final_layer_norm", "text/ln_final"),
    ]


def hf_clip_layout(config: ModelConfig) -> list[Entry]:
    vision = _vit_of(config)
    embeddings = "vision_model.embeddings"
    return [
        patches(vision, f"{embeddings}.patch_embedding.weight", "visual/patch_embedding/kernel"),
        same(f"{embeddings}.class_embedding", "visual/class_embedding"),
        same(f"{embeddings}.position_embedding.weight", "visual/positional_embedding"),
        *scale_and_bias("vision_model.pre_layrnorm", "visual/ln_pre"),
        *_tower(vision, "vision_model", "visual"),
        *scale_and_bias("vision_model.post_layernorm", "visual/ln_post"),
        transposed("visual_projection.weight", "visual_projection/kernel"),
        *_text(config.text),
        transposed("text_projection.weight", "text_projection/kernel"),
        same("logit_scale", "logit_scale"),
    ]


def hf_siglip_layout(config: ModelConfig) -> list[Entry]:
    vision = _vit_of(config)
    heads = heads_of(vision)
    embeddings, head, path = "vision_model.embeddings", "vision_model.head", "visual/attention_head"
    names = [f"{path}/{name}" for name in ("query", "key", "value")]
    return [
        patches(vision, f"{embeddings}.patch_embedding.weight", "visual/patch_embedding/kernel"),
        same(f"{embeddings}.patch_embedding.bias", "visual/patch_embedding/bias"),
        same(f"{embeddings}.position_embedding.weight", "visual/positional_embedding"),
        *_tower(vision, "vision_model", "visual"),
        *scale_and_bias("vision_model.post_layernorm", "visual/ln_post"),
        make(f"{head}.probe", f"{path}/probe", np.ravel, as_token),
        *stacked(f"{head}.attention.in_proj_weight", f"{head}.attention.in_proj_bias", names, heads),
        *from_heads(f"{head}.attention.out_proj", f"{path}/out", heads),
        *scale_and_bias(f"{head}.layernorm", f"{path}/ln"),
        *linear(f"{head}.mlp.fc1", f"{path}/mlp/fc_in"),
        *linear(f"{head}.mlp.fc2", f"{path}/mlp/fc_out"),
        *_text(config.text),
        *linear("text_model.head", "text_projection"),
        make("logit_scale", "logit_scale", lambda x: x.reshape(()), lambda x: x[None]),
        make("logit_bias", "logit_bias", lambda x: x.reshape(()), lambda x: x[None]),
    ]


def _vit_of(config: ModelConfig) -> VisionConfig:
    if not isinstance(config.vision, VisionConfig):
        raise ValueError("transformers has no layout for the paper's ResNets: write them in the open_clip layout")
    return config.vision
