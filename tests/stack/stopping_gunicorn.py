"""Stop gunicorn while a connection is silent; prints its answer, and how long the stop took.

Runs on an application's host with the Python of its release. Arguments: gunicorn's configuration,
then "queued", for a connection that waits for a thread, or "idle", for one that the poller has.
"""

import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

APPLICATION = """
import time

def application(environ, start_response):
    time.sleep(1 if environ["PATH_INFO"] == "/slow" else 0)
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""
PORT = 9871


def connect() -> socket.socket:
    return socket.create_connection(("127.0.0.1", PORT), timeout=10)


configuration, kind = sys.argv[1:]
folder = Path(tempfile.mkdtemp())
(folder / "slow.py").write_text(APPLICATION)
server = subprocess.Popen(
    [
        *(Path(sys.executable).parent / "gunicorn", "--config", configuration, "slow:application"),
        *("--workers=1", "--threads=1", "--keep-alive=65", f"--bind=127.0.0.1:{PORT}"),
    ],
    cwd=folder,
    env={**os.environ, "RUNTIME_DIRECTORY": str(folder)},
    stderr=subprocess.DEVNULL,
)
while not (folder / "ready").exists():
    time.sleep(0.05)
if kind == "queued":
    busy = connect()
    busy.sendall(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
    time.sleep(0.3)
silent, unused = connect(), connect()
time.sleep(0.3)
begin = time.monotonic()
server.terminate()
time.sleep(1.2)
try:
    silent.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    print(silent.recv(1000).decode().partition("\r\n")[0])
except OSError as error:
    print(error)
server.wait()
print(f"{time.monotonic() - begin:.1f}")
