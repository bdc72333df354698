"""All processes of a run connect to the coordinator's port before JAX starts there, so that a missing one is named.

JAX itself aborts without a name when a process does not arrive. Process 0 listens, each other one sends its number and
host, and all get the same answer: the host names, or one sentence about what is wrong.
"""

import json
import socket
import time
from contextlib import ExitStack, suppress
from typing import Any

HELLO_TIMEOUT_S = 5.0  # for one line over an open connection
RETRY_S = 0.2


class HostsError(ValueError):
    """The processes of a run cannot work together; the message says which one, and why."""


def wait_for_processes(coordinator: str, num_processes: int, process_id: int, timeout_s: float) -> list[str]:
    """Waits until all processes have arrived.

    Args:
      coordinator: "HOST:PORT" of process 0, the same on every process.
      num_processes: number of processes in the run.
      process_id: index of this process, in [0, num_processes).
      timeout_s: seconds that the slowest process may take to arrive.

    Returns:
      The host name of each process.

    Raises HostsError, the same on all that arrived: which processes are missing, have the same process_id, or have
    another num_processes.
    """
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise HostsError(f"--coordinator={coordinator} must be HOST:PORT of process 0, for instance 10.0.0.1:8476")
    if not 0 <= process_id < num_processes:
        raise HostsError(f"--process_id={process_id} must lie in [0, {num_processes}), --num_processes={num_processes}")
    hello = {"process_id": process_id, "num_processes": num_processes, "host": socket.gethostname()}
    if process_id == 0:
        return _host(int(port), hello, timeout_s)
    return _join(host.strip("[]"), int(port), hello, timeout_s)


def _host(port: int, own: dict[str, Any], timeout_s: float) -> list[str]:
    deadline, num_processes = time.monotonic() + timeout_s, own["num_processes"]
    arrived, error = {0: own["host"]}, ""
    with ExitStack() as stack:
        try:
            dual = socket.has_dualstack_ipv6()
            family = socket.AF_INET6 if dual else socket.AF_INET
            server = stack.enter_context(socket.create_server(("", port), family=family, dualstack_ipv6=dual))
        except OSError as failure:
            raise HostsError(f"process 0 cannot listen on port {port} of --coordinator: {failure}") from failure
        connections = []
        while len(arrived) < num_processes and not error:
            server.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                connection, _ = server.accept()
            except TimeoutError:
                missing = [str(p) for p in range(num_processes) if p not in arrived]
                error = (
                    f"{'process' if len(missing) == 1 else 'processes'} {', '.join(missing)} of {num_processes} did "
                    f"not arrive at {own['host']}:{port} within {timeout_s:g} s; there were "
                    + ", ".join(f"{p} ({name})" for p, name in sorted(arrived.items()))
                )
                break
            stack.enter_context(connection)
            hello = _receive(connection, HELLO_TIMEOUT_S)
            if hello is None or not isinstance(hello.get("process_id"), int):
                continue  # not one of ours
            connections.append(connection)
            error = _mismatch(hello, arrived, num_processes)
            arrived[hello["process_id"]] = hello["host"]
        hosts = [] if error else [arrived[p] for p in range(num_processes)]
        for connection in connections:
            _send(connection, {"error": error, "hosts": hosts})
        for connection in connections:  # the side that closes first keeps its port busy, and JAX needs this one
            _receive(connection, HELLO_TIMEOUT_S)
    if error:
        raise HostsError(error)
    return hosts


def _mismatch(hello: dict[str, Any], arrived: dict[int, str], num_processes: int) -> str:
    process, host = hello["process_id"], hello["host"]
    if hello["num_processes"] != num_processes:
        return (
            f"process {process} ({host}) was started with --num_processes={hello['num_processes']}, process 0 "
            f"({arrived[0]}) with {num_processes}: give both the same --num_processes"
        )
    if process in arrived:
        return f"{arrived[process]} and {host} both say they are process {process}: give each its own --process_id"
    return ""


def _join(host: str, port: int, hello: dict[str, Any], timeout_s: float) -> list[str]:
    deadline = time.monotonic() + timeout_s
    answer = None
    while answer is None:
        try:
            with socket.create_connection((host, port), timeout=max(deadline - time.monotonic(), 0.1)) as connection:
                _send(connection, hello)
                answer = _receive(connection, timeout_s + HELLO_TIMEOUT_S)  # process 0 waits that long for the others
        except OSError as failure:
            reason = str(failure)
        else:
            reason = "it closed the connection"
        if answer is None and time.monotonic() > deadline:
            raise HostsError(
                f"process 0 did not arrive: process {hello['process_id']} ({hello['host']}) could not reach it at "
                f"{host}:{port} within {timeout_s:g} s ({reason})"
            )
        if answer is None:
            time.sleep(RETRY_S)
    if answer["error"]:
        raise HostsError(answer["error"])
    return answer["hosts"]


def _send(connection: socket.socket, message: dict[str, Any]) -> None:
    with suppress(OSError):  # a broken connection is noticed where the answer is missing
        connection.sendall(json.dumps(message).encode() + b"\n")


def _receive(connection: socket.socket, timeout_s: float) -> dict[str, Any] | None:
    """One line of JSON; None for anything else, as a closed connection."""
    connection.settimeout(timeout_s)
    try:
        with connection.makefile("rb") as file:
            message = json.loads(file.readline(2**20))
    except (OSError, ValueError):
        return None
    return message if isinstance(message, dict) else None
