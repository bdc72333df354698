"""Layouts of other implementations: for each key of their state dicts our path, and the conversion both ways.

Those of OpenAI and open_clip stand here, read off https://github.com/openai/CLIP (clip/model.py) and
https://github.com/mlfoundations/open_clip; "visual.trunk." off
https://github.com/huggingface/pytorch-image-models (models/vision_transformer.py, models/eva.py).
"""

from typing import Literal

import numpy as np

from clip_jax.models import ModelConfig, ResNetConfig, TransformerConfig, VisionConfig
from clip_jax.pretrained.entries import (
    Entry,
    as_token,
    from_heads,
    heads_of,
    linear,
    lost,
    make,
    patches,
    same,
    scale_and_bias,
    stacked,
    to_heads,
)
from clip_jax.pretrained.hugging_face_layouts import hf_clip_layout, hf_siglip_layout

# open_clip_custom: that of open_clip's CustomTextCLIP, whose text tower's keys begin with "text.".
LayoutName = Literal["open_clip", "open_clip_custom", "hf_clip", "hf_siglip"]


def make_layout(name: LayoutName, config: ModelConfig) -> list[Entry]:
    """All entries of a layout; together they cover every parameter and running statistic of the model once."""
    match name:
        case "open_clip":
            return _open_clip(config, "")
        case "open_clip_custom":
            return _open_clip(config, "text.")
        case "hf_clip":
            return hf_clip_layout(config)
        case "hf_siglip":
            return hf_siglip_layout(config)


def _open_clip(config: ModelConfig, text: str) -> list[Entry]:
    """text: what the keys of the text tower begin with."""
    vision = config.vision
    if isinstance(vision, ResNetConfig):
        entries = _modified_resnet(vision)
    else:
        entries = _timm_vit(vision) if vision.pooling in ("attention", "perception") else _open_clip_vit(config)
    projection = f"{text}text_projection"
    return [
        *entries,
        same(f"{text}token_embedding.weight", "text/token_embedding/embedding"),
        same(f"{text}positional_embedding", "text/positional_embedding"),
        *([same(f"{text}cls_emb", "text/class_embedding")] if config.text.pooling == "class_token" else []),
        *_open_clip_blocks(config.text, f"{text}transformer", "text"),
        *scale_and_bias(f"{text}ln_final", "text/ln_final"),
        *(
            linear(projection, "text_projection")
            if config.text.projection_bias
            else [same(projection, "text_projection/kernel")]
        ),
        same("logit_scale", "logit_scale"),
        *([same("logit_bias", "logit_bias")] if config.logit_bias_init is not None else []),
    ]


def _open_clip_blocks(config: TransformerConfig, theirs: str, ours: str) -> list[Entry]:
    heads, layers = heads_of(config), range(config.depth)
    key, path = f"{theirs}.resblocks.{{}}", f"{ours}/transformer/blocks"
    return [
        *_fused_qkv(f"{key}.attn.in_proj_weight", f"{key}.attn.in_proj_bias", f"{path}/attn/qkv", heads, layers),
        *from_heads(f"{key}.attn.out_proj", f"{path}/attn/out", heads, layers),
        *linear(f"{key}.mlp.c_fc", f"{path}/mlp/fc_in", layers),
        *linear(f"{key}.mlp.c_proj", f"{path}/mlp/fc_out", layers),
        *scale_and_bias(f"{key}.ln_1", f"{path}/ln_1", layers),
        *scale_and_bias(f"{key}.ln_2", f"{path}/ln_2", layers),
    ]


def _open_clip_vit(config: ModelConfig) -> list[Entry]:
    vision = config.vision
    assert isinstance(vision, VisionConfig)
    return [
        patches(vision, "visual.conv1.weight", "visual/patch_embedding/kernel"),
        same("visual.class_embedding", "visual/class_embedding"),
        same("visual.positional_embedding", "visual/positional_embedding"),
        *([] if vision.pooling == "mean_then_norm" else scale_and_bias("visual.ln_pre", "visual/ln_pre")),
        *_open_clip_blocks(vision, "visual.transformer", "visual"),
        *scale_and_bias("visual.ln_post", "visual/ln_post"),
        same("visual.proj", "visual_projection/kernel"),
        *(_coca_pool(config) if vision.pooling == "coca" else []),
    ]


def _coca_pool(config: ModelConfig) -> list[Entry]:
    vision, theirs, ours = config.vision, "visual.attn_pool", "visual/attention_pool"
    assert isinstance(vision, VisionConfig)
    heads = vision.num_pool_heads, config.embed_dim // vision.num_pool_heads
    paths = [f"{ours}/{name}" for name in ("query", "key", "value")]
    weights, biases = stacked(f"{theirs}.attn.in_proj_weight", f"{theirs}.attn.in_proj_bias", paths, heads)
    apart = [
        make(
            f"{theirs}.attn.{name}_proj_weight",
            f"{path}/kernel",
            lambda x: x.T.reshape(-1, *heads),
            lambda x: x.reshape(len(x), -1).T,
        )
        for name, path in zip("qkv", paths)
    ]
    query = f"{theirs}.query"
    return [
        make(query, f"{ours}/probe", lambda x: x[0], lost(query)),
        *scale_and_bias(f"{theirs}.ln_q", f"{ours}/ln_query"),
        *scale_and_bias(f"{theirs}.ln_k", f"{ours}/ln_key"),
        *([weights] if config.embed_dim == vision.width else apart),  # torch stacks weights of one shape
        biases,
        *from_heads(f"{theirs}.attn.out_proj", f"{ours}/out", heads),
    ]


def _timm_vit(vision: VisionConfig) -> list[Entry]:
    """SigLIP's and the Perception Encoder's towers."""
    trunk, heads, layers = "visual.trunk", heads_of(vision), range(vision.depth)
    key, path = f"{trunk}.blocks.{{}}", "visual/transformer/blocks"
    perceives = vision.pooling == "perception"
    pool, head = f"{trunk}.attn_pool", "visual/attention_head"
    pool_heads = (n := vision.pool_heads or vision.num_heads), vision.width // n
    return [
        patches(vision, f"{trunk}.patch_embed.proj.weight", "visual/patch_embedding/kernel"),
        *([] if perceives else [same(f"{trunk}.patch_embed.proj.bias", "visual/patch_embedding/bias")]),
        *([make(f"{trunk}.cls_token", "visual/class_embedding", np.ravel, as_token)] if vision.num_prefix else []),
        make(f"{trunk}.pos_embed", "visual/positional_embedding", lambda x: x[0], lambda x: x[None]),
        *(scale_and_bias(f"{trunk}.norm_pre", "visual/ln_pre") if perceives else []),
        *_fused_qkv(f"{key}.attn.qkv.weight", f"{key}.attn.qkv.bias", f"{path}/attn/qkv", heads, layers),
        *from_heads(f"{key}.attn.proj", f"{path}/attn/out", heads, layers),
        *linear(f"{key}.mlp.fc1", f"{path}/mlp/fc_in", layers),
        *linear(f"{key}.mlp.fc2", f"{path}/mlp/fc_out", layers),
        *scale_and_bias(f"{key}.norm1", f"{path}/ln_1", layers),
        *scale_and_bias(f"{key}.norm2", f"{path}/ln_2", layers),
        *scale_and_bias(f"{trunk}.norm", "visual/ln_post"),
        make(f"{pool}.latent", f"{head}/probe", np.ravel, as_token),
        *to_heads(f"{pool}.q", f"{head}/query", pool_heads),
        *stacked(f"{pool}.kv.weight", f"{pool}.kv.bias", [f"{head}/key", f"{head}/value"], pool_heads),
        *from_heads(f"{pool}.proj", f"{head}/out", pool_heads),
        *scale_and_bias(f"{pool}.norm", f"{head}/ln"),
        *linear(f"{pool}.mlp.fc1", f"{head}/mlp/fc_in"),
        *linear(f"{pool}.mlp.fc2", f"{head}/mlp/fc_out"),
        *(linear(f"{trunk}.head", "visual_projection") if perceives else []),
    ]


def _fused_qkv(weight: str, bias: str, path: str, heads: tuple[int, int], layers: range) -> list[Entry]:
    """Query, key and value of one linear layer, [3 * H * K, D]."""
    return [
        make(
            weight,
            f"{path}/kernel",
            lambda x: x.T.reshape(-1, 3, *heads),
            lambda x: x.reshape(len(x), -1).T,
            layers,
        ),
        make(bias, f"{path}/bias", lambda x: x.reshape(3, *heads), np.ravel, layers),
    ]


def _modified_resnet(config: ResNetConfig) -> list[Entry]:
    heads, entries = heads_of(config), []
    for i in (1, 2, 3):
        entries += _conv_norm(f"visual.conv{i}", f"visual.bn{i}", f"visual/stem_{i}")
    for stage, depth in enumerate(config.stages, 1):
        key, path = f"visual.layer{stage}.0", f"visual/stage_{stage}/first"
        entries += _bottleneck(key, path) + _conv_norm(f"{key}.downsample.0", f"{key}.downsample.1", f"{path}/shortcut")
        if depth > 1:
            entries += _bottleneck(f"visual.layer{stage}.{{}}", f"visual/stage_{stage}/blocks", range(1, depth))
    pool = "visual.attnpool", "visual/attention_pool"
    return [
        *entries,
        same(f"{pool[0]}.positional_embedding", f"{pool[1]}/positional_embedding"),
        *to_heads(f"{pool[0]}.q_proj", f"{pool[1]}/query", heads),
        *to_heads(f"{pool[0]}.k_proj", f"{pool[1]}/key", heads),
        *to_heads(f"{pool[0]}.v_proj", f"{pool[1]}/value", heads),
        *from_heads(f"{pool[0]}.c_proj", f"{pool[1]}/out", heads),
    ]


def _bottleneck(key: str, path: str, layers: range | None = None) -> list[Entry]:
    pairs = [_conv_norm(f"{key}.conv{i}", f"{key}.bn{i}", f"{path}/conv_{i}", layers) for i in (1, 2, 3)]
    return [entry for entries in pairs for entry in entries]


def _conv_norm(conv: str, norm: str, path: str, layers: range | None = None) -> list[Entry]:
    return [
        make(
            f"{conv}.weight",
            f"{path}/conv/kernel",
            lambda x: x.transpose(2, 3, 1, 0),  # torch keeps [out, in, height, width]
            lambda x: x.transpose(3, 2, 0, 1),
            layers,
        ),
        *scale_and_bias(norm, f"{path}/norm", layers),
        same(f"{norm}.running_mean", f"{path}/norm/mean", layers),
        same(f"{norm}.running_var", f"{path}/norm/var", layers),
        make(f"{norm}.num_batches_tracked", f"{path}/norm/count", lambda x: x, lambda x: x.astype(np.int64), layers),
    ]
