"""docs/files-and-commands.md on a host: static files, uploads, build steps, packages, commands."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator

import pytest
from conftest import Application
from controller import ROOT, ansible

SETTINGS = """
from pathlib import Path
BASE_DIR = Path(__file__).resolve().parent.parent
INSTALLED_APPS.append("django.contrib.staticfiles")
STATIC_URL, STATIC_ROOT, STATICFILES_DIRS = "static/", BASE_DIR / "static", [BASE_DIR / "assets"]
STORAGES = {"staticfiles": {
    "BACKEND": "django.contrib.staticfiles.storage.ManifestStaticFilesStorage"}}
MEDIA_ROOT = Path(os.environ["APP_STATE_DIRECTORY"]) / "media"
"""
URLS = """
from django.conf import settings
from django.http import HttpResponse

def upload(request, name):
    (settings.MEDIA_ROOT / name).write_bytes(request.body)
    return HttpResponse(str((settings.MEDIA_ROOT / name).stat().st_size))

urlpatterns.append(path("upload/<name>", upload))
"""
WORK = """
import os, signal, sys, time
from pathlib import Path

def leave(*_):
    with open(LOG, "a") as log:
        log.write(f"left {os.environ['APP_VERSION']}\\n")
    sys.exit(0)

LOG = Path(os.environ["APP_STATE_DIRECTORY"]) / "media/work.log"
signal.signal(signal.SIGTERM, leave)
if os.environ.get("BROKEN"):
    sys.exit("no such queue")
with open(LOG, "a") as log:
    log.write(f"began {os.environ['APP_VERSION']} {os.environ['DATABASE_URL'][:12]}\\n")
while True:
    time.sleep(0.1)
"""
PROCESSES = {
    "worker": {"command": "work.py", "connections": 0},
    "tidy": {"command": "manage.py check", "schedule": "*-*-* 03:00:00"},
}
VARIABLES = {
    "app_processes": PROCESSES,
    "app_state_directories": ["media"],
    "app_system_packages": ["hello"],
    "app_build_commands": [
        "mkdir -p assets && hello > assets/hello.txt",
        "python -c 'import django' && id -un > builder && ! cat /etc/poolkit/django/app.env",
    ],
}
CONNECTED = (
    "import os, psycopg; c = psycopg.connect(os.environ['DATABASE_URL']); "
    "print(c.info.port, c.execute('SELECT current_user').fetchone()[0], "
    "os.environ['DATABASE_TRANSACTION_POOLING'], os.environ['APP_VERSION'], os.getcwd())"
)


@pytest.fixture(scope="module")
def django(applications: dict[str, Application]) -> Application:
    return applications["django"]


@pytest.fixture(scope="module")
def deploy(
    django: Application, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., str]]:
    """Deploy the Django example with an asset of this text; return the output of the run."""
    source = tmp_path_factory.mktemp("source") / "django"
    shutil.copytree(ROOT / "examples/django", source)
    for name, text in (("settings.py", SETTINGS), ("urls.py", URLS)):
        path = source / "config" / name
        path.write_text(path.read_text() + text)
    (source / "assets").mkdir()
    (source / "work.py").write_text(WORK)

    def run(asset: str, expected: int = 0, **variables: object) -> str:
        (source / "assets/page.css").write_text(asset)
        values = VARIABLES | {"app_source": str(source)} | variables
        done = ansible(
            *("ansible-playbook", "ansible/playbooks/app.yml", "--limit", django.inventory_host),
            *("-e", json.dumps(values)),
        )
        assert done.returncode == expected, done.stdout[-5000:]
        return re.sub(r"\s+", " ", done.stdout)

    yield run
    back = ("ansible-playbook", "ansible/playbooks/app.yml", "--limit", django.inventory_host)
    assert ansible(*back).returncode == 0


@pytest.fixture(scope="module")
def first(deploy: Callable[..., str], django: Application) -> str:
    """The first release, which has collected one page.css with a hash."""
    deploy("body { color: red }")
    return django.host.check_output("cd /srv/django/current/static && ls page.*.css")


def test_static_files_are_collected_and_roots(first: str, django: Application) -> None:
    folder = "/srv/django/current/static"
    assert django.host.check_output(f"cat {folder}/{first}") == "body { color: red }"
    assert "Hello, world" in django.host.check_output(f"cat {folder}/hello.txt")
    assert django.host.check_output("cat /srv/django/current/builder") == "django-build"
    found = "find -L /srv/django/current ! -user root -o -perm /022 -type f"
    assert django.host.check_output(f"{found} | grep -v '/.venv/' || true") == ""


def test_uploads_and_old_pages_outlive_a_release(
    first: str, deploy: Callable[..., str], django: Application
) -> None:
    assert django.http.post("/upload/cat.jpg", content=b"12345").text == "5"
    version = django.http.get("/readyz").json()["version"]
    deploy("body { color: blue }")
    assert django.http.get("/readyz").json()["version"] != version
    names = django.host.check_output("cd /srv/django/current/static && ls page.*.css").split()
    assert first in names
    assert len(names) == 2
    media = "/srv/django/state/media"
    assert django.host.check_output(f"cat {media}/cat.jpg") == "12345"
    assert django.host.check_output(f"stat -c '%U %a' {media} {media}/cat.jpg") == (
        "django 750\ndjango 640"
    )
    # A second run changes nothing.
    assert " changed=0 " in deploy("body { color: blue }").rpartition("PLAY RECAP")[2]


def test_worker_is_replaced_with_the_release(
    first: str, deploy: Callable[..., str], django: Application
) -> None:
    log = "/srv/django/state/media/work.log"
    old = django.http.get("/readyz").json()["version"]
    assert django.host.check_output(f"tail -n 1 {log}") == f"began {old} postgresql:/"
    deploy("body { color: pink }")
    new = django.http.get("/readyz").json()["version"]
    said = django.host.check_output(f"tail -n 2 {log}").splitlines()
    assert said == [f"left {old}", f"began {new} postgresql:/"]
    assert django.host.check_output("systemctl is-active django.worker django.tidy.timer") == (
        "active\nactive"
    )
    django.host.check_output("systemctl start django.tidy.service")  # it ends well


def test_worker_that_does_not_stay_up_fails_the_release(
    first: str, deploy: Callable[..., str], django: Application
) -> None:
    old = django.http.get("/readyz").json()["version"]
    broken = {"worker": {"command": "env BROKEN=1 python work.py"}}
    output = deploy("body { color: black }", expected=2, app_processes=broken)
    assert "django.worker.service does not stay up: its log ends with: " in output
    assert "no such queue" in output
    assert f"The release {old} serves again" in output
    assert django.http.get("/readyz").json()["version"] == old
    log = "/srv/django/state/media/work.log"
    assert django.host.check_output(f"tail -n 1 {log}") == f"began {old} postgresql:/"
    assert django.host.check_output("systemctl is-active django.worker") == "active"


def test_process_that_is_no_longer_wanted_goes(
    first: str, deploy: Callable[..., str], django: Application
) -> None:
    deploy("body { color: pink }", app_processes={"worker": PROCESSES["worker"]})
    units = "cd /etc/systemd/system && ls -d django.*.*"
    assert django.host.check_output(units) == "django.worker.service"
    assert django.host.run("systemctl is-active django.tidy.timer").rc != 0
    deploy("body { color: pink }")
    assert "django.tidy.timer" in django.host.check_output(units)


def test_failing_step_leaves_the_old_release(
    first: str, deploy: Callable[..., str], django: Application
) -> None:
    version = django.http.get("/readyz").json()["version"]
    commands = ["echo 'error: no such theme' >&2; exit 4"]
    output = deploy("body { color: green }", expected=2, app_build_commands=commands)
    assert "app_build_commands: \"echo 'error: no such theme'" in output
    assert "exit code 4: error: no such theme" in output
    assert django.http.get("/readyz").json()["version"] == version


def test_commands_run_as_the_service_and_as_the_owner(first: str, django: Application) -> None:
    release = django.host.check_output("readlink -f /srv/django/current")
    version = release.rpartition("/")[2]
    for flags, expected in (
        ("", f"6432 django 1 {version} {release}"),
        ("--direct", f"5432 django 0 {version} {release}"),
        ("--owner", f"5432 django_owner 0 {version} {release}"),
    ):
        words = f'poolkit-run {flags} django python -c "{CONNECTED}"'
        assert django.host.check_output(words) == expected
    checked = django.host.check_output("poolkit-run django manage.py check")
    assert "no issues" in checked
    assert django.host.run("poolkit-run django sh -c 'exit 7'").rc == 7
    assert django.host.check_output("echo through | poolkit-run django cat") == "through"
    refused = django.host.run("poolkit-run shop true")
    assert (refused.rc, refused.stderr.strip()) == (
        1,
        "there is no application shop on this host: django",
    )
    # Its sandbox: what the service cannot write, a command cannot either.
    assert django.host.run("poolkit-run django touch /srv/django/current/x").rc != 0
    assert django.host.run("poolkit-run django touch /srv/django/state/media/made").rc == 0


def test_command_from_the_controller(first: str, django: Application) -> None:
    book = ("ansible-playbook", "ansible/playbooks/command.yml", "-e", "app=django")
    run = ansible(*book, "-e", "command='manage.py showmigrations --plan'", "-e", "way=direct")
    assert run.returncode == 0, run.stdout
    assert re.search(r"\[X\] +items\.0001", run.stdout), run.stdout
    run = ansible(*book, "-e", "command='manage.py nonsense'")
    assert run.returncode != 0
    assert "Unknown command: 'nonsense'" in run.stdout
    run = ansible(*book[:2], "-e", "app=shop", "-e", "command=true")
    assert "Give an application of these hosts (django, fastapi, flask)" in re.sub(
        r"\s+", " ", run.stdout
    )
