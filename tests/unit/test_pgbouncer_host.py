"""What is read of a host before PgBouncer is installed there, and whether an address is there."""

import importlib.util
import socket
import sys
from pathlib import Path

import jinja2
import pytest
import yaml

from plugins.modules import pgbouncer_host

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "roles/pgbouncer/files/pgbouncer_addresses.py"
SPEC = importlib.util.spec_from_file_location("pgbouncer_addresses", PROGRAM)
pgbouncer_addresses = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(pgbouncer_addresses)

POLICY = """pgbouncer:
  Installed: (none)
  Candidate: 1.25.0-1.pgdg13+1
  Version table:
     1.25.0-1.pgdg13+1 500
        500 https://apt.postgresql.org/pub/repos/apt trixie-pgdg/main amd64 Packages
     1.24.1-1+deb13u2 500
"""


@pytest.mark.parametrize(
    ("policy", "version"),
    [
        (POLICY, "1.25.0-1.pgdg13+1"),
        (POLICY.replace("1.25.0-1.pgdg13+1\n  V", "(none)\n  V"), ""),
        ("", ""),
    ],
)
def test_version_that_apt_would_install(policy: str, version: str) -> None:
    assert pgbouncer_host.candidate(policy) == version


@pytest.mark.parametrize(
    ("host", "version"),
    [
        ({"version": "1.23.1-1", "candidate": ""}, "1.23.1-1"),
        ({"version": "", "candidate": "1.25.0-1.pgdg13+1"}, "1.25.0-1.pgdg13+1"),
        ({"version": "", "candidate": ""}, "1.24.1"),
    ],
)
def test_version_that_the_files_are_made_for(host: dict, version: str) -> None:
    """The installed one, the one that apt would install, the distribution's."""
    variables = yaml.safe_load((ROOT / "roles/pgbouncer/vars/main.yml").read_text())
    versions = variables["_pgbouncer_versions"]
    rendered = jinja2.Template(variables["_pgbouncer_version"]).render(
        __pgbouncer_host={"distribution": "debian 13", **host}, _pgbouncer_versions=versions
    )
    assert rendered == version


def test_variables_are_checked_again_for_the_version_that_was_installed() -> None:
    tasks = yaml.safe_load((ROOT / "roles/pgbouncer/tasks/install.yml").read_text())
    assert tasks[-1]["ansible.builtin.include_tasks"] == "preflight.yml"
    (packages,) = [task for task in tasks if "ansible.builtin.apt" in task]
    assert packages["register"] in tasks[-1]["when"]


def test_users_of_the_port() -> None:
    listeners = """LISTEN 0 128 127.0.0.1:6432 0.0.0.0:* cgroup:/system.slice/taken.service
LISTEN 0 128 127.0.0.1:6432 0.0.0.0:* cgroup:/a/system-pgbouncer.slice/pgbouncer@12.service
LISTEN 0 128 127.0.0.1:6432 0.0.0.0:* cgroup:/system.slice/pgbouncer.service
LISTEN 0 128 127.0.0.1:6432 0.0.0.0:* cgroup:/
"""
    assert pgbouncer_host.port_users(listeners) == ["a program without a unit", "taken.service"]


INI = "[pgbouncer]\n; listen_addr = 10.0.0.1\nlisten_addr = {addresses}\nlisten_port = {port}\n"


def ask(path: Path, addresses: str, port: int, monkeypatch: pytest.MonkeyPatch) -> int:
    path.write_text(INI.format(addresses=addresses, port=port))
    monkeypatch.setattr(sys, "argv", ["pgbouncer_addresses.py", str(path)])
    monkeypatch.setattr(pgbouncer_addresses, "WAIT_SECONDS", 0.0)
    return pgbouncer_addresses.main()


def test_addresses_of_the_host_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as peer:  # as another PgBouncer process, which shares the port
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        peer.bind(("127.0.0.1", 0))
        peer.listen()
        port = peer.getsockname()[1]
        for addresses in ("127.0.0.1", "127.0.0.1, localhost", "*", ""):
            assert ask(tmp_path / "ini", addresses, port, monkeypatch) == 0
    assert capsys.readouterr().err == ""


def test_missing_address_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """203.0.113.0/24 is for documentation: no host has an address of it."""
    assert ask(tmp_path / "ini", "127.0.0.1,203.0.113.9", 6432, monkeypatch) == 1
    message = "cannot listen on 203.0.113.9, port 6432: Cannot assign requested address\n"
    assert capsys.readouterr().err == message


def test_port_that_another_program_has_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        for address in ("127.0.0.1", "*"):  # also where the other family is free
            assert ask(tmp_path / "ini", address, port, monkeypatch) == 1
            assert f"port {port}: Address already in use" in capsys.readouterr().err
