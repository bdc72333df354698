"""Trains a vocabulary on a data set's captions: `clip-jax tokenizer --source=webdataset --path=DIR
--vocab_size=16000 --output=captions.model`.

SentencePiece byte pairs over the captions of --num_records records, chosen at random by --seed. captions.model is for
`data.tokenizer_file`; captions.model.json beside it records normalisation, special tokens, source, sample and seed.
The same data and flags give the same bytes.
"""

from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from clip_jax.cli import common_flags, data_flags
from clip_jax.tables import format_table
from input_pipeline.tokenizers import SentencePieceTokenizer

common_flags.declare("output", "source", "path", "split", *data_flags.FIELD_FLAGS, "num_records", "seed")
HELP = {"output": "File of the vocabulary."}
DEFAULTS: dict[str, Any] = {"output": "captions.model", "source": "webdataset", "num_records": 1_000_000}
VOCAB_SIZE = flags.DEFINE_integer("vocab_size", 16_000, "Largest number of pieces.", lower_bound=8, allow_override=True)

MEASURED_RECORDS = 1000
EXAMPLES = 3


def main() -> int:
    """Runs the command; see the module's docstring."""
    from input_pipeline.vocabulary import sample_captions, train_on_sample

    output = Path(common_flags.given(common_flags.OUTPUT, DEFAULTS))
    if output.exists():
        raise ValueError(f"--output={output} exists: a run may depend on it, so name another file or delete it first")
    source = data_flags.open_source(DEFAULTS, "DIR")
    num_records = common_flags.given(data_flags.NUM_RECORDS, DEFAULTS)
    record = train_on_sample(source, VOCAB_SIZE.value, output, num_records, data_flags.SEED.value)
    tokenizer = SentencePieceTokenizer(output, context_length=77)
    texts = list(sample_captions(source, MEASURED_RECORDS))
    lengths = np.array([len(tokenizer.token_ids(text)) + 2 for text in texts])
    cells = [
        ["captions", f"{record['num_captions']:,}"],
        ["pieces", f"{record['vocab_size']:,}"],
        ["tokens a caption, mean", f"{lengths.mean():.1f}"],
        *[
            [f"text.context_length for {share:.0%} of them", f"{int(np.quantile(lengths, share))}"]
            for share in (0.95, 1)
        ],
    ]
    print(format_table([str(output), ""], cells))
    for text in texts[:EXAMPLES]:
        print(f"{text}\n  {' '.join(tokenizer.pieces(text))}")
    return 0
