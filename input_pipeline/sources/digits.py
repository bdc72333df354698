"""scikit-learn's handwritten digits."""

from typing import Any

import numpy as np

from input_pipeline.sources.base import Record, check_index
from input_pipeline.storage import digest


class DigitsSource:
    """The 1,797 handwritten digits that come with scikit-learn, 8x8 pixels, grey, as uint8 [8, 8, 3] with "label".

    They need no download. The id of a record is digits/index.

    Raises:
      ValueError: scikit-learn is not installed.
    """

    def __init__(self) -> None:
        try:
            from sklearn.datasets import load_digits
        except ImportError:
            raise ValueError(
                "sklearn/digits needs scikit-learn, which is not installed: pip install scikit-learn"
            ) from None
        digits = load_digits()
        self._images = np.round(digits.images * (255 / 16)).astype(np.uint8)  # [N, 8, 8], of 0..16
        self._labels = digits.target.tolist()
        self.class_names: tuple[str, ...] | None = tuple(map(str, range(10)))
        self.broken: list[tuple[str, str]] = []

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> Record:
        check_index(index, len(self))
        image = np.repeat(self._images[index][..., None], 3, axis=-1)
        return {"id": f"digits/{index}", "image": image, "captions": (), "label": self._labels[index]}

    def captions(self, index: int) -> tuple[str, ...]:
        check_index(index, len(self))
        return ()

    def fingerprint(self) -> dict[str, Any]:
        return {"kind": "digits", "length": len(self), "digest": digest(self._images.tobytes())}
