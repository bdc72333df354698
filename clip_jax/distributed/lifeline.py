"""An open connection from each process to the first one, which breaks when its process is killed or its host is gone.

JAX learns of a dead process by a collective that fails, if at all, or by missing heartbeats after minutes, and says
neither which one it was nor where.
"""

import json
import socket
import threading
from collections.abc import Callable
from contextlib import suppress

CONNECT_TIMEOUT_S = 20.0
KEEPALIVE = {
    "TCP_KEEPIDLE": 10,
    "TCP_KEEPINTVL": 5,
    "TCP_KEEPCNT": 3,
}  # seconds, seconds, probes: of a host without power


def listen(on_lost: Callable[[int], None]) -> int:
    """On the first process: the port for the others. Calls on_lost with the index of one whose connection breaks."""
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    server = socket.create_server(("", 0), family=family, dualstack_ipv6=dual)

    def watch(connection: socket.socket) -> None:
        with suppress(OSError, ValueError), connection, connection.makefile("rb") as file:
            process = int(json.loads(file.readline(100))["process"])
            _wait_for_end(connection)
            on_lost(process)

    def accept() -> None:
        with suppress(OSError):
            while True:
                _start(watch, server.accept()[0])

    _start(accept)
    return server.getsockname()[1]


def connect(host: str, port: int, process: int, on_lost: Callable[[], None]) -> None:
    """On another process: calls on_lost when the connection to the first one breaks.

    Where the port cannot be reached, as behind a firewall, nothing is watched: JAX's own signs remain.
    """
    with suppress(OSError):
        connection = socket.create_connection((host, port), timeout=CONNECT_TIMEOUT_S)
        connection.settimeout(None)
        connection.sendall(json.dumps({"process": process}).encode() + b"\n")

        def watch() -> None:
            _wait_for_end(connection)
            on_lost()

        _start(watch)


def _wait_for_end(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    with suppress(OSError):  # of a host that is gone
        while connection.recv(100):
            pass


def _start(target: Callable[..., None], *arguments: object) -> None:
    threading.Thread(target=target, args=arguments, name="lifeline", daemon=True).start()
