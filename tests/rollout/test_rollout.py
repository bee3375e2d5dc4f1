"""Releases under traffic: nothing is refused, lost or doubled, whatever becomes of the release."""

from __future__ import annotations

import csv
import io
import os
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from conftest import Site
from testinfra.host import Host

from plugins.module_utils import migration

REQUESTS = 5000
"""At least so many in a rollout of each framework."""

Sites = Callable[[str], Site]

VIEWS = {
    "django": "items/views.py",
    "fastapi": "app/main.py",
    "flask": "app/views.py",
}

MIGRATION = {
    "django": (
        "items/migrations/0003_rollout.py",
        "from django.db import migrations\n\n\n"
        "class Migration(migrations.Migration):\n"
        "    atomic = False\n"
        '    dependencies = [("items", "0002_created_at_index")]\n'
        "    operations = [migrations.RunSQL({statements})]\n",
    ),
    "fastapi": (
        "migrations/versions/0003_rollout.py",
        "from alembic import op\n\n"
        'revision, down_revision = "0003", "0002"\n\n\n'
        "def upgrade():\n"
        "    with op.get_context().autocommit_block():\n"
        "        for statement in {statements}:\n"
        "            op.execute(statement)\n",
    ),
}
MIGRATION["flask"] = MIGRATION["fastapi"]

FORGET_MIGRATION = {
    "django": "DELETE FROM django_migrations WHERE name = '0003_rollout'",
    "fastapi": "UPDATE alembic_version SET version_num = '0002'",
    "flask": "UPDATE alembic_version SET version_num = '0002'",
}

CONCURRENTLY = [
    "SELECT pg_advisory_lock(4711)",
    "CREATE INDEX CONCURRENTLY IF NOT EXISTS items_name_idx ON items (name)",
    "SELECT pg_advisory_unlock(4711)",
]


def unready(text: str) -> str:
    """Edit the Django views: never ready."""
    return text.replace("status=200 if body", "status=503 if body")


def unready_on_tcp(text: str) -> str:
    """Edit the Django views: ready on the unix socket of the trial, and not where it serves."""
    return text.replace(
        'status=200 if body["database"] == "ok" else 503',
        'status=503 if request.META["REMOTE_ADDR"] else 200',
    )


def test_release_that_is_not_ready_never_serves(sites: Sites, release: Callable[..., Path]) -> None:
    site = sites("django")
    before, starts = site.releases(), site.starts()
    source = release("django", "unready", {VIEWS["django"]: unready})
    with site.traffic() as traffic:
        run = site.deploy(source, app_health_timeout_seconds=5)
    assert run.code != 0
    assert "was tried out and refused" in run.output
    assert "/readyz did not answer 200 within 5 s: status 503" in run.output
    assert (site.releases(), site.starts()) == (before, starts)
    assert site.hosts["web1"].run("systemctl is-active django-next").stdout.strip() == "inactive"
    site.assert_nothing_lost(traffic)


def test_release_that_fails_where_it_serves_is_rolled_back(
    sites: Sites, release: Callable[..., Path]
) -> None:
    """The trial passes and the live check does not: the old release comes back by itself."""
    site = sites("django")
    before = site.releases()
    second = site.starts()["web2"]
    source = release("django", "unready_on_tcp", {VIEWS["django"]: unready_on_tcp})
    with site.traffic() as traffic:
        run = site.deploy(source, app_health_timeout_seconds=5)
    assert run.code != 0
    (version,) = before
    assert f"The release {version} serves again." in run.output
    assert site.releases() == before
    assert site.starts()["web2"] == second, "the second batch was touched"
    site.assert_nothing_lost(traffic)


def test_failed_migration_leaves_the_old_release_everywhere(
    sites: Sites, release: Callable[..., Path]
) -> None:
    site = sites("django")
    before, starts = site.releases(), site.starts()
    broken = MIGRATION["django"][1].format(statements=["SELECT 1 / 0"])
    source = release("django", "broken", {"items/migrations/0003_broken.py": lambda _: broken})
    with site.traffic() as traffic:
        run = site.deploy(source)
    assert run.code != 0
    assert "division by zero" in run.output
    (version,) = before
    assert f"What serves: on web1, web2 {version} goes on serving" in run.output
    assert (site.releases(), site.starts()) == (before, starts)
    site.assert_nothing_lost(traffic)


def test_session_mode_and_back_under_traffic(sites: Sites) -> None:
    site = sites("django")
    with site.traffic() as traffic:
        there = site.play("site.yml", app_pool_mode="session")
        modes = {name: pool_mode(host) for name, host in site.hosts.items()}
        back = site.play("site.yml")
    assert there.code == 0, there.output[-3000:]
    assert back.code == 0, back.output[-3000:]
    assert modes == {"web1": "session", "web2": "session"}
    assert {pool_mode(host) for host in site.hosts.values()} == {"transaction"}
    assert site.readiness()["web1"]["path"] == "pooler"
    site.assert_nothing_lost(traffic)


def pool_mode(host: Host) -> str:
    """Return the pool mode of the pool django/django."""
    text = host.check_output(
        "sudo -u pgbouncer psql -X --csv -h /run/pgbouncer/1 -p 6432 -c 'SHOW POOLS'"
    )
    (row,) = [r for r in csv.DictReader(io.StringIO(text)) if r["database"] == "django"]
    return row["pool_mode"]


def test_deployment_without_a_change_restarts_nothing(sites: Sites) -> None:
    """Of app.yml; Molecule's idempotence says so of the whole site.yml."""
    site = sites("django")
    assert site.deploy().code == 0  # a deployment that failed before has left its files
    starts = site.starts()
    run = site.deploy()
    assert run.code == 0, run.output[-3000:]
    assert set(run.changed.values()) == {0}, run.output[-5000:]
    assert site.starts() == starts


def test_two_deployments_at_once(sites: Sites, release: Callable[..., Path]) -> None:
    """They take turns on each host; the one that is overtaken stops, and one release serves."""
    site = sites("django")
    sources = [
        release("django", name, {VIEWS["django"]: lambda text, name=name: f"{text}\n# {name}\n"})
        for name in ("first", "second")
    ]
    with site.traffic() as traffic, ThreadPoolExecutor(2) as pool:
        runs = list(pool.map(site.deploy, sources))
    assert any(run.code == 0 for run in runs), [run.output[-1500:] for run in runs]
    for run in runs:
        assert run.code == 0 or "another deployment has put" in run.output, run.output[-2000:]
    assert len(site.releases()) == 1
    site.assert_nothing_lost(traffic)


def test_code_alone_builds_no_environment_and_is_live_soon(sites: Sites) -> None:
    """On one host; the time is of the whole command, ansible-playbook ansible/playbooks/app.yml.

    20 s where the processors have nothing else to do; `make test` runs other scenarios beside this.
    """
    site = sites("django")
    environments = "stat -c '%n %Y' /srv/django/venvs/*/.complete"
    web1 = site.hosts["web1"]
    before = site.readiness()["web1"]["version"], web1.check_output(environments)
    begin = time.monotonic()
    run = site.play("ansible/playbooks/app.yml", "--limit=web1")
    seconds = time.monotonic() - begin
    assert run.code == 0, run.output[-3000:]
    assert site.readiness()["web1"]["version"] != before[0]
    assert web1.check_output(environments) == before[1]
    load = max(os.getloadavg()[0] / os.cpu_count(), 1)
    print(f"code alone on one host: {seconds:.1f} s, {load:.1f} processes for each processor")
    assert seconds < 20 * load


def test_rollback_leaves_one_release_everywhere(sites: Sites) -> None:
    """The test before has changed the first host alone, as a rollout that stopped half-way does."""
    site = sites("django")
    before = {host: answer["version"] for host, answer in site.readiness().items()}
    assert before["web1"] != before["web2"]
    run = site.play("ansible/playbooks/rollback.yml")
    assert run.code == 0, run.output[-3000:]
    assert site.releases() == {before["web2"]}


def test_migrations_wait_for_those_of_another_deployment(sites: Sites) -> None:
    """A session of the owner that holds the lock: the deployment says who, and changes nothing."""
    site = sites("django")
    key = migration.lock_key("django")
    holder = (
        "PGSERVICEFILE=/etc/poolkit/django/pg_service.conf "
        "PGPASSFILE=/etc/poolkit/django/migrate.pgpass systemd-run --quiet --unit=lock-holder "
        "--setenv=PGSERVICEFILE=/etc/poolkit/django/pg_service.conf "
        "--setenv=PGPASSFILE=/etc/poolkit/django/migrate.pgpass "
        f"psql service=django_owner -c 'SELECT pg_advisory_lock({key}), pg_sleep(60)'"
    )
    web2 = site.hosts["web2"]
    web2.check_output(holder)
    try:
        run = site.play("ansible/playbooks/migrate.yml", app_migration_wait_seconds=2)
    finally:
        web2.check_output("systemctl stop lock-holder")
    assert run.code != 0
    assert "another deployment's migrations hold the lock of the database django" in run.output
    assert f"connected from {httpx.URL(site.urls['web2']).host}" in run.output


def test_migration_ends_with_the_deployment_that_is_killed(sites: Sites) -> None:
    """It must not go on without the lock, neither its command nor what that has PostgreSQL do."""
    site = sites("django")
    web1 = site.hosts["web1"]
    sleeps = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(90)'"
    command = ["psql", "-XAtqc", "SELECT pg_sleep(90)", "service=django_owner"]

    def rows(expected: str, seconds: int) -> None:
        deadline = time.monotonic() + seconds
        while site.rows(sleeps) != [expected]:
            assert time.monotonic() < deadline
            time.sleep(0.3)

    with ThreadPoolExecutor(1) as pool:
        books = "ansible/playbooks/migrate.yml"
        run = pool.submit(site.play, books, "--limit=web1", app_migration_command=command)
        rows("1", 60)
        # The module is what has started systemd-run.
        web1.check_output("kill -9 $(ps -o ppid= -p $(pgrep -x systemd-run))")
        rows("0", 10)
    assert web1.run("systemctl is-active django-migrate").stdout.strip() == "inactive"
    assert run.result().code != 0
    assert (
        "django was stopped on all of its hosts: web1: Migrate the database" in run.result().output
    )


def test_migrations_refuse_a_pooler(sites: Sites, passwords: dict[str, str]) -> None:
    """A role is let through by a pooler that knows it; the migrations notice."""
    site = sites("django")
    pooler = f"postgresql://django:{passwords['user']}@127.0.0.1:6432/django"
    run = site.play(
        "ansible/playbooks/migrate.yml",
        app_connection_strategy="managed",
        app_database_url=pooler,
        app_database_direct_url=pooler,
    )
    assert run.code != 0
    assert "the connection for migrations goes through a pooler" in run.output


def test_check_mode_shows_what_is_pending(sites: Sites, release: Callable[..., Path]) -> None:
    site = sites("django")
    starts = site.starts()
    name, text = "items/migrations/0003_pending.py", MIGRATION["django"][1]
    source = release("django", "pending", {name: lambda _: text.format(statements=["SELECT 1"])})
    variables = {"app_source": str(source)}
    assert site.play("ansible/playbooks/build.yml", **variables).code == 0
    shown = site.play("ansible/playbooks/migrate.yml", "--check", **variables)
    assert "items.0003_pending" in shown.output
    assert set(shown.changed.values()) <= {0, 1}
    assert site.starts() == starts


def test_service_is_sandboxed(sites: Sites) -> None:
    site = sites("django")
    for host in site.hosts.values():
        line = host.check_output("systemd-analyze security django --no-pager | tail -n 1")
        exposure = float(re.search(r"django.service: ([0-9.]+)", line)[1])
        assert exposure <= 2.5


@pytest.mark.parametrize(
    ("framework", "serial"), [("django", 1), ("fastapi", 1), ("flask", "100%")]
)
def test_release_and_rollback_under_traffic(
    sites: Sites, release: Callable[..., Path], framework: str, serial: object
) -> None:
    """A release with a migration that builds an index CONCURRENTLY and locks, then back again.

    One host after the other, or both at once.
    """
    site = sites(framework)
    before = site.releases()
    file, text = MIGRATION[framework]
    source = release(framework, "good", {file: lambda _: text.format(statements=CONCURRENTLY)})
    with site.traffic(clients=8, pause_seconds=0.05) as traffic:
        run = site.deploy(source, app_serial=serial)
        after = site.releases()
        back = site.play("ansible/playbooks/rollback.yml", app_serial=serial)
        again = site.releases()
        traffic.wait_for(REQUESTS)
    assert run.code == 0, run.output[-3000:]
    assert back.code == 0, back.output[-3000:]
    assert len(before) == len(after) == 1
    assert after != before
    assert again == before
    assert site.rows(
        "SELECT indisvalid FROM pg_index WHERE indexrelid = 'items_name_idx'::regclass"
    ) == ["t"]
    assert traffic.requests >= REQUESTS
    site.assert_nothing_lost(traffic)
