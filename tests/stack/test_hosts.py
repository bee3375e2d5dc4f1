"""What is on the hosts: services, files with secrets, processes, the network around them."""

import os
import re
import subprocess
import sys
from urllib.parse import quote

import pytest
from conftest import Application
from controller import resolve

SECRET_FILES = {
    "/etc/pgbouncer/userlist.txt": ("root", 0o640),
    "/etc/pgbouncer/pgbouncer.ini": ("root", 0o640),
    "/etc/poolkit/{name}/app.env": ("root", 0o600),
    "/etc/poolkit/{name}/migrate.env": ("root", 0o600),
    "/etc/poolkit/{name}/pgpass": ("{name}", 0o400),
    "/etc/poolkit/{name}/migrate.pgpass": ("{name}-migrate", 0o400),
}


@pytest.mark.parametrize("path", SECRET_FILES)
def test_secrets_are_readable_by_their_user_only(application: Application, path: str) -> None:
    owner, mode = SECRET_FILES[path]
    file = application.host.file(path.format(name=application.name))
    assert file.exists
    assert (file.user, file.mode) == (owner.format(name=application.name), mode)


def test_no_clear_text_password_on_the_poolers_side(application: Application, secrets) -> None:
    """The files double a quote, so a password with one would stand there in another form."""
    content = application.host.check_output("cat $(find /etc/pgbouncer -type f)")
    found = [
        name
        for name, secret in secrets.items()
        for form in {secret, secret.replace('"', '""'), secret.replace("'", "''")}
        if form in content
    ]
    assert found == []


def test_no_secret_in_any_processs_arguments(
    applications: dict[str, Application], database, secrets
) -> None:
    for host in [database, *(application.host for application in applications.values())]:
        arguments = host.check_output("cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
        found = [
            name
            for name, secret in secrets.items()
            if secret in arguments or quote(secret, safe="") in arguments
        ]
        assert found == []


def test_services_are_up_and_come_back(application: Application) -> None:
    for name in ("pgbouncer@1", application.name):
        service = application.host.service(name)
        assert service.is_running
        assert service.is_enabled
    assert application.host.check_output("systemctl --failed --quiet --no-legend") == ""


def test_application_runs_as_its_own_user(application: Application) -> None:
    pid = application.host.check_output(f"systemctl show -P MainPID {application.name}")
    status = application.host.check_output(f"ps -o user=,args= -p {pid}")
    assert re.match(rf"{application.name}\s.*gunicorn", status), status


def test_application_cannot_read_the_owners_password(application: Application) -> None:
    for file in ("migrate.pgpass", "migrate.env"):
        run = application.host.run(
            f"sudo -u {application.name} cat /etc/poolkit/{application.name}/{file}"
        )
        assert run.rc != 0, f"{file} is readable by {application.name}"


PROBE = """
import socket, sys
for target in sys.argv[1:]:
    host, port = target.rsplit(":", 1)
    try:
        socket.create_connection((host, int(port)), timeout=2).close()
        print(target, "reached")
    except ConnectionRefusedError:
        print(target, "refused")
    except OSError:
        print(target, "no answer")
"""


def probe_from_another_network(network: str, targets: list[str]) -> dict[str, str]:
    """Connect to the targets from a machine that routes to the hosts' network by the controller.

    A network namespace with one veth pair stands for it; it is removed with its route at the end.
    """
    script = """
set -e
ip netns del poolkit-foreign 2>/dev/null || true
ip netns add poolkit-foreign
trap 'ip netns del poolkit-foreign' EXIT
ip link add pk-foreign type veth peer name eth0 netns poolkit-foreign
ip addr add 198.51.100.1/30 dev pk-foreign
ip link set pk-foreign up
ip -n poolkit-foreign addr add 198.51.100.2/30 dev eth0
ip -n poolkit-foreign link set eth0 up
ip -n poolkit-foreign route add "$1" via 198.51.100.1
shift
ip netns exec poolkit-foreign "$@"
"""
    root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    run = subprocess.run(
        [*root, "sh", "-c", script, "sh", network, sys.executable, "-c", PROBE, *targets],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
    return dict(line.split(" ", 1) for line in run.stdout.splitlines())


def test_other_machines_reach_no_host(database) -> None:
    """A machine that routes to the hosts' network through the controller gets no answer."""
    prefix = resolve("db1", prefix="docker_subnet_prefix")["db1"]["prefix"]
    hosts = [f"{prefix}.10:5432", f"{prefix}.11:8000", f"{prefix}.12:8000", f"{prefix}.13:6432"]
    controller = "198.51.100.1:1"  # refuses, so the silence of the others is no broken route
    assert probe_from_another_network(f"{prefix}.0/24", [controller, *hosts]) == {
        controller: "refused",
        **dict.fromkeys(hosts, "no answer"),
    }


def test_published_ports_are_on_loopback_only(applications: dict[str, Application]) -> None:
    for application in applications.values():
        port = application.http.base_url.port
        listening = subprocess.run(
            ["ss", "-Hltn", f"sport = :{port}"], capture_output=True, text=True, check=True
        ).stdout.split()
        assert f"127.0.0.1:{port}" in listening
        assert f"0.0.0.0:{port}" not in listening
