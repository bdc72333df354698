"""Reading and decoding in threads, some way ahead of who uses it, in order."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


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
