"""SentencePiece: trained on a run's captions, and SigLIP's."""

import os
import string
from contextlib import suppress

import numpy as np
from sentencepiece import SentencePieceProcessor

from input_pipeline.tokenizers.base import Tokenizer, read_vocabulary, without_surrogates


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

    An underscore counts as punctuation, as in transformers; big_vision's prompts have a space in its place.

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
        super().__init__(context_length, model.vocab_size(), sot_token=end, eot_token=end, vocabulary=proto + b"_")
        self._model = model

    def token_ids(self, text: str) -> list[int]:
        words = text.lower().translate(str.maketrans("", "", string.punctuation)).split()
        return self._model.encode(without_surrogates(" ".join(words)))

    def encode(self, text: str) -> tuple[np.ndarray, bool]:
        ids = self.token_ids(text)
        room = self.context_length - 1
        row = np.full(self.context_length, self.eot_token, np.int32)
        row[: min(len(ids), room)] = ids[:room]
        return row, len(ids) > room

    def files(self) -> dict[str, bytes]:
        return {"spiece.model": self._model.serialized_model_proto()}


def _read_sentencepiece(file: str | os.PathLike[str]) -> tuple[SentencePieceProcessor, bytes]:
    proto = read_vocabulary(file, "SentencePiece model")
    with suppress(RuntimeError):
        if proto:
            return SentencePieceProcessor(model_proto=proto), proto
    raise ValueError(f"{file} is not a SentencePiece model (a .model file as spm_train writes it)")
