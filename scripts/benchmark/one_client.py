"""One client on an application's host: what one query and one login take on each way."""

from __future__ import annotations

import json
import shlex
from typing import Any

from .stack import Application

WAYS = ("pgbouncer", "pgbouncer, socket", "direct")
PROGRAM = """
import hashlib, json, os, statistics, time
import psycopg
from psycopg.conninfo import conninfo_to_dict

pooled = conninfo_to_dict(os.environ["DATABASE_URL"])
host, port = pooled["host"].split(",")[0], str(pooled["port"]).split(",")[0]
ways = {
    "pgbouncer": {**pooled, "host": host, "port": port},
    "pgbouncer, socket": {**pooled, "host": "/run/pgbouncer/1", "port": port},
    "direct": conninfo_to_dict(os.environ["DATABASE_DIRECT_URL"]),
}
logins, queries = {way: [] for way in ways}, {way: [] for way in ways}

def timed(kept, function, *arguments):
    start = time.perf_counter()
    result = function(*arguments)
    kept.append(time.perf_counter() - start)
    return result

for _ in range(5):
    for way, facts in ways.items():
        for _ in range(10):
            with timed(logins[way], lambda: psycopg.connect(**facts)):
                pass
        with psycopg.connect(**facts, autocommit=True, prepare_threshold=None) as connection:
            cursor = connection.cursor()
            for _ in range(600):
                timed(queries[way], cursor.execute, "SELECT 1")
derived = []
for number in range(50):
    timed(derived, hashlib.pbkdf2_hmac, "sha256", b"password", number.to_bytes(16, "big"), 4096)
rows = [
    {
        "way": way,
        "query_us": round(1e6 * statistics.median(queries[way]), 1),
        "login_ms": round(1e3 * statistics.median(logins[way]), 2),
    }
    for way in ways
]
print(json.dumps({"ways": rows, "scram_key_ms": round(1e3 * statistics.median(derived), 2)}))
"""


def one_client(app: Application) -> dict[str, Any]:
    """Return {ways: [{way, query_us, login_ms}], scram_key_ms}: medians of one client in turn.

    scram_key_ms: what the client's part of SCRAM-SHA-256 takes, 4096 rounds of PBKDF2 (RFC 7677).
    """
    environment = f"EnvironmentFile=/etc/poolkit/{app.name}/app.env"
    run = f"systemd-run --quiet --pipe --wait --collect --property={environment}"
    python = f"/srv/{app.name}/current/.venv/bin/python"
    return json.loads(app.shell(f"{run} {python} -c {shlex.quote(PROGRAM)}"))
