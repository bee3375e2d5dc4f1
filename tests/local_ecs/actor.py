"""The program of the test image: actor.py serve VERSION | wait | exit CODE | print VARIABLE..."""

import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

STATE = Path(os.environ.get("STATE", "/tmp"))


def say(word):
    print(f"{time.time():.3f} {word}", flush=True)


def wait(ending):
    def stop(*_):
        say("term")
        ending.set()

    signal.signal(signal.SIGTERM, stop)
    say("start")
    (STATE / "ready").touch()
    ending.wait()
    time.sleep(float(os.environ.get("LINGER", "0.3")))
    say("end")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 65536

    def do_GET(self):
        version = sys.argv[2]
        bad = version.startswith("bad") or (STATE / "bad").exists()
        time.sleep(0.05)
        body = version.encode()
        self.send_response(503 if bad and self.path == "/health" else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


mode = sys.argv[1]
if mode == "exit":
    say("start")
    time.sleep(float(os.environ.get("LINGER", "0")))
    sys.exit(int(sys.argv[2]))
if mode == "print":
    for name in sys.argv[2:]:
        say(f"{name}={os.environ.get(name)}")
    sys.exit(0)
ending = threading.Event()
if mode == "serve":
    time.sleep(float(os.environ.get("WARMUP", "0")))
    server = ThreadingHTTPServer(("0.0.0.0", 8000), Handler)
    server.daemon_threads = False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    wait(ending)
    server.shutdown()
    server.server_close()
else:
    wait(ending)
