"""Reads weights of any known layout with their config: a file, a folder, a name."""

import dataclasses
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from clip_jax.models import PUBLISHED, ModelConfig, VisionConfig
from clip_jax.pretrained.convert import to_variables
from clip_jax.pretrained.files import (
    HF_CONFIG,
    OPEN_CLIP_CONFIG,
    PICKLES,
    PREPROCESSOR,
    PROCESSOR,
    StateDict,
    download,
    image_settings,
    read_json,
    weight_files,
)
from clip_jax.pretrained.hugging_face import config_from_hf, hf_layout
from clip_jax.pretrained.layouts import LayoutName
from clip_jax.pretrained.model import Origin, Pretrained
from clip_jax.pretrained.names import BY_NAME, NamedModel, similar_names
from clip_jax.pretrained.open_clip import config_from_open_clip
from clip_jax.pretrained.positions import resize_positions
from clip_jax.pretrained.sizes import check_sizes, config_from_sizes, inferred_sizes, layout_of
from clip_jax.pretrained.timm import guessed
from clip_jax.pretrained.transform import ImageTransform


def load_pretrained(
    name_or_path: str | os.PathLike[str],
    *,
    activation: str | None = None,
    image_size: int | None = None,
    context_length: int | None = None,
    param_dtype: str = "float32",
) -> Pretrained:
    """Reads a state dict of any known layout, with its config.

    Args:
      name_or_path: a safetensors file, a folder that open_clip or transformers wrote or would read, a name of the
        table (`names.NAMED`), or a Hub repository as "owner/name" or "hf-hub:owner/name".
      activation: required for a file without a config; must not differ from a config.
      image_size, context_length: interpolate the position embeddings to another resolution (pixels) or length.
      param_dtype: of the arrays; float16 and bfloat16 weights become float32 without loss.

    Raises:
      ValueError: no such file or name, a pickle, a damaged file, a config that does not fit the weights or the
        published model of that name, or keys that are missing, left over or of a wrong shape.
    """
    path, named = _locate(str(name_or_path))
    files, config_file = weight_files(path)
    state_dict = StateDict(files)
    try:
        pretrained = _read(state_dict, config_file, path if path.is_dir() else path.parent, activation, param_dtype)
    except ValueError as error:
        raise ValueError(f"{files[0]}: {error}") from None
    if named is not None:
        _check_named(pretrained, named)
    if pretrained.assumed:
        print(f"{files[0]}: {pretrained.assumed}", file=sys.stderr)
    variables, config = resize_positions(pretrained.variables, pretrained.config, image_size, context_length)
    return dataclasses.replace(pretrained, variables=variables, config=config)


def _locate(name_or_path: str) -> tuple[Path, NamedModel | None]:
    path = Path(name_or_path).expanduser()
    if path.exists():
        return path, None
    name = name_or_path.removeprefix("hf-hub:")
    if name_or_path == name and (row := BY_NAME.get(name) or BY_NAME.get(name.replace(":", "/", 1))):
        return download(row.repository), row
    similar = similar_names(name_or_path)
    meant = f". Did you mean {' or '.join(similar)}?" if similar else ""
    unknown = f"there is no file or folder {name_or_path}, and it is no name that `clip-jax models` lists"
    is_file = path.suffix in (".safetensors", *PICKLES)
    if name.count("/") != 1 or name.startswith((".", "~", "/")) or is_file:
        raise ValueError(f"{unknown}{meant or ', or a Hub repository as owner/name'}")
    try:
        return download(name), None
    except ValueError as error:
        raise ValueError(f"{unknown}{meant or '.'} As a Hub repository: {error}") from None


def _check_named(pretrained: Pretrained, row: NamedModel) -> None:
    """Raises ValueError for weights of another model than the table has; says which activation they were trained with,
    where their config has another."""
    config = pretrained.config
    differing = config.differences(PUBLISHED[row.name]) if row.name in PUBLISHED else []
    count = sum(leaf.size for leaf in jax.tree.leaves(pretrained.variables))
    if count != row.parameters:
        differing.append(f"it has {count:,} parameters, not {row.parameters:,}")
    if differing:
        raise ValueError(f"the weights found for {row.name} belong to another model: {'; '.join(differing)}")
    if config.activation != row.activation:
        print(
            f"{row.name}: its config has {config.activation}, while open_clip's table says that it was trained with "
            f"{row.activation}; the config is followed",
            file=sys.stderr,
        )


def _read(
    state_dict: StateDict, config_file: Path | None, folder: Path, activation: str | None, param_dtype: str
) -> Pretrained:
    layout = layout_of(state_dict.shapes)
    sizes = inferred_sizes(state_dict.shapes, layout)
    transform, images, images_file, given = ImageTransform(), {}, None, {}
    if config_file is None:
        config = config_from_sizes(sizes, layout, activation)
    else:
        given = read_json(config_file)
        try:
            if layout in ("open_clip", "open_clip_custom"):
                config, transform = config_from_open_clip(given, sizes)
                images, images_file = given.get("preprocess_cfg", {}), f"preprocess_cfg of {config_file.name}"
            else:
                images, images_file = image_settings(folder)
                config, transform = config_from_hf(given, images, images_file or PREPROCESSOR)
        except (LookupError, TypeError, AttributeError, ArithmeticError) as error:
            raise ValueError(f"{config_file} is not the config of such a model: {error!r}") from None
        if layout.startswith("hf") and hf_layout(config) != layout:
            raise ValueError(f"{config_file} has model_type={given['model_type']!r}, but the weights are {layout}'s")
        check_sizes(config, sizes, str(config_file))
        if activation not in (None, config.activation):
            raise ValueError(f"activation={activation!r} was asked for, but {config_file} has {config.activation!r}")
    if "logit_bias" in state_dict:
        bias = config.logit_bias_init
        config = dataclasses.replace(config, logit_bias_init=-10.0 if bias is None else bias)
    config = dataclasses.replace(config, param_dtype=param_dtype)  # type: ignore[arg-type]
    _check_buffers(state_dict, config)
    captioner = _drop_captioner(state_dict) if config.text.pooling == "class_token" else ""
    variables = to_variables(state_dict, layout, config)
    assumed = [
        _assumed(config, images, images_file),
        guessed(given.get("model_cfg", given).get("vision_cfg", {})),
        captioner,
    ]
    return Pretrained(
        config=config,
        variables=variables,
        transform=transform,
        folder=folder,
        assumed=". ".join(filter(None, assumed)),
        origin=_origin(layout, config, transform, config_file, images_file),
    )


def _origin(
    layout: LayoutName, config: ModelConfig, transform: ImageTransform, config_file: Path | None, images: str | None
) -> Origin | None:
    """None where the files do not say all that the same format's do: the config, and how pixels are prepared."""
    if config_file is None or images is None:
        return None
    if layout.startswith("open_clip"):
        if "model_cfg" not in read_json(config_file):
            return None
        settings = {OPEN_CLIP_CONFIG: config_file}
    else:
        beside = (config_file.with_name(name) for name in (PREPROCESSOR, PROCESSOR))
        settings = {HF_CONFIG: config_file} | {file.name: file for file in beside if file.is_file()}
    contents = {name: file.read_bytes() for name, file in settings.items()}
    return Origin(layout=layout, settings=contents, config=config, transform=transform)


def _assumed(config: ModelConfig, images: Mapping[str, Any], source: str | None) -> str:
    """Which of the mean and standard deviation of pixels the files do not say."""
    if images.get("do_normalize", True) is False:
        return ""
    absent = [name for name in ("mean", "std") if not images.get(name) and not images.get(f"image_{name}")]
    if not absent:
        return ""
    where = f"{source} does not say" if source else f"no {PROCESSOR} or {PREPROCESSOR} says"
    taken = " and ".join(f"{name} {getattr(config, f'image_{name}')}" for name in absent)
    return f"{where} how pixels were normalised in training, so the default of this kind of model is taken: {taken}"


def _check_buffers(state_dict: StateDict, config: ModelConfig) -> None:
    """Drops the constants that older files have beside weights; raises ValueError if they do not fit the config."""
    vision, text = config.vision, config.text
    num_prefix = vision.num_prefix if isinstance(vision, VisionConfig) else 1
    expected = {
        "input_resolution": [vision.image_size],
        "context_length": [text.context_length],
        "vocab_size": [text.vocab_size],
        "text_model.embeddings.position_ids": range(text.context_length),
        "vision_model.embeddings.position_ids": range(vision.grid_size**2 + num_prefix),
    }
    for key in expected.keys() & set(state_dict):
        if not np.array_equal(state_dict[key].ravel(), expected[key]):
            raise ValueError(f"{key} is {state_dict[key]}, which does not fit the config")
        state_dict.drop(key)


def _drop_captioner(state_dict: StateDict) -> str:
    """CoCa's decoder is no part of its features; says what is left out."""
    keys = [key for key in state_dict if key.startswith("text_decoder.")]
    for key in keys:
        state_dict.drop(key)
    return f"the captioner is not read: {len(keys)} arrays text_decoder.*, and all but the first row of attn_pool.query"
