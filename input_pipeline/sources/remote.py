"""Questions to remote file systems: each with a time limit, repeated when it fails, and given up in the end.

A path with "://" goes through fsspec. What does not come back in its time is abandoned and asked for again, with waits
that double; a file that is not there is not asked for twice.
"""

import os
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import fsspec

T = TypeVar("T")

# With these a read that fails nine times in ten comes through 98 times in 100, and one that never does is given up
# after three minutes of waiting; if every try hangs, after ten.
MAX_TRIES = 40
FIRST_WAIT_S = 0.1  # doubled after each try
LONGEST_WAIT_S = 5.0
TRY_TIMEOUT_S = 10.0  # of a remote try, and a second more for each SLOWEST_BYTES_PER_S
SLOWEST_BYTES_PER_S = 1_000_000
# What a second try does not change.
FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
EXTRAS = {"gs": "gcs", "gcs": "gcs", "s3": "s3", "s3a": "s3"}  # protocol -> extra of this package

_count_lock = threading.Lock()
_retried = 0
_file_systems: dict[tuple[int, str], Any] = {}  # by process and host


class UnreachableError(ValueError):
    """A file that could not be read in MAX_TRIES tries. It stops a run, where a broken record is left out: a network
    that comes and goes must not decide which records are trained on."""


def count_retries() -> int:
    """How many tries had to be repeated in this process so far."""
    return _retried


def is_remote(path: str) -> bool:
    return "://" in path


def ask(path: str, call: Callable[[Any, str], T], size: int = 0) -> T:
    """What the call makes of the path's file system and its name there, each try in a thread that may be abandoned."""
    timeout_s = TRY_TIMEOUT_S + size / SLOWEST_BYTES_PER_S

    def attempt() -> T:
        answers: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

        def work() -> None:
            try:
                answers.put((call(*_file_system(path)), None))
            except BaseException as error:
                answers.put((None, error))

        threading.Thread(target=work, daemon=True).start()  # a pool would be waited for at the end of the program
        try:
            answer, error = answers.get(timeout=timeout_s)
        except queue.Empty:
            raise TimeoutError(f"no answer within {timeout_s:.0f} s") from None
        if error is not None:
            raise error
        return answer

    try:
        return with_retries(attempt, MAX_TRIES)
    except (*FINAL, ValueError):
        raise
    except Exception as error:  # every file system has its own
        raise UnreachableError(
            f"{path} could not be read in {MAX_TRIES} tries, with waits of up to {LONGEST_WAIT_S:.0f} s between; the "
            f"last error was {type(error).__name__}: {error}. When it can be read again, the same command resumes"
        ) from error


def with_retries(attempt: Callable[[], T], tries: int) -> T:
    """The first answer of so many tries, with waits between them; raises the last error, and FINAL ones at once."""
    global _retried
    wait_s = FIRST_WAIT_S
    for number in range(1, tries + 1):
        try:
            return attempt()
        except (*FINAL, ValueError, ImportError):
            raise
        except Exception:
            if number == tries:
                raise
        with _count_lock:
            _retried += 1
        time.sleep(wait_s)
        wait_s = min(2 * wait_s, LONGEST_WAIT_S)
    raise AssertionError("unreachable")


def _file_system(path: str) -> tuple[Any, str]:
    """The file system of a path, one for a process and host, and the path's name there."""
    key = os.getpid(), "/".join(path.split("/")[:3])
    if key not in _file_systems:  # not fsspec's own cache, which keeps one for each thread
        try:
            _file_systems[key] = fsspec.core.url_to_fs(path)[0]
        except (ImportError, ValueError) as error:
            protocol = path.partition("://")[0]
            fix = f": pip install 'jax-clip[{EXTRAS[protocol]}]'" if protocol in EXTRAS else ""
            raise ValueError(f"{path} cannot be opened: {error}{fix}") from error
    file_system = _file_systems[key]
    return file_system, file_system._strip_protocol(path)
