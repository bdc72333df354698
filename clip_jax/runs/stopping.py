"""How a run is stopped: by a signal after a step, by a second one at once, by the watchdog when nothing moves."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from clip_jax.distributed import processes

STEP_S = 7.0  # after a signal: for a step that was under way, or three times the longest so far
EVALUATION_S = 30.0  # the same for a batch of an evaluation, the first of which is compiled
FORCE_S = 5.0  # after a second Ctrl-C, for all to close
SAVE_S = 120.0  # after the watchdog gave up waiting for data, for the steps so far to be saved


class Stopped(BaseException):
    """A signal ends an evaluation."""


class Stopping:
    """Whether a run must end, and that it does.

    Attributes:
      received: the signals so far.
      hung: what the watchdog found, once no data came for train.hang_timeout_s.
      seen: set once the run has come to an end that it chose, and only saves.
      saved: set once nothing that was trained is lost by the end of the process.
    """

    def __init__(self) -> None:
        self.received: list[signal.Signals] = []
        self.hung: list[str] = []
        self.seen, self.saved = threading.Event(), threading.Event()
        self._ended = threading.Event()
        self._last, self._longest, self._limit_s, self._reports = time.monotonic(), 0.0, STEP_S, 0

    def report_progress(self, limit_s: float = STEP_S) -> None:
        """Something has ended, and what follows is a step, or with another limit a batch of an evaluation."""
        now = time.monotonic()
        if self._reports and limit_s == self._limit_s == STEP_S:  # not the first, which is compiled
            self._longest = max(self._longest, now - self._last)
        self._last, self._limit_s, self._reports = now, limit_s, self._reports + 1

    def check(self) -> None:
        """Raises Stopped after a signal."""
        if self.received:
            raise Stopped

    def on_hang(self, message: str) -> None:
        """Ends the process; where it is alone and waits for data, after its steps are saved."""
        self.hung.append(message)
        if processes.process_count() > 1 or not self.saved.wait(SAVE_S):
            processes.end_all(message)

    def watch_first(self) -> None:
        """After the first signal: ends a process whose step does not end, in a thread."""
        start = time.monotonic()
        while not self._ended.wait(0.2) and not self.seen.is_set():
            silent, limit = time.monotonic() - self._last, max(self._limit_s, 3 * self._longest)
            if silent > limit and time.monotonic() - start > self._limit_s:
                processes.end_all(
                    f"{self.received[0].name}: nothing has moved for {silent:.0f} s; the same command resumes at the "
                    "newest checkpoint"
                )

    def end(self) -> None:
        self._ended.set()

    def force(self) -> None:
        """After the second Ctrl-C: ends a process that does not end by itself, in a thread."""
        if not self._ended.wait(FORCE_S):
            end_at_once(128 + signal.SIGINT)


def end_at_once(code: int) -> None:
    """Ends the process whatever its threads are stuck in."""
    sys.stdout.flush()
    print("clip-jax: ended at once: something did not close in time", file=sys.stderr, flush=True)
    os._exit(code)


def end_after(seconds: float, code: int) -> None:
    """Ends the process with the code if it has not by itself."""
    timer = threading.Timer(seconds, end_at_once, [code])
    timer.daemon = True
    timer.start()


@contextmanager
def stop_signals() -> Iterator[Stopping]:
    """Collects SIGINT and SIGTERM instead of ending the process; a second Ctrl-C interrupts at once.

    With several processes JAX catches SIGTERM and stops all at the same step; Ctrl-C is passed on as SIGTERM.
    """
    stopping = Stopping()
    alone = processes.process_count() == 1

    def start(target: Callable[[], None]) -> None:
        threading.Thread(target=target, name="stopping", daemon=True).start()

    def again(number: int, _: FrameType | None) -> None:
        start(stopping.force)
        raise KeyboardInterrupt

    def handler(number: int, _: FrameType | None) -> None:
        if alone:
            stopping.received.append(signal.Signals(number))
            if len(stopping.received) == 1:
                start(stopping.watch_first)
        else:
            signal.raise_signal(signal.SIGTERM)
        signal.signal(signal.SIGINT, again)

    caught = (signal.SIGINT, signal.SIGTERM) if alone else (signal.SIGINT,)
    before = {s: signal.signal(s, handler) for s in caught}
    try:
        yield stopping
    finally:
        stopping.end()
        for number, previous in before.items():
            signal.signal(number, previous)
