"""The columns of CSV and Parquet files, but for images as bytes, and their labels as numbers."""

import io
import re
from typing import Any

from input_pipeline.sources import opener
from input_pipeline.sources.base import decode
from input_pipeline.sources.remote import is_remote

IMAGE_COLUMNS = ("image", "jpg", "jpeg", "png", "webp")  # the others are img2dataset's, by the format it encodes in
TEXT_COLUMNS = ("id", "captions", "caption", "label")
SIZE_COLUMNS = ("width", "height")  # used where they are whole numbers


def open_parquet(path: str, metadata: Any = None) -> Any:
    import pyarrow.parquet as pq

    if not is_remote(path):
        return pq.ParquetFile(path, metadata=metadata)
    return pq.ParquetFile(opener.RangedFile(path), metadata=metadata, pre_buffer=False)


def read_metadata(path: str) -> Any:
    with open_parquet(path) as file:
        return file.metadata


def read_table(
    path: str, captions_field: str, broken: list[tuple[str, str]]
) -> tuple[dict[str, list], tuple[str, bool]]:
    """Returns the known columns, text as bytes, with the row numbers as `row`; and the name of the images' column and
    whether it holds bytes.

    In a table of img2dataset `id` is its key, and `why_filtered` is why there is no image, or None. Image bytes are
    not read. Rows of another length go to `broken`.
    """
    import pyarrow as pa
    import pyarrow.csv

    texts = [*TEXT_COLUMNS, *filter(None, [captions_field])]
    is_img2dataset = False
    if path.endswith(".csv"):

        def skip(row: Any) -> str:
            broken.append((f"line {row.number}", f"{row.actual_columns} columns, not {row.expected_columns}"))
            return "skip"

        table = pyarrow.csv.read_csv(
            path if not is_remote(path) else io.BytesIO(opener.read_file(path)),
            read_options=pyarrow.csv.ReadOptions(use_threads=False),  # or rows would have no number
            parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True, invalid_row_handler=skip),
            convert_options=pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(("image", *texts), pa.binary())),
        )
        names, image, image_bytes = table.column_names, "image", False
    else:
        with open_parquet(path) as file:
            schema = file.schema_arrow
            names = schema.names
            image = next((name for name in IMAGE_COLUMNS if name in names), "image")
            image_bytes = image in names and str(schema.field(image).type) in ("binary", "large_binary")
            is_img2dataset = image != "image" and _is_img2dataset(schema)
            known = {*texts, *SIZE_COLUMNS, image, *(("key", "status") if is_img2dataset else ())}
            table = file.read([x for x in names if x in known and not (x == image and image_bytes)])
    captions = {captions_field} if captions_field else {"captions", "caption"}
    if image not in names or not (captions | {"label"}) & set(names):
        wanted = ", ".join([*sorted(captions)[::-1], "label"])
        raise ValueError(f"{path} needs image and one of {wanted}; its columns are {', '.join(names)}")
    sizes = [x for x in SIZE_COLUMNS if x in table.column_names and pa.types.is_integer(table[x].type)]
    columns = {
        x: _text_as_bytes(table[x]).to_pylist() for x in dict.fromkeys([*texts, *sizes]) if x in table.column_names
    }
    if is_img2dataset:
        columns.setdefault("id", _text_as_bytes(table["key"]).to_pylist())
        status = _text_as_bytes(table["status"]).to_pylist()
        columns["why_filtered"] = [
            None if x in (None, b"success") else f"status {x.decode(errors='replace')}" for x in status
        ]
    if not image_bytes:
        columns["image"] = _text_as_bytes(table[image]).to_pylist()
    return columns | {"row": list(range(len(table)))}, (image, image_bytes)


def _is_img2dataset(schema: Any) -> bool:
    """Recognised by three columns that it always writes; a table may have a status or a key of its own."""
    kinds = {name: str(schema.field(name).type) for name in ("key", "status", "error_message") if name in schema.names}
    return len(kinds) == 3 and kinds["key"] == kinds["status"] == "string"


def _text_as_bytes(column: Any) -> Any:
    """A column of text, or of lists of text, as bytes: Arrow gives up a whole column for one invalid string."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_integer(column.type) or pa.types.is_binary(column.type):
        return column
    return column.cast(pa.list_(pa.binary()) if pa.types.is_list(column.type) else pa.binary())


def name_labels(tables: list[dict[str, list]]) -> tuple[str, ...] | None:
    """Makes the labels integers, in place (None if missing); returns the names if they were names."""
    labelled = [columns for columns in tables if "label" in columns]
    texts = [
        [decode(str(label) if isinstance(label, int) else label).strip() for label in columns["label"]]
        for columns in labelled
    ]
    given = {text for column in texts for text in column} - {""}
    if not labelled:
        return None
    is_number = all(re.fullmatch(r"-?\d+", text) for text in given)
    names = tuple(sorted(given))
    numbers = {name: int(name) if is_number else i for i, name in enumerate(names)}
    for columns, column in zip(labelled, texts):
        columns["label"] = [numbers.get(text) for text in column]
    return None if is_number else names
