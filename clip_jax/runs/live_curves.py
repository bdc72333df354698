"""In a notebook: the curves of a run, drawn again while it trains."""

import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clip_jax.plots.training import plot_curves
from clip_jax.runs.logging import read_metrics

WIDTH = 900  # pixels
POLL_S = 0.2


@contextmanager
def live_curves(workdir: Path, every_s: float = 5.0, stop_at: int | None = None) -> Iterator[None]:
    """Draws metrics.jsonl of a run as `plots.plot_curves` does, in place, while what it encloses trains.

    Args:
      workdir: of the run; it need not be there yet.
      every_s: seconds between two drawings.
      stop_at: a step at which to press the stop button, once: `train` saves and ends. A run that was there
        already goes on undisturbed.

    Raises:
      ValueError: outside a notebook.
    """
    try:
        from IPython.display import Image, display
    except ImportError:
        raise ValueError("live_curves draws in a notebook: pip install jupyterlab, or look at curves.png") from None
    handle = display(display_id=True)
    if handle is None:
        raise ValueError("live_curves draws in a notebook; elsewhere look at curves.png in the run's workdir")
    ended = threading.Event()

    def reached() -> bool:
        return stop_at is None or any(row["step"] >= stop_at for row in read_metrics(workdir)[-1:])

    def draw() -> None:
        if rows := read_metrics(workdir):
            with tempfile.TemporaryDirectory() as folder:
                plot_curves(rows, file := Path(folder) / "curves.png")
                handle.update(Image(file.read_bytes(), width=WIDTH))

    def watch(pressed: bool) -> None:
        drawn = time.monotonic()
        while not ended.wait(POLL_S):
            if not pressed and reached():
                pressed = True
                os.kill(os.getpid(), signal.SIGINT)
            if time.monotonic() - drawn >= every_s:
                draw()
                drawn = time.monotonic()

    thread = threading.Thread(target=watch, args=(reached(),), name="live curves", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        draw()
