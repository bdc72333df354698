"""Layouts of other implementations: for each key of their state dicts our path, and the conversion both ways.

Layouts read off https://github.com/openai/CLIP (clip/model.py), https://github.com/mlfoundations/open_clip and
https://github.com/huggingface/transformers (models/clip, models/siglip); "visual.trunk." off
https://github.com/huggingface/pytorch-image-models (models/vision_transformer.py, models/eva.py).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from clip_jax.models import ModelConfig, ResNetConfig, TransformerConfig, VisionConfig

# open_clip_custom: that of open_clip's CustomTextCLIP, whose text tower's keys begin with "text.".
LayoutName = Literal["open_clip", "open_clip_custom", "hf_clip", "hf_siglip"]
Arrays = Sequence[np.ndarray]


@dataclass(frozen=True)
class Entry:
    """Keys of theirs and paths of ours that hold the same numbers.

    Attributes:
      keys, paths: "{}" in a key stands for each number of `layers`, whose arrays are stacked at the path.
      to_ours: arrays of the keys to arrays of the paths; to_theirs: the inverse.
      layers: their layer numbers; None for an array that is not stacked.
    """

    keys: tuple[str, ...]
    paths: tuple[str, ...]
    to_ours: Callable[..., Arrays]
    to_theirs: Callable[..., Arrays]
    layers: range | None = None


def _make(key: str, path: str, to_ours: Callable, to_theirs: Callable, layers: range | None = None) -> Entry:
    """One key, one path."""
    return Entry((key,), (path,), lambda x: [to_ours(x)], lambda x: [to_theirs(x)], layers)


def _same(key: str, path: str, layers: range | None = None) -> Entry:
    return _make(key, path, lambda x: x, lambda x: x, layers)


def _transposed(key: str, path: str, layers: range | None = None) -> Entry:
    return _make(key, path, np.transpose, np.transpose, layers)


def _linear(key: str, path: str, layers: range | None = None) -> list[Entry]:
    # torch keeps [out, in]
    return [_transposed(f"{key}.weight", f"{path}/kernel", layers), _same(f"{key}.bias", f"{path}/bias", layers)]


def _norm(key: str, path: str, layers: range | None = None) -> list[Entry]:
    return [_same(f"{key}.weight", f"{path}/scale", layers), _same(f"{key}.bias", f"{path}/bias", layers)]


def _from_heads(key: str, path: str, heads: tuple[int, int], layers: range | None = None) -> list[Entry]:
    """A linear layer whose input is [H, K]."""
    return [
        _make(
            f"{key}.weight",
            f"{path}/kernel",
            lambda x: x.T.reshape(*heads, -1),
            lambda x: x.reshape(-1, x.shape[-1]).T,
            layers,
        ),
        _same(f"{key}.bias", f"{path}/bias", layers),
    ]


def _to_heads(key: str, path: str, heads: tuple[int, int]) -> list[Entry]:
    """A linear layer whose output is [H, K]."""
    return [
        _make(f"{key}.weight", f"{path}/kernel", lambda x: x.T.reshape(-1, *heads), lambda x: x.reshape(len(x), -1).T),
        _make(f"{key}.bias", f"{path}/bias", lambda x: x.reshape(heads), np.ravel),
    ]


def _patches(config: VisionConfig, key: str, path: str) -> Entry:
    p = config.patch_size
    return _make(  # [D, 3, p, p] and [p * p * 3, D]
        key,
        path,
        lambda x: x.transpose(2, 3, 1, 0).reshape(-1, len(x)),
        lambda x: x.reshape(p, p, 3, -1).transpose(3, 2, 0, 1),
    )


def _heads(config: TransformerConfig | ResNetConfig) -> tuple[int, int]:
    return config.num_heads, config.width // config.num_heads


def make_layout(name: LayoutName, config: ModelConfig) -> list[Entry]:
    """All entries of a layout; together they cover every parameter and running statistic of the model once."""
    match name:
        case "open_clip":
            return _open_clip(config, "")
        case "open_clip_custom":
            return _open_clip(config, "text.")
        case "hf_clip":
            return _hf_clip(config)
        case "hf_siglip":
            return _hf_siglip(config)


def _open_clip(config: ModelConfig, text: str) -> list[Entry]:
    """text: what the keys of the text tower begin with."""
    vision = config.vision
    if isinstance(vision, ResNetConfig):
        entries = _modified_resnet(vision)
    else:
        entries = (_timm_vit if vision.is_pooled_by_query else _open_clip_vit)(vision)
    projection = f"{text}text_projection"
    return [
        *entries,
        _same(f"{text}token_embedding.weight", "text/token_embedding/embedding"),
        _same(f"{text}positional_embedding", "text/positional_embedding"),
        *_open_clip_blocks(config.text, f"{text}transformer", "text"),
        *_norm(f"{text}ln_final", "text/ln_final"),
        *(
            _linear(projection, "text_projection")
            if config.text.projection_bias
            else [_same(projection, "text_projection/kernel")]
        ),
        _same("logit_scale", "logit_scale"),
        *([_same("logit_bias", "logit_bias")] if config.logit_bias_init is not None else []),
    ]


def _open_clip_blocks(config: TransformerConfig, theirs: str, ours: str) -> list[Entry]:
    heads, layers = _heads(config), range(config.depth)
    key, path = f"{theirs}.resblocks.{{}}", f"{ours}/transformer/blocks"
    return [
        *_fused_qkv(f"{key}.attn.in_proj_weight", f"{key}.attn.in_proj_bias", f"{path}/attn/qkv", heads, layers),
        *_from_heads(f"{key}.attn.out_proj", f"{path}/attn/out", heads, layers),
        *_linear(f"{key}.mlp.c_fc", f"{path}/mlp/fc_in", layers),
        *_linear(f"{key}.mlp.c_proj", f"{path}/mlp/fc_out", layers),
        *_norm(f"{key}.ln_1", f"{path}/ln_1", layers),
        *_norm(f"{key}.ln_2", f"{path}/ln_2", layers),
    ]


def _open_clip_vit(vision: VisionConfig) -> list[Entry]:
    return [
        _patches(vision, "visual.conv1.weight", "visual/patch_embedding/kernel"),
        _same("visual.class_embedding", "visual/class_embedding"),
        _same("visual.positional_embedding", "visual/positional_embedding"),
        *([] if vision.pooling == "mean_then_norm" else _norm("visual.ln_pre", "visual/ln_pre")),
        *_open_clip_blocks(vision, "visual.transformer", "visual"),
        *_norm("visual.ln_post", "visual/ln_post"),
        _same("visual.proj", "visual_projection/kernel"),
    ]


def _timm_vit(vision: VisionConfig) -> list[Entry]:
    """SigLIP's and the Perception Encoder's towers."""
    trunk, heads, layers = "visual.trunk", _heads(vision), range(vision.depth)
    key, path = f"{trunk}.blocks.{{}}", "visual/transformer/blocks"
    perceives = vision.pooling == "perception"
    pool, head = f"{trunk}.attn_pool", "visual/attention_head"
    pool_heads = (n := vision.pool_heads or vision.num_heads), vision.width // n
    return [
        _patches(vision, f"{trunk}.patch_embed.proj.weight", "visual/patch_embedding/kernel"),
        *([] if perceives else [_same(f"{trunk}.patch_embed.proj.bias", "visual/patch_embedding/bias")]),
        *([_make(f"{trunk}.cls_token", "visual/class_embedding", np.ravel, _as_token)] if vision.num_prefix else []),
        _make(f"{trunk}.pos_embed", "visual/positional_embedding", lambda x: x[0], lambda x: x[None]),
        *(_norm(f"{trunk}.norm_pre", "visual/ln_pre") if perceives else []),
        *_fused_qkv(f"{key}.attn.qkv.weight", f"{key}.attn.qkv.bias", f"{path}/attn/qkv", heads, layers),
        *_from_heads(f"{key}.attn.proj", f"{path}/attn/out", heads, layers),
        *_linear(f"{key}.mlp.fc1", f"{path}/mlp/fc_in", layers),
        *_linear(f"{key}.mlp.fc2", f"{path}/mlp/fc_out", layers),
        *_norm(f"{key}.norm1", f"{path}/ln_1", layers),
        *_norm(f"{key}.norm2", f"{path}/ln_2", layers),
        *_norm(f"{trunk}.norm", "visual/ln_post"),
        _make(f"{pool}.latent", f"{head}/probe", np.ravel, _as_token),
        *_to_heads(f"{pool}.q", f"{head}/query", pool_heads),
        *_stacked(f"{pool}.kv.weight", f"{pool}.kv.bias", [f"{head}/key", f"{head}/value"], pool_heads),
        *_from_heads(f"{pool}.proj", f"{head}/out", pool_heads),
        *_norm(f"{pool}.norm", f"{head}/ln"),
        *_linear(f"{pool}.mlp.fc1", f"{head}/mlp/fc_in"),
        *_linear(f"{pool}.mlp.fc2", f"{head}/mlp/fc_out"),
        *(_linear(f"{trunk}.head", "visual_projection") if perceives else []),
    ]


def _as_token(x: np.ndarray) -> np.ndarray:
    return x[None, None]


def _fused_qkv(weight: str, bias: str, path: str, heads: tuple[int, int], layers: range) -> list[Entry]:
    """Query, key and value of one linear layer, [3 * H * K, D]."""
    return [
        _make(
            weight,
            f"{path}/kernel",
            lambda x: x.T.reshape(-1, 3, *heads),
            lambda x: x.reshape(len(x), -1).T,
            layers,
        ),
        _make(bias, f"{path}/bias", lambda x: x.reshape(3, *heads), np.ravel, layers),
    ]


def _stacked(weight: str, bias: str, paths: Sequence[str], heads: tuple[int, int]) -> list[Entry]:
    """Several linear layers of ours, whose outputs are [H, K], in one of theirs."""
    return [
        Entry(
            (weight,),
            tuple(f"{path}/kernel" for path in paths),
            lambda x: [part.T.reshape(-1, *heads) for part in np.split(x, len(paths))],
            lambda *parts: [np.concatenate([x.reshape(len(x), -1).T for x in parts])],
        ),
        Entry(
            (bias,),
            tuple(f"{path}/bias" for path in paths),
            lambda x: list(x.reshape(len(paths), *heads)),
            lambda *parts: [np.concatenate([x.ravel() for x in parts])],
        ),
    ]


def _modified_resnet(config: ResNetConfig) -> list[Entry]:
    heads, entries = _heads(config), []
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
        _same(f"{pool[0]}.positional_embedding", f"{pool[1]}/positional_embedding"),
        *_to_heads(f"{pool[0]}.q_proj", f"{pool[1]}/query", heads),
        *_to_heads(f"{pool[0]}.k_proj", f"{pool[1]}/key", heads),
        *_to_heads(f"{pool[0]}.v_proj", f"{pool[1]}/value", heads),
        *_from_heads(f"{pool[0]}.c_proj", f"{pool[1]}/out", heads),
    ]


def _bottleneck(key: str, path: str, layers: range | None = None) -> list[Entry]:
    pairs = [_conv_norm(f"{key}.conv{i}", f"{key}.bn{i}", f"{path}/conv_{i}", layers) for i in (1, 2, 3)]
    return [entry for entries in pairs for entry in entries]


def _conv_norm(conv: str, norm: str, path: str, layers: range | None = None) -> list[Entry]:
    return [
        _make(
            f"{conv}.weight",
            f"{path}/conv/kernel",
            lambda x: x.transpose(2, 3, 1, 0),  # torch keeps [out, in, height, width]
            lambda x: x.transpose(3, 2, 0, 1),
            layers,
        ),
        *_norm(norm, f"{path}/norm", layers),
        _same(f"{norm}.running_mean", f"{path}/norm/mean", layers),
        _same(f"{norm}.running_var", f"{path}/norm/var", layers),
        _make(f"{norm}.num_batches_tracked", f"{path}/norm/count", lambda x: x, lambda x: x.astype(np.int64), layers),
    ]


def _hf_tower(config: TransformerConfig, theirs: str, ours: str) -> list[Entry]:
    """The blocks of both families."""
    heads, layers = _heads(config), range(config.depth)
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
        *_from_heads(f"{key}.self_attn.out_proj", f"{path}/attn/out", heads, layers),
        *_linear(f"{key}.mlp.fc1", f"{path}/mlp/fc_in", layers),
        *_linear(f"{key}.mlp.fc2", f"{path}/mlp/fc_out", layers),
        *_norm(f"{key}.layer_norm1", f"{path}/ln_1", layers),
        *_norm(f"{key}.layer_norm2", f"{path}/ln_2", layers),
    ]


def _hf_text(config: TransformerConfig) -> list[Entry]:
    return [
        _same("text_model.embeddings.token_embedding.weight", "text/token_embedding/embedding"),
        _same("text_model.embeddings.position_embedding.weight", "text/positional_embedding"),
        *_hf_tower(config, "text_model", "text"),
        *_norm("text_model.final_layer_norm", "text/ln_final"),
    ]


def _hf_clip(config: ModelConfig) -> list[Entry]:
    vision = _vit_of(config)
    embeddings = "vision_model.embeddings"
    return [
        _patches(vision, f"{embeddings}.patch_embedding.weight", "visual/patch_embedding/kernel"),
        _same(f"{embeddings}.class_embedding", "visual/class_embedding"),
        _same(f"{embeddings}.position_embedding.weight", "visual/positional_embedding"),
        *_norm("vision_model.pre_layrnorm", "visual/ln_pre"),
        *_hf_tower(vision, "vision_model", "visual"),
        *_norm("vision_model.post_layernorm", "visual/ln_post"),
        _transposed("visual_projection.weight", "visual_projection/kernel"),
        *_hf_text(config.text),
        _transposed("text_projection.weight", "text_projection/kernel"),
        _same("logit_scale", "logit_scale"),
    ]


def _hf_siglip(config: ModelConfig) -> list[Entry]:
    vision = _vit_of(config)
    heads = _heads(vision)
    embeddings, head, path = "vision_model.embeddings", "vision_model.head", "visual/attention_head"
    names = [f"{path}/{name}" for name in ("query", "key", "value")]
    return [
        _patches(vision, f"{embeddings}.patch_embedding.weight", "visual/patch_embedding/kernel"),
        _same(f"{embeddings}.patch_embedding.bias", "visual/patch_embedding/bias"),
        _same(f"{embeddings}.position_embedding.weight", "visual/positional_embedding"),
        *_hf_tower(vision, "vision_model", "visual"),
        *_norm("vision_model.post_layernorm", "visual/ln_post"),
        _make(f"{head}.probe", f"{path}/probe", np.ravel, _as_token),
        *_stacked(f"{head}.attention.in_proj_weight", f"{head}.attention.in_proj_bias", names, heads),
        *_from_heads(f"{head}.attention.out_proj", f"{path}/out", heads),
        *_norm(f"{head}.layernorm", f"{path}/ln"),
        *_linear(f"{head}.mlp.fc1", f"{path}/mlp/fc_in"),
        *_linear(f"{head}.mlp.fc2", f"{path}/mlp/fc_out"),
        *_hf_text(config.text),
        *_linear("text_model.head", "text_projection"),
        _make("logit_scale", "logit_scale", lambda x: x.reshape(()), lambda x: x[None]),
        _make("logit_bias", "logit_bias", lambda x: x.reshape(()), lambda x: x[None]),
    ]


def _vit_of(config: ModelConfig) -> VisionConfig:
    if not isinstance(config.vision, VisionConfig):
        raise ValueError("transformers has no layout for the paper's ResNets: write them in the open_clip layout")
    return config.vision
