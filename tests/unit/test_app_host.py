"""What is read of a host before an application is deployed there, and what is refused."""

from __future__ import annotations

import os
import pwd
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from plugins.modules import app_host

COMMENT = "poolkit application shop"


def account(name: str, comment: str = "", home: str = "/nonexistent") -> dict[str, str]:
    return {"name": name, "comment": comment, "home": home, "shell": "/usr/sbin/nologin"}


OWN = [account("shop", COMMENT), account("shop-migrate", COMMENT)]


@pytest.mark.parametrize(
    ("accounts", "units", "deployed", "error"),
    [
        ([], [], False, ""),
        (OWN, [], False, ""),
        (OWN, ["/etc/systemd/system/shop-worker.service"], True, ""),
        ([account("shop"), account("shop-migrate")], [], True, ""),  # of an earlier version
        ([account("shop")], [], False, "the account shop was not made by poolkit"),
        ([account("shop", home="/home/shop")], [], True, "the account shop was not made by"),
        ([account("exporter", "Exporter")], [], True, "the account exporter was not made by"),
        (
            [account("exporter")],
            ["/usr/lib/systemd/system/exporter.service"],
            True,
            "the account exporter runs /usr/lib/systemd/system/exporter.service",
        ),
        (
            [account("blog", "poolkit application blog")],
            [],
            True,
            "the account blog belongs to the application blog: set another app_user. If it is "
            "meant for this application alone, say so on the host: usermod --comment "
            "'poolkit application shop' blog",
        ),
        (
            [account("shop", COMMENT), account("shop-migrate", "poolkit application old")],
            [],
            True,
            "the account shop-migrate belongs to the application old",
        ),
    ],
)
def test_account_of_somebody_else(accounts: list, units: list, deployed: bool, error: str) -> None:
    found = app_host.foreign_account(accounts, "shop", COMMENT, units, deployed)
    assert found.startswith(error) if error else found == ""


SYSTEM = "cgroup:/docker/1ab/system.slice"


@pytest.mark.parametrize(
    ("listener", "found"),
    [
        (f"127.0.0.1:8000 0.0.0.0:* {SYSTEM}/shop.socket", []),
        (f"[::1]:8000 [::]:* {SYSTEM}/shop.service", []),
        ("127.0.0.1:8000 0.0.0.0:* cgroup:/web.slice/shop.service", []),  # Slice= of a drop-in
        (f"*:8000 *:* {SYSTEM}/blog.socket", ["blog.socket"]),
        (f"*:8000 *:* {SYSTEM}/other-shop.service", ["other-shop.service"]),
        (f"*:8000 *:* {SYSTEM}/shop.service.service", ["shop.service.service"]),
        (f"*:8000 *:* {SYSTEM}/shop-next.service", ["shop-next.service"]),
        (
            "*:8000 *:* cgroup:/user.slice/user-1000.slice/user@1000.service/shop.service",
            ["shop.service"],
        ),
        (
            "*:8000 *:* cgroup:/user.slice/user-0.slice/session-3.scope",
            ["session-3.scope"],
        ),
        ("*:8000 *:* cgroup:/docker/1ab", ["a process without a unit (ss -ltnp shows it)"]),
        ("*:8000 *:*", ["a process without a unit (ss -ltnp shows it)"]),
    ],
)
def test_listener_of_somebody_else(listener: str, found: list[str]) -> None:
    line = f"LISTEN 0 2048 {listener}\n"
    assert app_host.foreign_listeners(line + line, "shop") == found


@pytest.mark.parametrize(
    ("os_release", "name"),
    [
        (
            'NAME=x\nPRETTY_NAME="Debian GNU/Linux 11 (bullseye)"\n',
            "Debian GNU/Linux 11 (bullseye)",
        ),
        ("# a comment's quote\nPRETTY_NAME=Arch\n", "Arch"),
        ("NAME=x\n", ""),
        ("NAME='x\n", ""),
        ("", ""),
    ],
)
def test_distribution(os_release: str, name: str) -> None:
    assert app_host.distribution(os_release) == name


def test_interpreter(tmp_path: Path) -> None:
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    real = os.path.realpath(sys.executable)
    assert app_host.interpreter(sys.executable)["version"] == version
    link = tmp_path / "python"
    link.symlink_to(real)
    assert app_host.interpreter(str(link)) == {"version": version, "path": real}
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho 3.9 /usr/bin/python3 >&2\nexit 1\n")
    broken.chmod(0o755)
    unusable = tmp_path / "unusable"
    unusable.write_text("no program")
    for python in (broken, unusable, tmp_path, tmp_path / "missing", "no-such-python3"):
        assert app_host.interpreter(str(python)) == {"version": "", "path": ""}


def test_packages() -> None:
    """dpkg knows the first one wherever there is a dpkg."""
    names = ["dpkg", "no-such-package-of-any-name", "libc6"]
    assert app_host.missing_packages(names) == ["no-such-package-of-any-name"]
    assert app_host.missing_packages([]) == []


def test_packages_without_dpkg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert app_host.missing_packages(["dpkg"]) == ["dpkg"]


def test_accounts_that_exist() -> None:
    (root,) = app_host.accounts(["no-such-user-here", "root"])
    entry = pwd.getpwnam("root")
    assert root == {
        **{"name": "root", "comment": entry.pw_gecos},
        **{"home": entry.pw_dir, "shell": entry.pw_shell},
    }


def test_units_that_run_as_the_users(tmp_path: Path) -> None:
    own, packaged = tmp_path / "etc", tmp_path / "usr"
    for folder, name, user in (
        *((own, "shop.service", "shop"), (own, "shop-next.service", "shop")),
        *((own, "shop-worker.service", "shop-migrate"), (own, "other.service", "shopping")),
        *((packaged, "b.service", "shop"), (packaged, "a.service", "shop")),
        *((packaged, "c.socket", "shop"), (packaged, "d.service", "shop # no comment there")),
    ):
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(f"[Service]\nUser={user}\nGroup=x\n")
    (own / "masked.service").symlink_to("/dev/null")
    (own / "gone.service").symlink_to(tmp_path / "nothing")
    (own / "folder.service").mkdir()
    (own / "binary.service").write_bytes(b"\xff\xfe\nUser=shop")
    users = ["shop", "shop-migrate", "shop-build"]
    assert app_host.units_of(users, "shop", (own, packaged, tmp_path / "missing")) == [
        *(f"{own}/binary.service", f"{own}/shop-worker.service"),
        *(f"{packaged}/a.service", f"{packaged}/b.service"),
    ]


def test_name_that_is_taken(tmp_path: Path) -> None:
    own, packaged = tmp_path / "etc", tmp_path / "usr"
    own.mkdir()
    packaged.mkdir()
    unit = own / "shop.service"
    assert app_host.takers("shop", own, packaged) == []
    unit.write_text("[Unit]\nDescription=shop (django)\n")
    assert app_host.takers("shop", own, packaged) == []
    unit.write_text("[Unit]\nDescription=shop\n# Description=shop (django)\n")
    (packaged / "shop.service").touch()
    assert app_host.takers("shop", own, packaged) == ["service shop", str(unit)]
    unit.unlink()
    unit.symlink_to("/dev/null")  # somebody has masked the unit of a package
    assert app_host.takers("shop", own, tmp_path) == [str(unit)]


def test_environment_of_a_release(tmp_path: Path) -> None:
    """It counts when both are there to their end."""
    venv, release = tmp_path / "venvs/py3", tmp_path / "releases/r1"
    assert app_host.environment(release) == ""
    venv.mkdir(parents=True)
    release.mkdir(parents=True)
    (release / ".venv").symlink_to(venv)
    (release / ".poolkit-release").touch()
    (release / ".poolkit-built").touch()
    assert app_host.environment(release) == ""
    (venv / ".complete").touch()
    assert app_host.environment(release) == str(venv)
    (release / ".poolkit-release").unlink()
    assert app_host.environment(release) == ""


def test_environment_that_root_has_not_taken_over(tmp_path: Path) -> None:
    """app_venv builds it anew, so that this may not say that it is there."""
    (tmp_path / "venv").mkdir()
    (tmp_path / ".poolkit-release").touch()
    (tmp_path / ".venv").symlink_to(tmp_path / "venv")
    (tmp_path / "venv/.complete").symlink_to("/etc/hostname")
    assert app_host.environment(tmp_path) == ""


@pytest.fixture
def listener() -> socket.socket:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


@pytest.fixture
def check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_module: Callable[..., dict]
) -> Callable[..., dict]:
    """Run the module on this machine, with units in tmp_path and a distribution with apt."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/apt-get").write_text("")
    (tmp_path / "bin/apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setattr(app_host, "UNITS", tmp_path / "units")
    monkeypatch.setattr(app_host, "PACKAGED_UNITS", tmp_path / "packaged")
    monkeypatch.setattr(app_host, "DATABASE_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = server.getsockname()[1]

    def run(check_mode: bool = False, **given: object) -> dict:
        arguments = {
            **{"host": "web1", "name": "shop", "python": sys.executable, "packages": ["libc6"]},
            **{"users": ["no-such-user-here"], "account_comment": COMMENT, "port": free},
            **{"config_directory": f"{tmp_path}/etc", "release": f"{tmp_path}/release"},
        }
        return run_module(app_host, check_mode, **{**arguments, **given})

    return run


@pytest.mark.parametrize("check_mode", [False, True])
def test_host_that_was_never_deployed(check: Callable[..., dict], check_mode: bool) -> None:
    found = check(check_mode)
    found.pop("invocation")
    assert found == {
        "changed": False,
        "python": {
            "version": f"{sys.version_info[0]}.{sys.version_info[1]}",
            "path": os.path.realpath(sys.executable),
        },
        "missing_packages": [],
        "users_made": False,
        "environment": "",
    }


def test_interpreter_that_is_installed_later(check: Callable[..., dict]) -> None:
    found = check(python="python3.99", packages=["python3.99-venv"])
    assert found["python"] == {"version": "", "path": ""}
    assert found["missing_packages"] == ["python3.99-venv"]


def test_accounts_of_poolkit(check: Callable[..., dict]) -> None:
    """They count when all are there with the comment; root's stands in for it."""
    comment = pwd.getpwnam("root").pw_gecos
    given = {"account_comment": comment, "name": comment[-1:] or "x"}
    assert check(users=["root", "root"], **given)["users_made"]
    assert not check(users=["root", "no-such-user-here"], **given)["users_made"]


DATABASE = {"host": "127.0.0.1", "port": 1}
UNREACHED = (
    "web1 does not reach PostgreSQL at 127.0.0.1:1: check database_host, database_port, and the "
    "firewall or security group between them"
)


def test_host_is_refused(
    check: Callable[..., dict],
    listener: socket.socket,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the first reason, from the last to the first one, in check mode too."""
    given: dict = {"database": DATABASE}

    def refusal() -> str:
        said = check(True, **given)
        assert said["failed"]
        return said["msg"]

    assert check(**given)["msg"] == UNREACHED
    given["port"] = port = listener.getsockname()[1]
    said = refusal()
    assert said.startswith(f"web1: port {port} is in use by ")
    assert said.endswith(": stop it, or set app_port")
    (tmp_path / "packaged").mkdir()
    (tmp_path / "packaged/shop.service").touch()
    assert refusal() == (
        "web1: the name shop belongs to something else on this host (service shop): set another "
        "app_name"
    )
    given["users"] = ["root"]
    assert refusal().startswith("web1: the account root was not made by poolkit: set another")
    (tmp_path / "packaged/other.service").write_text("[Service]\nUser=root\n")
    assert refusal().startswith(f"web1: the account root runs {tmp_path}/packaged/other.service:")
    given["python"] = "/opt/no/python3.13"
    assert refusal() == (
        "web1: there is no /opt/no/python3.13 on this host: install it, or set app_python"
    )
    monkeypatch.setattr(app_host, "OLDEST_PYTHON", (99, 0))
    assert refusal().startswith("web1 runs ")
    assert refusal().endswith(
        f", with Python {sys.version_info[0]}.{sys.version_info[1]} for Ansible's modules: use a "
        "Debian or Ubuntu with apt and Python 3.9 or later, such as Debian 12 or 13 or Ubuntu 24.04"
    )


def test_distribution_without_apt(
    check: Callable[..., dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert " for Ansible's modules: use a Debian or Ubuntu with apt" in check()["msg"]


def test_database_is_reached(check: Callable[..., dict], listener: socket.socket) -> None:
    given = {"host": "127.0.0.1", "port": listener.getsockname()[1]}
    assert "failed" not in check(database=given)
    listener.accept()[0].close()


def test_check_mode_tries_no_database(check: Callable[..., dict]) -> None:
    """What makes it reachable may be what a run would do first."""
    assert "failed" not in check(True, database=DATABASE)


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a" * 64 + ".example", "."])
def test_host_of_a_database_that_has_no_address(host: str) -> None:
    assert not app_host.reached(host, 5432, 0.1)


def test_database_that_listens_a_little_later(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    program = (
        "import socket, time; time.sleep(0.5); "
        f"s = socket.create_server(('127.0.0.1', {port})); s.accept()"
    )
    with subprocess.Popen([sys.executable, "-c", program]) as late:
        assert app_host.reached("127.0.0.1", port, 5)
        assert late.wait(5) == 0
