"""Variants of a config, each with a few settings of its own, such as "remat=full+num_microbatches=4"."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clip_jax.config.experiment import Config
from clip_jax.inference.encoder import TEXT_LENGTHS
from clip_jax.models import PackedText, TextConfig, VisionConfig
from input_pipeline.packing import PackingOverflowError, caption_lengths, pack_text, rows_with_headroom

BASELINE = "baseline"  # the variant without settings
TEXT_FORMS = ("padded", "short", "packed")
MEAN_LENGTH = 14  # of the captions that are drawn, in tokens, start and end included


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A config and the form of its text: "padded" to the context length; "short", cut at the next of the encoder's
    sizes above the batch's longest caption; "packed", several captions a row; or a number of positions to cut at."""

    config: Config
    text: str | int = "padded"


def _model(variant: Variant, **changes: Any) -> Variant:
    return _section(variant, "model", **changes)


def _section(variant: Variant, section: str, **changes: Any) -> Variant:
    changed = dataclasses.replace(getattr(variant.config, section), **changes)
    return dataclasses.replace(variant, config=dataclasses.replace(variant.config, **{section: changed}))


def _patch_dropout(variant: Variant, value: str) -> Variant:
    vision = variant.config.model.vision
    if not isinstance(vision, VisionConfig):
        raise ValueError("a ResNet has no patches")
    try:
        share = float(value)
    except ValueError:
        raise ValueError("it must be a number") from None
    return _model(variant, vision=dataclasses.replace(vision, patch_dropout=share))


def _whole(value: str) -> int:
    if not value.isdigit():
        raise ValueError("it must be a whole number")
    return int(value)


def _text(variant: Variant, value: str) -> Variant:
    context_length = variant.config.model.text.context_length
    if value in TEXT_FORMS:
        return dataclasses.replace(variant, text=value)
    if not value.isdigit() or not 2 <= int(value) <= context_length:
        raise ValueError(f"it must be {', '.join(TEXT_FORMS)}, or positions, from 2 to {context_length}")
    return dataclasses.replace(variant, text=int(value))


# Setting -> what it changes of a variant. The dataclasses that it changes check the value.
SETTINGS: dict[str, Callable[[Variant, str], Variant]] = {
    "remat": lambda variant, value: _model(variant, remat=value),
    "compute_dtype": lambda variant, value: _model(variant, compute_dtype=value),
    "patch_dropout": _patch_dropout,
    "num_microbatches": lambda variant, value: _section(variant, "train", num_microbatches=_whole(value)),
    "block_size": lambda variant, value: _section(variant, "loss", block_size=_whole(value)),
    "text": _text,
}


def make_variants(
    config: Config, names: Sequence[str], settings: Sequence[str] = tuple(SETTINGS)
) -> dict[str, Variant]:
    """Name -> variant; the baseline alone when none is named. Raises ValueError for an unknown setting or value."""
    variants = {}
    for name in names or [BASELINE]:
        variant = Variant(config=config)
        for part in [] if name == BASELINE else name.split("+"):
            setting, equals, value = part.partition("=")
            if setting not in settings or not equals:
                raise ValueError(
                    f"--variants: {part!r} is not SETTING=VALUE with one of {', '.join(settings)}; a variant may have "
                    f"several, as in remat=full+text=short, or be {BASELINE!r}"
                )
            try:
                variant = SETTINGS[setting](variant, value)
            except ValueError as error:
                raise ValueError(f"--variants: {part!r} is not possible: {error}") from None
        if name in variants:
            raise ValueError(f"--variants: {name!r} is given twice")
        variants[name] = variant
    return variants


def draw_captions(text: TextConfig, N: int, seed: int = 0) -> np.ndarray:
    """Token ids, int32 [N, L], of captions as long as people's: uniformly from half of MEAN_LENGTH to one and a half
    times as many tokens, at most the context length."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(MEAN_LENGTH // 2, MEAN_LENGTH * 3 // 2, endpoint=True, size=N).clip(3, text.context_length)
    ids = rng.integers(max(text.eot_token, 1), size=(N, text.context_length), dtype=np.int32)
    positions = np.arange(text.context_length)
    ids[positions == lengths[:, None] - 1] = text.eot_token
    ids[positions >= lengths[:, None]] = 0
    return ids


def shape_text(variant: Variant, captions: np.ndarray, num_shards: int) -> np.ndarray | PackedText:
    """The captions, int32 [N, L], in the variant's form. Raises ValueError for a tower that needs its padding and
    captions that cannot be packed."""
    text = variant.config.model.text
    if variant.text == "padded":
        return captions
    if not text.ignores_padding:
        raise ValueError(f"text={variant.text} needs a causal text tower that is read at the end token")
    if isinstance(variant.text, int):
        cut = captions[:, : variant.text].copy()
        cut[:, -1] = np.where(np.any(cut == text.eot_token, axis=1), cut[:, -1], text.eot_token)
        return cut
    lengths = caption_lengths(captions, text.eot_token)
    if variant.text == "short":
        fitting = (size for size in TEXT_LENGTHS if lengths.max() <= size < text.context_length)
        return captions[:, : next(fitting, text.context_length)]
    num_groups = num_shards * variant.config.train.num_microbatches
    rows = rows_with_headroom(lengths, len(captions) // num_groups, text.context_length, seed=0)
    try:
        return PackedText(**pack_text(captions, text.eot_token, num_groups=num_groups, rows=rows))  # type: ignore[arg-type]
    except PackingOverflowError as error:
        raise ValueError(f"the drawn captions do not fit the rows planned for training: {error}") from error
