"""Where a suite's captioned pairs, training images and pictures of people come from."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clip_jax.config.experiment import with_data_path
from clip_jax.config.record import load_config
from clip_jax.distributed import processes
from clip_jax.evaluation.suite.splits import AbsentError, parse_place
from clip_jax.inference.load import trained_on
from input_pipeline.open_data import make_sources, open_all, open_other
from input_pipeline.sources import BrokenRecordError, Record, Source
from input_pipeline.sources.base import check_index, relative_names
from input_pipeline.storage import digest

RUN = "run"
FORMS = "'run' or KIND:PATH, as webdataset:DIR, table:FILE, folder:DIR or tfds:DIR/NAME:SPLIT"


@dataclass(frozen=True, kw_only=True)
class RunSources:
    """The records a run was trained on, and those to measure it on.

    validation: what the run held out (is_own), or all of other data. open_train raises ValueError where the records are
    not there any more.
    """

    open_train: Callable[[], Source]
    validation: Source
    is_own: bool


def open_run_sources(workdir: Path, image_size: int, data_path: str | None = None) -> RunSources:
    """The sources of a run's config.

    data_path: where the run's data lies now; or other data, which is measured whole, and a line says so.

    Raises ValueError where there is nothing that can be read.
    """
    recorded = load_config(workdir).data
    if data_path is None:
        train, validation = make_sources(recorded, image_size)
        return RunSources(open_train=lambda: train, validation=validation, is_own=True)
    is_list = recorded.source == "mixture" and data_path.endswith(".json")
    if recorded.source != "mixture" or is_list:
        data = with_data_path(recorded, data_path)
        try:
            train, validation = make_sources(data, image_size)
        except ValueError:  # of another kind, or too few records to hold some out
            pass
        else:
            if json.loads(json.dumps(train.fingerprint())) == trained_on(workdir):
                return RunSources(open_train=lambda: train, validation=validation, is_own=True)
    if is_list:
        kind, whole = recorded.source, open_all(data, image_size)
    else:
        kind, whole = open_other(recorded, data_path, image_size, "data")
    if processes.is_first():
        print(f"{data_path} ({kind}) is not the run's data: all {len(whole)} records are measured")
    return RunSources(open_train=lambda: make_sources(recorded, image_size)[0], validation=whole, is_own=False)


def open_source(key: str, value: str, run: RunSources | None, part: str, link_root: str = "") -> Source:
    """The source that a config's key names.

    Args:
      key: such as "retrieval.source", for messages.
      value: "run", or KIND:PATH[:SPLIT] with a kind of `input_pipeline.sources.make_source`.
      run: the sources that "run" means; None where the model is not a run.
      part: "train" or "validation", which of them.
      link_root: of a folder or a table, see `make_source`.

    Raises:
      AbsentError: "run" without a run.
      ValueError: a value of another form; what make_source raises.
    """
    if value == RUN:
        if run is None:
            raise AbsentError(f"{key}='run' needs --workdir, the run's own data: set {key} to {FORMS}")
        return run.open_train() if part == "train" else run.validation
    if (place := parse_place(value)) is None:
        raise ValueError(f"{key}={value!r} must be {FORMS}")
    return place.open(link_root)


class FilesSource:
    """Pictures by their paths, in that order; the ids are the paths from their common folder."""

    def __init__(self, paths: Sequence[Path]):
        self.class_names: tuple[str, ...] | None = None
        self._paths = list(paths)
        self._names = relative_names([str(path) for path in paths])
        self.broken: list[tuple[str, str]] = []

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Record:
        check_index(index, len(self))
        try:
            return {"id": self._names[index], "image": self._paths[index].read_bytes(), "captions": ()}
        except OSError as error:
            raise BrokenRecordError(self._names[index], str(error)) from error

    def captions(self, index: int) -> tuple[str, ...]:
        check_index(index, len(self))
        return ()

    def fingerprint(self) -> dict[str, Any]:
        sizes = [path.stat().st_size for path in self._paths]
        return {"kind": "files", "digest": digest(json.dumps([self._names, sizes]).encode()), "length": len(self)}
