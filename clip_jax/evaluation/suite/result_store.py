"""Finished results on the disk, so that a suite continues where it was stopped."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clip_jax.evaluation.suite.results import Absent, Result, from_json
from input_pipeline.storage import checksum_file, checksum_json, digest_json, write_json

FORMAT = 2  # raise it when the same settings would give other numbers
PICTURES = "pictures"
KINDS_OF_FILES = (PICTURES, "files")  # what a result names its files under


class ResultStore:
    """One JSON for each measure of each set, with the hash of all that decides it, its checksum and its files'.

    A result of other weights, data or settings is computed again; so is a damaged one, which `say` reports.
    """

    def __init__(self, folder: Path, say: Callable[[str], None] = print):
        self._folder = folder
        self._say = say
        self.reused = 0

    def picture(self, name: str) -> Path:
        """The path of a picture; its folder is made."""
        return self.file(PICTURES, name)

    def file(self, folder: str, name: str) -> Path:
        """The path of another file of results; its folder is made."""
        (self._folder / folder).mkdir(parents=True, exist_ok=True)
        return self._folder / folder / name

    def result(
        self, kind: type[Result], measure: str, name: str, key: dict[str, Any], make: Callable[[], dict[str, Any]]
    ) -> Result | Absent:
        """The result of a measure on a set.

        Args:
          kind: its dataclass.
          measure, name: of the measure and the set.
          key: all that decides the result, ready for JSON.
          make: computes the dataclass's names and values, or {"absent": reason}; `pictures` and `files` are paths from
            `picture` and `file`.
        """
        file = self._folder / "results" / f"{measure}-{file_name(name)}.json"
        wanted = digest_json({"format": FORMAT, "measure": measure, "name": name, **key})
        if (kept := self._read(file, wanted)) is not None:
            self.reused += 1
            return from_json(kind, kept)
        result = make()
        named = {
            kind: {what: str(path.relative_to(self._folder)) for what, path in result[kind].items()}
            for kind in KINDS_OF_FILES
            if result.get(kind)
        }
        result = json.loads(json.dumps({**result, **named}, allow_nan=False))
        file.parent.mkdir(parents=True, exist_ok=True)
        sums = {path: checksum_file(self._folder / path) for paths in named.values() for path in paths.values()}
        write_json(file, {"key": wanted, "sha256": checksum_json(result), "files_sha256": sums, "result": result})
        return from_json(kind, result)

    def _read(self, file: Path, wanted: str) -> dict[str, Any] | None:
        if not file.is_file():
            return None
        try:
            stored = json.loads(file.read_text())
            if stored["sha256"] != checksum_json(stored["result"]):
                raise ValueError("its checksum does not match")
            if stored["key"] != wanted:
                return None
            for path, checksum in stored["files_sha256"].items():
                if checksum_file(self._folder / path) != checksum:
                    raise ValueError(f"{path} has changed")
            return stored["result"]
        except (ValueError, OSError, KeyError, TypeError, AttributeError) as error:
            self._say(f"the result {file.name} is damaged ({error}): computing it again")
            return None


def file_name(name: str) -> str:
    """A set's name as part of a file's, different for different sets."""
    plain = re.sub(r"[^\w.-]+", "_", name).strip("_")[-60:]
    return plain if plain == name.replace("/", "_") else f"{plain}-{digest_json(name)[:6]}"
