"""A load balancer for tests: TCP connections go in turn to targets that AWS calls healthy."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
from collections.abc import Callable


class Balancer:
    """Listens on loopback, as a context manager; url leads to one of targets(), (host, port) pairs.

    A connection that is open stays where it is, as with a deregistration delay.
    """

    def __init__(self, targets: Callable[[], list[tuple[str, int]]]) -> None:
        self.targets = targets
        self.turn = itertools.count()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.sent: dict[str, int] = {}
        """How many connections each host got."""

    def __enter__(self) -> Balancer:
        threading.Thread(target=self.accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.close()

    def accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            if not (targets := self.targets()):
                client.close()
                continue
            host, port = targets[next(self.turn) % len(targets)]
            self.sent[host] = self.sent.get(host, 0) + 1
            server = socket.create_connection((host, port))
            for pair in ((client, server), (server, client)):
                threading.Thread(target=self.pass_on, args=pair, daemon=True).start()

    def pass_on(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(65536):
                other.sendall(data)
            other.shutdown(socket.SHUT_WR)
