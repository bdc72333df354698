"""State dicts in the layout of the released OpenAI and open_clip weights, to our parameters.

One table says for every key of theirs where it goes and how its axes turn. A key that is missing, left over or of
another shape is an error that lists all of them.

Layout read off https://github.com/openai/CLIP, clip/model.py.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from clip_jax.models import ModelConfig, TransformerConfig
from clip_jax.train_state import Params, init_variables

Turn = Callable[[np.ndarray], np.ndarray]
Table = dict[str, tuple[str, Turn]]


def _same(x: np.ndarray) -> np.ndarray:
    return x


def _linear(x: np.ndarray) -> np.ndarray:
    return x.T  # torch keeps [out, in]


def _patches(x: np.ndarray) -> np.ndarray:
    return x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0])  # [D, 3, p, p] to [p * p * 3, D]


def _block_table(config: TransformerConfig) -> Table:
    """Keys below `resblocks.{i}.` to paths below `blocks/`."""
    H, K = config.num_heads, config.width // config.num_heads
    table: Table = {
        "attn.in_proj_weight": ("attn/qkv/kernel", lambda x: x.T.reshape(-1, 3, H, K)),
        "attn.in_proj_bias": ("attn/qkv/bias", lambda x: x.reshape(3, H, K)),
        "attn.out_proj.weight": ("attn/out/kernel", lambda x: x.T.reshape(H, K, -1)),
        "attn.out_proj.bias": ("attn/out/bias", _same),
    }
    for theirs, ours in (("mlp.c_fc", "mlp/fc_in"), ("mlp.c_proj", "mlp/fc_out")):
        table[f"{theirs}.weight"] = (f"{ours}/kernel", _linear)
        table[f"{theirs}.bias"] = (f"{ours}/bias", _same)
    for norm in ("ln_1", "ln_2"):
        table[f"{norm}.weight"] = (f"{norm}/scale", _same)
        table[f"{norm}.bias"] = (f"{norm}/bias", _same)
    return table


def _name(path: tuple[Any, ...]) -> str:
    return "/".join(key.key for key in path)


TOP_TABLE: Table = {
    "visual.conv1.weight": ("visual/patch_embedding/kernel", _patches),
    "visual.class_embedding": ("visual/class_embedding", _same),
    "visual.positional_embedding": ("visual/positional_embedding", _same),
    "visual.ln_pre.weight": ("visual/ln_pre/scale", _same),
    "visual.ln_pre.bias": ("visual/ln_pre/bias", _same),
    "visual.ln_post.weight": ("visual/ln_post/scale", _same),
    "visual.ln_post.bias": ("visual/ln_post/bias", _same),
    "visual.proj": ("visual_projection/kernel", _same),
    "token_embedding.weight": ("text/token_embedding/embedding", _same),
    "positional_embedding": ("text/positional_embedding", _same),
    "ln_final.weight": ("text/ln_final/scale", _same),
    "ln_final.bias": ("text/ln_final/bias", _same),
    "text_projection": ("text_projection/kernel", _same),
    "logit_scale": ("logit_scale", _same),
}


def convert_openai(state_dict: Mapping[str, np.ndarray], config: ModelConfig) -> Params:
    """Parameters of a ViT model, as a nested dict of NumPy arrays in the dtypes of the state dict.

    Raises ValueError that lists every key that is missing, left over or of a shape that the model does not have.
    """
    expected = jax.eval_shape(lambda: init_variables(config, jax.random.key(0)))
    shapes = {_name(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(expected)}
    flat: dict[str, Any] = {}
    used: set[str] = set()
    missing: list[str] = []
    misshapen: list[str] = []

    def take(key: str, turn: Turn, shape: tuple[int, ...]) -> np.ndarray | None:
        if key not in state_dict:
            missing.append(key)
            return None
        used.add(key)
        array = np.asarray(state_dict[key])
        try:
            turned = turn(array)
        except ValueError:  # it cannot be reshaped
            turned = None
        if turned is None or turned.shape != shape:
            misshapen.append(f"{key} {list(array.shape)} does not turn into {list(shape)}")
            return None
        return turned

    for key, (path, turn) in TOP_TABLE.items():
        flat[path] = take(key, turn, shapes[path])
    towers = (("visual.transformer", "visual", config.vision), ("transformer", "text", config.text))
    for theirs, ours, tower in towers:
        for key, (path, turn) in _block_table(tower).items():
            stacked = f"{ours}/transformer/blocks/{path}"
            layers = [take(f"{theirs}.resblocks.{i}.{key}", turn, shapes[stacked][1:]) for i in range(tower.depth)]
            if not any(layer is None for layer in layers):
                flat[stacked] = np.stack(layers)  # type: ignore[arg-type]
    leftover = sorted(set(state_dict) - used)
    if missing or leftover or misshapen:
        raise ValueError(
            f"the state dict does not fit the model: missing {missing}, left over {leftover}, misshapen {misshapen}"
        )

    params: Params = {}
    for path, array in flat.items():
        *parents, name = path.split("/")
        node = params
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = array
    return params
