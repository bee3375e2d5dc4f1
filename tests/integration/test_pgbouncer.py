"""The configuration transaction, on the Flask host's pooler, under clients that notice errors."""

import csv
import io
import json
import re
from collections.abc import Iterator

import pytest
from conftest import Application, ansible

CLIENTS = """
import json, os, sys, threading, time
import psycopg
end, counts, lock = time.monotonic() + float(os.environ["SECONDS"]), {"ok": 0, "errors": []}, threading.Lock()
url = os.environ["DATABASE_DIRECT_URL"].split("@")[0] + "@127.0.0.1:6432/" + os.environ["APP_NAME"]
def client():
    done = 0
    try:
        with psycopg.connect(url, prepare_threshold=None, autocommit=True) as connection:
            while time.monotonic() < end:
                with connection.transaction():
                    connection.execute("SELECT count(*) FROM items WHERE id < 5").fetchone()
                done += 1
                time.sleep(0.02)
    except Exception as error:
        with lock:
            counts["errors"].append(str(error)[:200])
    with lock:
        counts["ok"] += done
threads = [threading.Thread(target=client) for _ in range(50)]
[thread.start() for thread in threads]
print("started", flush=True)
[thread.join() for thread in threads]
print(json.dumps(counts), flush=True)
"""  # noqa: E501 (a program of its own)


class Clients:
    """50 connections that run transactions through the pooler all the time, each connected once."""

    def __init__(self, application: Application) -> None:
        self.name, self.host = application.name, application.host

    def start(self, seconds: int) -> None:
        command = self.host.check_output(f"systemctl show -P ExecStart {self.name}")
        python = command.split("path=")[1].split("/gunicorn")[0] + "/python"
        self.host.check_output(
            "systemd-run --unit=clients --property=Type=exec --property=User=%s"
            " --property=EnvironmentFile=/etc/poolkit/%s/app.env --setenv=SECONDS=%s"
            " --property=StandardOutput=file:/run/clients.out %s -c %s",
            *(self.name, self.name, str(seconds), python, CLIENTS),
        )
        self.host.check_output(
            "timeout 20 sh -c 'until grep -q started /run/clients.out; do sleep 0.1; done'"
        )

    def finish(self) -> dict:
        """Wait for the end; return {ok: transactions, errors: messages}."""
        self.host.check_output(
            "timeout 120 sh -c 'while systemctl -q is-active clients; do sleep 0.5; done'"
        )
        return json.loads(self.host.check_output("tail -n 1 /run/clients.out"))


@pytest.fixture
def flask(applications: dict[str, Application]) -> Iterator[Application]:
    """The Flask host; its pooler has the inventory's configuration again at the end."""
    application = applications["flask"]
    yield application
    application.host.run("systemctl stop clients; systemctl reset-failed clients")
    application.host.run("rm -f /run/clients.out")
    assert configure(application)[0] == 0


def configure(application: Application, **variables: object) -> tuple[int, str]:
    """Run pgbouncer.yml on one host with extra variables; return (exit code, output in a line)."""
    run = ansible(
        *("ansible-playbook", "ansible/playbooks/pgbouncer.yml", "-v"),
        *("--limit", application.inventory_host, "-e", json.dumps(variables)),
    )
    return run.returncode, re.sub(r"\s+", " ", run.stdout)


def console(application: Application, command: str) -> list[dict[str, str]]:
    text = application.host.check_output(
        "sudo -u pgbouncer psql -X --csv -h /run/pgbouncer/1 -p 6432 -U pgbouncer -c %s pgbouncer",
        command,
    )
    return list(csv.DictReader(io.StringIO(text)))


def pool_size(application: Application) -> str:
    rows = console(application, "SHOW DATABASES")
    return next(row["pool_size"] for row in rows if row["name"] == application.name)


def start_time(application: Application) -> str:
    return application.host.check_output(
        "systemctl show -P ExecMainStartTimestampMonotonic pgbouncer@1"
    )


def test_pool_size_changes_under_50_clients_without_an_error(flask: Application) -> None:
    """7, 9, 7: applied by reload, read back, and no client loses its connection."""
    started, clients = start_time(flask), Clients(flask)
    clients.start(seconds=45)
    for size in (7, 9, 7):
        code, output = configure(flask, pgbouncer_databases={"flask": {"pool_size": size}})
        assert code == 0, output[-2000:]
        assert "action: reload" in output
        assert pool_size(flask) == str(size)
    result = clients.finish()
    assert result["errors"] == []
    assert result["ok"] > 5000
    assert start_time(flask) == started


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        (
            {"pgbouncer_settings": {"client_tls_sslmode": "require"}},
            "PgBouncer refuses the new configuration: ERROR To allow TLS connections",
        ),
        (
            {"pgbouncer_client_addresses": ["300.1.1.1/32"]},
            "PgBouncer refuses the new configuration: WARNING hba line",
        ),
        (
            {"pgbouncer_settings": {"server_tls_ca_file": "/nonexistent"}},
            "server_tls_ca_file: there is no file /nonexistent",
        ),
    ],
)
def test_refused_candidate_changes_nothing(flask: Application, variables: dict, words: str) -> None:
    state = "sha256sum /etc/pgbouncer/*; systemctl show -P StateChangeTimestamp pgbouncer@1"
    before, clients = flask.host.check_output(state), Clients(flask)
    clients.start(seconds=8)
    code, output = configure(flask, **variables)
    assert code != 0
    assert words in output, output[-2000:]
    assert "Nothing was changed" in output
    assert flask.host.check_output(state) == before
    assert clients.finish()["errors"] == []


def test_process_that_cannot_listen_is_undone(flask: Application) -> None:
    """An address that is not the host's: a restart that fails, and the old one is back."""
    before = flask.host.check_output("sha256sum /etc/pgbouncer/*")
    code, output = configure(flask, pgbouncer_listen_addr="203.0.113.9")
    assert code != 0
    assert "restored: true" in output, output[-2000:]
    assert flask.host.check_output("sha256sum /etc/pgbouncer/*") == before
    assert flask.psql("flask", "SELECT 1", host="127.0.0.1", port="6432") == "1"


def test_port_changes_by_restart(flask: Application) -> None:
    code, output = configure(flask, pgbouncer_listen_port=6433)
    assert code == 0, output[-2000:]
    assert "action: restart" in output
    assert "restart_reason: - listen_port" in output
    assert flask.psql("flask", "SELECT 1", host="127.0.0.1", port="6433") == "1"


def test_removed_setting_goes_back_to_its_default(flask: Application) -> None:
    """One that only a restart makes the process forget."""
    code, _ = configure(flask, pgbouncer_settings={"tcp_keepidle": 90, "listen_backlog": 64})
    assert code == 0
    code, output = configure(flask)
    assert code == 0
    assert "restart_reason: - listen_backlog" in output
    live = {row["key"]: row["value"] for row in console(flask, "SHOW CONFIG")}
    assert (live["tcp_keepidle"], live["listen_backlog"]) == ("0", "128")


def test_removed_user_loses_its_limits(flask: Application) -> None:
    """A reload alone would keep them until the next restart (upstream issue 1594)."""

    def limit() -> str:
        rows = console(flask, "SHOW USERS")
        return next(row["max_user_connections"] for row in rows if row["name"] == "flask")

    unset, started = limit(), start_time(flask)
    assert configure(flask, pgbouncer_users={"flask": {"max_user_connections": 3}})[0] == 0
    assert limit() == "3"
    assert configure(flask)[0] == 0
    assert limit() == unset
    assert start_time(flask) == started


def test_drift_of_the_process_is_caught_up(flask: Application) -> None:
    """The files are right and the process is not, as after a reload that failed."""
    path = "/etc/pgbouncer/pgbouncer.ini"
    flask.host.check_output(f"cp -p {path} /run/kept.ini && sed -i 's/= 10$/= 11/' {path}")
    flask.host.check_output("systemctl reload pgbouncer@1")
    flask.host.check_output(f"mv /run/kept.ini {path}")
    code, output = configure(flask)
    assert code == 0
    assert "action: reload" in output
    again, output = configure(flask)
    assert again == 0
    assert "action: none" in output
