"""Arrays on the disk with a checksum, and hashes of what decides them."""

import hashlib
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np


def content_hash(value: Any) -> str:
    """16 hexadecimal digits of the SHA-256 of a value's JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def write_arrays(file: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes an npz with a checksum, atomically."""
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    with partial.open("wb") as stream:
        np.savez(stream, **arrays, sha256=np.array(_checksum(arrays)))  # type: ignore[arg-type]
    partial.replace(file)


def read_arrays(file: Path) -> dict[str, np.ndarray]:
    """What `write_arrays` wrote; ValueError for a file that is damaged, OSError for one that cannot be read."""
    try:
        return _checked(file)
    # RuntimeError: a flipped bit may say that it is encrypted, or compressed in an unknown way.
    except (KeyError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
        raise ValueError(str(error)) from error


def _checked(file: Path) -> dict[str, np.ndarray]:
    with np.load(file, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    if str(arrays.pop("sha256")) != _checksum(arrays):
        raise ValueError("its checksum does not match")
    return arrays


def _checksum(arrays: dict[str, np.ndarray]) -> str:
    sha = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        sha.update(f"{name} {array.dtype.str} {array.shape}".encode())
        sha.update(np.ascontiguousarray(array).data)
    return sha.hexdigest()
