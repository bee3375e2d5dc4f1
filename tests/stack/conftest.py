"""Fixtures of the tests of a whole deployment: Molecule's hosts, or those of `make up`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import httpx
import pytest
from controller import connect, resolve
from testinfra.host import Host

FRAMEWORKS = ("django", "fastapi", "flask")


@dataclass(frozen=True)
class Application:
    """One deployed application, as the inventory describes it."""

    name: str
    inventory_host: str
    host: Host
    http: httpx.Client
    database_host: str
    password: str = field(repr=False)
    owner_password: str = field(repr=False)

    def psql(self, service: str, sql: str, **parameters: str) -> str:
        """Return the rows of a statement run on the host as root, through the service file."""
        return self.host.check_output(*self._psql(service, sql, parameters))

    def psql_error(self, service: str, sql: str, **parameters: str) -> str:
        """Return the message of a statement that must be refused."""
        run = self.host.run(*self._psql(service, sql, parameters))
        assert run.rc != 0, f"{service}: not refused, printed {run.stdout!r}"
        return run.stderr

    def _psql(self, service: str, sql: str, parameters: dict[str, str]) -> list[str]:
        folder = f"/etc/poolkit/{self.name}"
        passwords = parameters.pop("PGPASSFILE", f"{folder}/pgpass")
        environment = [f"PGSERVICEFILE={folder}/pg_service.conf", f"PGPASSFILE={passwords}"]
        conninfo = " ".join([f"service={service}", *(f"{k}={v}" for k, v in parameters.items())])
        words = ["env", *environment, "psql", "-XAtq", "-c", sql, conninfo]
        return [" ".join(["%s"] * len(words)), *words]

    def pools(self) -> list[dict[str, str]]:
        """Return the rows of SHOW POOLS, asked over the pooler's unix socket."""
        lines = self.host.check_output(
            "sudo -u pgbouncer psql -X --csv -h /run/pgbouncer/1 -p 6432 -U pgbouncer "
            "-c 'SHOW POOLS' pgbouncer"
        ).splitlines()
        names = lines[0].split(",")
        return [dict(zip(names, line.split(","), strict=True)) for line in lines[1:]]


@pytest.fixture(scope="session")
def applications() -> Iterator[dict[str, Application]]:
    facts = resolve(
        "applications",
        name="app_name",
        connection="ansible_connection",
        address="ansible_host",
        url="'http://127.0.0.1:%s' | format(docker_published_port)",
        password="app_database_password",
        owner_password="app_database_owner_password",
        database_host="database_host",
    )
    found = {
        fact["name"]: Application(
            name=fact["name"],
            inventory_host=inventory_host,
            host=connect(inventory_host, fact["connection"], fact["address"]),
            http=httpx.Client(base_url=fact["url"], timeout=10),
            password=fact["password"],
            owner_password=fact["owner_password"],
            database_host=fact["database_host"],
        )
        for inventory_host, fact in facts.items()
    }
    yield found
    for application in found.values():
        application.http.close()


@pytest.fixture(params=FRAMEWORKS)
def application(request: pytest.FixtureRequest, applications: dict) -> Application:
    return applications[request.param]


@pytest.fixture(scope="session")
def database() -> Host:
    """The database server's host."""
    fact = resolve("postgres", connection="ansible_connection", address="ansible_host")
    ((host, values),) = fact.items()
    return connect(host, values["connection"], values["address"])


@pytest.fixture(scope="session")
def superuser_sql(database: Host) -> Callable[[str, str], str]:
    """Run a statement on the server itself, past every pooler, and return its rows."""

    def run(dbname: str, sql: str) -> str:
        return database.check_output("sudo -u postgres psql -XAtq -d %s -c %s", dbname, sql)

    return run


@pytest.fixture(scope="session")
def secrets(applications: dict[str, Application]) -> dict[str, str]:
    """Every secret of the inventory by its name; the seed and the administrator's included."""
    shared = resolve("db1", admin="database_admin_password", seed="scram_salt_seed")["db1"]
    values = resolve("applications", environment="app_environment")
    return {
        **{f"{name} password": app.password for name, app in applications.items()},
        **{f"{name} owner": app.owner_password for name, app in applications.items()},
        **{
            f"{host} {name}": value
            for host, fact in values.items()
            for name, value in fact["environment"].items()
            if not name.startswith("PUBLIC_")
        },
        "administrator": shared["admin"],
        "seed": shared["seed"],
    }
