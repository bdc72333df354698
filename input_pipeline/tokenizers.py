"""Text to int32 [context_length]: SentencePiece, trained on the run's captions, and CLIP's released byte pairs."""

import gzip
import html
import io
import json
import os
import string
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import ftfy
import numpy as np
import tokenizers
from sentencepiece import SentencePieceProcessor
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Split

from input_pipeline.storage import checksum

KINDS = ("sentencepiece", "clip_bpe", "siglip")

# As the released code counts: 49,152 less 256 bytes and 2 special tokens. The 256 bytes that end a word come on top.
CLIP_NUM_MERGES = 49152 - 256 - 2
# The released expression. Its alternatives for literal special tokens are left out, so that no caption can forge one.
CLIP_SPLIT = r"(?i)'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
CLIP_HUB_REPOS = ("openai/clip-vit-base-patch32", "openai/clip-vit-base-patch16", "openai/clip-vit-large-patch14")
WORD_CACHE_SIZE = 2**16
VOCABULARY_LIMIT = 64 * 2**20  # bytes, unpacked; the largest that is used has 5 million


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


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model that has a start and an end piece, neither with id 0 (padding).

    Raises:
      ValueError: the file is missing, is no SentencePiece model, or has no usable start or end piece.
    """

    kind = "sentencepiece"

    def __init__(self, model_file: str | os.PathLike[str], context_length: int):
        model, proto = _read_sentencepiece(model_file)
        vocab_size = model.vocab_size()
        for name, flag, token in (("start", "bos_id", model.bos_id()), ("end", "eos_id", model.eos_id())):
            if not 0 < token < vocab_size:
                raise ValueError(
                    f"SentencePiece model {model_file} has no usable {name} token ({flag} is {token}, vocabulary size "
                    f"{vocab_size}, 0 is padding): train it with --pad_id=0 --unk_id=1 --bos_id=2 --eos_id=3, "
                    "or give no model and let one be trained on the captions"
                )
        super().__init__(context_length, vocab_size, model.bos_id(), model.eos_id(), proto)
        self._model = model

    def token_ids(self, text: str) -> list[int]:
        return self._model.encode(without_surrogates(text))

    def pieces(self, text: str) -> list[str]:
        """The text of ids, for people to read."""
        return self._model.encode(without_surrogates(text), out_type=str)

    def files(self) -> dict[str, bytes]:
        return {"tokenizer.model": self._model.serialized_model_proto()}


class SiglipTokenizer(Tokenizer):
    """The tokenizer of SigLIP: lower-cased text without punctuation, an end token, and end tokens as padding.

    Args:
      model_file: the released `spiece.model`.
      context_length: 64 in most of the released models.

    Raises:
      ValueError: the file is missing, is no SentencePiece model, or has no end piece.

    Reference: Zhai et al. 2023, https://arxiv.org/abs/2303.15343; read off big_vision's and transformers' tokenizers.
    """

    kind = "siglip"

    def __init__(self, model_file: str | os.PathLike[str], context_length: int):
        model, proto = _read_sentencepiece(model_file)
        end = model.eos_id()
        if end < 0:
            raise ValueError(f"SentencePiece model {model_file} has no end token: it is not SigLIP's spiece.model")
        super().__init__(context_length, model.vocab_size(), sot_token=end, eot_token=end, vocabulary=proto)
        self._model = model

    def token_ids(self, text: str) -> list[int]:
        words = text.lower().replace("_", " ").translate(str.maketrans("", "", string.punctuation)).split()
        return self._model.encode(without_surrogates(" ".join(words)))

    def encode(self, text: str) -> tuple[np.ndarray, bool]:
        ids = self.token_ids(text)
        room = self.context_length - 1
        row = np.full(self.context_length, self.eot_token, np.int32)
        row[: min(len(ids), room)] = ids[:room]
        return row, len(ids) > room

    def files(self) -> dict[str, bytes]:
        return {"spiece.model": self._model.serialized_model_proto()}


class ClipBytePairTokenizer(Tokenizer):
    """The tokenizer of the released CLIP models: 49,408 lower-cased byte pairs.

    Differs from the released code in one point: `<|startoftext|>` and `<|endoftext|>` written out in a caption are
    ordinary text, not special tokens (open_clip does the same).

    Args:
      vocab_file: `bpe_simple_vocab_16e6.txt.gz` or the Hub's `merges.txt`; `find_clip_vocab` finds one.
      context_length: 77 in all released models.

    Raises:
      ValueError: the file is missing or holds another vocabulary.

    Reference: Radford et al. 2021, sec. 2.4; merging as in Sennrich et al. 2016, https://arxiv.org/abs/1508.07909.
    """

    kind = "clip_bpe"

    def __init__(self, vocab_file: str | os.PathLike[str], context_length: int = 77):
        merges = _read_clip_merges(vocab_file)
        symbols = sorted(ByteLevel.alphabet())  # a printable character for each byte; code points are in the ids' order
        tokens = [*symbols, *(symbol + "</w>" for symbol in symbols), *(first + second for first, second in merges)]
        vocab = {token: index for index, token in enumerate(tokens)}
        if len(vocab) != len(tokens) or not all(part in vocab for merge in merges for part in merge):
            raise ValueError(f"{vocab_file} is not CLIP's byte-pair vocabulary: its merges do not build on each other")
        super().__init__(
            context_length,
            vocab_size=len(vocab) + 2,
            sot_token=len(vocab),
            eot_token=len(vocab) + 1,
            vocabulary="\n".join(map(" ".join, merges)).encode(),
        )
        self._word_tokenizer = tokenizers.Tokenizer(BPE(vocab=vocab, merges=merges, end_of_word_suffix="</w>"))
        self._word_tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
            [
                Split(tokenizers.Regex(CLIP_SPLIT), behavior="removed", invert=True),
                ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        self._word_cache: dict[str, list[int]] = {}
        self._vocab, self._merges = vocab, merges

    def token_ids(self, text: str) -> list[int]:
        ids: list[int] = []
        for word in clean_clip_text(text).split():  # no token spans whitespace, so words can be merged one by one
            word_ids = self._word_cache.get(word)
            if word_ids is None:
                if len(self._word_cache) >= WORD_CACHE_SIZE:
                    self._word_cache.clear()
                word_ids = self._word_cache[word] = self.merge_words(word)
            ids += word_ids
        return ids

    def merge_words(self, text: str) -> list[int]:
        """The ids of cleaned text, without the cache of words."""
        return self._word_tokenizer.encode(text).ids

    def forget_words(self) -> None:
        """Empties the cache of words."""
        self._word_cache.clear()

    def files(self) -> dict[str, bytes]:
        start, end = "<|startoftext|>", "<|endoftext|>"
        special = {start: self.sot_token, end: self.eot_token}
        settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": self.context_length}
        settings |= {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": end}
        return {
            "merges.txt": ("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in self._merges)).encode(),
            "vocab.json": json.dumps(self._vocab | special, ensure_ascii=False).encode(),
            "tokenizer_config.json": (json.dumps(settings, indent=2) + "\n").encode(),
        }


def clean_clip_text(text: str) -> str:
    """Repairs mis-decoded text, resolves HTML entities (twice, as web text needs) and lower-cases, as CLIP does."""
    if not (text.isascii() and text.isprintable() and "&" not in text):  # such text needs no repair
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return text.lower()


def find_clip_vocab(path: str | os.PathLike[str] | None) -> Path:
    """`path` if given, else the merges of a CLIP model in the local Hugging Face Hub cache; downloads nothing.

    Raises:
      ValueError: no path was given and the cache has no CLIP model.
    """
    if path is not None:
        return Path(path)
    from huggingface_hub import try_to_load_from_cache  # slow to import; tokenizers depends on it

    for repo in CLIP_HUB_REPOS:
        cached = try_to_load_from_cache(repo, "merges.txt")
        if isinstance(cached, str):
            return Path(cached)
    raise ValueError(
        "CLIP's byte-pair vocabulary was not found: no file was given and the Hugging Face Hub cache has none. Get "
        "https://github.com/openai/CLIP/raw/main/clip/bpe_simple_vocab_16e6.txt.gz and give its path, "
        f"or run `hf download {CLIP_HUB_REPOS[0]} merges.txt`"
    )


def make_tokenizer(kind: str, file: str | os.PathLike[str] | None, context_length: int) -> Tokenizer:
    """The tokenizer `kind` from its vocabulary file; only "clip_bpe" can do without one (see `find_clip_vocab`).

    Raises:
      ValueError: the kind is unknown, or its file is missing or wrong.
    """
    if kind == "clip_bpe":
        return ClipBytePairTokenizer(find_clip_vocab(file), context_length)
    if kind in ("sentencepiece", "siglip"):
        if file is None:
            raise ValueError(f"a {kind} tokenizer needs a model file: give one, or train one on the captions")
        return (SentencePieceTokenizer if kind == "sentencepiece" else SiglipTokenizer)(file, context_length)
    raise ValueError(f"unknown tokenizer {kind!r}; known: {', '.join(KINDS)}")


def _read(file: str | os.PathLike[str], what: str) -> bytes:
    try:
        with open(file, "rb") as stream:
            content = stream.read(VOCABULARY_LIMIT + 1)
    except OSError as error:
        raise ValueError(f"cannot read the {what} {file}: {error.strerror}") from error
    if len(content) > VOCABULARY_LIMIT:
        raise ValueError(f"{file} is larger than {VOCABULARY_LIMIT // 2**20} MiB: it is no {what}")
    return content


def _read_sentencepiece(file: str | os.PathLike[str]) -> tuple[SentencePieceProcessor, bytes]:
    proto = _read(file, "SentencePiece model")
    with suppress(RuntimeError):
        if proto:
            return SentencePieceProcessor(model_proto=proto), proto
    raise ValueError(f"{file} is not a SentencePiece model (a .model file as spm_train writes it)")


def _read_clip_merges(file: str | os.PathLike[str]) -> list[tuple[str, str]]:
    """The merges by rank; the released file lists 262,144 of them and CLIP uses the first 48,894."""
    data = _read(file, "CLIP vocabulary")
    try:
        if data.startswith(b"\x1f\x8b"):
            with gzip.open(io.BytesIO(data)) as stream:
                data = stream.read(VOCABULARY_LIMIT + 1)  # not all: a file of 3 MB can hold 3 GB
            if len(data) > VOCABULARY_LIMIT:
                raise OSError(f"it holds more than {VOCABULARY_LIMIT // 2**20} MiB")
        header, *lines = data.decode("utf-8").split("\n")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not CLIP's byte-pair vocabulary, or is damaged: {error}") from error
    pairs = [tuple(line.split()) for line in lines[:CLIP_NUM_MERGES]]
    merges = [(pair[0], pair[1]) for pair in pairs if len(pair) == 2]
    if "#version" not in header or len(merges) != CLIP_NUM_MERGES:
        raise ValueError(
            f"{file} is not CLIP's byte-pair vocabulary (bpe_simple_vocab_16e6.txt.gz, or merges.txt from the Hub): "
            f"a #version line and {CLIP_NUM_MERGES} merges are expected, {len(merges)} merges found"
        )
    return merges


def without_surrogates(text: str) -> str:
    """SentencePiece rejects lone surrogates, which JSON escapes can hold; they become question marks."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")
