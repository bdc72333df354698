"""What a model made of each picture of a set, as a table that pandas and duckdb read."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clip_jax.evaluation.metrics.classification import Classified
from clip_jax.evaluation.suite.context import LabelledFeatures
from input_pipeline.storage import atomic_file


def write_predictions(file: Path, test: LabelledFeatures, names: Sequence[str], found: Classified | np.ndarray) -> None:
    """A Parquet of the pictures that could be used, a row each; whole, or not at all.

    Its columns are id, path, label (of an image with several the list of them), prediction, and probability or, where
    `found` is scores [N, C] of a set with several labels an image, similarity.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    of_classes = np.array(names, object)
    several = test.labels.ndim == 2
    labels = [of_classes[row].tolist() for row in test.labels] if several else of_classes[test.labels].tolist()
    table = {
        "id": list(test.features.ids),
        "path": list(test.features.paths),
        "label": labels,
        **_columns(found, names),
    }
    with atomic_file(file) as stream:
        pq.write_table(pa.table(table), stream)


def _columns(found: Classified | np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """prediction, and its probability (where the own class ties for the best, another one is predicted); or, of scores
    [N, C], the class that fits best and its cosine similarity."""
    if isinstance(found, Classified):
        return {"prediction": [names[c] for c in found.predicted], "probability": found.confidence}
    return {"prediction": [names[c] for c in found.argmax(axis=1)], "similarity": found.max(axis=1)}
