"""Arrays that took long to find, kept in a file together with what they were found in."""

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from input_pipeline.sources import opener


def load_index(file: Path, told: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
    """What `save_index` wrote as `found` and `arrays`; None where no whole file is, or `told` was another then."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            about = json.loads(arrays["about"].tobytes())
            if about["told"] != json.loads(json.dumps(told)):
                return None
            return about["found"], {name: arrays[name] for name in arrays.files if name != "about"}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile):
        return None


def save_index(file: Path, told: Mapping[str, Any], found: Mapping[str, Any], **arrays: np.ndarray) -> None:
    """Writes an index under a name of its own and renames it, so that two processes may do so at once.

    told: for JSON, what the index depends on. found, arrays: the index. Raises OSError where it cannot be written.
    """
    about = json.dumps({"told": told, "found": found}).encode()
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, about=np.frombuffer(about, np.uint8), **arrays)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = opener.partial_name(file)
    try:
        partial.write_bytes(buffer.getvalue())
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
