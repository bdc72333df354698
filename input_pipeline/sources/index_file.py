"""Arrays that took long to find, kept in a file together with what they depend on."""

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from input_pipeline.storage import write_bytes


def load_index(file: Path, expected: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
    """`found` and `arrays` of `save_index`; None for a missing or damaged file, or one with another `fingerprint`."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            about = json.loads(arrays["about"].tobytes())
            if about["told"] != json.loads(json.dumps(expected)):
                return None
            return about["found"], {name: arrays[name] for name in arrays.files if name != "about"}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile):
        return None


def save_index(file: Path, fingerprint: Mapping[str, Any], found: Mapping[str, Any], **arrays: np.ndarray) -> None:
    """Writes an index whole or not at all; several processes may do so at once.

    fingerprint: for JSON, what the index depends on. found, arrays: the index. Raises OSError where it cannot be
    written.
    """
    about = json.dumps({"told": fingerprint, "found": found}).encode()
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, about=np.frombuffer(about, np.uint8), **arrays)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(file, buffer.getvalue())
