"""Reading and decoding in threads, ahead of their use and in order; and the progress of long work."""

import contextlib
import queue
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

from tqdm import tqdm

T = TypeVar("T")
POLL_S = 0.2  # between checks whether to stop
CLOSE_S = 1.0  # for what is being read; a read that hangs is left behind


def load_ahead(
    load: Callable[[int], Any], indices: Iterable[int], num_threads: int, ahead: int
) -> Generator[Any, None, None]:
    """load(index) in the order of the indices, at most `ahead` of them done or under way before they are asked for."""
    pending: deque[Future] = deque()
    pool = ThreadPoolExecutor(num_threads)
    try:
        for index in indices:
            pending.append(pool.submit(load, index))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


class Reader(Generic[T]):
    """`count` calls of `load` in a thread, at most `ahead` of them before they are asked for.

    Nobody has to wait for a call that hangs: `get` can be broken off, and the thread ends with the process.
    """

    def __init__(self, load: Callable[[], T], count: int, ahead: int):
        self._load, self._count = load, count
        self._found: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()
        self._room = threading.Semaphore(ahead)
        self._closed = False
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        for _ in range(self._count):
            self._room.acquire()
            if self._closed:
                return
            try:
                self._found.put((self._load(), None))
            except BaseException as error:
                self._found.put((None, error))
                return

    def get(self, must_stop: Callable[[], bool]) -> T | None:
        """The next one, or None when must_stop() is true before it is there. Raises what `load` raised."""
        while True:
            try:
                value, error = self._found.get(timeout=POLL_S)
            except queue.Empty:
                if must_stop():
                    return None
                continue
            if error is not None:
                raise error
            self._room.release()
            return value

    def close(self) -> None:
        """Reads no more, and lets go of what was read."""
        self._closed = True
        self._room.release()
        self._thread.join(CLOSE_S)
        with contextlib.suppress(queue.Empty):
            while True:
                self._found.get_nowait()


def progress_bar(**options: Any) -> tqdm:
    """A tqdm bar, see there for the options: live on a terminal, in a log a line every ten seconds."""
    every_s = {} if sys.stderr.isatty() else {"mininterval": 10}
    return tqdm(dynamic_ncols=True, **every_s, **options)
