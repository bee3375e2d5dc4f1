"""Deployments that must not change anything, and ones that must be refused with the right words."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from collection import COLLECTION
from conftest import Application
from controller import ROOT, ansible, resolve
from test_secrets import forms

LOG = Path(os.environ.get("POOLKIT_DEPLOYMENT_LOG", ROOT / ".cache/molecule/ansible.log"))


def changed(output: str) -> dict[str, int]:
    """Return, for each host of the recap, how many tasks changed something."""
    return {
        host: int(count)
        for host, count in re.findall(r"^(\S+) +: ok=\d+ +changed=(\d+)", output, re.MULTILINE)
    }


def test_check_mode_changes_nothing_and_fails_nowhere(applications: dict) -> None:
    run = ansible("ansible-playbook", "site.yml", "--check", "--diff")
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr
    counts = changed(run.stdout)
    assert len(counts) >= 4
    assert set(counts.values()) == {0}, run.stdout


def test_check_mode_of_a_changed_source_shows_the_drift_behind_it(
    applications: dict[str, Application], flask_source: Path, fingerprint
) -> None:
    """The release cannot be built, so its migrations are not known; everything else is told."""
    flask = applications["flask"]
    unit = f"/etc/systemd/system/{flask.name}.service"
    flask.host.check_output(f"cp -p {unit} /root/kept.service && echo '# drift' >> {unit}")
    try:
        before = fingerprint()
        run = ansible(
            *("ansible-playbook", "ansible/playbooks/app.yml", "--check", "--diff"),
            *("--limit", flask.inventory_host, "-e", f"app_source={flask_source}"),
        )
        assert fingerprint() == before
    finally:
        flask.host.check_output(f"mv /root/kept.service {unit}")
    output = re.sub(r"\s+", " ", run.stdout)
    assert run.returncode == 0, output[-3000:]
    assert re.search(r"the release \w{12} of flask is not built here yet", output), output
    assert re.search(r"not known yet: the release \w{12} is not on \S+ yet", output), output
    assert "-# drift" in output
    task = rf"TASK \[{COLLECTION}.app : Serve the release\] \*+\n(?:(?!TASK).*\n)*?"
    assert re.search(rf"{task}changed: \[{flask.inventory_host}", run.stdout), run.stdout


def test_check_mode_starts_no_hosts() -> None:
    """Of docker_up.yml, without the network that it would make first."""
    names = '{"docker_network": "poolkit-never", "docker_prefix": "poolkit-never-"}'
    run = ansible("ansible-playbook", "ansible/playbooks/docker_up.yml", "--check", "-e", names)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr
    assert changed(run.stdout)["localhost"] == 2


def test_hosts_of_another_checkout_are_refused() -> None:
    """A clone made anew has other secrets; its hosts are still those of the old one."""
    book = ("ansible/playbooks/docker_up.yml", "-e", "scram_salt_seed=of-another-clone")
    run = ansible("ansible-playbook", *book)
    assert run.returncode != 0
    assert "another checkout made them" in re.sub(r"\s+", " ", run.stdout), run.stdout[-3000:]


def test_no_secret_in_the_output_at_full_verbosity(secrets: dict[str, str]) -> None:
    """Reads the log of the deployment from zero and of its repetition, both at -vvv."""
    output = LOG.read_text() if LOG.exists() else ""
    if "ESTABLISH DOCKER CONNECTION" not in output:  # it was less verbose: make a log that is not
        output = ansible("ansible-playbook", "site.yml", "-vvv").stdout
    assert f"TASK [{COLLECTION}.app : Put the directories and files there]" in output
    assert "EXEC" in output
    text = output.encode()
    leaked = [
        name
        for name, secret in secrets.items()
        if any(bytes.fromhex(form) in text for form in forms(secret))
    ]
    assert leaked == []
    assert "SCRAM-SHA-256$" not in output


BAD_INPUT = {
    # what is wrong: (extra variables, what the message must say)
    "misspelt variable": ("app_framwork=flask", "app_framwork (did you mean app_framework?)"),
    "misspelt pooler variable": (
        "pgbouncer_listen_prot=6432",
        "pgbouncer_listen_prot (did you mean pgbouncer_listen_port?)",
    ),
    "unsupported framework": (
        "app_framework=rails",
        "app_framework is 'rails': use one of django, fastapi, flask",
    ),
    "unknown setting": ('{"pgbouncer_settings": {"pool_sise": 5}}', "pool_sise"),
    "setting with a unit": (
        '{"pgbouncer_settings": {"query_wait_timeout": "30s"}}',
        "query_wait_timeout",
    ),
    "missing password": ("app_database_password=", "app_database_password is missing"),
    "missing source": ("app_source=/nonexistent", "there is no directory /nonexistent"),
    "source without requirements": ("app_source=/usr/share", "has no requirements.txt"),
    "port of another program": (
        "app_port=6432 pgbouncer_listen_port=6433",
        "port 6432 is in use by pgbouncer@1.service",
    ),
    "application on the pooler's port": (
        "app_port=6432",
        "app_port and the pooler's port are both",
    ),
    "pooler's port in use": (
        "pgbouncer_listen_port=8000",
        "port 8000 is in use by django.socket",
    ),
    "misspelt database variable": (
        "database_sslmod=require",
        "database_sslmod (did you mean database_sslmode?)",
    ),
    "missing administrator": (
        "database_admin_password=",
        "database_admin_password is missing",
    ),
    "account of somebody else": ("app_user=root", "an account of something else"),
    "role of the administrator": (
        "database_admin_user=django_owner",
        "which is database_admin_user",
    ),
    "short seed": ("scram_salt_seed=short", "scram_salt_seed must have at least 16 characters"),
    "more connections than PostgreSQL takes": (
        "database_reserved_for_others=90",
        "Lower, the largest first: database_reserved_for_others (90)",
    ),
    "limit below the pools": (
        "app_database_connection_limit=11",
        "app_database_connection_limit is 11, but its poolers may open 24 connections",
    ),
    "changed password": (
        "app_database_owner_password=another",
        "for django_owner, fastapi_owner, flask_owner (app_database_password",
    ),
    "owner is the user": (
        "app_database_owner=django app_database_user=django",
        "app_database_user and app_database_owner are both 'django'",
    ),
}


@pytest.fixture
def fingerprint(applications: dict[str, Application]) -> Callable[[], dict[str, str]]:
    """Return what a deployment would change on the hosts: files, start times of the services."""

    def read() -> dict[str, str]:
        return {
            name: application.host.check_output(
                "find /etc/poolkit /etc/pgbouncer /etc/systemd/system /srv /etc/passwd /etc/group"
                " /var/lib/dpkg/status /usr/local -newermt @0"
                " -printf '%%p %%T@ %%C@\\n' | sort | sha256sum;"
                f" systemctl show -P ExecMainStartTimestampMonotonic pgbouncer@1 {name}"
            )
            for name, application in applications.items()
        }

    return read


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_refused_before_anything_changes(case: str, fingerprint) -> None:
    variables, words = BAD_INPUT[case]
    before = fingerprint()
    # Only what site.yml imports first: what these let pass is not refused in time.
    first = ("ansible/playbooks/preflight.yml", "ansible/playbooks/plan.yml")
    run = ansible("ansible-playbook", *first, "-e", variables)
    output = re.sub(r"\s+", " ", run.stdout + run.stderr)
    assert run.returncode != 0
    assert words in output, output[-3000:]
    assert fingerprint() == before
    assert set(changed(run.stdout).values()) == {0}


@pytest.fixture
def flask_source(tmp_path: Path) -> Path:
    """The Flask example with one more migration, which fails."""
    source = tmp_path / "flask"
    shutil.copytree(ROOT / "examples/flask", source)
    (last,) = re.findall(
        r'^revision = "(\w+)"',
        sorted((source / "migrations/versions").glob("*.py"))[-1].read_text(),
        re.MULTILINE,
    )
    (source / "migrations/versions/9999_fails.py").write_text(
        f'revision = "9999"\ndown_revision = "{last}"\n'
        'def upgrade():\n    raise RuntimeError("this migration fails on purpose")\n'
    )
    return source


def test_failed_migration_leaves_the_old_version_serving(
    applications: dict[str, Application], flask_source: Path
) -> None:
    flask = applications["flask"]
    start_time = f"systemctl show -P ExecMainStartTimestampMonotonic {flask.name}"
    before = flask.http.get("/readyz").json(), flask.host.check_output(start_time)
    run = ansible(
        *("ansible-playbook", "ansible/playbooks/app.yml", "--limit", flask.inventory_host),
        *("-e", f"app_source={flask_source}"),
    )
    output = re.sub(r"\s+", " ", run.stdout)
    assert run.returncode != 0
    assert "upgrade (flask --app app:create_app() db upgrade heads) failed" in output
    assert "this migration fails on purpose" in output
    assert (flask.http.get("/readyz").json(), flask.host.check_output(start_time)) == before


def test_old_release_with_another_password_is_named(
    applications: dict[str, Application], flask_source: Path
) -> None:
    """It answers from the connections that it has; new ones would be refused."""
    flask = applications["flask"]
    file = f"/etc/poolkit/{flask.name}/pgpass"
    flask.host.check_output(f"cp -p {file} /root/kept && sed -i 's/[^:]*$/another/' {file}")
    try:
        run = ansible(
            *("ansible-playbook", "ansible/playbooks/app.yml", "--limit", flask.inventory_host),
            *("-e", f"app_source={flask_source}"),
        )
    finally:
        flask.host.check_output(f"mv /root/kept {file}")
    output = re.sub(r"\s+", " ", run.stdout)
    assert run.returncode != 0
    said = r"\w{12} goes on serving, BUT GETS NO NEW CONNECTION to its database: .*SASL authentic"
    assert re.search(said, output), output[-3000:]


def test_refusing_database_is_named(applications: dict[str, Application]) -> None:
    flask = applications["flask"]
    before = flask.http.get("/readyz").json()
    run = ansible(
        *("ansible-playbook", "ansible/playbooks/app.yml", "--limit", flask.inventory_host),
        *("-e", "app_database_port=5999"),
    )
    output = re.sub(r"\s+", " ", run.stdout)
    assert run.returncode != 0
    assert "PostgreSQL refuses the role flask of the database flask" in output
    assert f"{flask.database_host}:5999: " in output
    assert flask.http.get("/readyz").json() == before


def test_unreachable_database_is_named_before_anything_changes(
    applications: dict[str, Application], fingerprint, tmp_path: Path
) -> None:
    """An inventory without a server of its own (RDS, say) is asked about it in the preflight."""
    flask = applications["flask"]
    values = resolve("flask", **{name: name for name in ("ansible_host", "app_source")})
    facts = {**values[flask.inventory_host], "ansible_connection": "community.docker.docker"}
    facts |= {
        **{"app_name": "flask", "app_framework": "flask", "app_module": "app:create_app()"},
        **{"app_database_password": "p", "app_database_owner_password": "o"},
        **{"scram_salt_seed": "0123456789abcdef", "database_port": 5999},
        **{"database_host": flask.database_host, "database_admin_user": "postgres"},
        "database_admin_password": "p",
    }
    one = {"hosts": {flask.inventory_host: None}}
    groups = {"applications": one, "pgbouncer": one, "database_admin": one}
    inventory = tmp_path / "hosts.json"
    inventory.write_text(json.dumps({"all": {"vars": facts, "children": groups}}))
    before = fingerprint()
    run = ansible("ansible-playbook", "site.yml", "-i", str(inventory))
    output = re.sub(r"\s+", " ", run.stdout)
    assert run.returncode != 0
    words = f"{flask.inventory_host} does not reach PostgreSQL at {flask.database_host}:5999"
    assert words in output, output[-3000:]
    assert fingerprint() == before


def test_interrupted_run_is_caught_up(applications: dict[str, Application]) -> None:
    """Files that were written just before a run was cut off are read by the next run."""
    flask = applications["flask"]
    flask.host.check_output("touch /etc/poolkit/flask/app.env /etc/pgbouncer/.poolkit-pending")
    play = ("ansible/playbooks/pgbouncer.yml", "ansible/playbooks/app.yml")
    command = ("ansible-playbook", *play, "--limit", flask.inventory_host)
    caught_up, again = ansible(*command), ansible(*command)
    assert (caught_up.returncode, again.returncode) == (0, 0), caught_up.stdout
    for task in ("pgbouncer : Apply the configuration", "app : Serve the release"):
        assert re.search(rf"TASK \[{COLLECTION}.{task}\] \*+\nchanged", caught_up.stdout), (
            caught_up.stdout
        )
    assert changed(again.stdout) == {flask.inventory_host: 0}


def test_stopped_pooler_is_named(applications: dict[str, Application]) -> None:
    """An application is not deployed onto the fallback in silence."""
    flask = applications["flask"]
    flask.host.check_output("systemctl stop pgbouncer.target")
    try:
        run = ansible(
            *("ansible-playbook", "ansible/playbooks/app.yml", "--limit", flask.inventory_host)
        )
    finally:
        flask.host.check_output("systemctl start pgbouncer.target")
    assert run.returncode != 0
    output = re.sub(r"\s+", " ", run.stdout)
    assert "PgBouncer refuses the role flask of the database flask at 127.0.0.1:6432" in output


def test_unhealthy_deployment_fails(applications: dict[str, Application], tmp_path: Path) -> None:
    """A release that starts and is not ready is refused by its trial, with the end of its log."""
    flask = applications["flask"]
    source = tmp_path / "flask"
    shutil.copytree(ROOT / "examples/flask", source)
    readiness = source / "app/readiness.py"
    readiness.write_text(
        re.sub(
            r"(def database_path.*?\n)",
            r'\1    raise RuntimeError("unwell on purpose")\n',
            readiness.read_text(),
            count=1,
        )
    )
    deploy = ("ansible-playbook", "ansible/playbooks/app.yml", "--limit", flask.inventory_host)
    run = ansible(*deploy, "-e", f"app_source={source}", "-e", "app_health_timeout_seconds=3")
    output = re.sub(r"\s+", " ", run.stdout)
    assert run.returncode != 0
    assert "was tried out and refused" in output
    assert "unwell on purpose" in output
    assert flask.http.get("/readyz").status_code == 200
