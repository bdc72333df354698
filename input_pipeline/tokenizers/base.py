"""What every tokenizer does: rows of ids, cut or padded, a fingerprint, and files to write."""

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from input_pipeline.storage import checksum

VOCABULARY_LIMIT = 64 * 2**20  # bytes, unpacked; of those in use the largest has 18 million


class Tokenizer(ABC):
    """Maps texts to rows of sot_token, the text's ids, eot_token and zeros.

    Attributes:
      vocab_size: ids are in [0, vocab_size).
      context_length: ids a row, the two special tokens included; at least 3.
      sot_token, eot_token: ids of the start and the end of a text.
      num_truncated: texts that were too long in calls so far.
    """

    kind: str

    def __init__(self, context_length: int, vocab_size: int, sot_token: int, eot_token: int, vocabulary: bytes):
        if context_length < 3:
            raise ValueError(
                f"context_length {context_length} leaves no room for text: it counts the start and the end token, "
                "so at least 3 is needed (the paper uses 77)"
            )
        self.context_length = context_length
        self.vocab_size = vocab_size
        self.sot_token = sot_token
        self.eot_token = eot_token
        self.num_truncated = 0
        self._sha256 = checksum([vocabulary])

    @abstractmethod
    def token_ids(self, text: str) -> list[int]:
        """All ids of `text`, without special tokens, not truncated."""

    @abstractmethod
    def files(self) -> dict[str, bytes]:
        """The vocabulary by file name, as this class and, where they have such a tokenizer, other libraries read it."""

    def stored(self) -> bytes:
        """All of it in one file, as `make_tokenizer` reads it again."""
        return next(iter(self.files().values()))

    def encode(self, text: str) -> tuple[np.ndarray, bool]:
        """Returns int32 [context_length] and whether the text was too long; the end token is kept in any case."""
        ids = self.token_ids(text)
        room = self.context_length - 2
        kept = ids[:room]
        row = np.zeros(self.context_length, np.int32)
        row[: len(kept) + 2] = [self.sot_token, *kept, self.eot_token]
        return row, len(ids) > room

    def __call__(self, texts: str | Sequence[str], *, truncate: bool = True) -> np.ndarray:
        """Returns int32 [n, context_length]; one text is one row.

        A text that is too long is cut, its end token kept, and counted in `num_truncated`; with truncate=False it is a
        ValueError.
        """
        if isinstance(texts, str):
            texts = [texts]
        rows = np.zeros((len(texts), self.context_length), np.int32)
        for row, text in zip(rows, texts):
            if not isinstance(text, str):
                raise ValueError(f"text must be a string, not {type(text).__name__}: {text!r}"[:200])
            row[:], truncated = self.encode(text)
            if truncated and not truncate:
                raise ValueError(
                    f"text is too long for context_length {self.context_length}, which counts the start and the end "
                    f"token: shorten it or pass truncate=True: {text[:80]!r}"
                )
            self.num_truncated += truncated
        return rows

    def check_fits(self, vocab_size: int) -> None:
        """Raises ValueError when a model of `text.vocab_size` ids does not know all of this tokenizer's."""
        if vocab_size < self.vocab_size:
            raise ValueError(
                f"text.vocab_size={vocab_size} is smaller than the tokenizer's vocabulary, {self.vocab_size}: "
                f"set text.vocab_size={self.vocab_size} or more"
            )

    def fingerprint(self) -> dict[str, str | int]:
        """What decides the ids; the vocabulary counts by its contents, not by its file name."""
        return {
            "kind": self.kind,
            "vocabulary_sha256": self._sha256,
            "vocab_size": self.vocab_size,
            "context_length": self.context_length,
        }


def read_vocabulary(file: str | os.PathLike[str], what: str, limit: int = VOCABULARY_LIMIT) -> bytes:
    """The bytes of a file. Raises ValueError for one that cannot be read or has more than limit bytes."""
    try:
        with open(file, "rb") as stream:
            content = stream.read(limit + 1)
    except OSError as error:
        raise ValueError(f"cannot read the {what} {file}: {error.strerror}") from error
    if len(content) > limit:
        raise ValueError(f"{file} is larger than {limit // 2**20} MiB: it is no {what}")
    return content


def without_surrogates(text: str) -> str:
    """SentencePiece rejects lone surrogates, which JSON escapes can hold; they become question marks."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")
