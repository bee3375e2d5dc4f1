"""A load balancer for tests: each HTTP request goes to the next healthy target of a target group.

As an Application Load Balancer it decides per request, not per connection: a request that has
begun is finished at a draining target, the next on the same client connection goes elsewhere.
"""

from __future__ import annotations

import http.client
import itertools
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}


class Handler(BaseHTTPRequestHandler):
    """Passes one request on; 503 without a healthy target, 502 where the target fails."""

    protocol_version = "HTTP/1.1"
    wbufsize = 65536  # headers and body in one packet
    disable_nagle_algorithm = True
    balancer: Balancer

    def forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        targets = self.balancer.targets()
        if not targets:
            return self.reply(503, [], b"no healthy target")
        host, port = targets[next(self.balancer.turn) % len(targets)]
        self.balancer.sent[host] = self.balancer.sent.get(host, 0) + 1
        headers = {key: value for key, value in self.headers.items() if key.lower() != "connection"}
        headers |= {
            "X-Forwarded-For": str(self.client_address[0]),
            "X-Forwarded-Proto": "http",
        }
        connection = http.client.HTTPConnection(host, port, timeout=60)
        try:
            connection.request(self.command, self.path, body or None, headers)
            answer = connection.getresponse()
            return self.reply(answer.status, answer.getheaders(), answer.read())
        except (OSError, http.client.HTTPException) as error:
            return self.reply(502, [], f"{host}:{port}: {error!r}".encode())
        finally:
            connection.close()

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = do_OPTIONS = forward

    def reply(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response_only(status)
        for key, value in headers:
            if key.lower() not in HOP_BY_HOP:
                self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Balancer:
    """Listens on loopback at url; targets() gives the (host, port) pairs that may get requests."""

    def __init__(self, targets: Callable[[], list[tuple[str, int]]]) -> None:
        self.targets = targets
        self.turn = itertools.count()
        self.sent: dict[str, int] = {}
        """How many requests each host got."""
        handler = type("BoundHandler", (Handler,), {"balancer": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.1,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
