#!/usr/bin/python
"""Read what a host has, before an application is deployed there; refuse one that cannot take it."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: app_host
short_description: Read what a host has, before an application is deployed there
version_added: 0.1.0
author: The poolkit authors (@poolkit)
description:
  - Fails with the first reason why the host cannot take the application, and the variable to
    change; an unsupported distribution comes first.
  - Changes nothing, also in check mode, which does not try to reach the database. Needs root, for
    the files and processes of others.
options:
  host:
    description: The host's name in the inventory, for messages.
    type: str
    required: true
  name:
    description: The application. Its units are NAME.service, NAME.socket and NAME-next.service.
    type: str
    required: true
  python:
    description:
      - The application's interpreter, a name on the PATH or an absolute path. One that is called
        python3.N may be missing, since its package is installed.
    type: str
    required: true
  packages:
    description: Debian packages that the application needs.
    type: list
    elements: str
    default: []
  users:
    description: The accounts that the application alone may have, where they exist.
    type: list
    elements: str
    required: true
  account_comment:
    description: The comment of these accounts where poolkit made them. Ends with NAME.
    type: str
    required: true
  config_directory:
    description: Directory that is there once the application was deployed.
    type: path
    required: true
  release:
    description: Directory of the release, which may be missing.
    type: path
    required: true
  port:
    description: The port that NAME.socket is to listen on.
    type: int
    required: true
  schedules:
    description: Times of further processes by their names, as systemd's OnCalendar.
    type: dict
    default: {}
  database:
    description: The database that the host has to reach; left out, none is tried.
    type: dict
    suboptions:
      host:
        description: Its name or address.
        type: str
        required: true
      port:
        description: Its port.
        type: int
        required: true
"""

EXAMPLES = r"""
- name: Check the host
  poolkit.poolkit.app_host:
    host: "{{ inventory_hostname }}"
    name: shop
    python: python3.13
    packages: [postgresql-client, python3.13-venv]
    users: [shop, shop-migrate, shop-build]
    account_comment: poolkit application shop
    config_directory: /etc/poolkit/shop
    release: /srv/shop/releases/0123456789ab
    port: 8000
    database: {host: db.example.com, port: 5432}
  register: __host
"""

RETURN = r"""
python:
  description:
    - The application's interpreter, as {version, path}, C(3.13) and C(/usr/bin/python3.13) with
      links followed; both empty where it is not there yet.
  type: dict
  returned: success
missing_packages:
  description: The packages that are not installed.
  type: list
  elements: str
  returned: success
users_made:
  description: Whether all of the accounts are there, as poolkit makes them.
  type: bool
  returned: success
environment:
  description:
    - The virtual environment that the release's link C(.venv) leads to; empty where the release or
      its environment is not there, or only in part.
  type: str
  returned: success
"""

import os
import pwd
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..module_utils.unlogged_module import UnloggedModule
from ..module_utils.virtual_environment import built, complete

# A host with an unsupported distribution is told so here: this file and what it imports run with
# every Python that Ansible runs modules with, from 3.8.

OLDEST_PYTHON = (3, 9)
"""Of Ansible's modules: the other ones run with it, and tests/unit/test_modules_python.py tells."""

UNITS = Path("/etc/systemd/system")
PACKAGED_UNITS = Path("/usr/lib/systemd/system")

DATABASE_SECONDS = 5
"""So long a database may take to accept a connection, tried again each second."""

VERSION = 'import os, sys; print("%d.%d" % sys.version_info[:2], os.path.realpath(sys.executable))'


def output(*command: str) -> str:
    """Return what a command prints, also where it fails; nothing where it cannot be run."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    except OSError:
        return ""
    return done.stdout.decode(errors="replace")


def text(path: Path) -> str:
    """Return a file's text; nothing where it is none, or leads to none."""
    try:
        return path.read_bytes().decode(errors="replace") if path.is_file() else ""
    except OSError:
        return ""


def distribution(os_release: str) -> str:
    """Return the name that a file os-release gives the distribution; it may be empty."""
    try:
        words = shlex.split(os_release, comments=True)
    except ValueError:
        return ""
    return dict(word.split("=", 1) for word in words if "=" in word).get("PRETTY_NAME", "")


def interpreter(python: str) -> dict[str, str]:
    """Return {version, path} of an interpreter, both empty where there is none."""
    version, _, path = output(python, "-I", "-c", VERSION).strip().partition(" ")
    return {"version": version, "path": path}


def missing_packages(names: Sequence[str]) -> list[str]:
    """Return those of some Debian packages that are not installed."""
    if not names:
        return []
    shown = output("dpkg-query", "--show", "--showformat=${Package} ${db:Status-Status}\n", *names)
    return [name for name in names if f"{name} installed" not in shown.splitlines()]


def accounts(users: Iterable[str]) -> list[dict[str, str]]:
    """Return {name, comment, home, shell} of those users that exist."""
    found = []
    for user in users:
        try:
            entry = pwd.getpwnam(user)
        except KeyError:
            continue
        found.append(
            {
                "name": entry.pw_name,
                "comment": entry.pw_gecos,
                "home": entry.pw_dir,
                "shell": entry.pw_shell,
            }
        )
    return found


def units_of(users: Sequence[str], name: str, folders: Sequence[Path]) -> list[str]:
    """Return the files of services, other than the application's own, that run as these users."""
    line = re.compile(rf"^User=({'|'.join(map(re.escape, users))})$", re.MULTILINE)
    paths = [path for folder in folders for path in sorted(folder.glob("*.service"))]
    own = (f"{name}.service", f"{name}-next.service")
    mark = f"\nX-Poolkit={name}\n"  # of its further processes
    found = [path for path in paths if path.name not in own]
    return [str(path) for path in found if line.search(text(path)) and mark not in text(path)]


def foreign_account(
    found: Iterable[Mapping[str, str]],
    name: str,
    account_comment: str,
    units: Sequence[str],
    deployed: bool,
) -> str:
    """Return why the accounts of an application on a host are not its own; empty where they are.

    found: as accounts() returns them. units: files of other services that run as one of them.
    deployed: whether the application was deployed before; versions up to 0.1 made accounts without
    the comment.
    """
    mark = account_comment[: -len(name)]
    for account in found:
        user, comment = account["name"], account["comment"]
        if comment == account_comment:
            continue
        plain = (account["home"], account["shell"]) == ("/nonexistent", "/usr/sbin/nologin")
        if comment == "" and plain and deployed and not units:
            continue
        whose = (
            f"belongs to the application {comment[len(mark) :]}"
            if comment.startswith(mark)
            else f"runs {' '.join(units)}"
            if units
            else "was not made by poolkit"
        )
        return (
            f"the account {user} {whose}: set another app_user. If it is meant for this "
            f"application alone, say so on the host: usermod --comment '{account_comment}' {user}"
        )
    return ""


def takers(name: str, units: Path, packaged: Path) -> list[str]:
    """Return what has the application's name on the host already, and is no unit of poolkit's."""
    found = []
    if (packaged / f"{name}.service").exists():
        found.append(f"service {name}")
    unit = units / f"{name}.service"
    begin = f"Description={name} ("
    if unit.exists() and not any(line.startswith(begin) for line in text(unit).splitlines()):
        found.append(str(unit))
    return found


def foreign_listeners(shown: str, name: str) -> list[str]:
    """Return who listens on a port, as far as it is not the application itself: names of units.

    shown: by `ss -Hltn --cgroup`. Only a unit of the system's own manager counts as the
    application's: a user's manager may have one of the same name.
    """
    found = []
    for line in shown.splitlines():
        path = (re.search(r"cgroup:(\S+)", line) or ["", ""])[1]
        unit = path.rpartition("/")[2]
        if unit in (f"{name}.service", f"{name}.socket") and "/user.slice/" not in path:
            continue
        if not re.search(r"\.(service|socket|scope)$", unit):
            unit = "a process without a unit (ss -ltnp shows it)"
        found.append(unit)
    return list(dict.fromkeys(found))


def environment(release: Path) -> str:
    """Return where the link .venv of a whole release leads, with a whole environment; else ""."""
    link = release / ".venv"
    whole = built(release) and (release / ".poolkit-release").exists() and complete(link)
    # Path.readlink() is Python 3.9's.
    return os.readlink(link) if whole and link.is_symlink() else ""  # noqa: PTH115


def reached(host: str, port: int, seconds: float) -> bool:
    """Tell whether an address accepts a connection, for some seconds again and again."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            socket.create_connection((host, port), timeout=seconds).close()
        except (OSError, OverflowError, UnicodeError):  # also a name that cannot be one
            time.sleep(min(1.0, seconds))
        else:
            return True
    return False


def problems(given: Mapping[str, Any], python: str, found: list[dict[str, str]]) -> Iterator[str]:
    """Yield why the host cannot take the application, each looked for when it is asked for.

    given: the module's options. python: the path of the application's interpreter, or "". found:
    the accounts.
    """
    host, name = given["host"], given["name"]
    if sys.version_info < OLDEST_PYTHON or not shutil.which("apt-get"):
        yield (
            f"{host} runs {distribution(text(Path('/etc/os-release')))}, with Python "
            f"{sys.version_info[0]}.{sys.version_info[1]} for Ansible's modules: use a Debian or "
            "Ubuntu with apt and Python 3.9 or later, such as Debian 12 or 13 or Ubuntu 24.04"
        )
    if not python and not re.match(r"python3\.[0-9]+$", given["python"]):
        yield (f"{host}: there is no {given['python']} on this host: install it, or set app_python")
    if any(account["comment"] != given["account_comment"] for account in found):
        units = units_of(given["users"], name, (UNITS, PACKAGED_UNITS))
        deployed = Path(given["config_directory"]).exists()
        foreign = foreign_account(found, name, given["account_comment"], units, deployed)
        if foreign:
            yield f"{host}: {foreign}"
    taken = takers(name, UNITS, PACKAGED_UNITS)
    if taken:
        yield (
            f"{host}: the name {name} belongs to something else on this host "
            f"({' '.join(taken)}): set another app_name"
        )
    shown = output("ss", "-Hltn", "--cgroup", f"sport = :{given['port']}")
    listeners = foreign_listeners(shown, name)
    if listeners:
        yield (
            f"{host}: port {given['port']} is in use by {', '.join(listeners)}: stop it, or set "
            "app_port"
        )


def unknown_times(host: str, schedules: Mapping[str, str]) -> Iterator[str]:
    """Yield what systemd does not know as a time; it would only say so when the timer starts."""
    for name, when in schedules.items():
        words = ["systemd-analyze", "calendar", "--", str(when)]
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode:
            yield (
                f"{host}: app_processes.{name}.schedule is {when!r}, which systemd does not know "
                f"as a time ({done.stderr.strip()}): see `systemd-analyze calendar`"
            )


def unreached(host: str, database: Mapping[str, Any]) -> str:
    """Return what is to be said where the database cannot be reached; empty where it can."""
    address, port = database["host"], database["port"]
    if reached(address, port, DATABASE_SECONDS):
        return ""
    return (
        f"{host} does not reach PostgreSQL at {address}:{port}: check database_host, "
        "database_port, and the firewall or security group between them"
    )


def main() -> None:
    module = UnloggedModule(
        argument_spec={
            "host": {"type": "str", "required": True},
            "name": {"type": "str", "required": True},
            "python": {"type": "str", "required": True},
            "packages": {"type": "list", "elements": "str", "default": []},
            "users": {"type": "list", "elements": "str", "required": True},
            "account_comment": {"type": "str", "required": True},
            "config_directory": {"type": "path", "required": True},
            "release": {"type": "path", "required": True},
            "port": {"type": "int", "required": True},
            "schedules": {"type": "dict", "default": {}},
            "database": {
                "type": "dict",
                "options": {
                    "host": {"type": "str", "required": True},
                    "port": {"type": "int", "required": True},
                },
            },
        },
        supports_check_mode=True,
    )
    given = module.params
    python, found = interpreter(given["python"]), accounts(given["users"])
    problem = next(problems(given, python["path"], found), "")
    problem = problem or next(unknown_times(given["host"], given["schedules"]), "")
    if not problem and given["database"] and not module.check_mode:
        problem = unreached(given["host"], given["database"])
    if problem:
        module.fail_json(msg=problem)
    comments = [account["comment"] for account in found]
    module.exit_json(
        changed=False,
        python=python,
        missing_packages=missing_packages(given["packages"]),
        users_made=comments == [given["account_comment"]] * len(given["users"]),
        environment=environment(Path(given["release"])),
    )


if __name__ == "__main__":
    main()
