"""The form of a data set, guessed from the names of its files."""

import os
import re

from input_pipeline.image_formats import is_picture_name
from input_pipeline.sources import opener
from input_pipeline.sources.table import TABLE_SUFFIX

FORMS = {r"(?i:\.tar)": "webdataset", r"\.array_?record(-\d+-of-\d+)?": "array_record", TABLE_SUFFIX: "table"}
MAX_VERSIONS = 100  # folders searched for the version of a tfds data set, whose folder holds nothing else


def guess_kind(path: str) -> str:
    """The form of the data at a path, by the names of the files there: a kind of `make_source`, or "scenes".

    Raises:
      ValueError: nothing is there.
    """
    if path == "scenes":
        return "scenes"
    is_folder = opener.is_folder(path)
    for suffix, kind in FORMS.items():
        if re.search(f"{suffix}$", path) and not is_folder:
            return kind
    if not is_folder:
        raise ValueError(f"no data at {path!r}: give a folder, tars, ArrayRecord files, a .csv or .parquet, or scenes")
    names = [name for name in opener.list_names(path) if not name.startswith(".")]
    info = "dataset_info.json"
    if info in names:
        return "tfds"
    for suffix, kind in FORMS.items():
        if kind != "table" and any(re.search(f"{suffix}$", name) for name in names):
            return kind
    versions = (opener.join(path, name) for name in names[:MAX_VERSIONS])
    if any(opener.is_file(opener.join(version, info)) for version in versions):
        return "tfds"
    stems = [os.path.splitext(name)[0] for name in names if re.search(f"{TABLE_SUFFIX}$", name)]
    has_pictures = any(map(is_picture_name, names))
    # Of a table beside a folder of its name, as img2dataset writes them, the pictures are in the folder.
    return "table" if stems and not has_pictures and not {*stems} & {*names} else "folder"
