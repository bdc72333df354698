"""Tiny pictures, tars of them and a tokenizer, for tests of whole pipelines."""

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from input_pipeline.data_config import DataConfig


class Words:
    """A tokenizer of one token a caption, its hash."""

    vocab_size, context_length, sot_token, eot_token = 4096, 3, 1, 2

    def encode(self, text: str) -> tuple[np.ndarray, bool]:
        value = sum(byte * (i + 1) for i, byte in enumerate(text.encode()))
        return np.array([1, 3 + value % 4093, 2], np.int32), False

    def fingerprint(self) -> dict[str, str]:
        return {"kind": "words"}


def jpeg(seed: int, width: int = 13, height: int = 11) -> bytes:
    """Noise, so that the crop shows where it was cut."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def data_config(**changes: Any) -> DataConfig:
    settings: dict[str, Any] = {
        "source": "webdataset",
        "path": "",
        "split": "",
        "num_examples": 17,
        "scene_kinds": (),
        "num_validation": 3,
        "min_crop_scale": 0.6,
        "pack_text": False,
        "tokenizer": "sentencepiece",
        "tokenizer_file": "",
        "num_workers": 0,
        "max_broken_share": 0.0,
        "seed": 0,
    }
    return DataConfig(**settings | changes)
