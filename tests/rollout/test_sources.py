"""An application that was not written for poolkit."""

from __future__ import annotations

import json
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import httpx
from conftest import Site

PLAIN = """
import os

import psycopg
from flask import Flask

app = Flask(__name__)


def connect():
    return psycopg.connect(
        host=os.environ["DB_HOST"], port=os.environ["DB_PORT"], dbname=os.environ["DB_NAME"],
        user=os.environ["DB_USER"], password=os.environ["DB_PASSWORD"],
    )


@app.get("/health")
def health():
    with connect() as connection:
        row = connection.execute("SHOW statement_timeout").fetchone()
    return {"statement_timeout": row[0], "host": os.environ["DB_HOST"]}
"""
NAMES = {
    "DB_HOST": "host",
    "DB_PORT": "port",
    "DB_NAME": "dbname",
    "DB_USER": "user",
    "DB_PASSWORD": "password",
}


LOCK = Path(__file__).parents[2] / "examples/flask/requirements.txt"


def git(folder: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=poolkit", "-c", "user.email=poolkit@example.org")
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def test_application_from_git_with_names_of_its_own(
    sites: Callable[[str], Site], passwords: dict[str, str], tmp_path: Path
) -> None:
    """It reads DB_HOST and so on, has no migrations, and its health path is another one.

    The settings that the role has by ALTER ROLE arrive through the pooler, and docker.env gives the
    same variables to a container.
    """
    site = sites("flask")
    (tmp_path / "requirements.txt").write_text(LOCK.read_text())
    (tmp_path / "plain.py").write_text("raise SystemExit('the first commit is broken')\n")
    git(tmp_path, "init", "--quiet", "--initial-branch=main")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message=broken")
    (tmp_path / "plain.py").write_text(PLAIN)
    git(tmp_path, "commit", "--quiet", "--all", "--message=works")
    git(tmp_path, "tag", "v1")
    run = site.play(
        *("ansible/playbooks/app.yml", "--limit=web1"),
        app_source=f"file://{tmp_path}",
        app_source_revision="v1",
        app_module="plain:app",
        app_python="python3.13",
        app_migrations="skip",
        app_health_path="/health",
        app_environment_names=NAMES,
        app_docker_environment_file=True,
    )
    assert run.code == 0, run.output[-3000:]
    answer = httpx.get(f"{site.urls['web1']}/health", timeout=10).json()
    assert answer == {
        "statement_timeout": "20s",
        "host": f"/run/pgbouncer/1,/run/pgbouncer/2,{passwords['database']}",
    }

    environment = tmp_path / "docker.env"
    environment.write_text(
        site.hosts["web1"].check_output("cat /etc/poolkit/flask/docker.env") + "\n"
    )
    image = subprocess.run(
        ["docker", "images", "--quiet", "--filter=reference=poolkit-host:trixie-*"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()[0]
    show = "import json, os; print(json.dumps(dict(os.environ)))"
    inside = subprocess.run(
        *(["docker", "run", "--rm", f"--env-file={environment}", image, "python3", "-c", show],),
        capture_output=True,
        text=True,
        check=True,
    )
    variables = json.loads(inside.stdout)
    assert variables["DB_PASSWORD"] == passwords["plain"]
    assert variables["DB_USER"] == "flask"
    assert "PGPASSFILE" not in variables


PSQL = "psql -XAtq service=flask_owner"


def note(step: str) -> str:
    """Return a shell command that notes a step, and the release that serves at that time."""
    insert = "INSERT INTO steps (step, release) VALUES (:'step', :'release')"
    serves = '"release=$(basename "$(readlink /srv/flask/current)")"'
    return f'echo "{insert}" | {PSQL} -v ON_ERROR_STOP=1 -v step={step} -v {serves}'


def test_wheel_with_migrations_and_hooks_of_its_own_after_it_serves(
    sites: Callable[[str], Site], tmp_path: Path
) -> None:
    """The commands are the application's own, and need a shell's `$`; docker.env is given up."""
    site = sites("flask")
    web1 = site.hosts["web1"]
    site.rows("DROP TABLE IF EXISTS steps, done")
    wheel = tmp_path / "plain-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as packed:
        packed.writestr("plain.py", PLAIN)
        packed.writestr("plain-1.0.dist-info/METADATA", "Name: plain\nVersion: 1.0\n")
    create = "CREATE TABLE steps (number serial, step text, release text)"
    variables = {
        "app_source": str(wheel),
        "app_requirements": str(LOCK),
        "app_module": "plain:app",
        "app_migrations": "after",
        "app_health_path": "/health",
        "app_environment_names": NAMES,
        "app_pre_migration_command": ["sh", "-ec", f"{PSQL} -c '{create}'; {note('before')}"],
        "app_migration_command": ["sh", "-ec", f"{PSQL} -c 'CREATE TABLE done ()'; {note('run')}"],
        "app_post_migration_command": ["sh", "-ec", note("after")],
        "app_migration_pending_command": [
            *(*PSQL.split(), "-c", "SELECT 'done' WHERE to_regclass('done') IS NULL")
        ],
    }
    deploy = ("ansible/playbooks/app.yml", "--limit=web1")
    try:
        run = site.play(*deploy, **variables)
        assert run.code == 0, run.output[-3000:]
        release = Path(web1.check_output("readlink /srv/flask/current")).name
        steps = site.rows("SELECT step, release FROM steps ORDER BY number")
        assert steps == [f"{step}|{release}" for step in ("before", "run", "after")]
        assert web1.check_output(f"find /srv/flask/releases/{release} -name '*.py'").endswith(
            "/plain.py"
        )
        assert not web1.file("/etc/poolkit/flask/docker.env").exists
        again = site.play(*deploy, **variables)
        assert again.code == 0, again.output[-3000:]
        assert set(again.changed.values()) == {0}, again.output[-3000:]
    finally:
        site.rows("DROP TABLE IF EXISTS steps, done")
