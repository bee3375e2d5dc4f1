"""Every way to PostgreSQL verifies its certificate; one that does not pass stops a deployment."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Site
from controller import ROOT, connect, resolve
from controller import ansible as run_ansible
from testinfra.host import Host

INVENTORY = ROOT / "molecule/rollout/inventory"
PUBLIC = "/etc/ssl/certs/ca-certificates.crt"
"""Authorities, and ours is not among them."""
SAYS = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
DIRECT = """
import os
import psycopg

direct = os.environ["DATABASE_DIRECT_URL"]
for url in (direct, direct.replace("database_ca.crt", "pg_service.conf")):
    try:
        print(psycopg.connect(url).execute("{SAYS}").fetchone()[0])
    except psycopg.OperationalError as error:
        print(error)
"""


@pytest.fixture(scope="module")
def site(sites: Callable[[str], Site]) -> Site:
    return sites("django")


@pytest.mark.parametrize("name", ["web1", "web2"])
def test_service_files_verify(site: Site, name: str) -> None:
    """As the service's user and as the migrations'; with the libpq of Debian 13 and of 12."""
    host = site.hosts[name]
    for user, files, service in (
        ("django", "", "django_direct"),
        ("django-migrate", "migrate.", "django_direct"),
        ("django-migrate", "migrate.", "django_owner"),
    ):
        way = (
            f"sudo -u {user} env PGSERVICEFILE=/etc/poolkit/django/{files}pg_service.conf "
            f"PGPASSFILE=/etc/poolkit/django/{files}pgpass psql -XAtqc '{SAYS}' "
        )
        assert host.check_output(f"{way} service={service}") == "t"
        refused = host.run(f"{way} 'service={service} sslrootcert={PUBLIC}'")
        assert "certificate verify failed" in refused.stderr, (user, service)


def in_the_application(site: Site, name: str, program: str) -> str:
    """Run a program with the driver and the environment of the application."""
    unit = "systemd-run --quiet --pipe --wait --collect -p User=django"
    return site.hosts[name].check_output(
        f"{unit} -p EnvironmentFile=/etc/poolkit/django/app.env "
        "/srv/django/current/.venv/bin/python -c %s",
        program.replace("{SAYS}", SAYS),
    )


@pytest.mark.parametrize("name", ["web1", "web2"])
def test_direct_url_verifies(site: Site, name: str) -> None:
    encrypted, error = in_the_application(site, name, DIRECT).split("\n", 1)
    assert encrypted == "True"
    assert "could not read root certificate file" in error


FALLBACK = """
import os
import psycopg

url = os.environ["DATABASE_URL"]
print(psycopg.connect(url).info.host)
past = url.replace("/run/pgbouncer/1", "/nonexistent")
for url in (past, past.replace("database_ca.crt", "pg_service.conf")):
    try:
        print(psycopg.connect(url).execute("{SAYS}").fetchone()[0])
    except psycopg.OperationalError as error:
        print(error)
"""


@pytest.mark.parametrize("name", ["web1", "web2"])
def test_fallback_verifies(site: Site, name: str) -> None:
    """The pooler is plain, on its socket; PostgreSQL itself, in the same URL, is verified."""
    host, encrypted, error = in_the_application(site, name, FALLBACK).split("\n", 2)
    assert (host, encrypted) == ("/run/pgbouncer/1", "True")
    assert "could not read root certificate file" in error


@pytest.fixture(scope="module")
def hosts(site: Site) -> Iterator[dict[str, Host]]:
    """Every host, which also knows the database by a name that its certificate does not have."""
    facts = resolve("postgres", c="ansible_connection", a="ansible_host", ip="private_address")
    ((name, fact),) = facts.items()
    hosts = {**site.hosts, name: connect(name, fact["c"], fact["a"])}
    for host in hosts.values():
        host.check_output("echo %s elsewhere >> /etc/hosts", fact["ip"])
    yield hosts
    # The administrator's and the migrations' files are those of the last run, also a refused one.
    run = site.play("ansible/playbooks/plan.yml", "ansible/playbooks/app.yml")
    assert run.code == 0, run.output[-3000:]
    for host in hosts.values():
        host.check_output(
            "sed '/ elsewhere$/d' /etc/hosts > /tmp/hosts; cat /tmp/hosts > /etc/hosts"
        )


def state(hosts: dict[str, Host]) -> list[str]:
    """Return what a refused deployment leaves alone: what serves, and what is in the database."""
    command = (
        "readlink /srv/django/current; sha256sum /etc/pgbouncer/*.ini; "
        "ls -d /etc/poolkit/django/* | grep -v migrate | xargs sha256sum; "
        "systemctl show -P ExecMainStartTimestampMonotonic pgbouncer@1; "
        "sudo -u postgres psql -XAtqc 'SELECT * FROM pg_roles, django_migrations' django"
    )
    return [host.run(command).stdout for host in hosts.values()]


def test_wrong_name_and_wrong_authority_are_refused(site: Site, hosts: dict[str, Host]) -> None:
    before, starts = state(hosts), site.starts()
    schema = {"search_path": "django"}  # public_tables.yml asks for those that have one
    for variable, value, error in (
        ("database_host", "elsewhere", "does not match host name"),
        ("database_ca_file", PUBLIC, "certificate verify failed"),
    ):
        for playbook in ("database", "public_tables", "migrate"):
            wrong = {variable: value, "app_database_settings": schema}
            limit = ["--limit=web1"] if playbook == "migrate" else []
            run = site.play(f"ansible/playbooks/{playbook}.yml", *limit, **wrong)
            assert run.code != 0
            assert error in run.output, run.output[-3000:]
            assert re.search(
                r"database_sslmode( is verify-full|\)): give a database_host", run.output
            )
        assert state(hosts) == before
    run = site.play("ansible/playbooks/build.yml", "--limit=web1", database_ca_file="/nonexistent")
    assert "database_ca_file is /nonexistent: there is no such file" in run.output
    assert state(hosts) == before
    assert site.starts() == starts
    assert len(site.releases()) == 1


def test_plan_refuses_a_server_of_somebody_else(hosts: dict[str, Host], tmp_path: Path) -> None:
    """One that the inventory makes itself may get the right certificate only after this."""
    shutil.copytree(INVENTORY, tmp_path / "inventory")
    path = tmp_path / "inventory/hosts.yml"
    path.write_text(re.sub(r"^( +)postgres:", r"\1servers:", path.read_text(), flags=re.M))
    secrets = INVENTORY.parents[1] / ".secrets"
    for wrong, error in {
        "database_host=elsewhere": "does not match host name",
        f"database_ca_file={PUBLIC}": "certificate verify failed",
    }.items():
        run = run_ansible(
            *("ansible-playbook", "-i", str(path.parent), "ansible/playbooks/plan.yml"),
            *("-e", f"{wrong} secrets_dir={secrets}"),
        )
        output = re.sub(r"\s+", " ", run.stdout + run.stderr)
        assert run.returncode != 0
        assert error in output, output[-3000:]
        assert "PostgreSQL at " in output
        assert "database_sslmode is verify-full: give a database_host that" in output
