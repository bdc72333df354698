"""Records that are left out by choice: a source seen through filters is an exact list of what passes them."""

import dataclasses
import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from tqdm import tqdm

from input_pipeline.ranges import COUNT_OR_0, NOT_NEGATIVE, check_ranges
from input_pipeline.sources import opener
from input_pipeline.sources.base import BrokenRecordError, Record, Source, as_broken, check_index
from input_pipeline.sources.index_file import load_index, save_index
from input_pipeline.sources.unread import unread_of
from input_pipeline.storage import digest
from input_pipeline.transforms import image_size

FILTER_VERSION = 1  # of the rules below
CHUNK = 256  # records judged by a thread at a time


@dataclass(frozen=True, kw_only=True)
class Filters:
    """What a record must have to be used; the neutral values let all pass.

    Captions are judged one by one, and a record of which none is left is left out.

    Attributes:
      min_side: least shorter side of the image, in pixels; of img2dataset's outputs as width and height there say.
      max_aspect: most of longer over shorter side; 0 allows any.
      min_caption_length, max_caption_length: in characters; a most of 0 allows any.
      caption_must_match, caption_must_not_match: regular expressions, searched for anywhere in the caption.
    """

    min_side: Annotated[int, COUNT_OR_0] = 0
    max_aspect: Annotated[float, NOT_NEGATIVE] = 0.0
    min_caption_length: Annotated[int, COUNT_OR_0] = 0
    max_caption_length: Annotated[int, COUNT_OR_0] = 0
    caption_must_match: str = ""
    caption_must_not_match: str = ""

    def check(self, prefix: str) -> None:
        """Raises ValueError that names the value out of range, after a prefix such as data. or --."""
        check_ranges(self, prefix)
        if self.max_aspect != 0 and self.max_aspect < 1:
            raise ValueError(f"{prefix}max_aspect={self.max_aspect} must be at least 1, or 0 for any")
        if 0 < self.max_caption_length < self.min_caption_length:
            raise ValueError(
                f"{prefix}max_caption_length={self.max_caption_length} is less than min_caption_length="
                f"{self.min_caption_length}: no caption could pass"
            )
        for name in ("caption_must_match", "caption_must_not_match"):
            try:
                re.compile(getattr(self, name))
            except re.error as error:
                raise ValueError(f"{prefix}{name}={getattr(self, name)!r} is no regular expression: {error}") from None

    @property
    def of_sizes(self) -> bool:
        """Whether image sizes are needed."""
        return self.min_side > 0 or self.max_aspect > 0

    def why_not_size(self, width: int, height: int) -> str | None:
        """Why an image does not pass, or None."""
        if min(width, height) < self.min_side:
            return f"a side below {self.min_side} pixels"
        if self.max_aspect and max(width, height) > self.max_aspect * min(width, height):
            return f"an aspect above {self.max_aspect:g}"
        return None

    def passing(self, captions: Sequence[str]) -> tuple[str, ...]:
        """The captions that pass."""
        return tuple(caption for caption in captions if not self.why_not_caption(caption))

    def why_not_caption(self, caption: str) -> str | None:
        """Why a caption does not pass, or None."""
        if len(caption) < self.min_caption_length:
            return f"a caption below {self.min_caption_length} characters"
        if self.max_caption_length and len(caption) > self.max_caption_length:
            return f"a caption above {self.max_caption_length} characters"
        if self.caption_must_match and not re.search(self.caption_must_match, caption):
            return f"a caption that does not match {self.caption_must_match!r}"
        if self.caption_must_not_match and re.search(self.caption_must_not_match, caption):
            return f"a caption that matches {self.caption_must_not_match!r}"
        return None


def filters_of(config: Filters) -> Filters | None:
    """The filters among the keys of a config, or None when all of them are neutral."""
    filters = Filters(**{field.name: getattr(config, field.name) for field in dataclasses.fields(Filters)})
    return None if filters == Filters() else filters


class FilteredSource:
    """The records of a source that pass all filters, in its order, with the captions that do.

    What passes is found once, when the source is first made, and kept in `opener.cache_folder`; not if files could not
    be read, as that may pass. `filtered` counts what was left out by the first reason found, and `broken`
    has what could not be judged.

    Raises:
      ValueError: no record passes.
    """

    def __init__(self, source: Source, filters: Sequence[Filters]):
        self._source, self._filters = source, tuple(filters)
        self.unread, self.notes = unread_of(source), list(getattr(source, "notes", ()))
        self.class_names = source.class_names
        fingerprint = {
            "version": FILTER_VERSION,
            "source": source.fingerprint(),
            "files": getattr(source, "file_states", list)(),
            "filters": [dataclasses.asdict(f) for f in self._filters],
        }
        file = opener.cache_folder() / "filters" / f"{digest(repr(fingerprint).encode())}.npz"
        loaded = load_index(file, fingerprint)
        if loaded is None:
            found, kept, is_final = self._judge_all()
            if is_final:
                with suppress(OSError):  # read-only or full: found anew next time
                    save_index(file, fingerprint, found, kept=kept)
        else:
            found, kept = loaded[0], loaded[1]["kept"]
        self._kept = kept
        self.broken = [*source.broken, *((record_id, reason) for record_id, reason in found["broken"])]
        self.filtered = Counter(getattr(source, "filtered", {})) + Counter(found["filtered"])
        if not len(self):
            reasons = ", ".join(f"{count} had {reason}" for reason, count in self.filtered.most_common(3))
            raise ValueError(f"no record of {len(source)} passes the filters: {reasons or self.broken[:3]}")

    def _judge_all(self) -> tuple[dict[str, Any], np.ndarray, bool]:
        """What was left out, the indices of what was not, and whether every file could be read."""
        chunks = [range(start, min(start + CHUNK, len(self._source))) for start in range(0, len(self._source), CHUNK)]
        kept: list[int] = []
        filtered: Counter[str] = Counter()
        broken: list[BrokenRecordError] = []
        with (
            ThreadPoolExecutor(opener.THREADS) as pool,
            tqdm(total=len(self._source), desc="filter", unit="record", delay=3, leave=False) as bar,
        ):
            try:
                for judged in pool.map(self._judge, chunks):
                    for index, reason in judged:
                        if reason is None:
                            kept.append(index)
                        elif isinstance(reason, BrokenRecordError):
                            broken.append(reason)
                        else:
                            filtered[reason] += 1
                    bar.update(len(judged))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        found = {"filtered": filtered, "broken": [(error.record_id, error.reason) for error in broken]}
        is_final = not any(isinstance(error.__cause__, OSError) for error in broken)
        return found, np.array(kept, np.int64), is_final

    def _judge(self, indices: range) -> list[tuple[int, str | BrokenRecordError | None]]:
        """For each record its index, and None or why it is left out."""
        judged: list[tuple[int, str | BrokenRecordError | None]] = []
        for index in indices:
            try:
                judged.append((index, self._why_not(index)))
            except BrokenRecordError as error:
                judged.append((index, error))
        return judged

    def _why_not(self, index: int) -> str | None:
        captions = self._source.captions(index)
        if not captions:
            raise BrokenRecordError(self._source[index]["id"], "no caption")
        if not self._passing(captions):
            reasons = (f.why_not_caption(captions[0]) for f in self._filters)
            return next(reason for reason in reasons if reason)
        if not any(f.of_sizes for f in self._filters):
            return None
        width, height = self._image_size(index)
        return next((reason for f in self._filters if (reason := f.why_not_size(width, height))), None)

    def _image_size(self, index: int) -> tuple[int, int]:
        if hasattr(self._source, "find_image_size"):
            return self._source.find_image_size(index)
        record = self._source[index]
        with as_broken(record["id"]):
            return image_size(record["image"])

    def _passing(self, captions: Sequence[str]) -> tuple[str, ...]:
        return tuple(text for text in captions if not any(f.why_not_caption(text) for f in self._filters))

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: int) -> Record:
        check_index(index, len(self))
        record = self._source[int(self._kept[index])]
        captions = self._passing(record["captions"])
        if not captions:
            raise BrokenRecordError(record["id"], "no caption passes the filters, as one did when they were first read")
        if "caption_fields" in record:
            of_each = zip(record["captions"], record["caption_fields"])
            fields = tuple(field for caption, field in of_each if self._passing([caption]))
            return {**record, "captions": captions, "caption_fields": fields}
        return {**record, "captions": captions}

    def captions(self, index: int) -> tuple[str, ...]:
        check_index(index, len(self))
        return self._passing(self._source.captions(int(self._kept[index])))

    def fingerprint(self) -> dict[str, Any]:
        changed = [
            {name: value for name, value in dataclasses.asdict(f).items() if value != getattr(Filters(), name)}
            for f in self._filters
        ]
        kept = digest(self._kept.tobytes())
        return {"source": self._source.fingerprint(), "filters": changed, "length": len(self), "kept": kept}
