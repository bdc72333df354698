"""Converts a state dict to our variables and back, entry by entry of a layout; every key is used exactly once."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from clip_jax.models import ModelConfig
from clip_jax.models.variables import Variables, init_variables
from clip_jax.pretrained.layouts import Entry, LayoutName, make_layout


def to_variables(state_dict: Mapping[str, np.ndarray], name: LayoutName, config: ModelConfig) -> Variables:
    """The variables of a model as NumPy arrays in its param_dtype; every array is copied once.

    Args:
      state_dict: keys to arrays; a lazy one, which reads an array when it is indexed, keeps memory low.
      name: the layout of the state dict.

    Raises:
      ValueError: lists every key that is missing, left over, of another shape, not of floating-point numbers or not
        finite.
    """
    expected = jax.eval_shape(lambda: init_variables(config, jax.random.key(0)))
    flat = flatten_dict(expected, sep="/")
    try:
        out = {path: np.empty(leaf.shape, leaf.dtype) for path, leaf in flat.items()}
    except (MemoryError, ValueError):  # ValueError: a size that no array can have
        total = sum(leaf.size * leaf.dtype.itemsize for leaf in flat.values())
        raise ValueError(f"a model of these sizes needs {total / 2**30:,.0f} GiB, more than there is") from None
    missing: list[str] = []
    wrong: list[str] = []
    used: set[str] = set()
    unfilled = set(out)
    for entry in make_layout(name, config):
        for keys, targets in _arrays_of(entry, out):
            used |= set(keys)
            absent = [key for key in keys if key not in state_dict]
            missing += absent
            if absent:
                continue
            arrays = [state_dict[key] for key in keys]
            mistyped = [
                f"{key} is {array.dtype}, not floating-point numbers"
                for key, array in zip(keys, arrays)
                if _is_float(targets[0]) and not _is_float(array)
            ]
            wrong += mistyped or _fill(targets, arrays, keys, entry) or _not_finite(targets, keys)
        unfilled -= set(entry.paths)
    assert not unfilled, f"the layout {name} has no key for {unfilled}"
    leftover = sorted(set(state_dict) - used)
    if missing or leftover or wrong:
        raise ValueError(
            f"the state dict does not fit the model: missing {missing}, left over {leftover}, misshapen {wrong}"
        )
    return unflatten_dict(out, sep="/")


def to_state_dict(variables: Variables, name: LayoutName, config: ModelConfig) -> dict[str, np.ndarray]:
    """The inverse of `to_variables`, as C-contiguous arrays in the dtypes of the variables."""
    arrays = {path: np.asarray(leaf) for path, leaf in flatten_dict(variables, sep="/").items()}
    state_dict: dict[str, np.ndarray] = {}
    layout = make_layout(name, config)
    unused = set(arrays) - {path for entry in layout for path in entry.paths}
    assert not unused, f"the layout {name} has no key for {unused}"
    for entry in layout:
        for keys, values in _arrays_of(entry, arrays):
            state_dict |= zip(keys, (np.asarray(value, order="C") for value in entry.to_theirs(*values)))
    return state_dict


def _not_finite(targets: list[np.ndarray], keys: list[str]) -> list[str]:
    if all(np.isfinite(target).all() for target in targets):
        return []
    return [f"{' or '.join(keys)} has NaN, infinity or numbers beyond {targets[0].dtype}"]


def _arrays_of(entry: Entry, arrays: Mapping[str, np.ndarray]) -> Iterator[tuple[list[str], list[np.ndarray]]]:
    """The entry's keys and views of the arrays at its paths, layer by layer."""
    if entry.layers is None:
        yield list(entry.keys), [arrays[path] for path in entry.paths]
    else:
        for index, number in enumerate(entry.layers):
            # ... keeps a view where the layers are scalars.
            yield [key.format(number) for key in entry.keys], [arrays[path][index, ...] for path in entry.paths]


def _is_float(array: Any) -> bool:
    return jax.numpy.issubdtype(array.dtype, np.floating)  # unlike NumPy's, it knows bfloat16


def _fill(targets: list[np.ndarray], arrays: list[np.ndarray], keys: list[str], entry: Entry) -> list[str]:
    """Writes the converted arrays into the targets; returns the errors of their shapes."""
    try:
        converted = entry.to_ours(*arrays)
    except ValueError:  # they cannot be reshaped
        converted = [np.empty((0,))] * len(targets)
    if [array.shape for array in converted] != [target.shape for target in targets]:
        theirs = ", ".join(f"{key} {list(array.shape)}" for key, array in zip(keys, arrays))
        ours = ", ".join(str(list(target.shape)) for target in targets)
        return [f"{theirs} does not convert to {ours}"]
    for target, array in zip(targets, converted):
        target[...] = array
    return []
