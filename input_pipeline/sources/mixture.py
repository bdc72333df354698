"""Several sources as one."""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from input_pipeline.sources.base import BrokenRecordError, Record, Source, check_index
from input_pipeline.sources.unread import unread_of


class Mixture:
    """The records of several sources, one source after the other. The id of a record is NAME/ID.

    Args:
      sources: by name.
      weights: the sources' relative shares of what is seen in training, all above 0; None stands for the number of
        records. `examples.Order` makes the order of it.
    """

    class_names: tuple[str, ...] | None = None

    def __init__(self, sources: Mapping[str, Source], weights: Sequence[float] | None = None):
        self.names = tuple(sources)
        self._sources = tuple(sources.values())
        self.lengths = tuple(len(source) for source in self._sources)
        self.weights = tuple(weights or self.lengths)
        self._starts = (0, *itertools.accumulate(self.lengths))
        named = list(zip(self.names, self._sources))
        self.broken = [(f"{name}/{record_id}", why) for name, s in named for record_id, why in s.broken]
        self.filtered: Counter[str] = Counter()
        self.unread: Counter[str] = Counter()
        self.notes = [f"{name}: {note}" for name, s in named for note in getattr(s, "notes", ())]
        for name, source in named:
            self.unread.update({f"{kind} beside {name}": n for kind, n in unread_of(source).items()})
            self.filtered.update({f"{name}: {why}": n for why, n in getattr(source, "filtered", {}).items()})

    def __len__(self) -> int:
        return self._starts[-1]

    def _locate(self, index: int) -> tuple[int, int]:
        """The number of the source, and the index in it."""
        check_index(index, len(self))
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        return part, int(index) - self._starts[part]

    def __getitem__(self, index: int) -> Record:
        part, i = self._locate(index)
        try:
            record = self._sources[part][i]
        except BrokenRecordError as error:
            raise BrokenRecordError(f"{self.names[part]}/{error.record_id}", error.reason) from error
        return {**record, "id": f"{self.names[part]}/{record['id']}"}

    def captions(self, index: int) -> tuple[str, ...]:
        part, i = self._locate(index)
        try:
            return self._sources[part].captions(i)
        except BrokenRecordError as error:
            raise BrokenRecordError(f"{self.names[part]}/{error.record_id}", error.reason) from error

    def fingerprint(self) -> dict[str, Any]:
        parts = {
            name: {**source.fingerprint(), "weight": weight}
            for name, source, weight in zip(self.names, self._sources, self.weights)
        }
        return {"kind": "mixture", "names": list(self.names), "parts": parts, "length": len(self)}
