"""Text tables, CSV and its kin: the separator, quotes and encoding by what the file holds, mistakes by their line."""

import codecs
import csv
import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from input_pipeline.image_formats import is_picture_name

SEPARATORS = (",", "\t", ";", "|")
NAMES_OF_SEPARATORS = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "pipe": "|"}
OTHER_FORMS = {
    b"\x1f\x8b": "gzip: unpack it",
    b"PK\x03\x04": "a zip archive, or a spreadsheet: unpack it, or save it as CSV",
    b"\x28\xb5\x2f\xfd": "zstd: unpack it",
    b"BZh": "bzip2: unpack it",
    b"\xfd7zXZ": "xz: unpack it",
}


class TextTable(NamedTuple):
    """A text table that was read.

    names: of the columns. rows: (line from 1, cells), each with a cell a column; bytes that are not UTF-8 are lone
    surrogates. broken: (line, reason) of rows of another length. notes: what was read otherwise than as plain CSV.
    """

    names: list[str]
    rows: list[tuple[int, list[str]]]
    broken: list[tuple[int, str]]
    notes: list[str]


class _QuoteError(ValueError):
    """A quote that swallows rows. line: where it begins."""

    def __init__(self, line: int, reason: str):
        super().__init__(reason)
        self.line = line


def parse_separator(text: str) -> str:
    """One character, or "" for any; ValueError for something else. Names such as tab stand for their character."""
    separator = NAMES_OF_SEPARATORS.get(text.lower(), text)
    if len(separator) > 1 or separator in ('"', "\n", "\r"):
        raise ValueError(f"separator={text!r} must be one character, or one of {', '.join(NAMES_OF_SEPARATORS)}")
    return separator


def read_text_table(data: bytes, separator: str, image_index: Callable[[list[str]], int | None]) -> TextTable:
    """Reads a table with a header.

    Args:
      data: UTF-8, or UTF-16 with a byte order mark.
      separator: one character; empty takes the first of SEPARATORS with which the header has the columns wanted.
      image_index: which column of a header holds the pictures' paths; None where it is not the header of such a table.

    Raises:
      ValueError: no text table, no header, or a quote that is not closed or swallows rows, by its line.
    """
    lines = list(io.StringIO(_decode(data), newline=""))
    start = next((i for i, line in enumerate(lines) if line.strip("\r\n")), None)
    if start is not None and (first := re.fullmatch(r"sep=(.)\s*", lines[start].removeprefix('"'))):  # Excel's
        separator, start = separator or first[1], start + 1 if start + 1 < len(lines) else None
    if start is None:
        raise ValueError("the file is empty: it needs a header and rows")
    candidates = [separator] if separator else sorted(SEPARATORS, key=lambda x: x not in lines[start])
    headers = {x: _split(lines[start], x) for x in candidates}
    chosen = next((x for x in candidates if image_index(headers[x]) is not None), None)
    if chosen is None:  # the caller names the columns that there are
        chosen = max(candidates, key=lambda x: len(headers[x]))
        return TextTable(headers[chosen], [], [], [])
    names = headers[chosen]
    notes = [] if chosen == "," else [f"its separator is {chosen!r}"]
    found = list(_number(lines, start + 1))
    image = image_index(names)
    try:
        rows = list(_rows(lines, start + 1, chosen, len(names), image))
    except _QuoteError as error:
        rows = [(number, _split(line, chosen)) for number, line in found]
        if any(len(cells) != len(names) for _, cells in rows):
            raise ValueError(
                f"the quote opened on line {error.line} {error}: write a quote within text twice, and quote all of it"
            ) from None
        notes.append(f"the quote opened on line {error.line} {error}, so each line was read as a row by itself")
    good = [(number, cells) for number, cells in rows if len(cells) == len(names)]
    broken = [(n, f"{len(cells)} columns, not {len(names)}") for n, cells in rows if len(cells) != len(names)]
    return TextTable(names, good, broken, notes)


def _decode(data: bytes) -> str:
    for start, what in OTHER_FORMS.items():
        if data.startswith(start):
            raise ValueError(f"it is packed as {what}")
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        try:
            return data.decode("utf-16")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"its byte order mark says UTF-16, which byte {error.start} is not: save it as UTF-8"
            ) from None
    if b"\0" in data.lstrip().partition(b"\n")[0]:
        raise ValueError("it holds zero bytes, as UTF-16 without a byte order mark does: save it as UTF-8")
    if data.lstrip()[:1] in (b"{", b"["):
        raise ValueError("it is JSON: write a CSV or Parquet")
    return data.removeprefix(codecs.BOM_UTF8).decode(errors="surrogateescape")


def _number(lines: Sequence[str], start: int) -> Iterator[tuple[int, str]]:
    """Lines that are not empty from the index start, with their numbers from 1."""
    return ((i, line) for i, line in enumerate(lines[start:], start + 1) if line.strip("\r\n"))


def _rows(
    lines: Sequence[str], start: int, separator: str, width: int, image: int | None
) -> Iterator[tuple[int, list[str]]]:
    """Rows with the lines that they begin on. Raises _QuoteError."""
    csv.field_size_limit(2**31 - 1)  # a caption may be long; 128 KiB is the library's own limit
    reader = csv.reader(iter(lines[start:]), delimiter=separator, strict=True)
    while True:
        first = reader.line_num
        try:
            cells = next(reader, None)
        except csv.Error:
            what = "is not closed" if reader.line_num >= len(lines) - start else "is closed within text"
            raise _QuoteError(start + first + 1, what) from None
        if cells is None:
            return
        within = lines[start + first + 1 : start + reader.line_num]
        suffix = _suffix(cells[image]) if image is not None and len(cells) == width else ""
        if swallowed := sum(_is_row(line, separator, width, image, suffix) for line in within):
            raise _QuoteError(start + first + 1, f"swallows {swallowed} line{'s' * (swallowed > 1)} that read as rows")
        if cells:
            yield start + first + 1, cells


def _is_row(line: str, separator: str, width: int, image: int | None, suffix: str) -> bool:
    """Whether a line within quotes reads as a row: it has all columns, and a picture's name in the right one.

    suffix: of the picture of the row that encloses it.
    """
    cells = line.rstrip("\r\n").split(separator)
    if image is None or len(cells) != width:
        return False
    name = cells[image].strip().strip('"')
    return is_picture_name(name) or (suffix != "" and _suffix(name) == suffix)


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _split(line: str, separator: str) -> list[str]:
    """A line's cells; quotes are text where they do not enclose a cell."""
    try:
        (cells,) = csv.reader([line], delimiter=separator, strict=True)
        return cells
    except (csv.Error, ValueError):
        return line.rstrip("\r\n").split(separator)
