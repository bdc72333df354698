"""CSV and Parquet tables."""

import functools
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from input_pipeline.sources import base, opener
from input_pipeline.sources.base import BrokenRecordError, FilesSource, Record
from input_pipeline.sources.remote import UnreachableError, is_remote
from input_pipeline.storage import digest
from input_pipeline.transforms import header_size

IMAGE_COLUMNS = ("image", "jpg", "jpeg", "png", "webp")  # the others are img2dataset's, by the format it encodes in
TEXT_COLUMNS = ("id", "captions", "caption", "label")
SIZE_COLUMNS = ("width", "height")  # used where they are whole numbers


class TableSource(FilesSource):
    """CSV or Parquet files with the column `image` and one of `captions`, `caption` and `label`; `id` is optional.

    `image` is a path relative to the table's folder or, in Parquet, encoded bytes; `captions` is a list of strings,
    in CSV written as JSON; `label` is an integer, or a name: the sorted names become the class names. All but image
    bytes is held in memory. Image bytes are read by row group, so keep the groups small (about 100 rows).

    The Parquet files of img2dataset, known by `key`, `status` and `error_message`, may be given as they are: `jpg`
    (png, webp) stands for image, `key` for id, and rows whose `status` is another than success hold no image: they are
    counted in `filtered`, not in `broken`. Whole numbers in `width` and `height`, in any table, spare a look at the
    image. Of several files each may have other columns.

    Args:
      path: a file, a folder of them, a glob, or a pattern such as {00000..00011}.parquet; local or a URL.
      captions_field: the column of the captions, as text or a list; empty takes those above.

    Raises:
      ValueError: no such file, not CSV or Parquet, missing columns (naming those there are), or no usable row.
    """

    def __init__(self, path: str, captions_field: str = ""):
        import pyarrow as pa

        super().__init__(
            base.find_files(path, r"\.(csv|parquet)", "a .csv or .parquet file, or several"), captions_field
        )
        self._captions_field = captions_field
        self.filtered: Counter[str] = Counter()
        tables = []
        for file in self._paths:
            try:
                tables.append(_read_table(file, captions_field, self.broken))
            except (pa.ArrowException, OSError) as error:
                raise ValueError(f"{file} is not a readable CSV or Parquet file: {error}") from error
        self.class_names = _name_labels([columns for columns, _ in tables])
        self._image_columns = [image if is_bytes else "" for _, (image, is_bytes) in tables]  # "": paths
        try:
            rows = list(self._clean_rows([columns for columns, _ in tables]))
        except PermissionError as error:
            raise ValueError(f"{path} names pictures in a folder that may not be listed: {error}") from error
        base.require_records(len(rows), path, self.broken, "rows", self.filtered)
        self._digest = digest(json.dumps(rows).encode())
        names = dict.fromkeys(name for row in rows for name in row)  # of several tables each may have others
        self._rows = pa.table({name: [row.get(name) for row in rows] for name in names})  # compact, and quick to pickle
        # Never pickled: the statistics in the footer may hold whole images.
        self._metadata = [base.PerProcess(functools.partial(_read_metadata, file)) for file in self._paths]
        self._cached_group: tuple[int, int, Any] = (-1, -1, None)

    def _clean_rows(self, tables: list[dict[str, list]]) -> Iterator[dict[str, Any]]:
        sizes: dict[str, dict[str, int]] = {}
        stems = [os.path.splitext(name)[0] for name in base.relative_names(self._paths)]
        for number, columns in enumerate(tables):
            several = {"table": number} if len(tables) > 1 else {}
            for row in range(len(columns["row"])):
                values = {name: column[row] for name, column in columns.items()}
                record_id = f"{stems[number]}/{row}" if several else str(row)
                if values.get("why_filtered"):
                    self.filtered[values["why_filtered"]] += 1
                    continue
                try:
                    given = values.get("id")
                    record_id = (str(given) if isinstance(given, int) else base.decode(given)) or record_id
                    yield {"id": record_id, **self._clean_row(values, number, sizes), **several}
                except UnreachableError:
                    raise
                except ValueError as error:
                    self.broken.append((record_id, str(error)))

    def _clean_row(self, values: Mapping[str, Any], table: int, sizes: dict[str, dict[str, int]]) -> dict[str, Any]:
        """sizes: what was listed so far, by folder: a listing is quicker than a question for each file."""
        cleaned: dict[str, Any] = {"row": values["row"], "captions": ()}
        if not self._image_columns[table]:
            cleaned["image"] = base.decode(values["image"])
            folder, name = os.path.split(self._image_path(table, cleaned["image"]))
            if folder not in sizes:
                sizes[folder] = opener.list_sizes(folder)
            if name not in sizes[folder]:
                raise ValueError(f"image {cleaned['image']!r} is not a file in the folder of the table")
            cleaned["size"] = sizes[folder][name]  # for the fingerprint
        captions_key = next((key for key in self._captions_keys() if key in values), None)
        if captions_key:
            captions = values[captions_key] or b""
            if captions_key == "captions" and isinstance(captions, bytes):
                captions = base.parse_json(captions)
            cleaned["captions"] = base.require_captions(base.clean_captions(captions))
        if "label" in values:
            if values["label"] is None or values["label"] < 0:
                raise ValueError(f"label is {'missing' if values['label'] is None else values['label']}")
            cleaned["label"] = values["label"]
        width, height = values.get("width"), values.get("height")
        if isinstance(width, int) and isinstance(height, int) and min(width, height) > 0:
            cleaned |= {"width": width, "height": height}
        return cleaned

    def _captions_keys(self) -> tuple[str, ...]:
        return (self._captions_field,) if self._captions_field else ("captions", "caption")

    def _image_path(self, table: int, name: str) -> str:
        return opener.join(os.path.dirname(self._paths[table]), name)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Record:
        captions = self.captions(index)
        row = self._row(index)
        record: Record = {"id": row["id"], "image": self._read_image(row, 2**62), "captions": captions}
        return record | {"label": row["label"]} if "label" in row else record

    def find_image_size(self, index: int) -> tuple[int, int]:
        """Width and height in pixels: those in the table, or in the image's header."""
        row = self._row(index)
        if "width" in row:
            return row["width"], row["height"]
        with base.as_broken(row["id"]):
            return header_size(lambda most: self._read_image(row, most))

    def _row(self, index: int) -> dict[str, Any]:
        base.check_index(index, len(self))
        values = ((name, self._rows[name][index].as_py()) for name in self._rows.column_names)
        return {name: value for name, value in values if value is not None}  # what its table lacks

    def _read_image(self, row: Mapping[str, Any], most: int) -> bytes:
        import pyarrow as pa

        table = row.get("table", 0)
        with base.as_broken(row["id"], (pa.ArrowException, OSError)):
            if self._image_columns[table]:
                image = self._read_image_bytes(table, row["row"])
            else:
                image = opener.read_file(self._image_path(table, row["image"]), most)
        if not image:
            raise BrokenRecordError(row["id"], "empty image")
        return image

    def _read_image_bytes(self, table: int, row: int) -> bytes:
        metadata = self._metadata[table].get()
        group = 0
        while row >= metadata.row_group(group).num_rows:
            row -= metadata.row_group(group).num_rows
            group += 1
        *cached, images = self._cached_group  # for reading in order; one tuple, so that threads need no lock
        if cached != [table, group]:
            column = self._image_columns[table]
            with _open_parquet(self._paths[table], metadata) as file:
                images = file.read_row_group(group, columns=[column])[column]
            self._cached_group = (table, group, images)
        return images[row].as_py()

    def captions(self, index: int) -> tuple[str, ...]:
        base.check_index(index, len(self))
        return tuple(self._rows["captions"][index].as_py())

    def fingerprint(self) -> dict[str, Any]:
        return {"kind": "table", **self._files, "length": len(self), "digest": self._digest}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_cached_group": (-1, -1, None)}


def _open_parquet(path: str, metadata: Any = None) -> Any:
    import pyarrow.parquet as pq

    if not is_remote(path):
        return pq.ParquetFile(path, metadata=metadata)
    return pq.ParquetFile(opener.RangedFile(path), metadata=metadata, pre_buffer=False)


def _read_metadata(path: str) -> Any:
    with _open_parquet(path) as file:
        return file.metadata


def _read_table(
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
        with _open_parquet(path) as file:
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


def _name_labels(tables: list[dict[str, list]]) -> tuple[str, ...] | None:
    """Makes the labels integers, in place (None if missing); returns the names if they were names."""
    labelled = [columns for columns in tables if "label" in columns]
    texts = [
        [base.decode(str(label) if isinstance(label, int) else label).strip() for label in columns["label"]]
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
