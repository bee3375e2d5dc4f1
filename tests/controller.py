"""How the tests reach hosts: Ansible's programs, the inventory's values, a host's shell.

The inventory comes from ANSIBLE_INVENTORY (default: ansible.cfg's), so the same tests run on
Molecule's hosts and on others.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import testinfra
from testinfra.host import Host

ROOT = Path(__file__).resolve().parents[1]


ENVIRONMENT = {
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
    "ANSIBLE_NOCOLOR": "1",
    "ANSIBLE_FORCE_COLOR": "0",  # Molecule sets it
}


def ansible(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run one of Ansible's programs from the project's root and return what it printed."""
    environment = {**os.environ, **ENVIRONMENT, **variables}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )


def cut_off(command: Sequence[str], task: str, times: int = 1) -> str:
    """Run a playbook, kill it when it begins a task (for the nth time); return its output."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **ENVIRONMENT, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    printed = []
    for line in process.stdout:
        printed.append(line)
        times -= line.startswith("TASK [") and line.rstrip(" *\n").endswith(f"{task}]")
        if not times:
            os.killpg(process.pid, signal.SIGKILL)
            break
    process.wait(timeout=60)
    text = "".join(printed)
    assert process.returncode == -signal.SIGKILL, text[-3000:]
    return text


@dataclass(frozen=True)
class Run:
    """What a playbook printed, on one line, and how many tasks changed something, by host."""

    code: int
    output: str
    changed: dict[str, int]


def played(done: subprocess.CompletedProcess[str]) -> Run:
    counts = re.findall(r"^(\S+) +: ok=\d+ +changed=(\d+)", done.stdout, re.MULTILINE)
    return Run(
        done.returncode,
        re.sub(r"\s+", " ", done.stdout + done.stderr),
        {host: int(count) for host, count in counts},
    )


@pytest.fixture(autouse=True)
def figures_shown(capsys: pytest.CaptureFixture[str]) -> Iterator[None]:
    """Show the figures that a test prints, also when it passes; for a conftest.py to import."""
    yield
    with capsys.disabled():
        text = capsys.readouterr().out
        if text:
            print("\n" + text, end="")


def resolve(hosts: str, **expressions: str) -> dict[str, dict]:
    """Return, for each host, the values that Jinja expressions have there; asks no host."""
    message = "{{ {" + ", ".join(f"'{k}': {v}" for k, v in expressions.items()) + "} }}"
    run = ansible(
        *("ansible", hosts, "-m", "ansible.builtin.debug", "-a", json.dumps({"msg": message})),
        ANSIBLE_STDOUT_CALLBACK="ansible.posix.json",
        ANSIBLE_LOAD_CALLBACK_PLUGINS="1",
    )
    assert run.returncode == 0, run.stdout + run.stderr
    tasks = json.loads(run.stdout)["plays"][0]["tasks"][0]["hosts"]
    return {host: result["msg"] for host, result in tasks.items()}


def connect(host: str, connection: str, address: str) -> Host:
    if connection.endswith("docker"):
        return testinfra.get_host(f"docker://{address}")
    return testinfra.get_host(f"ansible://{host}")


@contextlib.contextmanager
def dropped(container: str, *rule: str) -> Iterator[None]:
    """Drop packets in a container's network meanwhile: iptables' chain and match."""
    shown = ["docker", "inspect", "-f", "{{.State.Pid}}", container]
    pid = subprocess.check_output(shown, text=True).strip()
    iptables = ["nsenter", "-t", pid, "-n", "iptables"]
    subprocess.run([*iptables, "-I", *rule, "-j", "DROP"], check=True)
    try:
        yield
    finally:
        subprocess.run([*iptables, "-D", *rule, "-j", "DROP"], check=True)
