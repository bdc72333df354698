"""Captions to ids on one core, ours beside open_clip's: `python tests/benchmarks/peers/tokenization.py
--path=DIR --vocabulary=bpe_simple_vocab_16e6.txt.gz --peer_python=PYTHON`.

CLIP's byte pairs warm, as in all of a training but its first seconds; cold, with no word in the cache; and with no
cache at all, which is the Rust library by itself; SentencePiece of --vocab_size pieces trained on the captions. With
--peer_python, the interpreter of an environment that has open_clip, its pure-Python tokenizer is interleaved with ours;
it must give all captions the same ids.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from absl import flags
from peer import PEER_PYTHON, tokenize_peers

from clip_jax.benchmarks.timing import Runner, Timed
from clip_jax.cli import common_flags
from clip_jax.cli.bench.options import SHARED, make_report
from clip_jax.cli.common_flags import run_command
from input_pipeline.sources import make_source
from input_pipeline.storage import checksum_json
from input_pipeline.tokenizers import ClipBytePairTokenizer, SentencePieceTokenizer, find_clip_vocab
from input_pipeline.vocabulary import sample_captions, train_sentencepiece

for flag in (*SHARED, "peer_python"):
    flags.declare_key_flag(flag)
SOURCE = flags.DEFINE_string("source", "webdataset", "Kind of the data: webdataset, table, tfds, ...")
PATH = flags.DEFINE_string("path", None, "Path of the captions.")
SPLIT = flags.DEFINE_string("split", "", "Split of a tfds data set.")
VOCABULARY = flags.DEFINE_string("vocabulary", None, "CLIP's byte-pair vocabulary; by default the Hub's cache.")
VOCAB_SIZE = flags.DEFINE_integer("vocab_size", 8000, "Pieces of the SentencePiece vocabulary.", lower_bound=8)
NUM_RECORDS = flags.DEFINE_integer("num_records", 6000, "Records whose captions are encoded.", lower_bound=1)


def main() -> int:
    """Prints the table; see the module's docstring."""
    report = make_report("tokenizers", main)
    source = make_source(SOURCE.value, common_flags.required(PATH, "DIR"), SPLIT.value)
    texts = list(sample_captions(source, NUM_RECORDS.value))
    warm = ClipBytePairTokenizer(find_clip_vocab(VOCABULARY.value))
    ids = [warm.token_ids(text) for text in texts]
    cold = ClipBytePairTokenizer(find_clip_vocab(VOCABULARY.value))

    def encode_cold() -> None:
        cold.forget_words()
        cold(texts)

    runners: dict[str, Runner] = {
        "byte pairs, warm": Timed(lambda: warm(texts)),
        "byte pairs, cold": Timed(encode_cold),
        "byte pairs, no cache": Timed(lambda: [cold.merge_words(text) for text in texts]),
    }
    with tempfile.TemporaryDirectory() as folder:
        train_sentencepiece(texts, VOCAB_SIZE.value, Path(folder) / "model")
        pieces = SentencePieceTokenizer(Path(folder) / "model", warm.context_length)
        runners["SentencePiece"] = Timed(lambda: pieces(texts))
        peers = {}
        if PEER_PYTHON.value:
            (Path(folder) / "texts.json").write_text(json.dumps(texts))
            digest = checksum_json(ids)
            peers = tokenize_peers(PEER_PYTHON.value, Path(folder) / "texts.json", digest)
            for peer in peers.values():
                peer()  # starts it
        timings = report.measure({**runners, **peers})
    report.add(f"{len(texts):,} captions, one core", {}, timings, {"captions": len(texts)})
    if peers:
        seconds = timings.seconds
        gains = {
            state: float(np.median(seconds[f"open_clip, {state}"] / seconds[f"byte pairs, {state}"]))
            for state in ("warm", "cold")
        }
        report.note("byte pairs over open_clip's, captions/s", {"equal ids, median of pairs": gains})
        for peer in peers.values():
            peer.close()
    report.write()
    return 0


if __name__ == "__main__":
    run_command(main, sys.argv)
