"""An application that was not written for poolkit."""

from __future__ import annotations

import json
import subprocess
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
    lock = Path(__file__).parents[2] / "examples/flask/requirements.txt"
    (tmp_path / "requirements.txt").write_text(lock.read_text())
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
        "host": f"127.0.0.1,{passwords['database']}",
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
