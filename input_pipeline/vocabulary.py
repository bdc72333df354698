"""The vocabulary of a run: where it comes from, and SentencePiece trained on captions."""

import importlib.metadata
import io
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from grain.experimental import index_shuffle
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

from input_pipeline.data_config import DataConfig
from input_pipeline.sources import BrokenRecordError, Source
from input_pipeline.storage import checksum, write_bytes, write_json
from input_pipeline.tokenizers import Tokenizer, find_clip_vocab, make_tokenizer, without_surrogates

TOKENIZER_RECORDS = 20_000  # whose captions train the tokenizer
MODEL_TYPE = "bpe"
NORMALISATION = "nmt_nfkc_cf"  # Unicode's compatibility composition and case folding, as CLIP lower-cases
SPECIAL_TOKENS = {"pad": 0, "unk": 1, "bos": 2, "eos": 3}


def store_vocabulary(
    config: DataConfig, vocab_size: int, context_length: int, source: Source, file: Path, start: Tokenizer | None = None
) -> None:
    """Writes a run's vocabulary, unless it is there: the config's file, else that of the weights training starts from,
    else SentencePiece trained on the captions of TOKENIZER_RECORDS records.

    Args:
      vocab_size, context_length: of the model's text tower.
      source: the records to train on.
      file: of the vocabulary, in the workdir of the run.
      start: the tokenizer of the weights that training starts from.

    Raises ValueError for a vocabulary that is missing, of another kind or larger than vocab_size.
    """
    if file.exists():
        return
    if start and start.kind == config.tokenizer and not config.tokenizer_file:
        write_bytes(file, start.stored())
        return
    if config.tokenizer == "sentencepiece" and not config.tokenizer_file:
        train_on_sample(source, vocab_size, file, TOKENIZER_RECORDS)
        return
    given = Path(config.tokenizer_file) if config.tokenizer_file else None
    if config.tokenizer == "clip_bpe":
        given = find_clip_vocab(given)
    tokenizer = make_tokenizer(config.tokenizer, given, context_length)
    tokenizer.check_fits(vocab_size)
    # Of CLIP's byte pairs the file as it is; a tokenizer.json needs what stands beside it.
    write_bytes(file, given.read_bytes() if given and config.tokenizer != "tokenizer_json" else tokenizer.stored())


def train_on_sample(
    source: Source, vocab_size: int, model_file: str | os.PathLike[str], num_records: int, seed: int | None = None
) -> dict[str, Any]:
    """`train_sentencepiece` on the captions of some of a source's records; the record names source, number and seed.

    See `sample_captions`. Records that cannot be used are left out.
    """
    sample = {"source": source.fingerprint(), "num_records": min(num_records, len(source)), "seed": seed}
    return train_sentencepiece(sample_captions(source, num_records, seed), vocab_size, model_file, sample=sample)


def sample_captions(source: Source, num_records: int, seed: int | None = None) -> Iterator[str]:
    """All captions of at most num_records different records, in the source's order.

    seed: chooses the records at random; None takes them at equal distances.
    """
    N = min(len(source), num_records)
    if seed is None or len(source) == 1:
        chosen = np.linspace(0, len(source) - 1, N).astype(int).tolist()
    else:
        last = len(source) - 1
        chosen = sorted(index_shuffle(i, max_index=last, seed=seed % 2**32, rounds=4) for i in range(N))
    for index in chosen:
        with suppress(BrokenRecordError):  # met and counted where the records are used
            yield from source.captions(index)


def train_sentencepiece(
    captions: Iterable[str],
    vocab_size: int,
    model_file: str | os.PathLike[str],
    *,
    max_captions: int = 2_000_000,
    sample: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Trains a SentencePiece model for `SentencePieceTokenizer` and writes it whole or not at all.

    The same captions in the same order give the same bytes: one thread, no sampling. Merges are byte-pair and text is
    case-folded, as CLIP's. Ids: 0 padding, 1 unknown, 2 start, 3 end. From a vocabulary of 512 on, 256 pieces are
    bytes, so that no text is unknown; in a smaller one they would leave too little for words.

    Args:
      captions: only the first `max_captions` are used: shuffle first if later ones differ.
      vocab_size: an upper limit. Captions with too few distinct words give a smaller vocabulary
        (`SentencePieceTokenizer.vocab_size` says which); a larger embedding table does no harm.
      model_file: where to write; missing folders are made.
      sample: for JSON, where the captions come from.

    Returns:
      What stands in MODEL_FILE.json beside it, too: normalisation, special tokens, vocab_size, captions used, sample,
      SHA-256 of the model, version of SentencePiece.

    Raises:
      ValueError: there are no captions, or `vocab_size` is below what the captions' characters need.

    Reference: Kudo & Richardson 2018, https://arxiv.org/abs/1808.06226.
    """
    texts = [without_surrogates(text) for text in itertools.islice(captions, max_captions) if text.strip()]
    if not texts:
        raise ValueError("cannot train a tokenizer: there are no captions, or all are empty")
    model = io.BytesIO()
    byte_fallback = vocab_size >= 512
    try:
        SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            model_type=MODEL_TYPE,
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            byte_fallback=byte_fallback,
            normalization_rule_name=NORMALISATION,
            num_threads=1,
            shuffle_input_sentence=False,
            minloglevel=2,
            pad_id=SPECIAL_TOKENS["pad"],
            unk_id=SPECIAL_TOKENS["unk"],
            bos_id=SPECIAL_TOKENS["bos"],
            eos_id=SPECIAL_TOKENS["eos"],
        )
    except RuntimeError as error:
        too_small = re.search(r"smaller than required_chars\. \d+ vs (\d+)", str(error))
        if too_small:
            raise ValueError(
                f"vocab_size {vocab_size} is too small to train a tokenizer on these captions: "
                f"their characters and the special tokens alone need {too_small[1]}"
            ) from error
        raise ValueError(f"SentencePiece cannot train {vocab_size} pieces on these captions: {error}") from error
    record = {
        "model_sha256": checksum([model.getvalue()]),
        "model_type": MODEL_TYPE,
        "normalisation": NORMALISATION,
        "byte_fallback": byte_fallback,
        "special_tokens": SPECIAL_TOKENS,
        "vocab_size": SentencePieceProcessor(model_proto=model.getvalue()).vocab_size(),
        "largest_vocab_size": vocab_size,
        "num_captions": len(texts),
        "sample": dict(sample or {}),
        "sentencepiece": importlib.metadata.version("sentencepiece"),
    }
    path = Path(model_file)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The record first: where there is a model, its record is not missing.
    write_json(path.with_name(f"{path.name}.json"), record)
    write_bytes(path, model.getvalue())
    return record
