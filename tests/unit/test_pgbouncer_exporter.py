"""What the exporter makes of psql's output; the scenario `console` scrapes it."""

import getpass
import socket
import subprocess
import threading
import time
from http.server import ThreadingHTTPServer
from pathlib import Path

import httpx
import pgbouncer_exporter as exporter
import pytest

from plugins.module_utils import pgbouncer_console

POOLS = """database,user,cl_active,cl_waiting,sv_tested,maxwait,maxwait_us,pool_mode
shop,shop,3,1,2,4,250,transaction
"a""b\\c",shop,0,0,0,0,0,transaction
"""
DATABASES = "name,database,pool_size,paused,disabled\nshop,other,7,1,0\n"
STATS = "database,total_xact_count,total_wait_time,avg_wait_time\nshop,12,1500000,3\n"
LISTS = "list,items\ndatabases,2\nused_clients,4\n"
CONFIG = "key,value,default,changeable\nmax_client_conn,500,100,yes\nuser,pgbouncer,,no\n"
STATE = "key,value\nactive,no\npaused,yes\nsuspended,no\n"


def text(*parts: str) -> str:
    return exporter.exposition(exporter.samples("2", "".join(f"{part}\n" for part in parts)))


def test_each_command_becomes_metrics() -> None:
    lines = text(POOLS, DATABASES, STATS, LISTS, CONFIG, STATE).splitlines()
    shop = 'process="2",database="shop"'
    for line in (
        'pgbouncer_up{process="2"} 1.0',
        f'pgbouncer_pools_client_waiting_connections{{{shop},user="shop"}} 1.0',
        f'pgbouncer_pools_server_testing_connections{{{shop},user="shop"}} 2.0',
        f'pgbouncer_pools_client_maxwait_seconds{{{shop},user="shop"}} 4.00025',
        f"pgbouncer_databases_pool_size{{{shop}}} 7.0",
        f"pgbouncer_databases_paused{{{shop}}} 1.0",
        f"pgbouncer_stats_sql_transactions_pooled_total{{{shop}}} 12.0",
        f"pgbouncer_stats_client_wait_seconds_total{{{shop}}} 1.5",
        'pgbouncer_used_clients{process="2"} 4.0',
        'pgbouncer_config_max_client_connections{process="2"} 500.0',
        'pgbouncer_paused{process="2"} 1.0',
    ):
        assert line in lines
    assert "# TYPE pgbouncer_stats_client_wait_seconds_total counter" in lines
    assert "# TYPE pgbouncer_databases_pool_size gauge" in lines


def test_label_values_are_escaped() -> None:
    assert 'database="a\\"b\\\\c"' in text(POOLS)


def test_type_stands_once_before_all_processes() -> None:
    both = exporter.samples("1", POOLS) + exporter.samples("2", POOLS)
    lines = exporter.exposition(both).splitlines()
    start = lines.index("# TYPE pgbouncer_up gauge")
    assert lines[start + 1 :] == ['pgbouncer_up{process="1"} 1.0', 'pgbouncer_up{process="2"} 1.0']
    assert sum("TYPE pgbouncer_up " in line for line in lines) == 1


def test_version_without_state_is_up() -> None:
    lines = text(POOLS, DATABASES, STATS, LISTS, CONFIG, "").splitlines()
    assert 'pgbouncer_up{process="2"} 1.0' in lines
    assert not any("pgbouncer_paused" in line for line in lines)


def test_silent_process_is_down() -> None:
    assert text("") == '# TYPE pgbouncer_up gauge\npgbouncer_up{process="2"} 0.0\n'


def test_processes_are_asked_as_by_every_other_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program stands alone on its host, so what it shares with the console is compared here."""
    asked = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        asked.extend(command)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(exporter.subprocess, "run", run)
    exporter.scrape("2", "6432", "watcher")
    socket = (str(pgbouncer_console.RUNTIME_DIRECTORY / "2"), "6432")
    console = pgbouncer_console.Console(2, socket, "pgbouncer").psql
    where = slice(console.index("-h"), console.index("-U"))
    assert " ".join(console[where]) in " ".join(asked)
    assert asked[-1] == console[console.index("-d") + 1]


def test_kills_of_the_watchdog_are_counted(tmp_path: Path) -> None:
    """Also where it has never killed, so that an alert sees the first one."""
    (tmp_path / "2").write_text("3\n")
    found = [*exporter.kills(str(tmp_path), "1"), *exporter.kills(str(tmp_path), "2")]
    assert exporter.exposition(found).splitlines() == [
        "# TYPE pgbouncer_watchdog_kills_total counter",
        'pgbouncer_watchdog_kills_total{process="1"} 0.0',
        'pgbouncer_watchdog_kills_total{process="2"} 3.0',
    ]
    assert exporter.kills(str(tmp_path / "no-watchdog"), "1")[0][2] == 0.0


def test_connections_past_the_pooler_are_counted_by_user() -> None:
    user = getpass.getuser()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        with socket.create_connection(("127.0.0.1", int(port))):
            for hosts in ("localhost", "no.such.host.invalid,127.0.0.1"):
                server = exporter.Server(hosts, port)
                found = exporter.past_the_pooler(server, "pgbouncer")
                assert found == [("direct_connections", {"user": user}, 1.0)]
            assert exporter.past_the_pooler(server, user) == []
    for hosts in ("no.such.host.invalid", "/run/postgresql"):
        assert exporter.past_the_pooler(exporter.Server(hosts, "5432"), "pgbouncer") == []


def test_scrape_is_answered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(exporter, "scrape", lambda number, *_: exporter.samples(number, ""))
    words = ["--listen", "127.0.0.1", "0", "--processes", "1", "--port", "6432", "--user", "x"]
    words += ["--pooler-user", "pgbouncer", "--kills", str(tmp_path), "--database", "::1", "1"]
    monkeypatch.setattr("sys.argv", ["exporter", *words])
    made = []

    class Listening(ThreadingHTTPServer):
        def serve_forever(self, poll_interval: float = 0.5) -> None:
            made.append(self)
            self.handle_request()

    monkeypatch.setattr(exporter, "ThreadingHTTPServer", Listening)
    thread = threading.Thread(target=exporter.main)
    thread.start()
    while not made:
        time.sleep(0.01)
    answer = httpx.get(f"http://127.0.0.1:{made[0].server_port}/metrics")
    thread.join()
    made[0].server_close()
    assert answer.status_code == 200
    assert 'pgbouncer_up{process="1"} 0.0' in answer.text
    assert 'pgbouncer_watchdog_kills_total{process="1"} 0.0' in answer.text
