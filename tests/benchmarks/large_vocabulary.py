"""Captions a second and memory of a tokenizer.json with as many pieces as Gemma's, in the structure of SigLIP 2's.

    python tests/benchmarks/large_vocabulary.py --folder=DIR

The pieces are byte pairs of random words: how many are found in a caption, and so the time, is like that of rare words.
"""

import argparse
import json
import os
import random
import time
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.normalizers import Replace
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer

from input_pipeline.tokenizers import JsonTokenizer

SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>"]


def make(folder: Path, size: int) -> None:
    """Writes tokenizer.json and its settings."""
    rng = random.Random(0)
    syllables = [a + b + c for a in "bdfgklmnprst" for b in "aeiouy" for c in ("", "n", "r", "s")]
    words = ["".join(rng.choices(syllables, k=rng.randint(2, 5))) for _ in range(400_000)]
    tokenizer = Tokenizer(BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer, tokenizer.pre_tokenizer = Replace(" ", "▁"), Split("▁", "merged_with_next")
    texts = (" ".join(words[i : i + 50]) for i in range(0, len(words), 50))
    tokenizer.train_from_iterator(texts, BpeTrainer(vocab_size=size, special_tokens=SPECIAL, show_progress=False))
    tokenizer.post_processor = TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "do_lower_case": True, "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "words.txt").write_text("\n".join(words))


def resident() -> int:
    """Bytes of this process in memory, on Linux."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--size", type=int, default=256_000)
    options = parser.parse_args()
    if not (options.folder / "tokenizer.json").exists():
        make(options.folder, options.size)
    before, started = resident(), time.perf_counter()
    tokenizer = JsonTokenizer(options.folder, 64)
    seconds, memory = time.perf_counter() - started, resident() - before
    rng = random.Random(1)
    words = (options.folder / "words.txt").read_text().split()
    captions = [" ".join(rng.choices(words, k=rng.randint(6, 16))) for _ in range(20_000)]
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    processor = names[0].partition(": ")[2] if names else "processor not known"
    rates = []
    for _ in range(5):
        started = time.perf_counter()
        rows = tokenizer(captions)
        rates.append(len(captions) / (time.perf_counter() - started))
    print(
        f"{tokenizer.vocab_size:,} pieces, opened in {seconds:.1f} s, {memory / 2**20:.0f} MiB; "
        f"{(rows != 0).sum(axis=1).mean():.0f} ids a caption; {sorted(rates)[2]:,.0f} captions/s on one core "
        f"({min(rates):,.0f} to {max(rates):,.0f}), {processor}"
    )


if __name__ == "__main__":
    main()
