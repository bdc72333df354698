"""Writes a model as open_clip or transformers reads it."""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from safetensors.numpy import save_file

from clip_jax.pretrained.convert import to_state_dict
from clip_jax.pretrained.files import HF_CONFIG, HF_WEIGHTS, OPEN_CLIP_CONFIG, OPEN_CLIP_WEIGHTS, PREPROCESSOR
from clip_jax.pretrained.hugging_face import hf_json, hf_layout
from clip_jax.pretrained.layouts import LayoutName
from clip_jax.pretrained.model import Pretrained
from clip_jax.pretrained.open_clip import open_clip_json, open_clip_layout
from clip_jax.pretrained.transform import hf_preprocessor_json
from input_pipeline.tokenizers import JsonTokenizer, Tokenizer

Format = Literal["open_clip", "huggingface"]
FORMATS: tuple[Format, ...] = ("open_clip", "huggingface")


def save_pretrained(
    pretrained: Pretrained, folder: str | os.PathLike[str], format: Format, tokenizer: Tokenizer | None = None
) -> None:
    """Writes weights, config, image transform and vocabulary so that open_clip or transformers loads the folder.

    open_clip: `open_clip.create_model_and_transforms("local-dir:FOLDER")`. huggingface: `CLIPModel.from_pretrained` or
    `SiglipModel.from_pretrained`. The folder is renamed into existence, complete.

    Raises:
      ValueError: the format has no such model, or the folder exists already.
    """
    config, folder = pretrained.config, Path(folder)
    if format not in FORMATS:
        raise ValueError(f"format={format!r} is not one of {', '.join(FORMATS)}")
    if folder.exists():
        raise ValueError(f"{folder} exists already: remove it or choose another folder")
    weights = OPEN_CLIP_WEIGHTS if format == "open_clip" else HF_WEIGHTS
    layout, settings = _settings(pretrained, format)
    vocabulary = _vocabulary_files(pretrained, settings, format, tokenizer)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        # transformers rejects a file without this format entry.
        save_file(to_state_dict(pretrained.variables, layout, config), partial / weights, metadata={"format": "pt"})
        for name, content in (settings | vocabulary).items():
            (partial / name).write_bytes(content)
        partial.chmod(0o755)  # mkdtemp makes it private
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _settings(pretrained: Pretrained, format: Format) -> tuple[LayoutName, dict[str, bytes]]:
    """The layout of the weights and the JSON files beside them: the model's own, as they were, where these fit it."""
    config, transform, origin = pretrained.config, pretrained.transform, pretrained.origin
    if origin is not None and (origin.config, origin.transform) == (config, transform):
        given = json.loads(origin.settings.get(HF_CONFIG, b"{}"))
        dtypes = {given.get(key, config.param_dtype) for key in ("dtype", "torch_dtype")}
        if origin.layout.startswith("open_clip") == (format == "open_clip") and dtypes == {config.param_dtype}:
            return origin.layout, dict(origin.settings)
    if format == "open_clip":
        layout, jsons = open_clip_layout(config), {OPEN_CLIP_CONFIG: open_clip_json(config, transform)}
    else:
        layout = hf_layout(config)
        jsons = {HF_CONFIG: hf_json(config), PREPROCESSOR: hf_preprocessor_json(config, transform)}
    return layout, {name: json.dumps(content, indent=2).encode() + b"\n" for name, content in jsons.items()}


def _vocabulary_files(
    pretrained: Pretrained, settings: Mapping[str, bytes], format: Format, tokenizer: Tokenizer | None
) -> dict[str, bytes]:
    """What a tokenizer writes; says where the package of this format will not do what it does to a text."""
    if tokenizer is None or not isinstance(tokenizer, JsonTokenizer):
        return {} if tokenizer is None else tokenizer.files()
    is_own = pretrained.origin is not None and settings == pretrained.origin.settings
    # Of a config of ours open_clip takes its own tokenizer, which lower-cases.
    implied = ("none", False) if format == "huggingface" else tokenizer.rules if is_own else ("lower", False)
    if tokenizer.rules != implied:
        print(
            f"text is cleaned by clean={tokenizer.rules[0]!r} and strip_sep_token={tokenizer.rules[1]}, which "
            f"{'transformers' if format == 'huggingface' else 'open_clip'} will not do; clip_jax reads it in "
            "tokenizer_config.json",
            file=sys.stderr,
        )
    return tokenizer.files_in(implied)
