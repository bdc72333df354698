"""CSV and Parquet tables."""

import functools
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from input_pipeline.sources import base, opener
from input_pipeline.sources.base import BrokenRecordError, FilesSource, Record
from input_pipeline.sources.columns import (
    STRUCT_BYTES,
    Columns,
    Wanted,
    name_labels,
    open_parquet,
    read_columns,
    read_metadata,
)
from input_pipeline.sources.delimited import parse_separator
from input_pipeline.sources.links import PicturePaths
from input_pipeline.sources.remote import UnreachableError
from input_pipeline.storage import digest
from input_pipeline.transforms import header_size

TABLE_SUFFIX = r"(?i:\.(csv|tsv|parquet))"


class TableSource(FilesSource):
    """CSV or Parquet files with the column `image` and one of `captions`, `caption` and `label`; `id` is optional.

    What a file is, Parquet or text, its content says, and the separator of a text its header (`delimited`). Other
    common names of columns are in `columns`. `image` is a path relative to the table's folder and below it or, in
    Parquet, encoded bytes, also as a struct of bytes and path; `captions` is a list of strings, in CSV written as JSON;
    `label` is a whole number, or a name: the sorted names become the class names. All but image bytes is held in
    memory. Image bytes are read by row group, so keep the groups small (about 100 rows).

    The Parquet files of img2dataset, known by `key`, `status` and `error_message`, may be given as they are: `jpg`
    (png, webp) stands for image, `key` for id, and rows whose `status` is another than success hold no image: they are
    counted in `filtered`, not in `broken`. Whole numbers in `width` and `height`, in any table, spare a look at the
    image. Of several files each may have other columns.

    Args:
      path: a file, a folder of them, a glob, or a pattern such as {00000..00011}.parquet; local or a URL.
      captions_field: the column of the captions, as text or a list; empty takes those above.
      image_field: the column of the pictures; empty takes those above.
      separator: of a text table; empty takes what its header says.
      link_root: folder below which pictures may lie besides the table's own, where a path or link leads out.
      require_captions: False takes rows without captions, and tables without such a column.

    Attributes:
      unread: of a folder, how many files beside the tables no row names, by suffix.
      notes: which columns and separator were taken, where they are not the usual ones.

    Raises:
      ValueError: no such file, not CSV or Parquet, missing columns (naming those there are), a column that occurs
        twice, a quote that swallows rows, or no usable row.
    """

    def __init__(
        self,
        path: str,
        captions_field: str = "",
        *,
        image_field: str = "",
        separator: str = "",
        link_root: str = "",
        require_captions: bool = True,
    ):
        import pyarrow as pa

        super().__init__(
            base.find_files(path, TABLE_SUFFIX, "a .csv, .tsv or .parquet file, or several"), captions_field
        )
        wanted = Wanted(captions=captions_field, image=image_field, needs_captions=require_captions)
        self._require_captions = require_captions
        self._paths_of = PicturePaths(self._paths, link_root)
        self.filtered: Counter[str] = Counter()
        self.notes: list[str] = []
        read: list[Columns] = []
        for file in self._paths:
            try:
                read.append(read_columns(file, wanted, parse_separator(separator)))
            except (pa.ArrowException, OSError, KeyError) as error:  # the last from a damaged schema
                raise ValueError(f"{file} is not a readable CSV or Parquet file: {error}") from error
            name = os.path.basename(file)
            self.broken += [(f"{name}, line {line}", reason) for line, reason in read[-1].broken]
            self.notes += [f"{name}: {note}" for note in read[-1].notes]
        self.class_names = name_labels([table.values for table in read])
        self.class_names = read[0].class_names or self.class_names
        self._image_columns = [table.image_bytes for table in read]  # "": paths
        try:
            rows = list(self._clean_rows(read))
        except PermissionError as error:
            raise ValueError(f"{path} names pictures in a folder that may not be listed: {error}") from error
        base.require_records(len(rows), path, self.broken, "rows", self.filtered)
        self._digest = digest(json.dumps(rows).encode())
        self.unread = base.count_beside(path, TABLE_SUFFIX, {row["image"] for row in rows if "image" in row})
        names = dict.fromkeys(name for row in rows for name in row)  # of several tables each may have others
        self._rows = pa.table({name: [row.get(name) for row in rows] for name in names})  # compact, and quick to pickle
        # Never pickled: the statistics in the footer may hold whole images.
        self._metadata = [base.PerProcess(functools.partial(read_metadata, file)) for file in self._paths]
        self._cached_group: tuple[int, int, Any] = (-1, -1, None)

    def _clean_rows(self, tables: list[Columns]) -> Iterator[dict[str, Any]]:
        stems = [os.path.splitext(name)[0] for name in base.relative_names(self._paths)]
        for number, table in enumerate(tables):
            columns, file = table.values, os.path.basename(self._paths[number])
            several = {"table": number} if len(tables) > 1 else {}
            for row in range(len(columns["row"])):
                values = {name: column[row] for name, column in columns.items()}
                record_id = f"{stems[number]}/{row}" if several else str(row)
                if values.get("why_filtered"):
                    self.filtered[values["why_filtered"]] += 1
                    continue
                at = f"{file}, line {table.lines[row]}" if table.lines else f"{file}, row {row}"
                try:
                    given = values.get("id")
                    given = str(given) if isinstance(given, int) else base.decode(given)
                    yield {"id": given or record_id, **self._clean_row(values, number), **several}
                except UnreachableError:
                    raise
                except ValueError as error:
                    self.broken.append(
                        (given, f"{error} ({at})") if isinstance(given, str) and given else (at, str(error))
                    )

    def _clean_row(self, values: Mapping[str, Any], table: int) -> dict[str, Any]:
        cleaned: dict[str, Any] = {"row": values["row"], "captions": ()}
        if not self._image_columns[table]:
            cleaned["image"] = base.decode(values["image"])
            cleaned["size"] = self._paths_of.size(table, cleaned["image"])  # for the fingerprint
        elif values.get("path"):
            cleaned["path"] = base.decode(values["path"])  # of a struct; read where its bytes are missing
        captions_key = next((key for key in ("captions", "caption") if key in values), None)
        if captions_key:
            captions = values[captions_key] or b""
            if captions_key == "captions" and isinstance(captions, bytes):
                captions = base.parse_json(captions)
            cleaned["captions"] = base.clean_captions(captions)
            if self._require_captions:
                base.require_captions(cleaned["captions"])
        if "label" in values:
            if values["label"] is None or values["label"] < 0:
                raise ValueError(f"label is {'missing' if values['label'] is None else values['label']}")
            cleaned["label"] = values["label"]
        width, height = values.get("width"), values.get("height")
        if isinstance(width, int) and isinstance(height, int) and min(width, height) > 0:
            cleaned |= {"width": width, "height": height}
        return cleaned

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Record:
        captions = self.captions(index)
        row = self._row(index)
        record: Record = {"id": row["id"], "image": self._read_image(row, 2**62), "captions": captions}
        if path := row.get("image") or row.get("path"):
            record["path"] = path
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
        with base.as_broken(row["id"], (pa.ArrowException, OSError, ValueError, KeyError)):
            if self._image_columns[table]:
                image = self._read_image_bytes(table, row["row"])
                if not image and row.get("path"):
                    self._paths_of.size(table, row["path"])
                    image = opener.read_file(self._paths_of.join(table, row["path"]), most)
            else:
                image = opener.read_file(self._paths_of.join(table, row["image"]), most)
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
                images = file.read_row_group(group, columns=[column])[column.removesuffix(STRUCT_BYTES)]
            self._cached_group = (table, group, images)
        image = images[row].as_py()
        return image["bytes"] if isinstance(image, dict) else image

    def captions(self, index: int) -> tuple[str, ...]:
        base.check_index(index, len(self))
        return tuple(self._rows["captions"][index].as_py())

    def fingerprint(self) -> dict[str, Any]:
        return {"kind": "table", **self._files, "length": len(self), "digest": self._digest}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_cached_group": (-1, -1, None)}
