"""The columns of CSV and Parquet files, but for images as bytes, and their labels as numbers."""

import io
import re
from typing import Any

from input_pipeline.sources import opener
from input_pipeline.sources.base import decode
from input_pipeline.sources.remote import is_remote

IMAGE_COLUMNS = ("image", "jpg", "jpeg", "png", "webp")  # the others are img2dataset's, by the format it encodes in
COLUMNS = ("id", "key", "captions", "caption", "label", "status", "width", "height")


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

    Image bytes are not read. Rows of another length go to `broken`.
    """
    import pyarrow as pa
    import pyarrow.csv

    known = (*COLUMNS, captions_field) if captions_field and captions_field not in COLUMNS else COLUMNS
    if path.endswith(".csv"):

        def skip(row: Any) -> str:
            broken.append((f"line {row.number}", f"{row.actual_columns} columns, not {row.expected_columns}"))
            return "skip"

        table = pyarrow.csv.read_csv(
            path if not is_remote(path) else io.BytesIO(opener.read_file(path)),
            read_options=pyarrow.csv.ReadOptions(use_threads=False),  # or rows would have no number
            parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True, invalid_row_handler=skip),
            convert_options=pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(("image", *known[:6]), pa.binary())),
        )
        names, image, image_bytes = table.column_names, "image", False
    else:
        with open_parquet(path) as file:
            schema = file.schema_arrow
            names = schema.names
            image = next((name for name in IMAGE_COLUMNS if name in names), "image")
            image_bytes = image in names and str(schema.field(image).type) in ("binary", "large_binary")
            table = file.read([x for x in (*known, image) if x in names and not (x == image and image_bytes)])
    texts = {captions_field} if captions_field else {"captions", "caption"}
    if image not in names or not (texts | {"label"}) & set(names):
        wanted = ", ".join([*sorted(texts)[::-1], "label"])
        raise ValueError(f"{path} needs image and one of {wanted}; its columns are {', '.join(names)}")
    columns = {name: _text_as_bytes(table[name]).to_pylist() for name in known if name in table.column_names}
    if not image_bytes:
        columns["image"] = _text_as_bytes(table[image]).to_pylist()
    return columns | {"row": list(range(len(table)))}, (image, image_bytes)


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
