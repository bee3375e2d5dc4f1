"""HTTP clients that write and read all the time, and count what they notice."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable

import httpx


class Traffic:
    """A number of clients of an application's hosts, as a context manager.

    Each takes the hosts in turn: it adds an item with a key of its own (POST /items), then runs a
    query (GET /ping-db). Half keep their HTTP connections, half make a new one for each request.
    Nothing is tried again: a connection's error counts, and an answer other than the right one.
    Afterwards: requests, failures (messages), keys (of the items that the application acknowledged)
    and slowest_seconds.
    """

    def __init__(self, urls: list[str], clients: int = 4, pause_seconds: float = 0.15) -> None:
        self.urls = urls
        self.pause = pause_seconds
        self.run = uuid.uuid4().hex[:12]
        self.requests = 0
        self.failures: list[str] = []
        self.keys: list[str] = []
        self.slowest_seconds = 0.0
        self.end = threading.Event()
        self.lock = threading.Lock()
        self.threads = [
            threading.Thread(target=self.client, args=(number,)) for number in range(clients)
        ]

    def __enter__(self) -> Traffic:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end.set()
        for thread in self.threads:
            thread.join(timeout=60)
        assert not any(thread.is_alive() for thread in self.threads)

    def wait_for(self, requests: int, timeout_seconds: float = 120) -> None:
        """Go on until so many requests were made."""
        deadline = time.monotonic() + timeout_seconds
        while self.requests < requests and time.monotonic() < deadline:
            time.sleep(0.2)

    def assert_nothing_lost(self, name: str, rows: Callable[[str], list[str]]) -> None:
        """Each acknowledged item is there once, and no request failed.

        name: of the application, for what is printed. rows: returns a query's rows, as psql -A.
        """
        assert self.failures == []
        assert self.lost_and_more(rows) == (0, 0)
        print(
            f"{name}: {self.requests} requests, 0 failed, {len(self.keys)} rows, "
            f"slowest {self.slowest_seconds:.2f} s"
        )

    def lost_and_more(self, rows: Callable[[str], list[str]]) -> tuple[int, int]:
        """Return how many acknowledged items are not there, and how many there are beyond them.

        rows: returns a query's rows, as psql -A. A request that failed may have made its row.
        """
        found = rows(f"SELECT key FROM items WHERE key LIKE '{self.run}-%'")
        return len({*self.keys} - {*found}), len(found) - len(self.keys)

    def client(self, number: int) -> None:
        headers = {"Connection": "close"} if number % 2 else {}
        sessions = [httpx.Client(base_url=url, timeout=30, headers=headers) for url in self.urls]
        count = 0
        while not self.end.is_set():
            session = sessions[count % len(sessions)]
            key = f"{self.run}-{number}-{count}"
            count += 1
            if self.request(session, 201, "POST", "/items", json={"key": key, "name": "rollout"}):
                with self.lock:
                    self.keys.append(key)
            self.request(session, 200, "GET", "/ping-db")
            time.sleep(self.pause)

    def request(
        self, session: httpx.Client, expected: int, *what: str, **body: object
    ) -> httpx.Response | None:
        """Return the answer; None where it is not the expected one, which counts."""
        begin = time.monotonic()
        try:
            answer = session.request(*what, **body)
            failure = "" if answer.status_code == expected else f"{answer} {answer.text[:200]}"
        except httpx.HTTPError as error:
            failure = f"{type(error).__name__}: {error}"
        with self.lock:
            self.requests += 1
            self.slowest_seconds = max(self.slowest_seconds, time.monotonic() - begin)
            if failure:
                self.failures.append(f"{what} {session.base_url}: {failure}")
        return None if failure else answer
