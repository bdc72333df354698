"""Programs that tests start, none of which outlives its test."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

MARK = "CLIP_JAX_TEST"
# To compile, which is most of what the tests do; XLA's own choices take twice as long.
FUSED = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
QUICK = f"{FUSED} --xla_cpu_use_fusion_emitters=false"


class Processes:
    """Starts programs, each in a session of its own; at its end they are killed, with all that they have started.

    Those are found by a variable that they inherit, whatever session they have moved to.
    """

    def __init__(self) -> None:
        self.environment = {MARK: uuid.uuid4().hex}
        self._started: list[subprocess.Popen[str]] = []

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *_: object) -> None:
        deadline = time.monotonic() + 20
        while pids := self.living():
            assert time.monotonic() < deadline, f"processes {pids} cannot be killed"
            for pid in pids:
                kill(pid)
            time.sleep(0.01)
        for process in self._started:
            process.kill()  # where there is no /proc
            process.communicate()

    def start(self, command: Sequence[str | Path], **options: Any) -> subprocess.Popen[str]:
        """Like subprocess.Popen, with text through pipes unless the options say otherwise."""
        options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
        options["env"] = {**options.get("env", os.environ), **self.environment}
        process = subprocess.Popen(command, text=True, start_new_session=True, **options)
        self._started.append(process)
        return process

    def run(self, command: Sequence[str | Path], timeout_s: float, **options: Any) -> tuple[int, str, str]:
        """Exit code, stdout and stderr."""
        process = self.start(command, **options)
        out, err = process.communicate(timeout=timeout_s)
        return process.returncode, out, err

    def living(self, words: str = "") -> list[int]:
        """Those of them, and of all that they have started, whose command line has the words. Only where /proc is."""
        ((name, value),) = self.environment.items()
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                marked = f"{name}={value}".encode() in (folder / "environ").read_bytes().split(b"\0")
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:  # it has ended, or is another user's
                continue
            if marked and words in command:
                found.append(int(folder.name))
        return sorted(found)


def kill(pid: int) -> None:
    """With SIGKILL; it may have ended."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def eventually(true: Callable[[], Any], timeout_s: float = 60) -> None:
    """Waits until the function says so; fails after the time."""
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


SLURM_PORTS = range(2**16 - 2**12, 2**16)  # of which JAX takes one by the job's number


def free_port(ports: Sequence[int] = (0,)) -> int:
    for port in random.sample(ports, len(ports)):
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("", port))
            return listener.getsockname()[1]
    raise AssertionError("no port is free")
