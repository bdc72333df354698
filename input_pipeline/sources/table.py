"""CSV and Parquet tables."""

import functools
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from input_pipeline.sources import opener
from input_pipeline.sources.base import (
    BrokenRecordError,
    FilesSource,
    PerProcess,
    Record,
    check_index,
    clean_captions,
    decode,
    find_files,
    parse_json,
    relative_names,
    require_captions,
    require_records,
)
from input_pipeline.sources.image_header import header_size
from input_pipeline.sources.remote import UnreachableError
from input_pipeline.sources.table_columns import name_labels, open_parquet, read_metadata, read_table
from input_pipeline.storage import digest


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

        super().__init__(find_files(path, r"\.(csv|parquet)", "a .csv or .parquet file, or several"), captions_field)
        self._captions_field = captions_field
        self.filtered: Counter[str] = Counter()
        tables = []
        for file in self._paths:
            try:
                tables.append(read_table(file, captions_field, self.broken))
            except (pa.ArrowException, OSError) as error:
                raise ValueError(f"{file} is not a readable CSV or Parquet file: {error}") from error
        self.class_names = name_labels([columns for columns, _ in tables])
        self._image_columns = [image if is_bytes else "" for _, (image, is_bytes) in tables]  # "": paths
        try:
            rows = list(self._clean_rows([columns for columns, _ in tables]))
        except PermissionError as error:
            raise ValueError(f"{path} names pictures in a folder that may not be listed: {error}") from error
        require_records(len(rows), path, self.broken, "rows", self.filtered)
        self._digest = digest(json.dumps(rows).encode())
        names = dict.fromkeys(name for row in rows for name in row)  # of several tables each may have others
        self._rows = pa.table({name: [row.get(name) for row in rows] for name in names})  # compact, and quick to pickle
        # Never pickled: the statistics in the footer may hold whole images.
        self._metadata = [PerProcess(functools.partial(read_metadata, file)) for file in self._paths]
        self._cached_group: tuple[int, int, Any] = (-1, -1, None)

    def _clean_rows(self, tables: list[dict[str, list]]) -> Iterator[dict[str, Any]]:
        sizes: dict[str, dict[str, int]] = {}
        stems = [os.path.splitext(name)[0] for name in relative_names(self._paths)]
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
                    record_id = (str(given) if isinstance(given, int) else decode(given)) or record_id
                    yield {"id": record_id, **self._clean_row(values, number, sizes), **several}
                except UnreachableError:
                    raise
                except ValueError as error:
                    self.broken.append((record_id, str(error)))

    def _clean_row(self, values: Mapping[str, Any], table: int, sizes: dict[str, dict[str, int]]) -> dict[str, Any]:
        """sizes: what was listed so far, by folder: a listing is quicker than a question for each file."""
        cleaned: dict[str, Any] = {"row": values["row"], "captions": ()}
        if not self._image_columns[table]:
            cleaned["image"] = decode(values["image"])
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
                captions = parse_json(captions)
            cleaned["captions"] = require_captions(clean_captions(captions))
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
        try:
            return header_size(lambda most: self._read_image(row, most))
        except (BrokenRecordError, UnreachableError):
            raise
        except ValueError as error:
            raise BrokenRecordError(row["id"], str(error)) from error

    def _row(self, index: int) -> dict[str, Any]:
        check_index(index, len(self))
        values = ((name, self._rows[name][index].as_py()) for name in self._rows.column_names)
        return {name: value for name, value in values if value is not None}  # what its table lacks

    def _read_image(self, row: Mapping[str, Any], most: int) -> bytes:
        import pyarrow as pa

        table = row.get("table", 0)
        try:
            if self._image_columns[table]:
                image = self._read_image_bytes(table, row["row"])
            else:
                image = opener.read_file(self._image_path(table, row["image"]), most)
        except (pa.ArrowException, OSError) as error:
            raise BrokenRecordError(row["id"], str(error)) from error
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
            with open_parquet(self._paths[table], metadata) as file:
                images = file.read_row_group(group, columns=[column])[column]
            self._cached_group = (table, group, images)
        return images[row].as_py()

    def captions(self, index: int) -> tuple[str, ...]:
        check_index(index, len(self))
        return tuple(self._rows["captions"][index].as_py())

    def fingerprint(self) -> dict[str, Any]:
        return {"kind": "table", **self._files, "length": len(self), "digest": self._digest}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_cached_group": (-1, -1, None)}
