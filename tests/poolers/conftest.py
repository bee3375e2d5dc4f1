"""Fixtures of the tests of the role pgbouncer, on a pooler of each supported Debian."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import psycopg
import pytest
from controller import ansible, connect, resolve
from testinfra.host import Host


@dataclass(frozen=True)
class Pooler:
    """One pooler host. Clients connect from the controller."""

    name: str
    host: Host
    address: str
    password: str = field(repr=False)

    def connect(self, **parameters: object) -> psycopg.Connection:
        """Return a connection to the database shop through the pooler."""
        defaults = {"host": self.address, "port": 6432, "dbname": "shop", "user": "shop"}
        defaults |= {"password": self.password, "connect_timeout": 5, "autocommit": True}
        return psycopg.connect(prepare_threshold=None, **{**defaults, **parameters})

    def console(self, command: str, process: int = 1) -> list[dict[str, str]]:
        """Return the rows of an admin command."""
        text = self.host.check_output(
            f"sudo -u pgbouncer psql -X --csv -h /run/pgbouncer/{process} -p 6432 -c %s", command
        )
        return list(csv.DictReader(io.StringIO(text)))

    def settings(self, process: int = 1) -> dict[str, str]:
        return {row["key"]: row["value"] for row in self.console("SHOW CONFIG", process)}

    def version(self) -> tuple[int, ...]:
        (row,) = self.console("SHOW VERSION")
        return tuple(int(part) for part in row["version"].split()[1].split("."))

    def configure(self, **variables: object) -> tuple[int, str]:
        """Run pgbouncer.yml with extra variables; return (exit code, output in one line)."""
        run = ansible(
            *("ansible-playbook", "ansible/playbooks/pgbouncer.yml", "-v"),
            *("--limit", self.name, "-e", json.dumps(variables)),
        )
        return run.returncode, re.sub(r"\s+", " ", run.stdout)

    def state(self) -> str:
        """Return what must not change: the files' checksums and the processes' start times."""
        return self.host.check_output(
            "sha256sum $(find /etc/pgbouncer /etc/systemd/system/pgbouncer* -type f); "
            "systemctl show -P ExecMainStartTimestampMonotonic -P StateChangeTimestampMonotonic"
            " 'pgbouncer@*'"
        )


@pytest.fixture(scope="session")
def poolers() -> dict[str, Pooler]:
    facts = resolve(
        "pgbouncer",
        connection="ansible_connection",
        container="ansible_host",
        address="private_address",
        password="app_database_password | default(hostvars[groups.shop[0]].app_database_password)",
    )
    return {
        name: Pooler(
            name=name,
            host=connect(name, fact["connection"], fact["container"]),
            address=fact["address"],
            password=fact["password"],
        )
        for name, fact in facts.items()
    }


@pytest.fixture(params=["trixie1", "bookworm1"])
def pooler(request: pytest.FixtureRequest, poolers: dict[str, Pooler]) -> Pooler:
    return poolers[request.param]


@pytest.fixture
def trixie(poolers: dict[str, Pooler]) -> Pooler:
    return poolers["trixie1"]


@pytest.fixture(scope="session")
def superuser_sql() -> Callable[..., str]:
    """Run a statement on the database server itself and return its rows."""
    ((host, fact),) = resolve(
        "postgres", connection="ansible_connection", container="ansible_host"
    ).items()
    server = connect(host, fact["connection"], fact["container"])

    def run(sql: str, dbname: str = "shop") -> str:
        return server.check_output("sudo -u postgres psql -XAtq -d %s -c %s", dbname, sql)

    return run


@pytest.fixture(scope="session")
def postgres(poolers: dict[str, Pooler]) -> Iterator[tuple[str, int]]:
    """PostgreSQL itself: where an application's host passes the controller's connections on.

    The server's access rules know the application's hosts and not the controller.
    """
    pooler = poolers["trixie1"]
    server = resolve(pooler.name, address="database_host ~ ':' ~ database_port")[pooler.name]
    stop = "systemctl stop relay.socket relay.service"
    pooler.host.run(stop)  # of an interrupted run
    pooler.host.check_output(
        f"systemd-run --unit=relay --socket-property=ListenStream={pooler.address}:5433"
        f" /usr/lib/systemd/systemd-socket-proxyd {server['address']}"
    )
    yield pooler.address, 5433
    pooler.host.check_output(stop)


@pytest.fixture(scope="session")
def owner(postgres: tuple[str, int]) -> Callable[[], psycopg.Connection]:
    """Connect to PostgreSQL itself as the owner role, as migrations do."""
    fact = resolve("trixie1", password="app_database_owner_password")["trixie1"]
    parameters = {"host": postgres[0], "port": postgres[1], "password": fact["password"]}
    parameters |= {"dbname": "shop", "user": "shop_owner", "connect_timeout": 5}
    return lambda: psycopg.connect(autocommit=True, **parameters)


@pytest.fixture
def restored(pooler: Pooler) -> Iterator[Pooler]:
    """A pooler that has the inventory's configuration again at the end."""
    yield pooler
    code, output = pooler.configure()
    assert code == 0, output[-2000:]
