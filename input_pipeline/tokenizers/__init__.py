"""Text to int32 [context_length]: SentencePiece, CLIP's byte pairs, SigLIP's, and any tokenizer.json."""

import os

from input_pipeline.tokenizers.base import Tokenizer, without_surrogates
from input_pipeline.tokenizers.clip_bpe import ClipBytePairTokenizer, clean_clip_text, find_clip_vocab
from input_pipeline.tokenizers.json_file import JsonTokenizer
from input_pipeline.tokenizers.sentence_piece import SentencePieceTokenizer, SiglipTokenizer

__all__ = [
    "KINDS",
    "ClipBytePairTokenizer",
    "JsonTokenizer",
    "SentencePieceTokenizer",
    "SiglipTokenizer",
    "Tokenizer",
    "clean_clip_text",
    "find_clip_vocab",
    "make_tokenizer",
    "without_surrogates",
]

KINDS = ("sentencepiece", "clip_bpe", "siglip", "tokenizer_json")


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
    if kind == "tokenizer_json":
        if file is None:
            raise ValueError("a tokenizer_json tokenizer needs its file, tokenizer.json, or the folder that holds it")
        return JsonTokenizer(file, context_length)
    raise ValueError(f"unknown tokenizer {kind!r}; known: {', '.join(KINDS)}")
