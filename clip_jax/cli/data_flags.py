"""Flags that name data, of all commands that read some. A command declares those that it has; the defaults that depend
on the command are None here, and stand in its DEFAULTS."""

from collections.abc import Mapping
from typing import Any

from absl import flags

from clip_jax.cli.common_flags import given, required
from input_pipeline.sources import Source, make_source

KINDS = ("folder", "webdataset", "tfds", "array_record", "table")  # of `make_source`

SOURCE = flags.DEFINE_string("source", None, f"Form of the data: {', '.join(KINDS)}.")
PATH = flags.DEFINE_string("path", None, "Path of the data: folder, tars, table; of a tfds data set DATA_DIR/NAME.")
SPLIT = flags.DEFINE_string("split", "", "Split of a tfds data set, such as train.")
CAPTIONS_FIELD = flags.DEFINE_string("captions_field", "", "Field of the captions, when it is not the usual one.")
IMAGE_FIELD = flags.DEFINE_string("image_field", "", "Column of a table's pictures, when it is not the usual one.")
SEPARATOR = flags.DEFINE_string(
    "separator", "", "Separator of a text table: one character, tab or semicolon; by default what its header says."
)
LINK_ROOT = flags.DEFINE_string(
    "link_root", "", "Folder below which links of a folder, and paths of a table, may lead besides their own folder."
)
FIELD_FLAGS = ("captions_field", "image_field", "separator", "link_root")
NUM_RECORDS = flags.DEFINE_integer("num_records", None, "Number of records to read.", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "Seed of the drawn scenes, or of the choice of records.", lower_bound=0)
SHARD_SIZE = flags.DEFINE_integer("shard_size", None, "Number of source records of a shard.", lower_bound=1)
MAX_BROKEN_SHARE = flags.DEFINE_float(
    "max_broken_share",
    None,
    "Largest share of records that cannot be used, else the command stops.",
    lower_bound=0,
    upper_bound=1,
)


def source_kind(defaults: Mapping[str, Any], *others: str) -> str:
    """--source; raises ValueError when it is none of KINDS and of the `others` that a command knows."""
    kind, known = given(SOURCE, defaults), (*KINDS, *others)
    if kind not in known:
        raise ValueError(f"--source={kind} must be one of {', '.join(known)}")
    return kind


def open_source(defaults: Mapping[str, Any], example: str, require_captions: bool = True) -> Source:
    """The source that the flags name. Raises ValueError, with the example, for no --path."""
    return open_path(source_kind(defaults), required(PATH, example), SPLIT.value, require_captions)


def open_path(kind: str, path: str, split: str, require_captions: bool = True) -> Source:
    """A source by its kind and path, and the flags that say where in it what is."""
    return make_source(
        kind,
        path,
        split,
        CAPTIONS_FIELD.value,
        image_field=IMAGE_FIELD.value,
        separator=SEPARATOR.value,
        link_root=LINK_ROOT.value,
        require_captions=require_captions,
    )
