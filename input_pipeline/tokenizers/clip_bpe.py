"""CLIP's released byte pairs."""

import gzip
import html
import io
import json
import os
import zlib
from pathlib import Path

import ftfy
import tokenizers
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Split

from input_pipeline.tokenizers.base import VOCABULARY_LIMIT, Tokenizer, read_vocabulary

# As the released code counts: 49,152 less 256 bytes and 2 special tokens. The 256 bytes that end a word come on top.
CLIP_NUM_MERGES = 49152 - 256 - 2
# The released expression. Its alternatives for literal special tokens are left out, so that no caption can forge one.
CLIP_SPLIT = r"(?i)'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
CLIP_HUB_REPOS = ("openai/clip-vit-base-patch32", "openai/clip-vit-base-patch16", "openai/clip-vit-large-patch14")
WORD_CACHE_SIZE = 2**16


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


def _read_clip_merges(file: str | os.PathLike[str]) -> list[tuple[str, str]]:
    """The merges by rank; the released file lists 262,144 of them and CLIP uses the first 48,894."""
    data = read_vocabulary(file, "CLIP vocabulary")
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
