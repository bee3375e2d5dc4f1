"""An application with everything at once: two releases and the way back under load, on two hosts.

Static files with hashed names, uploads, a worker, a timer, a second database and a replica, a
system package, a schema of its own, one that a migration makes, and objects of a superuser in its
database.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from conftest import Site, make_source
from controller import connect
from traffic import Traffic

SETTINGS = """
from pathlib import Path
BASE_DIR = Path(__file__).resolve().parent.parent
INSTALLED_APPS += ["django.contrib.staticfiles", "reports"]
STATIC_URL, STATIC_ROOT, STATICFILES_DIRS = "/static/", BASE_DIR / "static", [BASE_DIR / "assets"]
STORAGES = {"staticfiles": {
    "BACKEND": "django.contrib.staticfiles.storage.ManifestStaticFilesStorage"}}
MEDIA_ROOT = Path(os.environ["APP_STATE_DIRECTORY"]) / "media"
DATABASE_ROUTERS = ["reports.router.Router"]
"""
URLS = """
import subprocess
from django.conf import settings
from django.db import connections
from django.http import HttpResponse
from django.templatetags.static import static
from django.urls import re_path
from django.views.decorators.csrf import csrf_exempt
from django.views.static import serve
from reports.models import Report

def page(request):
    said = subprocess.run(["hello"], capture_output=True, text=True).stdout.strip()
    with connections["replica"].cursor() as cursor:
        cursor.execute("SELECT count(*) FROM estate.items")
    return HttpResponse(f"{settings.APP_VERSION} {static('page.css')} {said}")

@csrf_exempt
def upload(request, name):
    (settings.MEDIA_ROOT / name).write_bytes(request.body)
    Report.objects.create(name=name)
    return HttpResponse(status=201)

urlpatterns += [path("page", page), path("upload/<name>", upload),
    re_path("^static/(?P<path>.*)$", serve, {"document_root": settings.STATIC_ROOT})]
"""
MODELS = """
from django.db import models

class Report(models.Model):
    name = models.TextField()
"""
ROUTER = """
class Router:
    def db_for_read(self, model, **hints):
        return "reports" if model._meta.app_label == "reports" else None
    db_for_write = db_for_read

    def allow_migrate(self, db, app_label, **hints):
        return (db == "reports") == (app_label == "reports")
"""
REPORTS = """
from django.db import migrations, models

class Migration(migrations.Migration):
    initial = True
    operations = [migrations.CreateModel("Report", [
        ("id", models.BigAutoField(primary_key=True)), ("name", models.TextField())])]
"""
AUDIT = """
from django.db import migrations

class Migration(migrations.Migration):
    dependencies = [("items", "0002_created_at_index")]
    operations = [migrations.RunSQL(
        "CREATE SCHEMA audit; CREATE TABLE audit.ticks (version text, host text)")]
"""
TICK = """
import os, socket
from django.core.management.base import BaseCommand
from django.db import connection

class Command(BaseCommand):
    def handle(self, *_, **__):
        with connection.cursor() as cursor:
            cursor.execute("INSERT INTO audit.ticks VALUES (%s, %s)",
                [os.environ["APP_VERSION"], socket.gethostname()])
"""
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
FILES = {
    "config/settings.py": lambda text: text + SETTINGS,
    "config/urls.py": lambda text: text + URLS,
    "work.py": lambda _: WORKER,
    "reports/__init__.py": str,
    "reports/models.py": lambda _: MODELS,
    "reports/router.py": lambda _: ROUTER,
    "reports/migrations/__init__.py": str,
    "reports/migrations/0001_initial.py": lambda _: REPORTS,
    "items/migrations/0003_audit.py": lambda _: AUDIT,
    "items/management/commands/tick.py": lambda _: TICK,
}
VARIABLES = {
    "app_state_directories": ["media", "work"],
    "app_system_packages": ["hello"],
    "app_build_commands": ["mkdir -p assets", "cat RELEASE > assets/page.css"],
    "app_processes": {
        "worker": {"command": "work.py", "connections": 1},
        "tick": {"command": "manage.py tick", "schedule": "*:*:0/4"},
    },
    # Another server is not to be had here: the replica is the same one, by its address.
    "app_databases": {"reports": {}, "replica": {"host": "172.29.218.30"}},
    "app_database_settings": {"search_path": ["estate", "public"], "statement_timeout": "20s"},
    # Two pools of 10 + 2 on two hosts would be more than PostgreSQL takes: the budget says so.
    "pgbouncer_databases": {"estate_reports": {"pool_size": 4}},
}
SUPERUSERS = "CREATE EXTENSION pg_buffercache; CREATE TABLE public.replication_audit (id int)"


class Visitors(Traffic):
    """Each client also loads a page with its style sheet, as a browser does, and uploads a file."""

    def __init__(self, urls: list[str], **parameters: float) -> None:
        super().__init__(urls, **parameters)
        self.uploads: list[str] = []
        self.sheets: set[str] = set()

    def client(self, number: int) -> None:
        sessions = [httpx.Client(base_url=url, timeout=30) for url in self.urls]
        count = 0
        while not self.end.is_set():
            session = sessions[count % len(sessions)]
            key = f"{self.run}-{number}-{count}"
            count += 1
            if self.request(session, 201, "POST", "/items", json={"key": key, "name": "job"}):
                self.keys.append(key)
            if page := self.request(session, 200, "GET", "/page"):
                sheet = re.search(r"/static/\S+", page.text)[0]
                time.sleep(self.pause)  # the release may change before the browser asks for it
                if self.request(session, 200, "GET", sheet):
                    self.sheets.add(sheet)
            if self.request(session, 201, "POST", f"/upload/{key}", content=key.encode()):
                self.uploads.append(key)
            time.sleep(self.pause)


@pytest.fixture(scope="module")
def estate(
    sites: Callable[..., Site], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Site, dict[str, Path]]]:
    """Return the site with the release one, and the sources of all by their names."""
    folder = tmp_path_factory.mktemp("sources")
    sources = {name: make_source(folder, "django", name, FILES) for name in ("one", "two", "three")}
    site = sites("estate", **VARIABLES, app_source=str(sources["one"]))
    yield site, sources
    gone = {"app_processes": {}}
    assert site.play("ansible/playbooks/app.yml", **gone).code == 0


def lines(site: Site, command: str) -> list[str]:
    """Return what a command prints on all hosts."""
    return [line for h in site.hosts.values() for line in h.check_output(command).splitlines()]


def test_two_releases_and_back_under_load(estate: tuple[Site, dict[str, Path]]) -> None:
    site, sources = estate
    (first,) = site.releases()
    database = connect("db3", "community.docker.docker", "poolkit-test-db3")
    database.check_output("sudo -u postgres psql -qd estate -c %s", SUPERUSERS)
    with Visitors(list(site.urls.values()), clients=4, pause_seconds=0.05) as traffic:
        # The whole deployment: grants, poolers and all, with somebody else's objects there.
        second = site.play("site.yml", app_source=str(sources["two"]))
        (version,) = site.releases()
        third = site.deploy(sources["three"])
        back = site.play("ansible/playbooks/rollback.yml")
        traffic.wait_for(1000)
    for run in (second, third, back):
        assert run.code == 0, run.output[-3000:]
    assert site.releases() == {version}
    assert first != version
    site.assert_nothing_lost(traffic)
    # Each page found its style sheet, also where the release had changed meanwhile.
    assert len(traffic.sheets) == 3
    uploads = lines(site, "ls /srv/estate/state/media")
    assert sorted(uploads) == sorted(traffic.uploads)
    # The second database has a row for each of them, once.
    assert sorted(site.rows("SELECT name FROM reports_report", "estate.reports_owner")) == sorted(
        uploads
    )
    left = "SELECT count(*) FROM items WHERE name NOT LIKE 'done %'"
    end = time.monotonic() + 30
    while site.rows(left) != ["0"] and time.monotonic() < end:
        time.sleep(0.5)
    assert site.rows(left) == ["0"]
    done = [line.split() for line in lines(site, "cat /srv/estate/state/work/done.log")]
    jobs = [job for job, _ in done]
    assert len(jobs) == len(set(jobs)), "a job was done twice"
    assert len(jobs) >= len(traffic.keys)
    assert len({release for _, release in done}) == 3
    # The timer ran on each host, with each release.
    ticks = set(site.rows("SELECT DISTINCT host, version FROM audit.ticks"))
    assert {row.split("|")[1] for row in ticks} >= {first, version}
    assert {row.split("|")[0] for row in ticks} == {
        host.check_output("hostname") for host in site.hosts.values()
    }
    # Its own schema, and none of the superuser's objects are the application's.
    assert site.rows("SELECT count(*) FROM estate.items", "estate") == [str(len(traffic.keys))]
    assert (
        "permission denied for table replication_audit"
        in site.hosts["web2"]
        .run(
            "cd /etc/poolkit/estate; PGSERVICEFILE=pg_service.conf PGPASSFILE=pgpass "
            "psql -XAtqc 'TABLE public.replication_audit' service=estate"
        )
        .stderr
    )
    assert "estate gets no rights on public.replication_audit (postgres)" in second.output
    assert "Hello, world!" in httpx.get(f"{site.urls['web1']}/page").text
    # All databases are the pooler's, each with a pool.
    served = set(re.findall(r"^estate\w*", site.served(), re.MULTILINE))
    assert served == {"estate", "estate_reports", "estate_replica"}
    assert "estate.replica is on 172.29.218.30:5432, which is not the server" in second.output


def test_a_worker_that_is_killed_comes_back_with_its_release(
    estate: tuple[Site, dict[str, Path]],
) -> None:
    site, sources = estate
    host = site.hosts["web1"]
    pid = "systemctl show -P MainPID estate.worker"
    before = host.check_output(pid)
    host.check_output(f"kill -KILL {before}")
    end = time.monotonic() + 10
    while host.check_output(pid) in ("0", before) and time.monotonic() < end:
        time.sleep(0.2)
    assert host.check_output(pid) not in ("0", before)
    # The environment of migrations has the version that a rollback went back from; after that a
    # second run changes nothing.
    assert site.deploy(sources["two"]).code == 0
    run = site.deploy(sources["two"])
    assert run.code == 0
    assert set(run.changed.values()) == {0}, run.output[-3000:]


def test_a_run_that_is_killed_at_the_switch_is_finished_by_the_next(
    estate: tuple[Site, dict[str, Path]],
) -> None:
    """SIGKILL to the module as it starts the first worker of the new release."""
    site, sources = estate
    (before,) = site.releases()
    host = site.hosts["web1"]
    trap = "/etc/systemd/system/estate.worker.service.d"
    holder = "lslocks -nro PID,PATH | grep /etc/poolkit/estate/.lock | cut -d ' ' -f 1"
    kill = f'ExecStartPre=+/bin/sh -c "kill -KILL $({holder})"'
    host.check_output(f"mkdir -p {trap} && printf '[Service]\\n%%s\\n' %s > {trap}/kill.conf", kill)
    with Visitors(list(site.urls.values()), clients=2, pause_seconds=0.05) as traffic:
        killed = site.deploy(sources["three"])
        host.check_output(f"rm -r {trap} && systemctl daemon-reload")
        again = site.deploy(sources["three"])
    assert killed.code != 0
    assert again.code == 0, again.output[-3000:]
    site.assert_nothing_lost(traffic)
    (after,) = site.releases()
    assert after != before
    for each in site.hosts.values():
        assert each.check_output("systemctl is-active estate.worker estate.tick.timer") == (
            "active\nactive"
        )
