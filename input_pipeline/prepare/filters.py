"""Which records are kept: a pure function of a record and its picture's size."""

import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Filters:
    """What a record must be to be kept; the defaults keep all.

    Of several captions one that passes is enough, and then all of them stay; a labelled record may have none.

    Attributes:
      min_side: pixels of the picture's shorter side, as it lies in the source.
      max_aspect: its longer side over its shorter; 0 for any.
      min_caption_length, max_caption_length: characters; a maximum of 0 for any.
      caption_pattern: regular expression that is found somewhere in the caption.
    """

    min_side: int = 0
    max_aspect: float = 0.0
    min_caption_length: int = 0
    max_caption_length: int = 0
    caption_pattern: str = ""

    def __post_init__(self) -> None:
        if self.max_aspect and self.max_aspect < 1:
            raise ValueError(f"max_aspect={self.max_aspect:g} must be at least 1, a square, or 0 for any")
        if 0 < self.max_caption_length < self.min_caption_length:
            raise ValueError(
                f"max_caption_length={self.max_caption_length} is below min_caption_length={self.min_caption_length}"
            )
        try:
            re.compile(self.caption_pattern)
        except re.error as error:
            raise ValueError(f"caption_pattern={self.caption_pattern!r} is no regular expression: {error}") from None

    def reason(self, captions: Sequence[str], width: int, height: int) -> str | None:
        """Why a record is left out; None if it is kept."""
        if captions and not any(map(self._passes, captions)):
            return "no caption passes the caption filters"
        if min(width, height) < self.min_side:
            return f"shorter side below min_side={self.min_side}"
        if self.max_aspect and max(width, height) > self.max_aspect * min(width, height):
            return f"longer than max_aspect={self.max_aspect:g}"
        return None

    def _passes(self, caption: str) -> bool:
        longest = self.max_caption_length or len(caption)
        return self.min_caption_length <= len(caption) <= longest and bool(re.search(self.caption_pattern, caption))
