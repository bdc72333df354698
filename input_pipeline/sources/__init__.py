"""Records by index from folders, WebDataset tars, ArrayRecord, TFDS and tables, all behind one interface: `Source`.

A source is cheap to send to a worker process: it holds an index, and every process opens the files when it first reads.
"""

import os
from collections.abc import Callable

from input_pipeline.sources.array_record import ArrayRecordSource, write_array_record
from input_pipeline.sources.base import BrokenRecordError, Record, Source, SubsetSource
from input_pipeline.sources.digits import DigitsSource
from input_pipeline.sources.folder import FolderSource
from input_pipeline.sources.table import TableSource
from input_pipeline.sources.tfds import NotPreparedError, TfdsSource
from input_pipeline.sources.webdataset import WebDatasetSource

__all__ = [
    "ArrayRecordSource",
    "BrokenRecordError",
    "DigitsSource",
    "FolderSource",
    "NotPreparedError",
    "Record",
    "Source",
    "SubsetSource",
    "TableSource",
    "TfdsSource",
    "WebDatasetSource",
    "make_source",
    "write_array_record",
]


def make_source(kind: str, path: str, split: str = "") -> Source:
    """The source of a config's data section.

    Args:
      kind: webdataset, array_record, table, tfds or folder.
      path: see the class; for tfds the dataset's folder, DATA_DIR/NAME or DATA_DIR/NAME/VERSION.
      split: of a tfds dataset; unused elsewhere.

    Raises:
      ValueError: an unknown kind, no split for tfds, and what the classes raise: a path that is missing, empty, remote
        or of another form.
    """
    makers: dict[str, Callable[[str], Source]] = {
        "webdataset": WebDatasetSource,
        "array_record": ArrayRecordSource,
        "table": TableSource,
        "tfds": lambda path: _make_tfds_source(path, split),
        "folder": FolderSource,
    }
    if kind not in makers:
        raise ValueError(f"unknown kind of data {kind!r}; known: {', '.join(makers)}")
    return makers[kind](path)


def _make_tfds_source(path: str, split: str) -> TfdsSource:
    if not split or not path:
        raise ValueError(f"tfds needs a path and a split such as train; got path {path!r} and split {split!r}")
    path, name = os.path.split(path.rstrip("/"))
    if os.path.isfile(os.path.join(path, name, "dataset_info.json")):  # the folder of one version
        path, name = os.path.dirname(path), f"{os.path.basename(path)}:{name}"
    return TfdsSource(name, split, path or ".")
