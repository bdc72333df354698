"""Progress of long work on standard error."""

import sys
from typing import Any

from tqdm import tqdm


def progress_bar(**options: Any) -> tqdm:
    """A tqdm bar, see there for the options: live on a terminal, in a log a line every ten seconds."""
    every_s = {} if sys.stderr.isatty() else {"mininterval": 10}
    return tqdm(dynamic_ncols=True, **every_s, **options)
