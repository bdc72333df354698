"""What a model made of each picture of a set, as a table that pandas and duckdb read."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clip_jax.evaluation.metrics.classification import Classified
from clip_jax.evaluation.suite.context import LabelledFeatures
from input_pipeline.storage import atomic_file


def write_predictions(file: Path, test: LabelledFeatures, names: Sequence[str], columns: Mapping[str, Any]) -> None:
    """A Parquet of the pictures that could be used, a row each: id, path, label, and columns of the prediction.

    label: the class, or the list of those of an image with several. Whole, or not at all.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    of_classes = np.array(names, object)
    several = test.labels.ndim == 2
    labels = [of_classes[row].tolist() for row in test.labels] if several else of_classes[test.labels].tolist()
    table = {"id": list(test.features.ids), "path": list(test.features.paths), "label": labels, **columns}
    with atomic_file(file) as stream:
        pq.write_table(pa.table(table), stream)


def single_label_columns(found: Classified, names: Sequence[str]) -> dict[str, Any]:
    """prediction, and its probability; where the own class ties for the best, another one is predicted."""
    return {"prediction": [names[c] for c in found.predicted], "probability": found.confidence}


def multi_label_columns(scores: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """prediction, the class that fits best, and its cosine similarity. scores: [N, C]."""
    return {"prediction": [names[c] for c in scores.argmax(axis=1)], "similarity": scores.max(axis=1)}
