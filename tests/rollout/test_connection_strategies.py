"""What each app_connection_strategy opens to PostgreSQL."""

from __future__ import annotations

import time
from collections.abc import Callable

import httpx
import pytest
from conftest import Site
from controller import connect, resolve
from testinfra.host import Host

WORKERS, THREADS, POOL, READINESS = 2, 4, 5, 1
"""Of molecule/rollout's inventory and the role's defaults; the example has a readiness thread."""

STRATEGIES = {
    # strategy: (path, most connections of web1 to PostgreSQL, whether they stay open)
    "pgbouncer_nopool": ("pooler", 12, True),
    "native": ("direct", WORKERS * POOL, True),
    "direct": ("direct", WORKERS * (THREADS + READINESS), False),
    "managed": ("pooler", 12, True),
}


@pytest.fixture(scope="module")
def database() -> Host:
    """The database's host: only a superuser sees where another role's connections are from."""
    facts = resolve("postgres", connection="ansible_connection", container="ansible_host")
    ((name, fact),) = facts.items()
    return connect(name, fact["connection"], fact["container"])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_strategy(
    sites: Callable[[str], Site], passwords: dict[str, str], database: Host, strategy: str
) -> None:
    site = sites("django")
    path, most, stay = STRATEGIES[strategy]
    variables = {"app_connection_strategy": strategy}
    if strategy == "managed":  # what a platform would give
        server = passwords["database"]
        variables |= {
            "app_database_url": f"postgresql://django:{passwords['user']}@127.0.0.1:6432/django",
            "app_database_direct_url": (
                f"postgresql://django_owner:{passwords['owner']}@{server}:5432/django"
            ),
        }
    psql = "sudo -u postgres psql -XAtqc %s"
    before = database.check_output(psql, "SELECT now()")
    run = site.play("ansible/playbooks/app.yml", "--limit=web1", **variables)
    assert run.code == 0, run.output[-3000:]
    assert site.readiness()["web1"]["path"] == path
    clients = f"usename = 'django' AND client_addr = '{httpx.URL(site.urls['web1']).host}'"
    backends = f"SELECT pid FROM pg_stat_activity WHERE {clients}"
    if path == "direct":  # without the idle connections of PgBouncer, from before
        backends += f" AND backend_start > '{before}'"
    seen, counts = [], []
    with site.traffic(clients=8, pause_seconds=0.02) as traffic:
        time.sleep(1.5)
        for _ in range(8):
            pids = set(database.check_output(psql, backends).split())
            seen.append(pids)
            counts.append(len(pids))
    site.assert_nothing_lost(traffic)
    assert 1 <= max(counts) <= most, counts
    assert bool(seen[0] & seen[-1]) == stay, seen
    print(f"{strategy}: {max(counts)} connections of web1, at most {most}")
