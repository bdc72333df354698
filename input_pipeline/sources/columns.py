"""The columns of one table, CSV or Parquet, that a source reads: found by their names and made plain Python values."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from input_pipeline.sources import base, opener
from input_pipeline.sources.delimited import read_text_table
from input_pipeline.sources.remote import is_remote

# The first of these that is there, in any case: jpg, png and webp are img2dataset's, filepath and title open_clip's,
# file_name and text those of the Hub.
IMAGE_COLUMNS = (
    *("image", "jpg", "jpeg", "png", "webp", "filepath", "file_path", "file_name", "filename", "image_path"),
    *("image_name", "img"),
)
CAPTION_COLUMNS = ("captions", "caption")
OTHER_CAPTION_COLUMNS = ("title", "text")  # of tables without the others and without labels
PLAIN_COLUMNS = ("id", "label", "width", "height")
PARQUET_START = b"PAR1"
STRUCT_BYTES = ".bytes"
NULLS = ("", "NA", "N/A", "NULL", "null", "NaN", "nan", "None")


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Columns that the user named, or empty; needs_captions: a table without captions and labels is refused."""

    captions: str = ""
    image: str = ""
    needs_captions: bool = True


@dataclass(kw_only=True)
class Columns:
    """What was read of a table.

    Attributes:
      values: of the known columns, id, image (paths alone) or path, captions or caption, label, width, height,
        row and why_filtered; text as bytes.
      image_bytes: the column that holds encoded pictures, with STRUCT_BYTES for a struct; "" for paths.
      class_names: of integer labels, where the file says them.
      lines: of the rows, from 1, in a text table.
      broken: (line, reason) of rows of another length.
      notes: what was taken that is not as usual.
    """

    values: dict[str, list]
    image_bytes: str = ""
    class_names: tuple[str, ...] | None = None
    lines: list[int] = field(default_factory=list)
    broken: list[tuple[int, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_columns(path: str, wanted: Wanted, separator: str) -> Columns:
    """Reads a table, but not its pictures' bytes; what it is, its content says.

    Raises:
      ValueError: no such table, or columns that are missing or occur twice; pyarrow's errors for damaged Parquet.
    """
    if opener.read_file(path, len(PARQUET_START)) == PARQUET_START:
        return _read_parquet(path, wanted)
    try:
        return _read_text(path, wanted, separator)
    except ValueError as error:
        if str(error).startswith(path):
            raise
        raise ValueError(f"{path} is not a readable CSV or Parquet file: {error}") from None


def find_columns(names: Sequence[str], wanted: Wanted) -> dict[str, str] | None:
    """Our name of each column that is read -> its name in the table; None where something is missing.

    Raises ValueError for a column that occurs twice.
    """
    plain = [name.strip().lower() for name in names]

    def find(known: Sequence[str], exact: str = "") -> str | None:
        if exact:
            return exact if exact in names else None
        for name in known:
            if name in names:
                return name
            if name in plain:
                return names[plain.index(name)]
        return None

    found = {name: find([name]) for name in PLAIN_COLUMNS}
    found["image"] = find(IMAGE_COLUMNS, wanted.image)
    if wanted.captions:
        found["captions" if wanted.captions == "captions" else "caption"] = find((), wanted.captions)
    else:
        found |= {name: find([name]) for name in CAPTION_COLUMNS}
        if not any(found[name] for name in (*CAPTION_COLUMNS, "label")):
            found["caption"] = find(OTHER_CAPTION_COLUMNS)
    has_text = any(found.get(name) for name in (*CAPTION_COLUMNS, "label"))
    if not found["image"] or (wanted.needs_captions and not has_text):
        return None
    columns = {name: given for name, given in found.items() if given}
    if twice := [given for given in columns.values() if list(names).count(given) > 1]:
        raise ValueError(f"column {twice[0]!r} occurs twice: rename one of them")
    return columns


def _require_columns(path: str, names: Sequence[str], wanted: Wanted) -> dict[str, str]:
    try:
        columns = find_columns(names, wanted)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if columns is None:
        texts = [wanted.captions or "captions, caption", "label"]
        there = ", ".join(name.encode(errors="replace").decode() for name in names)
        needs = f" and one of {', '.join(texts)}" if wanted.needs_captions else ""
        fix = "image_field, captions_field and separator name others"
        raise ValueError(f"{path} needs {wanted.image or 'image'}{needs}; its columns are {there} ({fix})")
    return columns


def _describe(columns: dict[str, str], wanted: Wanted) -> list[str]:
    """What was taken without being called by its usual or its given name."""
    given = (wanted.image, wanted.captions)
    odd = [f"{ours} from the column {name!r}" for ours, name in columns.items() if name not in (ours, *given)]
    return [f"it takes {', '.join(odd)}"] if odd else []


def _read_text(path: str, wanted: Wanted, separator: str) -> Columns:
    def image_index(names: list[str]) -> int | None:
        columns = find_columns(names, wanted)
        return names.index(columns["image"]) if columns else None

    table = read_text_table(opener.read_file(path), separator, image_index)
    columns = _require_columns(path, table.names, wanted)
    values: dict[str, list] = {}
    for ours, name in columns.items():
        index = table.names.index(name)
        cells = [row[index] for _, row in table.rows]
        values[ours] = [cell.encode(errors="surrogateescape") for cell in cells]
        if ours in ("width", "height"):
            values[ours] = [int(x) if re.fullmatch(r"\s*\d{1,9}\s*", x) else None for x in cells]
            if any(x is None and cell not in NULLS for x, cell in zip(values[ours], cells)):
                del values[ours]
    values["row"] = list(range(len(table.rows)))
    notes = [*_describe(columns, wanted), *table.notes]
    return Columns(values=values, lines=[line for line, _ in table.rows], broken=table.broken, notes=notes)


def _read_parquet(path: str, wanted: Wanted) -> Columns:
    import pyarrow as pa

    with open_parquet(path) as file:
        schema = file.schema_arrow
        columns = _require_columns(path, schema.names, wanted)
        image = columns["image"]
        image_type = schema.field(image).type
        children = {child.name for child in image_type} if pa.types.is_struct(image_type) else set()
        if children and not children & {"bytes", "path"}:
            raise ValueError(f"{path}: the struct {image!r} holds {', '.join(sorted(children))}, not bytes or path")
        is_bytes = "bytes" in children or "binary" in str(image_type)
        is_img2dataset = columns["image"] in ("jpg", "jpeg", "png", "webp") and _is_img2dataset(schema)
        others = [name for ours, name in columns.items() if ours != "image"]
        paths = [f"{image}.path"] if "path" in children else [] if is_bytes else [image]
        extra = ("key", "status") if is_img2dataset else ()
        table = file.read([*dict.fromkeys([*others, *extra]), *paths])
    values = {ours: _plain(table[name]) for ours, name in columns.items() if ours != "image"}
    for name in ("width", "height"):
        if name in columns and not pa.types.is_integer(schema.field(columns[name]).type):
            del values[name]
    if is_img2dataset:
        values.setdefault("id", _plain(table["key"]))
        values["why_filtered"] = [
            None if x in (None, b"success") else f"status {x.decode(errors='replace')}" for x in _plain(table["status"])
        ]
    if paths:
        found = _plain(table[image])
        values["path" if is_bytes else "image"] = [x and x["path"] for x in found] if children else found
    values["row"] = list(range(len(table)))
    return Columns(
        values=values,
        image_bytes=f"{image}{STRUCT_BYTES if children else ''}" if is_bytes else "",
        class_names=_named_classes(schema, columns),
        notes=_describe(columns, wanted),
    )


def _is_img2dataset(schema: Any) -> bool:
    """Recognised by three columns that it always writes; a table may have a status or a key of its own."""
    kinds = {name: str(schema.field(name).type) for name in ("key", "status", "error_message") if name in schema.names}
    return len(kinds) == 3 and kinds["key"] == kinds["status"] == "string"


def _named_classes(schema: Any, columns: dict[str, str]) -> tuple[str, ...] | None:
    """The names of integer labels, as data sets of the Hub write them."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[columns["label"]]["names"]
        return tuple(names) if names and all(isinstance(name, str) for name in names) else None
    except (KeyError, TypeError, ValueError):
        return None


def _plain(column: Any) -> list:
    """A column's Python values, text as bytes: Arrow gives up a whole column for one invalid string."""
    import pyarrow as pa

    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
        kind = column.type
    if _is_text(kind):
        return column.cast(pa.large_binary()).to_pylist()
    if _is_list(kind) and _is_text(kind.value_type):
        return column.cast(pa.large_list(pa.large_binary())).to_pylist()
    return column.to_pylist()


def _is_text(kind: Any) -> bool:
    return str(kind) in ("string", "large_string", "string_view", "binary", "large_binary", "binary_view")


def _is_list(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def name_labels(tables: list[dict[str, list]]) -> tuple[str, ...] | None:
    """Makes the labels integers, in place (None if missing); returns the names if they were names."""
    labelled = [columns for columns in tables if "label" in columns]
    texts = [[_label_text(label) for label in columns["label"]] for columns in labelled]
    given = {text for column in texts for text in column} - {""}
    if not labelled:
        return None
    is_number = all(re.fullmatch(r"-?\d{1,18}(\.0*)?", text) for text in given)
    names = tuple(sorted(given))
    numbers = {name: int(name.partition(".")[0]) if is_number else i for i, name in enumerate(names)}
    for columns, column in zip(labelled, texts):
        columns["label"] = [numbers.get(text) for text in column]
    return None if is_number else names


def _label_text(label: Any) -> str:
    """A label as text; of a missing one, also pandas' NaN, "". Raises ValueError for what is no label."""
    if label is None or label != label:
        return ""
    if isinstance(label, bool | int | float):
        return str(label)
    return base.decode(label).strip()


def open_parquet(path: str, metadata: Any = None) -> Any:
    import pyarrow.parquet as pq

    if not is_remote(path):
        return pq.ParquetFile(path, metadata=metadata)
    return pq.ParquetFile(opener.RangedFile(path), metadata=metadata, pre_buffer=False)


def read_metadata(path: str) -> Any:
    with open_parquet(path) as file:
        return file.metadata
