"""The same containers by Docker Compose, on the network of the database's host."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml
from conftest import NETWORK, docker
from controller import ROOT, ansible

FACTS = {
    **{"subnets": [], "security_group": "", "registry": "127.0.0.1:1/local"},
    **{"target_groups": {"django": ""}, "roles": {"django": {"execution": "", "migration": ""}}},
}


def compose() -> list[str]:
    """Return Compose's command, the plugin's or the one before it, installed if there is none."""
    return subprocess.run(
        ["scripts/compose.sh"], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    ).stdout.split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compose")
    base = docker("image", "inspect", "--format={{.Id}}", "poolkit-base:trixie").strip()
    variables = {
        "__aws": FACTS | {"base_image": base},
        "compose_directory": str(folder),
        "app_target_group_arns": [],
    }
    done = ansible(
        *("ansible-playbook", "ansible/playbooks/compose.yml", "--limit=django_service,db4"),
        *("-e", json.dumps(variables)),
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    return folder


def test_files_hold_what_a_task_has(folder: Path) -> None:
    services = yaml.safe_load((folder / "compose.yaml").read_text())["services"]
    secret = folder / "compose.override.yaml"
    assert secret.stat().st_mode & 0o777 == 0o600
    assert services["web"]["depends_on"] == {"pgbouncer": {"condition": "service_healthy"}}
    assert (
        services["web"]["network_mode"] == services["pgbouncer"]["network_mode"] == "service:task"
    )
    assert "DATABASE_URL" not in (folder / "compose.yaml").read_text()
    assert set(yaml.safe_load(secret.read_text())["services"]) == set(services) - {"task"}


@pytest.fixture
def project(folder: Path) -> Iterator[list[str]]:
    """Return Compose's command for the files, on the network where the database is."""
    network = folder / "network.yaml"
    outside = {"networks": {"default": {"name": NETWORK, "external": True}}}
    network.write_text(yaml.safe_dump(outside))
    files = [folder / "compose.yaml", folder / "compose.override.yaml", network]
    command = [*compose(), "-p", "poolkit-compose", *(f"--file={file}" for file in files)]
    yield command
    subprocess.run([*command, "down", "--volumes"], check=True, capture_output=True)


def test_compose_serves_through_the_pooler(project: list[str]) -> None:
    migrated = subprocess.run(
        [*project, "run", "--rm", "migrate"], capture_output=True, text=True, timeout=120
    )
    assert migrated.returncode == 0, migrated.stdout[-2000:] + migrated.stderr[-2000:]
    assert "app-migrate:" in migrated.stdout
    subprocess.run([*project, "up", "-d"], check=True, capture_output=True, timeout=120)
    end = time.monotonic() + 60
    while True:
        try:
            answer = httpx.get("http://127.0.0.1:8000/readyz", timeout=5)
            if answer.status_code == 200:
                break
        except httpx.HTTPError:
            pass
        assert time.monotonic() < end
        time.sleep(0.5)
    assert answer.json()["path"] == "pooler"
