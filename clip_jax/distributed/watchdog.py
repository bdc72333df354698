"""Ends a process that makes no progress, and shows what each of its threads is doing."""

import faulthandler
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

NO_PROGRESS = "no progress for"


@contextmanager
def hang_watch(timeout_s: float, on_hang: Callable[[str], object]) -> Iterator[Callable[[str], None]]:
    """Yields a function to call at each progress with what was done, as "step 3".

    When it is not called for timeout_s seconds, the stack of every thread is printed on stderr and `on_hang` is called
    with one sentence; it should end the process, since a thread that waits for other hosts cannot be interrupted.
    timeout_s=0 watches nothing.
    """
    if not timeout_s:
        yield lambda _: None
        return
    last: tuple[float, str] = (time.monotonic(), "the start")
    ended = threading.Event()

    def report_progress(where: str) -> None:
        nonlocal last
        last = (time.monotonic(), where)

    def watch() -> None:
        while not ended.wait(min(timeout_s / 10, 1.0)):
            seen, where = last
            if time.monotonic() - seen > timeout_s:
                print(f"\nclip-jax: {NO_PROGRESS} {timeout_s:g} s since {where}; all threads:", file=sys.stderr)
                faulthandler.dump_traceback(file=sys.__stderr__ or 2, all_threads=True)
                on_hang(f"{NO_PROGRESS} {timeout_s:g} s since {where} (train.hang_timeout_s)")
                return

    threading.Thread(target=watch, name="hang_watch", daemon=True).start()
    try:
        yield report_progress
    finally:
        ended.set()
