"""Tables as a person reads them."""

import math
from collections.abc import Sequence
from typing import Any


def format_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Columns aligned for a terminal; floats in three significant decimals, the first column to the left."""

    def text(cell: Any) -> str:
        return ("-" if math.isnan(cell) else f"{cell:.3f}") if isinstance(cell, float) else str(cell)

    cells = [list(header), *([text(cell) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = [
        "  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths)))
        for row in cells
    ]
    return "\n".join([lines[0], "  ".join("-" * w for w in widths), *lines[1:]])
