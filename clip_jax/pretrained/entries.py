"""One line of a layout: keys of a state dict, our paths, and the conversion both ways; for every kind of layer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from clip_jax.models import ResNetConfig, TransformerConfig, VisionConfig

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


def make(key: str, path: str, to_ours: Callable, to_theirs: Callable, layers: range | None = None) -> Entry:
    """One key, one path."""
    return Entry((key,), (path,), lambda x: [to_ours(x)], lambda x: [to_theirs(x)], layers)


def same(key: str, path: str, layers: range | None = None) -> Entry:
    return make(key, path, lambda x: x, lambda x: x, layers)


def transposed(key: str, path: str, layers: range | None = None) -> Entry:
    return make(key, path, np.transpose, np.transpose, layers)


def linear(key: str, path: str, layers: range | None = None) -> list[Entry]:
    # torch keeps [out, in]
    return [transposed(f"{key}.weight", f"{path}/kernel", layers), same(f"{key}.bias", f"{path}/bias", layers)]


def scale_and_bias(key: str, path: str, layers: range | None = None) -> list[Entry]:
    return [same(f"{key}.weight", f"{path}/scale", layers), same(f"{key}.bias", f"{path}/bias", layers)]


def from_heads(key: str, path: str, heads: tuple[int, int], layers: range | None = None) -> list[Entry]:
    """A linear layer whose input is [H, K]."""
    return [
        make(
            f"{key}.weight",
            f"{path}/kernel",
            lambda x: x.T.reshape(*heads, -1),
            lambda x: x.reshape(-1, x.shape[-1]).T,
            layers,
        ),
        same(f"{key}.bias", f"{path}/bias", layers),
    ]


def to_heads(key: str, path: str, heads: tuple[int, int]) -> list[Entry]:
    """A linear layer whose output is [H, K]."""
    return [
        make(f"{key}.weight", f"{path}/kernel", lambda x: x.T.reshape(-1, *heads), lambda x: x.reshape(len(x), -1).T),
        make(f"{key}.bias", f"{path}/bias", lambda x: x.reshape(heads), np.ravel),
    ]


def patches(config: VisionConfig, key: str, path: str) -> Entry:
    p = config.patch_size
    return make(  # [D, 3, p, p] and [p * p * 3, D]
        key,
        path,
        lambda x: x.transpose(2, 3, 1, 0).reshape(-1, len(x)),
        lambda x: x.reshape(p, p, 3, -1).transpose(3, 2, 0, 1),
    )


def heads_of(config: TransformerConfig | ResNetConfig) -> tuple[int, int]:
    return config.num_heads, config.width // config.num_heads


def lost(key: str) -> Callable:
    """What cannot be written back."""

    def to_theirs(x: np.ndarray) -> np.ndarray:
        raise ValueError(f"{key} has more than clip_jax keeps of it, so that this model cannot be written")

    return to_theirs


def as_token(x: np.ndarray) -> np.ndarray:
    return x[None, None]


def stacked(weight: str, bias: str, paths: Sequence[str], heads: tuple[int, int]) -> list[Entry]:
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
