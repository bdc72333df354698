"""Several processes, one run: started, of one mind, ended together.

On one machine without a cluster around it nothing of this does anything: `gather` gives back what it was given.
Values travel through the key-value store of JAX's own coordination service, which has no public name yet; this file is
the only one that reaches into `jax._src`.
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

from clip_jax.distributed.rendezvous import HostsError, meet
from clip_jax.distributed.watchdog import NO_PROGRESS
from input_pipeline.storage import digest, digest_json

T = TypeVar("T")
AUTOMATIC = ("gcetpu", "gketpu", "slurm", "ompi")  # surroundings that are looked for unasked
# What mpirun tells each process. Until Open MPI 4 it tells of a coordinator, too, which JAX looks for.
OPEN_MPI = ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK")
POLL_S = 1.0
GRACE_S = 3.0  # after another process failed: the time to say so oneself
LEAVE_TIMEOUT_S = 15.0
REMIND_S = 60.0
HAS_ENDED = " has ended: "
TOLD = 120  # characters of a value that a message shows

_hosts: list[str] = []  # of each process, in JAX's numbering; empty with one process
_numbers = itertools.count()
_leaving = threading.Event()
_ended = threading.Event()  # well: JAX's client is about to go


@contextmanager
def joined(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    cluster: str = "auto",
    timeout_s: float = 300,
) -> Iterator[None]:
    """What it encloses runs on all processes together; a failure of one ends all. The first use of JAX must be inside.

    Args:
      coordinator: "HOST:PORT" of process 0.
      num_processes: of the run.
      process_id: this one.
      cluster: where those come from that are not given: "auto" looks for TPU metadata, Slurm and Open MPI, which from
        its version 5 on tells no coordinator; any other name is one of JAX's detectors ("k8s", "mpi4py", ...), "none"
        looks nowhere.
      timeout_s: how long the slowest process may take to arrive.

    Raises HostsError: a process is missing, or counts otherwise.
    """
    if not _start(coordinator, num_processes, process_id, cluster, timeout_s):
        yield
        return
    threading.Thread(target=_watch_others, daemon=True).start()
    with failure_told():
        yield
        gather("the end", None)  # JAX's own farewell waits only a short time
        _ended.set()


@contextmanager
def failure_told(shared: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """When what it encloses fails, tells the others at once, before anything is wound up that may wait for them.

    shared: errors that all processes meet alike, at the same place.
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
        _tell_failure(cause or str(error) or type(error).__name__)
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
                raise HostsError(f"{error}, as {detector.name} tells it: give --coordinator=HOST:PORT") from error
        elif detector is None and all(name in os.environ for name in OPEN_MPI):
            count, place, local = (int(os.environ[name]) for name in OPEN_MPI)
            if (num_processes or count) > 1:
                num_processes, process_id = num_processes or count, place if process_id is None else process_id
                devices = [local]
    given = {"--coordinator": coordinator, "--num_processes": num_processes, "--process_id": process_id}
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == len(given) or num_processes == 1:
        return False
    if coordinator is None or num_processes is None or process_id is None:
        raise HostsError(f"{', '.join(missing)} missing: outside of a cluster each process needs {', '.join(given)}")
    hosts = meet(coordinator, num_processes, process_id, timeout_s)
    jax.config.update("jax_enable_preemption_service", True)  # see train.py, SIGTERM
    jax.distributed.initialize(
        coordinator,
        num_processes,
        process_id,
        local_device_ids=devices,
        cluster_detection_method="deactivate",
        initialization_timeout=int(timeout_s) + 60,  # all are there: now only JAX can fail
        shutdown_timeout_seconds=60,
    )
    atexit.register(_leave_after_failure)  # called before JAX's own
    global _hosts
    _hosts = hosts
    _hosts = gather("host names", hosts[process_id])  # a TPU's runtime may number its processes otherwise
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
    """How many processes share the run."""
    return max(len(_hosts), 1)


def is_first() -> bool:
    """Whether this process is the one that writes logs, pictures and records."""
    return process_count() == 1 or jax.process_index() == 0


def is_ending() -> bool:
    """Whether this process has failed: what waits for others, such as a save under way, should not."""
    return _leaving.is_set()


def describe(process: int) -> str:
    """A process as messages name it."""
    return f"process {process} ({_hosts[process]})"


def gather(name: str, value: T) -> list[T]:
    """The values, fit for JSON, that all processes give, in their order; all must call it in the same order.

    name: what is waited for, as a reminder on stderr tells it.
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
    """What `make` gives on the first process, where alone it is called; the others wait for it."""
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
    """Raises HostsError, the same on every process, when they do not all give the same facts.

    facts: name to value, fit for JSON. Only a digest travels while all agree.
    """
    texts = {name: json.dumps(value, sort_keys=True) for name, value in facts.items()}
    if len(set(gather(what, digest_json(texts)))) == 1:
        return
    short = {name: t if len(t) <= TOLD else f"{t[:60]}... ({digest(t.encode())})" for name, t in texts.items()}
    tables = gather(what, short)
    raise HostsError(f"the processes differ in {what}: {describe_differences(tables, _hosts)}")


def describe_differences(tables: Sequence[dict[str, str]], hosts: Sequence[str]) -> str:
    """Which process differs from most, in what; with no majority, from the first one's side."""
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
    """Ends this process at once, whatever its threads are stuck in, and tells the others why."""
    print(f"clip-jax: error: {message}", file=sys.stderr, flush=True)
    if process_count() > 1:
        _tell_failure(message)
        _leave()
    os._exit(1)


def _tell_failure(message: str) -> None:
    _leaving.set()
    with suppress(jax.errors.JaxRuntimeError):  # perhaps the coordinator is gone already
        first_line = (message.splitlines() or [""])[0]
        _client().key_value_set(f"clip_jax/failed/{jax.process_index()}", first_line[:500])


def _leave() -> NoReturn:
    """The end after a failure: JAX's own would wait for processes that are gone, then abort with pages of text.

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
        if _ended.is_set():
            return
        cause = _failure_of_others()
        if cause and not _leaving.wait(GRACE_S):
            if NO_PROGRESS in cause:  # where this one waits belongs to the answer
                faulthandler.dump_traceback(file=sys.__stderr__ or 2, all_threads=True)
            end_all(cause)
    time.sleep(LEAVE_TIMEOUT_S)  # by now the process has ended, unless a thread waits for another one
    _leave()


def _failure_of_others(timeout_s: float = 0) -> str:
    """Which process has ended and why, as it has told; "" when none has within timeout_s."""
    deadline = time.monotonic() + timeout_s
    with suppress(jax.errors.JaxRuntimeError):  # a coordinator that is gone is JAX's to report
        while True:
            told = {int(key.split("/")[-1]): text for key, text in _client().key_value_dir_get("clip_jax/failed/")}
            told.pop(jax.process_index(), None)
            for process, text in sorted(told.items()):
                return text if HAS_ENDED in text else f"{describe(process)}{HAS_ENDED}{text}"  # the cause, not its echo
            if time.monotonic() >= deadline:
                break
            time.sleep(POLL_S / 10)
    return ""


def _leave_after_failure() -> None:
    if _leaving.is_set():
        _leave()
