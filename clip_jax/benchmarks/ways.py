"""Ways to do the same: a config with a few settings of its own each, as "remat=full+num_microbatches=4"."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clip_jax.config.experiment import Config
from clip_jax.inference.encoder import TEXT_LENGTHS
from clip_jax.models import PackedText, TextConfig, VisionConfig
from input_pipeline.packing import PackingOverflowError, caption_lengths, pack_text, rows_with_headroom

AS_IT_IS = "as configured"  # a way without settings
TEXT_FORMS = ("padded", "short", "packed")
MEAN_LENGTH = 14  # of the captions that are drawn, in tokens, start and end included


@dataclass(frozen=True, kw_only=True)
class Way:
    """A config, and how its text is given: "padded" to the context length, "short", cut at the next of the encoder's
    sizes above the batch's longest caption, "packed", several captions a row, or cut at so many positions."""

    config: Config
    text: str | int = "padded"


def _model(way: Way, **changes: Any) -> Way:
    return _section(way, "model", **changes)


def _section(way: Way, section: str, **changes: Any) -> Way:
    changed = dataclasses.replace(getattr(way.config, section), **changes)
    return dataclasses.replace(way, config=dataclasses.replace(way.config, **{section: changed}))


def _patch_dropout(way: Way, value: str) -> Way:
    vision = way.config.model.vision
    if not isinstance(vision, VisionConfig):
        raise ValueError("a ResNet has no patches")
    try:
        share = float(value)
    except ValueError:
        raise ValueError("it must be a number") from None
    return _model(way, vision=dataclasses.replace(vision, patch_dropout=share))


def _whole(value: str) -> int:
    if not value.isdigit():
        raise ValueError("it must be a whole number")
    return int(value)


def _text(way: Way, value: str) -> Way:
    context_length = way.config.model.text.context_length
    if value in TEXT_FORMS:
        return dataclasses.replace(way, text=value)
    if not value.isdigit() or not 2 <= int(value) <= context_length:
        raise ValueError(f"it must be {', '.join(TEXT_FORMS)}, or positions, from 2 to {context_length}")
    return dataclasses.replace(way, text=int(value))


# Setting -> what it does to a way. The dataclasses that it changes check the value.
SETTINGS: dict[str, Callable[[Way, str], Way]] = {
    "remat": lambda way, value: _model(way, remat=value),
    "compute_dtype": lambda way, value: _model(way, compute_dtype=value),
    "patch_dropout": _patch_dropout,
    "num_microbatches": lambda way, value: _section(way, "train", num_microbatches=_whole(value)),
    "block_size": lambda way, value: _section(way, "loss", block_size=_whole(value)),
    "text": _text,
}


def make_ways(config: Config, names: Sequence[str], settings: Sequence[str] = tuple(SETTINGS)) -> dict[str, Way]:
    """Name -> way; the config as it is, when none is named. Raises ValueError for no setting, or no value of it."""
    ways = {}
    for name in names or [AS_IT_IS]:
        way = Way(config=config)
        for part in [] if name == AS_IT_IS else name.split("+"):
            setting, equals, value = part.partition("=")
            if setting not in settings or not equals:
                raise ValueError(
                    f"--ways: {part!r} is not SETTING=VALUE with one of {', '.join(settings)}; a way may have several, "
                    f"as in remat=full+text=short, or be {AS_IT_IS!r}"
                )
            try:
                way = SETTINGS[setting](way, value)
            except ValueError as error:
                raise ValueError(f"--ways: {part!r} cannot be: {error}") from None
        if name in ways:
            raise ValueError(f"--ways: {name!r} is given twice")
        ways[name] = way
    return ways


def draw_captions(text: TextConfig, N: int, seed: int = 0) -> np.ndarray:
    """Token ids, int32 [N, L], of captions as long as people's: MEAN_LENGTH tokens, and half less to half more, evenly,
    or as many as there is room for."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(MEAN_LENGTH // 2, MEAN_LENGTH * 3 // 2, endpoint=True, size=N).clip(3, text.context_length)
    ids = rng.integers(max(text.eot_token, 1), size=(N, text.context_length), dtype=np.int32)
    positions = np.arange(text.context_length)
    ids[positions == lengths[:, None] - 1] = text.eot_token
    ids[positions >= lengths[:, None]] = 0
    return ids


def shape_text(way: Way, captions: np.ndarray, num_shards: int) -> np.ndarray | PackedText:
    """The captions, int32 [N, L], as the way gives them to the model. Raises ValueError for a tower that needs its
    padding and captions that cannot be packed."""
    text = way.config.model.text
    if way.text == "padded":
        return captions
    if not text.ignores_padding:
        raise ValueError(f"text={way.text} needs a causal text tower that is read at the end token")
    if isinstance(way.text, int):
        cut = captions[:, : way.text].copy()
        cut[:, -1] = np.where(np.any(cut == text.eot_token, axis=1), cut[:, -1], text.eot_token)
        return cut
    lengths = caption_lengths(captions, text.eot_token)
    if way.text == "short":
        fitting = (size for size in TEXT_LENGTHS if lengths.max() <= size < text.context_length)
        return captions[:, : next(fitting, text.context_length)]
    num_groups = num_shards * way.config.train.num_microbatches
    rows = rows_with_headroom(lengths, len(captions) // num_groups, text.context_length, seed=0)
    try:
        return PackedText(**pack_text(captions, text.eot_token, num_groups=num_groups, rows=rows))  # type: ignore[arg-type]
    except PackingOverflowError as error:
        raise ValueError(f"the drawn captions do not fit the rows foreseen for training: {error}") from error
