"""CSV and Parquet tables."""

import functools
import json
import os
import re
from collections.abc import Mapping
from typing import Any

from input_pipeline.sources.base import (
    BrokenRecordError,
    PerProcess,
    Record,
    check_index,
    clean_captions,
    decode,
    describe_files,
    digest,
    find_files,
    parse_json,
    require_captions,
    require_records,
)


class TableSource:
    """A CSV or Parquet file with the column `image` and one of `captions`, `caption` and `label`; `id` is optional.

    `image` is a path relative to the table's folder or, in Parquet, encoded bytes; `captions` is a list of strings,
    in CSV written as JSON; `label` is an integer, or a name: the sorted names become the class names. All but image
    bytes is held in memory. Image bytes are read by row group, so keep the groups small (about 100 rows).

    Raises:
      ValueError: no such file, not CSV or Parquet, missing columns (naming those there are), or no usable row.
    """

    def __init__(self, path: str):
        import pyarrow as pa
        import pyarrow.parquet as pq

        found = find_files(path, r"\.(csv|parquet)", "a .csv or .parquet file")
        if len(found) > 1:
            raise ValueError(f"{path} matches {len(found)} tables, the first two {found[:2]}; give one")
        self._path = found[0]
        self.broken: list[tuple[str, str]] = []
        try:
            columns, self._image_bytes = _read_table(self._path, self.broken)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{self._path} is not a readable CSV or Parquet file: {error}") from error
        self._captions_key = next((key for key in ("captions", "caption") if key in columns), None)
        self.class_names = _name_labels(columns)
        rows = []
        for row in range(len(columns["row"])):
            values = {name: column[row] for name, column in columns.items()}
            record_id = str(row)
            try:
                given = values.get("id")
                record_id = (str(given) if isinstance(given, int) else decode(given)) or record_id
                rows.append({"id": record_id, **self._clean_row(values)})
            except ValueError as error:
                self.broken.append((record_id, str(error)))
        require_records(len(rows), path, self.broken, "rows")
        self._digest = digest(json.dumps(rows).encode())
        self._rows = pa.Table.from_pylist(rows)  # compact, and quick to pickle
        # Never pickled: the statistics in the footer may hold whole images.
        self._metadata = PerProcess(functools.partial(pq.read_metadata, self._path))
        self._cached_group: tuple[int, Any] = (-1, None)

    def _clean_row(self, values: Mapping[str, Any]) -> dict[str, Any]:
        cleaned: dict[str, Any] = {"row": values["row"], "captions": ()}
        if not self._image_bytes:
            cleaned["image"] = decode(values["image"])
            if not cleaned["image"] or not os.path.isfile(self._image_path(cleaned["image"])):
                raise ValueError(f"image {cleaned['image']!r} is not a file in the folder of the table")
            cleaned["size"] = os.path.getsize(self._image_path(cleaned["image"]))  # for the fingerprint
        if self._captions_key:
            captions = values[self._captions_key] or b""
            if self._captions_key == "captions" and isinstance(captions, bytes):
                captions = parse_json(captions)
            cleaned["captions"] = require_captions(clean_captions(captions))
        if "label" in values:
            if values["label"] is None or values["label"] < 0:
                raise ValueError(f"label is {'missing' if values['label'] is None else values['label']}")
            cleaned["label"] = values["label"]
        return cleaned

    def _image_path(self, name: str) -> str:
        return os.path.join(os.path.dirname(self._path), name)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Record:
        captions = self.captions(index)
        row = {name: self._rows[name][index].as_py() for name in self._rows.column_names}
        try:
            image = self._read_image_bytes(row["row"]) if self._image_bytes else self._read_file(row["image"])
        except OSError as error:
            raise BrokenRecordError(row["id"], str(error)) from error
        if not image:
            raise BrokenRecordError(row["id"], "empty image")
        record: Record = {"id": row["id"], "image": image, "captions": captions}
        return record | {"label": row["label"]} if "label" in row else record

    def _read_file(self, name: str) -> bytes:
        with open(self._image_path(name), "rb") as file:
            return file.read()

    def _read_image_bytes(self, row: int) -> bytes:
        import pyarrow.parquet as pq

        metadata = self._metadata.get()
        group = 0
        while row >= metadata.row_group(group).num_rows:
            row -= metadata.row_group(group).num_rows
            group += 1
        cached, images = self._cached_group  # for reading in order; one tuple, so that threads need no lock
        if cached != group:
            with pq.ParquetFile(self._path, metadata=metadata) as file:
                images = file.read_row_group(group, columns=["image"])["image"]
            self._cached_group = (group, images)
        return images[row].as_py()

    def captions(self, index: int) -> tuple[str, ...]:
        check_index(index, len(self))
        return tuple(self._rows["captions"][index].as_py())

    def fingerprint(self) -> dict[str, Any]:
        return {"kind": "table", **describe_files([self._path]), "length": len(self), "digest": self._digest}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_cached_group": (-1, None)}


def _read_table(path: str, broken: list[tuple[str, str]]) -> tuple[dict[str, list], bool]:
    """Returns the known columns, text as bytes, with the row numbers as `row`; and whether images are bytes.

    Image bytes are not read. Rows of another length go to `broken`.
    """
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet as pq

    known = ("id", "image", "captions", "caption", "label")
    if path.endswith(".csv"):

        def skip(row: Any) -> str:
            broken.append((f"line {row.number}", f"{row.actual_columns} columns, not {row.expected_columns}"))
            return "skip"

        table = pyarrow.csv.read_csv(
            path,
            read_options=pyarrow.csv.ReadOptions(use_threads=False),  # or rows would have no number
            parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True, invalid_row_handler=skip),
            convert_options=pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(known, pa.binary())),
        )
        names, image_bytes = table.column_names, False
    else:
        schema = pq.read_schema(path)
        names = schema.names
        image_bytes = "image" in names and str(schema.field("image").type) in ("binary", "large_binary")
        table = pq.read_table(path, columns=[x for x in known if x in names and not (x == "image" and image_bytes)])
    if "image" not in names or not {"captions", "caption", "label"} & set(names):
        raise ValueError(f"{path} needs image and one of captions, caption, label; its columns are {', '.join(names)}")
    columns = {name: _text_as_bytes(table[name]).to_pylist() for name in known if name in table.column_names}
    return columns | {"row": list(range(len(table)))}, image_bytes


def _text_as_bytes(column: Any) -> Any:
    """A column of text, or of lists of text, as bytes: Arrow gives up a whole column for one invalid string."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_integer(column.type) or pa.types.is_binary(column.type):
        return column
    return column.cast(pa.list_(pa.binary()) if pa.types.is_list(column.type) else pa.binary())


def _name_labels(columns: dict[str, list]) -> tuple[str, ...] | None:
    """Makes the labels integers, in place (None if missing); returns the names if they were names."""
    if "label" not in columns:
        return None
    texts = [decode(str(label) if isinstance(label, int) else label).strip() for label in columns["label"]]
    if all(re.fullmatch(r"-?\d+", text) for text in texts if text):
        columns["label"] = [int(text) if text else None for text in texts]
        return None
    names = tuple(sorted(set(texts) - {""}))
    number = {name: i for i, name in enumerate(names)}
    columns["label"] = [number.get(text) for text in texts]
    return names
