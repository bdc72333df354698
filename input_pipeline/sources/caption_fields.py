"""Captions of several fields, as alt text and synthetic captions: which field each caption is of."""

from collections.abc import Mapping
from typing import Any

from input_pipeline.sources.base import BrokenRecordError, Record, Source

LOOKED_AT = 100  # records that show whether a field is there at all


class CaptionFields:
    """The records of one source with the captions of several fields; `caption_fields` says of each the field's number.

    A record needs a caption in one of the fields.

    Args:
      sources: the same records by field, each opened with that field alone and without needing captions.

    Raises ValueError for fields with other records, and for one that none of the first records has.
    """

    def __init__(self, sources: Mapping[str, Source]):
        self.names, self._sources = tuple(sources), tuple(sources.values())
        first = self._sources[0]
        lengths = {name: len(source) for name, source in sources.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"the fields of captions have different numbers of records: {lengths}")
        self.broken = first.broken
        self.class_names = getattr(first, "class_names", None)
        for name in ("filtered", "unread", "notes"):
            if hasattr(first, name):
                setattr(self, name, getattr(first, name))
        for name, source in sources.items():
            looked_at = range(min(len(source), LOOKED_AT))
            if looked_at and not any(_captions(source, index) for index in looked_at):
                raise ValueError(f"none of the first {len(looked_at)} records has a caption in {name!r}")

    def __len__(self) -> int:
        return len(self._sources[0])

    def __getitem__(self, index: int) -> Record:
        record = self._sources[0][index]
        captions, fields = self._of_all(index)
        if not captions:
            raise BrokenRecordError(record["id"], f"no caption in {', '.join(self.names)}")
        return {**record, "captions": captions, "caption_fields": fields}

    def captions(self, index: int) -> tuple[str, ...]:
        """Those of all fields, in the fields' order."""
        captions, _ = self._of_all(index)
        if not captions:
            raise BrokenRecordError(self._sources[0][index]["id"], f"no caption in {', '.join(self.names)}")
        return captions

    def fingerprint(self) -> dict[str, Any]:
        return {"kind": "caption_fields", "parts": [source.fingerprint() for source in self._sources]}

    def _of_all(self, index: int) -> tuple[tuple[str, ...], tuple[int, ...]]:
        by_field = [source.captions(index) for source in self._sources]
        captions = tuple(caption for some in by_field for caption in some)
        return captions, tuple(field for field, some in enumerate(by_field) for _ in some)


def _captions(source: Source, index: int) -> tuple[str, ...]:
    try:
        return source.captions(index)
    except BrokenRecordError:  # counted where it is used
        return ()
