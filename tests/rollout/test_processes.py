"""Workers of a release: replaced with it under load, and no job is lost or done twice."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from conftest import Site

JOBS = 200
WORKER = """
import os, signal, time
from pathlib import Path
import psycopg

stopping = []
signal.signal(signal.SIGTERM, lambda *_: stopping.append(True))
log = open(Path(os.environ["APP_STATE_DIRECTORY"]) / "work/done.log", "a")
NEXT = (
    "UPDATE items SET name = 'done ' || name WHERE id = (SELECT id FROM items "
    "WHERE name NOT LIKE 'done %%' ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED) RETURNING id"
)
while not stopping:
    try:
        with psycopg.connect(os.environ["DATABASE_URL"], prepare_threshold=None) as connection:
            while not stopping:
                row = connection.execute(NEXT).fetchone()
                connection.commit()
                if row:  # what cannot be undone: a mail, a payment
                    log.write(f"{row[0]} {os.environ['APP_VERSION']}\\n")
                    log.flush()
                else:
                    time.sleep(0.05)
    except psycopg.OperationalError:
        time.sleep(0.2)
"""
VARIABLES = {
    "app_state_directories": ["work"],
    "app_processes": {"worker": {"command": "work.py", "connections": 1}},
}


def done(site: Site) -> list[tuple[str, str]]:
    """Return (job, release) for each time that a worker of any host has done one."""
    log = f"/srv/{site.framework}/state/work/done.log"
    lines = [line for h in site.hosts.values() for line in h.run(f"cat {log}").stdout.splitlines()]
    return [(line.split()[0], line.split()[1]) for line in lines]


def test_no_job_is_lost_or_done_twice(
    sites: Callable[[str], Site], release: Callable[..., Path]
) -> None:
    """Two releases and the way back, while requests bring jobs and both hosts' workers do them."""
    site = sites("django")
    unit = f"systemctl is-active {site.framework}.worker"
    old = release("django", "old", {"work.py": lambda _: WORKER})
    new = release("django", "new", {"work.py": lambda _: WORKER + "# another release\n"})
    try:
        assert site.deploy(old, **VARIABLES).code == 0
        (first,) = site.releases()
        site.rows("UPDATE items SET name = 'done ' || name WHERE name NOT LIKE 'done %'")
        with site.traffic(clients=4, pause_seconds=0.05) as traffic:
            run = site.deploy(new, **VARIABLES)
            (second,) = site.releases()
            back = site.play("ansible/playbooks/rollback.yml")
            traffic.wait_for(JOBS)
        assert run.code == 0, run.output[-3000:]
        assert back.code == 0, back.output[-3000:]
        assert site.releases() == {first}
        site.assert_nothing_lost(traffic)
        left = "SELECT count(*) FROM items WHERE name NOT LIKE 'done %'"
        end = time.monotonic() + 30
        while site.rows(left) != ["0"] and time.monotonic() < end:
            time.sleep(0.5)
        jobs = done(site)
        names = [job for job, _ in jobs]
        assert len(names) == len(set(names)), "a job was done twice"
        assert site.rows(left) == ["0"]
        assert len(names) >= len(traffic.keys)
        assert {version for _, version in jobs} >= {first, second}
        for host in site.hosts.values():
            assert host.check_output(unit) == "active"
    finally:
        assert site.deploy().code == 0
    for host in site.hosts.values():
        assert host.run(unit).rc != 0
        assert (
            host.check_output("ls /etc/systemd/system | grep -c 'django[.]worker' || true") == "0"
        )
