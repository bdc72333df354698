"""Records by index from folders, WebDataset tars, ArrayRecord, TFDS and tables, all behind one interface: `Source`.

A source is cheap to send to a worker process: it holds an index, and every process opens the files when it first reads.
"""

import os
from collections.abc import Callable

from input_pipeline.sources import opener
from input_pipeline.sources.array_record import ArrayRecordSource, write_array_record
from input_pipeline.sources.base import BrokenRecordError, Record, Source, SubsetSource
from input_pipeline.sources.digits import DigitsSource
from input_pipeline.sources.filters import FilteredSource, Filters, filters_of
from input_pipeline.sources.folder import FolderSource
from input_pipeline.sources.mixture import Mixture
from input_pipeline.sources.table import TableSource
from input_pipeline.sources.tfds import NotPreparedError, TfdsSource
from input_pipeline.sources.webdataset import WebDatasetSource

__all__ = [
    "ArrayRecordSource",
    "BrokenRecordError",
    "DigitsSource",
    "FilteredSource",
    "Filters",
    "FolderSource",
    "Mixture",
    "NotPreparedError",
    "Record",
    "Source",
    "SubsetSource",
    "TableSource",
    "TfdsSource",
    "WebDatasetSource",
    "filters_of",
    "make_source",
    "write_array_record",
]


# Options of `make_source`, and the kinds that have them.
OPTION_KINDS = {
    "captions_field": ("webdataset", "array_record", "table", "tfds"),
    "image_field": ("table",),
    "separator": ("table",),
    "link_root": ("table", "folder"),
    "split": ("tfds",),
}


def make_source(
    kind: str,
    path: str,
    split: str = "",
    captions_field: str = "",
    *,
    image_field: str = "",
    separator: str = "",
    link_root: str = "",
    require_captions: bool = True,
) -> Source:
    """The source of a config's data section.

    Args:
      kind: webdataset, array_record, table, tfds or folder.
      path: see the class; for tfds the dataset's folder, DATA_DIR/NAME or DATA_DIR/NAME/VERSION.
      split: of a tfds dataset; unused elsewhere.
      captions_field: column, feature or JSON key of the captions, if not the usual one; not for a folder.
      image_field: column of a table with the pictures, if not the usual one.
      separator: of a text table, if its header does not say it.
      link_root: folder below which links of a folder, and paths of a table, may lead besides their own folder.
      require_captions: False takes records without captions, as to embed their pictures.

    Raises:
      ValueError: an unknown kind, no split for tfds, and what the classes raise: a path that is missing, empty, not
        to be opened or of another form.
    """
    makers: dict[str, Callable[[str], Source]] = {
        "webdataset": lambda path: WebDatasetSource(path, captions_field, require_captions),
        "array_record": lambda path: ArrayRecordSource(path, captions_field, require_captions),
        "table": lambda path: TableSource(
            path,
            captions_field,
            image_field=image_field,
            separator=separator,
            link_root=link_root,
            require_captions=require_captions,
        ),
        "tfds": lambda path: _make_tfds_source(path, split, captions_field, require_captions),
        "folder": lambda path: FolderSource(path, link_root=link_root),
    }
    if kind not in makers:
        raise ValueError(f"unknown kind of data {kind!r}; known: {', '.join(makers)}")
    if kind == "folder" and captions_field:
        raise ValueError(
            f"captions_field={captions_field!r}: the captions of a folder are in .txt files; leave it empty"
        )
    given = {"image_field": image_field, "separator": separator, "link_root": link_root}
    for name, value in given.items():
        if value and kind not in (kinds := OPTION_KINDS[name]):
            raise ValueError(f"{name}={value!r} is for a {' or a '.join(kinds)}, not for {kind}: leave it empty")
    return makers[kind](path)


def _make_tfds_source(path: str, split: str, captions_field: str, require_captions: bool) -> TfdsSource:
    if not split or not path:
        raise ValueError(f"tfds needs a path and a split such as train; got path {path!r} and split {split!r}")
    path, name = os.path.split(path.rstrip("/"))
    if opener.is_file(opener.join(opener.join(path, name), "dataset_info.json")):  # the folder of one version
        path, name = os.path.dirname(path), f"{os.path.basename(path)}:{name}"
    return TfdsSource(name, split, path or ".", captions_field, require_captions)
