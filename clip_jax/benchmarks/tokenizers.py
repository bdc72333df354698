"""Captions a second that a core turns into ids: `python -m clip_jax.benchmarks.tokenizers --path=DIR
--vocabulary=bpe_simple_vocab_16e6.txt.gz --peer_python=PYTHON`.

CLIP's byte pairs warm, as in all of a training but its first seconds; cold, with no word in the cache; and with no
cache at all, which is the Rust library by itself; SentencePiece of --vocab_size pieces trained on the captions. With
--peer_python, the interpreter of an environment that has open_clip, its pure-Python tokenizer takes part in turns, its
ids of all captions are compared with ours, and one that differs ends the run.
"""

import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from absl import flags

from clip_jax import cli
from clip_jax.benchmarks.options import SHARED, make_report
from clip_jax.benchmarks.timing import Runner, Timed
from input_pipeline.sources import make_source
from input_pipeline.tokenizers import ClipBytePairTokenizer, SentencePieceTokenizer, find_clip_vocab
from input_pipeline.vocabulary import sample_captions, train_sentencepiece

for flag in SHARED:
    flags.declare_key_flag(flag)
SOURCE = flags.DEFINE_string("source", "webdataset", "Kind of the data: webdataset, table, tfds, ...")
PATH = flags.DEFINE_string("path", None, "Where the captions lie.")
SPLIT = flags.DEFINE_string("split", "", "Of a tfds data set.")
VOCABULARY = flags.DEFINE_string("vocabulary", None, "CLIP's byte-pair vocabulary; by default the Hub's cache.")
VOCAB_SIZE = flags.DEFINE_integer("vocab_size", 8000, "Pieces of the SentencePiece vocabulary.", lower_bound=8)
NUM_RECORDS = flags.DEFINE_integer("num_records", 6000, "Whose captions are encoded.", lower_bound=1)
PEER_PYTHON = flags.DEFINE_string("peer_python", None, "Interpreter that has open_clip, to be timed beside.")

# Answers each line of JSON, whether to start with an empty cache and the texts, with seconds and the ids' digest.
PEER = """
import hashlib, json, sys, time, torch
library = torch.library.Library("torchvision", "DEF")  # torchvision has no CPU build
for name in ("nms", "qnms"):
    library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
import open_clip
tokenizer = open_clip.SimpleTokenizer()
for line in sys.stdin:
    cold, texts = json.loads(line)
    if cold:
        tokenizer = open_clip.SimpleTokenizer()
    start = time.perf_counter()
    ids = [tokenizer.encode(text) for text in texts]
    seconds = time.perf_counter() - start
    print(json.dumps([seconds, hashlib.sha256(json.dumps(ids).encode()).hexdigest()]), flush=True)
"""


class Peer:
    """open_clip's tokenizer on the texts. A call raises ValueError where it cannot run or gives other ids."""

    def __init__(self, python: str, texts: Sequence[str], ids: Sequence[Sequence[int]]):
        self._python = python
        self._texts = texts
        self._digest = hashlib.sha256(json.dumps(ids).encode()).hexdigest()
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        try:
            self._process = subprocess.Popen([python, "-c", PEER], text=True, **pipes)  # type: ignore[call-overload]
        except OSError as error:
            raise ValueError(f"--peer_python={python} is no interpreter that runs: {error}") from error

    def __call__(self, cold: bool) -> float:
        try:
            self._process.stdin.write(json.dumps([cold, self._texts]) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise ValueError(f"--peer_python={self._python} cannot run open_clip; its message stands above")
        seconds, digest = json.loads(answer)
        if digest != self._digest:
            raise ValueError(f"the ids of these {len(self._texts):,} captions are not open_clip's")
        return seconds

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()


def main() -> int:
    """Prints the table; see the module's docstring."""
    report = make_report("tokenizers", main)
    source = make_source(SOURCE.value, cli.required(PATH, "DIR"), SPLIT.value)
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
    peer = Peer(PEER_PYTHON.value, texts, ids) if PEER_PYTHON.value else None
    if peer:
        peer(cold=True)
        runners |= {"open_clip, warm": partial(peer, cold=False), "open_clip, cold": partial(peer, cold=True)}
    timings = report.measure(runners)
    report.add(f"{len(texts):,} captions, one core", {}, timings, {"captions": len(texts)})
    if peer:
        peer.close()
        seconds = timings.seconds
        gains = {
            state: float(np.median(seconds[f"open_clip, {state}"] / seconds[f"byte pairs, {state}"]))
            for state in ("warm", "cold")
        }
        report.tell("byte pairs over open_clip's, captions/s", {"equal ids, median of pairs": gains})
    report.write()
    return 0


if __name__ == "__main__":
    cli.run(main, sys.argv)
