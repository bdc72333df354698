"""Lists the models that `--model` takes by name: `clip-jax models`, or `clip-jax models siglip2 vit-b` for some.

Names, Hub repository, parameters in millions, GFLOPs of encoding one image and one text (2 for a multiply-add),
tokenizer and licence of the weights. A word shows the rows that have it in a name or a repository.
"""

import dataclasses
import json
from collections.abc import Sequence

from absl import flags

from clip_jax.tables import format_table

POSITIONAL = "[WORD...]"

JSON = flags.DEFINE_bool("json", False, "Output of one JSON line per model instead of a table.", allow_override=True)


def main(words: Sequence[str]) -> int:
    """Runs the command; see the module's docstring."""
    from clip_jax.pretrained.names import NAMED

    def has(text: str) -> bool:
        return not words or any(word.lower() in text.lower() for word in words)

    rows = [row for row in NAMED if has(" ".join((row.name, *row.aliases, row.repository)))]
    if not rows:
        raise ValueError(f"no name or repository has {' or '.join(words)}: `clip-jax models` lists all {len(NAMED)}")
    if JSON.value:
        for row in rows:
            print(json.dumps(dataclasses.asdict(row)))
        return 0
    header = ("name", "also", "repository", "M parameters", "GFLOPs", "tokenizer", "licence")
    cells = [
        (row.name, ", ".join(row.aliases), row.repository, f"{row.parameters / 1e6:.2f}", f"{row.gflops:.2f}",
         row.tokenizer, row.licence)
        for row in rows
    ]  # fmt: skip
    print(format_table(header, cells))
    for note in dict.fromkeys(row.note for row in rows if row.note):
        print(f"{note}: {', '.join(row.name for row in rows if row.note == note)}")
    return 0
