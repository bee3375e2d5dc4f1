"""Clients that run transactions through a pooler all the time, and count what they notice."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable

import psycopg


class Load:
    """A number of clients, as a context manager.

    lifetime_seconds: how long a client keeps a connection; None: for ever. pause_seconds: between
    two transactions of a client; the default leaves the controller's processors free. A failed
    *connect* is tried once more, as each driver's pool does; a failed transaction never.
    Afterwards: counts (transactions, connects, retried connects) and errors (messages).
    """

    def __init__(
        self,
        connect: Callable[[], psycopg.Connection],
        clients: int = 50,
        lifetime_seconds: float | None = None,
        pause_seconds: float = 0.1,
    ) -> None:
        self.connect = connect
        self.lifetime = lifetime_seconds
        self.pause = pause_seconds
        self.counts: Counter[str] = Counter()
        self.errors: list[str] = []
        self.end = threading.Event()
        self.ready = threading.Semaphore(0)
        self.threads = [threading.Thread(target=self.client) for _ in range(clients)]

    def __enter__(self) -> Load:
        for thread in self.threads:
            thread.start()
        for _ in self.threads:
            assert self.ready.acquire(timeout=60), self.errors
        return self

    def __exit__(self, *_: object) -> None:
        self.end.set()
        for thread in self.threads:
            thread.join(timeout=60)
        assert not any(thread.is_alive() for thread in self.threads)

    def open(self) -> psycopg.Connection:
        self.counts["connects"] += 1
        try:
            return self.connect()
        except psycopg.OperationalError:
            self.counts["retried connects"] += 1
            return self.connect()

    def client(self) -> None:
        try:
            connection = self.open()
            self.ready.release()
            deadline = time.monotonic() + (self.lifetime or 1e9)
            while not self.end.is_set():
                with connection.transaction():
                    connection.execute("SELECT count(*) FROM pg_class WHERE oid < 100").fetchone()
                self.counts["transactions"] += 1
                time.sleep(self.pause)
                if time.monotonic() > deadline:
                    connection.close()
                    connection = self.open()
                    deadline = time.monotonic() + self.lifetime
            connection.close()
        except Exception as error:
            self.errors.append(f"{type(error).__name__}: {error}")
            self.ready.release()
