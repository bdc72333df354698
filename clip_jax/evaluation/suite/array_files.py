"""Arrays on the disk with a checksum."""

import zipfile
from pathlib import Path

import numpy as np

from input_pipeline.storage import atomic_file, checksum


def write_arrays(file: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes an npz with a checksum, atomically."""
    with atomic_file(file) as stream:
        np.savez(stream, **arrays, sha256=np.array(_checksum(arrays)))  # type: ignore[arg-type]


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
    named = sorted(arrays.items())
    return checksum(
        x for name, a in named for x in (f"{name} {a.dtype.str} {a.shape}".encode(), np.ascontiguousarray(a).data)
    )
