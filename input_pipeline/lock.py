"""One owner of a folder at a time, whose lock dies with its process."""

import fcntl
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LOCK = ".lock"
BEAT_S = 15.0
DEAD_AFTER_S = 90.0  # without a beat; longer than a mounted bucket keeps what it has read of a file


@contextmanager
def lock_folder(folder: Path, *, doing: str, fix: str, beats: bool = False) -> Iterator[None]:
    """Owns a folder, made when missing, while the block lasts.

    On one machine, and on file systems whose `flock` reaches all machines, a lock dies with its process. Where the
    owner was on another machine, or the file system has no `flock`, nobody can know: with `beats` an owner writes to
    its lock every BEAT_S seconds, and one that has not for DEAD_AFTER_S is dead; without, its lock has to be removed
    by hand.

    Args:
      doing: "preparing into" in the message.
      fix: "use another --output".

    Raises:
      ValueError: another process has it; names its host and process id.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / LOCK
    descriptor, state = _open_lock(file, beats)
    try:
        owner, here = _parse_owner(os.pread(descriptor, 4096, 0)), socket.gethostname()
        is_taken = state == "held"
        unknown = owner is not None and not is_taken and (owner["host"] != here or state == "unsupported")
        if unknown and owner and "beat" in owner:
            is_taken = _beats(file, owner)
        if is_taken or (unknown and owner and "beat" not in owner):
            is_own = owner is not None and (owner["host"], owner["pid"]) == (here, os.getpid())
            who = f"process {owner['pid']} on {owner['host']}" if owner else "another process"
            who = "this process itself" if is_own else who
            wait = (
                "close what holds it"
                if is_own
                else "wait for it"
                if is_taken
                else f"if that one is dead, remove {file}"
            )
            raise ValueError(f"{who} is {doing} {folder}: {wait}, or {fix}")
        record = {"host": here, "pid": os.getpid(), **({"beat": 0} if beats else {})}
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(record).encode(), 0)
        ended = threading.Event()
        if beats:
            threading.Thread(target=_beat, args=(os.dup(descriptor), record, ended), daemon=True).start()
        try:
            yield
        finally:
            ended.set()
            file.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def _open_lock(file: Path, may_lack_flock: bool) -> tuple[int, str]:
    """The lock file and "free", "held" or, where the file system has no locks, "unsupported"."""
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        state = "free"
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            state = "held"
        except OSError:
            if not may_lack_flock:
                os.close(descriptor)
                raise
            state = "unsupported"
        if state == "held" or _is_same_file(descriptor, file):
            return descriptor, state
        os.close(descriptor)  # its owner has just ended and removed it


def _beat(descriptor: int, record: dict[str, Any], ended: threading.Event) -> None:
    try:
        while not ended.wait(BEAT_S):
            record = {**record, "beat": record["beat"] + 1}
            os.pwrite(descriptor, json.dumps(record).encode(), 0)
            os.fsync(descriptor)
    except OSError:  # the file system is gone; whoever writes the run's files says so
        pass
    finally:
        os.close(descriptor)


def _beats(file: Path, owner: dict[str, Any]) -> bool:
    """Whether the owner's record changes within DEAD_AFTER_S."""
    who = f"process {owner['pid']} on {owner['host']}"
    print(f"clip-jax: {who} owns {file.parent}; waiting {DEAD_AFTER_S:g} s for a sign of it", file=sys.stderr)
    deadline = time.monotonic() + DEAD_AFTER_S
    while time.monotonic() < deadline:
        time.sleep(min(1.0, DEAD_AFTER_S / 10))
        try:
            found = _parse_owner(file.read_bytes())
        except FileNotFoundError:  # it has ended just now, and another one may have come
            return True
        if found is not None and found != owner:
            return True
    print(f"clip-jax: {who} gives no sign: its run has ended, and this one takes over", file=sys.stderr)
    return False


def _is_same_file(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False


def _parse_owner(text: bytes) -> dict[str, Any] | None:
    """Host and process id, or None where the owner died before it had written them."""
    try:
        owner = json.loads(text)
        return owner if {"host", "pid"} <= set(owner) else None
    except (ValueError, TypeError):
        return None
