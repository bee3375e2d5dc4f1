#!/usr/bin/python3
"""Serve the numbers of every PgBouncer process of this host to Prometheus.

Each scrape asks process N over its own socket in /run/pgbouncer/N, with psql. Metrics have the
common Go exporter's names and the label `process`; what a version lacks is absent. The connections
of this host that go past the poolers are the kernel's to know.
"""

from __future__ import annotations

import argparse
import csv
import pwd
import subprocess
import threading
import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tcp_connections import addresses, open_connections

LOOK_UP_SECONDS = 15
CLIENTS = ("active", "waiting")
SERVERS = ("active", "active_cancel", "being_canceled", "idle", "used", "login")
SIZES = ("pool_size", "current_connections", "max_connections", "paused", "disabled")
COLUMNS = {
    "POOLS": {f"cl_{name}": f"pools_client_{name}_connections" for name in CLIENTS}
    | {f"sv_{name}": f"pools_server_{name}_connections" for name in SERVERS}
    | {
        "cl_active_cancel_req": "pools_client_active_cancel_connections",
        "cl_waiting_cancel_req": "pools_client_waiting_cancel_connections",
        "sv_tested": "pools_server_testing_connections",
        "maxwait": "pools_client_maxwait_seconds",
    },
    "DATABASES": {name: f"databases_{name}" for name in SIZES},
    "STATS": {
        "total_xact_count": "stats_sql_transactions_pooled_total",
        "total_query_count": "stats_queries_pooled_total",
        "total_received": "stats_received_bytes_total",
        "total_sent": "stats_sent_bytes_total",
        "total_xact_time": "stats_server_in_transaction_seconds_total",
        "total_query_time": "stats_queries_duration_seconds_total",
        "total_wait_time": "stats_client_wait_seconds_total",
    },
    "LISTS": {name: name for name in ("used_clients", "login_clients", "used_servers")},
    "CONFIG": {
        "max_client_conn": "config_max_client_connections",
        "query_wait_timeout": "config_query_wait_timeout_seconds",
    },
    "STATE": {"paused": "paused"},  # PAUSE without a database, where the version tells it
}
"""SHOW command -> column -> metric without its prefix."""


def samples(process: str, output: str) -> list[tuple[str, dict[str, str], float]]:
    """Return (metric, labels, value) of psql's output: CSV for each of COLUMNS, a blank line."""
    found = []
    for what, text in zip(COLUMNS, output.split("\n\n"), strict=False):
        rows = list(csv.DictReader(text.splitlines()))
        if what in ("LISTS", "CONFIG", "STATE"):  # a name and a value in each row
            rows = [dict(list(row.values())[:2] for row in rows)]
        for row in rows:
            row["maxwait"] = f"{row.get('maxwait', 0)}.{int(row.get('maxwait_us', 0)):06}"
            labels = {"process": process}
            if what in ("POOLS", "DATABASES", "STATS"):
                labels["database"] = row.get("name") or row["database"]  # the pooler's name
                labels["user"] = row.get("user", "")
            for column in COLUMNS[what].keys() & row.keys():
                metric, value = COLUMNS[what][column], row[column]
                number = float({"yes": 1, "no": 0}.get(value, value))
                microseconds = metric.endswith("seconds_total")
                found.append((metric, labels, number / 1e6 if microseconds else number))
    return [("up", {"process": process}, float(bool(found))), *found]


def scrape(process: str, port: str, user: str) -> list[tuple[str, dict[str, str], float]]:
    command = ["psql", "-Xq", "--csv", "-h", f"/run/pgbouncer/{process}", "-p", port, "-U", user]
    command += [word for what in COLUMNS for word in ("-c", f"SHOW {what}", "-c", r"\echo")]
    try:
        done = subprocess.run([*command, "pgbouncer"], capture_output=True, text=True, timeout=5)
    except subprocess.TimeoutExpired:
        return samples(process, "")
    return samples(process, done.stdout)


def kills(directory: str, process: str) -> list[tuple[str, dict[str, str], float]]:
    """Return how often the watchdog has ended a process since the host booted."""
    path = Path(directory, process)
    number = float(path.read_text()) if path.exists() else 0.0
    return [("watchdog_kills_total", {"process": process}, number)]


def certificates(ends: list[list[str]]) -> list[tuple[str, dict[str, str], float]]:
    """Return when certificates end. ends: [name of the file, seconds since 1970] of each."""
    return [
        ("certificate_not_after_seconds", {"file": name}, float(seconds)) for name, seconds in ends
    ]


class Server:
    """The addresses of PostgreSQL, looked up beside the scrapes: a dead name server takes long."""

    def __init__(self, hosts: str, port: str) -> None:
        """hosts: as PgBouncer's `host`, names and addresses with commas; folders are left out."""
        self.ways = [(host, port) for host in hosts.split(",") if not host.startswith("/")]
        self.addresses = addresses(self.ways)
        threading.Thread(target=self.look_up, daemon=True).start()

    def look_up(self) -> None:
        while True:
            time.sleep(LOOK_UP_SECONDS)
            self.addresses = addresses(self.ways) or self.addresses


def past_the_pooler(server: Server, pooler_user: str) -> list[tuple[str, dict[str, str], float]]:
    """Return how many connections each operating system user has to PostgreSQL itself.

    An application has some while it uses the fallback, its migrations always.
    """
    count: Counter[str] = Counter()
    for uid, _, peer in open_connections():
        if peer in server.addresses:
            try:
                count[pwd.getpwuid(uid).pw_name] += 1
            except KeyError:
                count[str(uid)] += 1
    del count[pooler_user]
    return [("direct_connections", {"user": user}, float(n)) for user, n in sorted(count.items())]


def exposition(found: list[tuple[str, dict[str, str], float]]) -> str:
    """Return samples in Prometheus' text format, those of a metric together."""
    lines = defaultdict(list)
    for metric, labels, value in found:
        texts = {k: v.replace("\\", r"\\").replace('"', r"\"") for k, v in labels.items() if v}
        pairs = ",".join(f'{key}="{text}"' for key, text in texts.items())
        lines[metric].append(f"pgbouncer_{metric}{{{pairs}}} {value}\n")
    for metric in lines:
        kind = "counter" if metric.endswith("_total") else "gauge"
        lines[metric].insert(0, f"# TYPE pgbouncer_{metric} {kind}\n")
    return "".join(line for metric in sorted(lines) for line in lines[metric])


class Handler(BaseHTTPRequestHandler):
    timeout = 10
    given: argparse.Namespace
    postgresql: Server

    def do_GET(self) -> None:
        given = self.given
        numbers = [str(number) for number in range(1, given.processes + 1)]
        with ThreadPoolExecutor() as pool:
            answers = pool.map(lambda number: scrape(number, given.port, given.user), numbers)
        found = [sample for one in answers for sample in one]
        found += [sample for number in numbers for sample in kills(given.kills, number)]
        found += past_the_pooler(self.postgresql, given.pooler_user)
        found += certificates(given.certificate)
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
        self.end_headers()
        self.wfile.write(exposition(found).encode())

    def log_request(self, *_: object) -> None:
        """Leave the journal to what goes wrong."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--listen", required=True, nargs=2, metavar=("ADDRESS", "PORT"))
    parser.add_argument("--processes", required=True, type=int)
    parser.add_argument("--port", required=True, help="PgBouncer's")
    parser.add_argument("--user", required=True, help="who asks the console")
    parser.add_argument("--pooler-user", required=True, help="operating system user of PgBouncer")
    parser.add_argument("--kills", required=True, help="directory where the watchdog counts")
    parser.add_argument("--database", required=True, nargs=2, metavar=("HOSTS", "PORT"))
    parser.add_argument(
        "--certificate",
        nargs=2,
        action="append",
        default=[],
        metavar=("FILE", "SECONDS"),
        help="when the first certificate of a file of the pooler ends, in seconds since 1970",
    )
    Handler.given = given = parser.parse_args()
    Handler.postgresql = Server(*given.database)
    address, port = given.listen
    ThreadingHTTPServer((address, int(port)), Handler).serve_forever()


if __name__ == "__main__":
    main()
