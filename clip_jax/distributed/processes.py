"""Several processes of one run: started together, compared, and ended together.

With one process nothing of this does anything: `gather` returns its own value. Values are exchanged through the
key-value store of JAX's coordination service, which has no public name yet; only this file uses `jax._src`.
"""

import atexit
import faulthandler
import itertools
import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn, TypeVar

import jax
from jax._src.clusters import ClusterEnv
from jax._src.distributed import global_state

from clip_jax.distributed import lifeline
from clip_jax.distributed.rendezvous import HostsError, wait_for_processes
from clip_jax.distributed.watchdog import NO_PROGRESS
from input_pipeline.storage import digest, digest_json

T = TypeVar("T")
AUTOMATIC = ("gcetpu", "gketpu", "slurm", "ompi")  # clusters that --cluster=auto looks for
# What mpirun sets for each process. Until Open MPI 4 it also names a coordinator, which JAX looks for.
OPEN_MPI = ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK")
POLL_S = 1.0
GRACE_S = 3.0  # after another process failed: time for this one to report its own error
LEAVE_TIMEOUT_S = 15.0
REMIND_S = 60.0
HAS_ENDED = " has ended: "
LOST = "it was killed, or its host is gone"
SHOWN = 120  # characters of a value that a message shows whole

_hosts: list[str] = []  # of each process, in JAX's numbering; empty with one process
_numbers = itertools.count()
_leaving = threading.Event()
_finished = threading.Event()  # without an error: JAX's client is about to close


@contextmanager
def joined(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    cluster: str = "auto",
    timeout_s: float = 300,
) -> Iterator[None]:
    """The block runs on all processes together; a failure of one ends all. The first use of JAX must be inside.

    Args:
      coordinator: "HOST:PORT" of process 0.
      num_processes: number of processes in the run.
      process_id: index of this process, from 0.
      cluster: where those come from that are not given: "auto" looks for TPU metadata, Slurm and Open MPI, which from
        its version 5 on names no coordinator; any other name is one of JAX's detectors ("k8s", "mpi4py", ...); "none"
        uses none.
      timeout_s: seconds that the slowest process may take to arrive.

    Raises HostsError: a process is missing, or has another number of processes.
    """
    if not _start(coordinator, num_processes, process_id, cluster, timeout_s):
        yield
        return
    threading.Thread(target=_watch_others, daemon=True).start()
    with failure_reported():
        yield
        gather("the end", None)  # JAX's own shutdown waits only a short time
        _finished.set()


@contextmanager
def failure_reported(shared: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """An error in the block is reported to the other processes at once, before any cleanup that may wait for them.

    shared: errors that all processes raise at the same point; they are not reported.
    """
    try:
        yield
    except shared:
        raise
    except BaseException as error:
        if process_count() == 1:
            raise
        # Where a connection breaks when the other side ends, a collective fails before anything is stuck.
        cause = _failure_of_others(GRACE_S) if isinstance(error, jax.errors.JaxRuntimeError) else ""
        _report_failure(cause or str(error) or type(error).__name__)
        if cause:
            raise HostsError(cause) from error
        raise


def _start(
    coordinator: str | None, num_processes: int | None, process_id: int | None, cluster: str, timeout_s: float
) -> bool:
    """Starts jax.distributed; False where there is only one process."""
    devices = None
    if None in (coordinator, num_processes, process_id) and cluster != "none":
        detector = _find_cluster(cluster)
        if detector is not None and (num_processes or detector.get_process_count()) > 1:
            try:
                coordinator, num_processes, process_id, devices = ClusterEnv.auto_detect_unset_distributed_params(
                    coordinator, num_processes, process_id, None, detector.name, int(timeout_s)
                )
            except RuntimeError as error:
                raise HostsError(f"{error}, as {detector.name} reports it: give --coordinator=HOST:PORT") from error
        elif detector is None and all(name in os.environ for name in OPEN_MPI):
            count, rank, local = (int(os.environ[name]) for name in OPEN_MPI)
            if (num_processes or count) > 1:
                num_processes, process_id = num_processes or count, rank if process_id is None else process_id
                devices = [local]
    given = {"--coordinator": coordinator, "--num_processes": num_processes, "--process_id": process_id}
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == len(given) or num_processes == 1:
        return False
    if coordinator is None or num_processes is None or process_id is None:
        raise HostsError(f"{', '.join(missing)} missing: outside of a cluster each process needs {', '.join(given)}")
    hosts = wait_for_processes(coordinator, num_processes, process_id, timeout_s)
    jax.config.update("jax_enable_preemption_service", True)  # for SIGTERM, see runs/loop.py
    jax.distributed.initialize(
        coordinator,
        num_processes,
        process_id,
        local_device_ids=devices,
        cluster_detection_method="deactivate",
        initialization_timeout=int(timeout_s) + 60,  # all have arrived: now only JAX can fail
        shutdown_timeout_seconds=60,
    )
    atexit.register(_leave_after_failure)  # called before JAX's own
    global _hosts
    _hosts = hosts
    _hosts = gather("host names", hosts[process_id])  # a TPU's runtime may number its processes differently
    ports = gather("the lifelines", lifeline.listen(_report_lost) if process_id == 0 else 0)
    if process_id:
        host, first = coordinator.rpartition(":")[0].strip("[]"), ports.index(max(ports))
        lifeline.connect(host, max(ports), jax.process_index(), lambda: _end_without_coordinator(first))
    return True


def _find_cluster(name: str) -> type[ClusterEnv] | None:
    detectors = {detector.name: detector for detector in ClusterEnv._cluster_types}
    if name == "auto":
        return next((d for n, d in detectors.items() if n in AUTOMATIC and d.is_env_present()), None)
    if name not in detectors:
        raise HostsError(f"--cluster={name} is unknown: use auto, none, {', '.join(n for n in detectors if n)}")
    if not detectors[name].is_env_present():
        raise HostsError(f"--cluster={name}, but this process was not started by it")
    return detectors[name]


def _client() -> Any:
    """JAX's connection to its coordination service."""
    return global_state.client


def process_count() -> int:
    """Number of processes in the run."""
    return max(len(_hosts), 1)


def is_first() -> bool:
    """Whether this process is the one that writes logs, pictures and records."""
    return process_count() == 1 or jax.process_index() == 0


def is_ending() -> bool:
    """Whether this process has failed: then nothing should wait for others, as a save in progress would."""
    return _leaving.is_set()


def describe(process: int) -> str:
    """A process as messages name it."""
    return f"process {process} ({_hosts[process]})"


def gather(name: str, value: T) -> list[T]:
    """The values of all processes, fit for JSON, by process; all must call it in the same order.

    name: what is waited for, printed on stderr every REMIND_S seconds.
    """
    if process_count() == 1:
        return [value]
    number, client = next(_numbers), _client()
    client.key_value_set(f"clip_jax/gather/{number}/{jax.process_index()}", json.dumps(value))
    values = [json.loads(_wait(f"clip_jax/gather/{number}/{p}", p, name)) for p in range(process_count())]
    if number:  # all have read the one before, or they would not be here
        client.key_value_delete(f"clip_jax/gather/{number - 1}/{jax.process_index()}")
    return values


def from_first(name: str, make: Callable[[], T]) -> T:
    """What `make` returns on the first process, the only one that calls it; the others wait for it."""
    return gather(name, make() if is_first() else None)[0]  # type: ignore[return-value]


def _wait(key: str, process: int, name: str) -> str:
    start = time.monotonic()
    while True:
        try:
            return _client().blocking_key_value_get(key, int(REMIND_S * 1000))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
            waited = time.monotonic() - start
            print(f"clip-jax: waiting for {describe(process)} since {waited:.0f} s: {name}", file=sys.stderr)


def check_equal(what: str, facts: dict[str, Any]) -> None:
    """Raises HostsError, the same on every process, when they do not all have the same facts.

    facts: name to value, fit for JSON. Only a digest is exchanged while they are equal.
    """
    texts = {name: json.dumps(value, sort_keys=True) for name, value in facts.items()}
    if len(set(gather(what, digest_json(texts)))) == 1:
        return
    short = {name: t if len(t) <= SHOWN else f"{t[:60]}... ({digest(t.encode())})" for name, t in texts.items()}
    tables = gather(what, short)
    raise HostsError(f"the processes differ in {what}: {describe_differences(tables, _hosts)}")


def describe_differences(tables: Sequence[dict[str, str]], hosts: Sequence[str]) -> str:
    """Which process differs from the majority, in what; without a majority, from the first process."""
    found = []
    for name in sorted({name for table in tables for name in table}):
        values = [table.get(name, "nothing") for table in tables]
        usual = max(Counter(values).items(), key=lambda pair: (pair[1], pair[0] == values[0]))[0]
        odd = [f"{p} ({hosts[p]}) has {value}" for p, value in enumerate(values) if value != usual]
        if odd:
            rest = [p for p, value in enumerate(values) if value == usual]
            others = f"process {rest[0]} ({hosts[rest[0]]})" if len(rest) == 1 else "the others"
            found.append(f"{name}: process {', process '.join(odd[:3])}{', ...' * (len(odd) > 3)}, {others} {usual}")
    return "; ".join(found[:5]) + (f"; and {len(found) - 5} more" if len(found) > 5 else "")


def end_all(message: str) -> NoReturn:
    """Ends this process at once, whatever its threads are stuck in, and reports the reason to the others."""
    print(f"clip-jax: error: {message}", file=sys.stderr, flush=True)
    if process_count() > 1:
        _report_failure(message)
        _leave()
    os._exit(1)


def _report_failure(message: str) -> None:
    _leaving.set()
    with suppress(jax.errors.JaxRuntimeError):  # perhaps the coordinator is gone already
        first_line = (message.splitlines() or [""])[0]
        _client().key_value_set(f"clip_jax/failed/{jax.process_index()}", first_line[:500])


def _leave() -> NoReturn:
    """Ends the process after a failure: JAX's own exit waits for those that are gone, then aborts with pages of text.

    The process that holds the coordination service goes last: JAX aborts those that lose it.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    with suppress(jax.errors.JaxRuntimeError):
        client, deadline = _client(), time.monotonic() + LEAVE_TIMEOUT_S
        client.key_value_set(f"clip_jax/gone/{jax.process_index()}", "")
        while global_state.service is not None and time.monotonic() < deadline:
            if len(client.key_value_dir_get("clip_jax/gone/")) == process_count():
                time.sleep(POLL_S / 4)
                break
            time.sleep(POLL_S / 10)
    os._exit(1)


def _watch_others() -> None:
    """Ends this process when another one has failed: it may be stuck in a collective that will never finish."""
    while not _leaving.wait(POLL_S):
        if _finished.is_set():
            return
        cause = _failure_of_others()
        if cause and not _leaving.wait(GRACE_S):
            if NO_PROGRESS in cause:  # where this one waits is part of the cause
                faulthandler.dump_traceback(file=sys.__stderr__ or 2, all_threads=True)
            end_all(cause)
    time.sleep(LEAVE_TIMEOUT_S)  # by now the process has ended, unless a thread waits for another one
    _leave()


def _report_lost(process: int) -> None:
    """On the coordinator: reports a process that is gone without a word, in its name."""
    if _finished.wait(POLL_S) or _leaving.is_set() or _failure_of_others():  # it has ended with all, or has reported
        return
    with suppress(jax.errors.JaxRuntimeError):
        for kind, text in (("failed", f"{describe(process)}{HAS_ENDED}{LOST}"), ("gone", "")):
            _client().key_value_set(f"clip_jax/{kind}/{process}", text)


def _end_without_coordinator(process: int) -> None:
    """Ends this process at once when the coordinator is gone: JAX would abort it with pages of text."""
    if not _finished.is_set() and not _leaving.is_set():
        print(f"clip-jax: error: {describe(process)}{HAS_ENDED}{LOST}", file=sys.stderr, flush=True)
        os._exit(1)


def _failure_of_others(timeout_s: float = 0) -> str:
    """Which process has ended and why, as it reported; "" when none has within timeout_s seconds."""
    deadline = time.monotonic() + timeout_s
    with suppress(jax.errors.JaxRuntimeError):  # a coordinator that is gone is JAX's to report
        while True:
            reported = {int(key.split("/")[-1]): text for key, text in _client().key_value_dir_get("clip_jax/failed/")}
            reported.pop(jax.process_index(), None)
            for process, text in sorted(reported.items()):
                return text if HAS_ENDED in text else f"{describe(process)}{HAS_ENDED}{text}"  # the cause, not its echo
            if time.monotonic() >= deadline:
                break
            time.sleep(POLL_S / 10)
    return ""


def _leave_after_failure() -> None:
    if _leaving.is_set():
        _leave()
