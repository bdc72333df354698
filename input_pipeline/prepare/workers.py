"""Processes that make shards: each takes one number at a time and answers when that shard is complete.

A worker is a fresh interpreter that imports this package and nothing of the program that started it: forking a process
with JAX's threads can hang, and multiprocessing's other start methods import the main module, and JAX, in each worker.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any

from input_pipeline.prepare.shards import ShardMaker

MAX_DEATHS = 3  # of the processes that made one shard
REPORT_EVERY_S = 0.2


def make_shards(
    maker: ShardMaker,
    shards: Sequence[int],
    num_workers: int,
    seen: Callable[[int, int], None] = lambda shard, count: None,
    done: Callable[[int], None] = lambda shard: None,
) -> None:
    """Makes the shards; `seen(shard, count)` gets the number of its records that are done, `done` each complete shard.

    The shard of a process that dies is given to another one; its records count from 0 again.

    Args:
      num_workers: processes; 0 makes the shards here.

    Raises:
      ValueError: MAX_DEATHS processes died over one shard; whatever making a shard, or `done`, raised.
    """
    if num_workers == 0:
        for shard in shards:
            maker.make(shard, lambda count, shard=shard: seen(shard, count))  # type: ignore[misc]
            done(shard)
        return
    todo = list(reversed(shards))
    deaths: dict[int, int] = {}
    workers: dict[Connection, tuple[subprocess.Popen, int]] = {}  # and the shard each is making

    def start(shard: int, worker: tuple[Connection, subprocess.Popen] | None = None) -> None:
        connection, process = worker or _start_worker(maker)
        workers[connection] = process, shard
        with contextlib.suppress(OSError):  # it has died, which `wait` reports
            connection.send(shard)

    try:
        for _ in range(min(num_workers, len(todo))):
            start(todo.pop())
        while workers:
            for connection in wait(list(workers)):
                assert isinstance(connection, Connection)
                process, shard = workers[connection]
                try:
                    answer = connection.recv()
                except (EOFError, OSError):
                    del workers[connection]
                    connection.close()
                    code = process.wait()
                    deaths[shard] = deaths.get(shard, 0) + 1
                    if deaths[shard] == MAX_DEATHS:
                        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
                        raise ValueError(
                            f"{MAX_DEATHS} processes died over {maker.file(shard)}, the last by {how}, perhaps for "
                            "want of memory: lower --num_workers; what is complete stays"
                        ) from None
                    seen(shard, 0)
                    start(shard)
                    continue
                if isinstance(answer, Exception):
                    raise answer
                if isinstance(answer, int):
                    seen(shard, answer)
                    continue
                seen(shard, len(maker.indices(shard)))
                done(shard)
                del workers[connection]
                if todo:
                    start(todo.pop(), (connection, process))
                else:
                    connection.close()  # which ends it
                    process.wait()
    finally:
        for connection, (process, _) in workers.items():
            process.kill()
            process.wait()
            connection.close()


def _start_worker(maker: ShardMaker) -> tuple[Connection, subprocess.Popen]:
    ours, theirs = Pipe()
    command = [sys.executable, "-m", "input_pipeline.prepare.workers", str(theirs.fileno())]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment)
    theirs.close()
    with contextlib.suppress(OSError):  # it has died
        ours.send(maker)
    return ours, process


def _work(connection: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # sent to the whole group; the parent ends the workers
    last = 0.0

    def seen(count: int) -> None:
        nonlocal last
        if (now := time.monotonic()) - last >= REPORT_EVERY_S:
            last = now
            connection.send(count)  # which fails, and so ends the shard, when the parent is gone

    try:
        maker: ShardMaker = connection.recv()
        while True:
            shard = connection.recv()
            answer: Any = "done"
            try:
                maker.make(shard, seen)
            except Exception as error:
                answer = error
            connection.send(answer)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent has no more work, or is gone


if __name__ == "__main__":
    _work(Connection(int(sys.argv[1])))
