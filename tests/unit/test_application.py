"""What the variables of an application must not contradict, and the batches of a rollout."""

import hashlib
from pathlib import Path

import pytest
import yaml
from ansible.errors import AnsibleFilterError

from plugins.filter import application, fleet
from plugins.plugin_utils import values

ROOT = Path(__file__).resolve().parents[2]

GOOD = {
    "strategy": "pgbouncer",
    "database_url": "",
    "database_direct_url": "",
    "environment": {"SECRET": "a\nb", "EMPTY": "", "PORT": 8000, "RATE": 0.5, "DEBUG": "false"},
    "pip_environment": {"PIP_INDEX_URL": "https://pypi.example.com"},
    "docker_environment_file": False,
    "environment_names": {"DB_HOST": "host"},
    "database_sslmode": "prefer",
    "database_ca_file": "",
    "database_settings": {"statement_timeout": "5s", "search_path": "shop"},
    "workers": "auto",
    "serial": 1,
    "resource_limits": {"MemoryMax": "1G", "CPUQuota": "50%", "Nice": -5, "TasksMax": 100},
    "migration_command": [],
    "migration_pending_command": [],
    "timeout_seconds": 30,
    "connect_timeout_seconds": 2,
    "hosts": 2,
    "poolers": 1,
    "query_wait_timeout_seconds": 10,
}
MANAGED = {
    **GOOD,
    "strategy": "managed",
    "environment_names": {},
    "database_url": "postgresql://pool",
    "database_direct_url": "postgresql://direct",
    "poolers": 0,
}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, 'is null: leave it out, or write ""'),
        (False, "is a boolean: write in quotes what the application reads"),
        (["a.example", "s3cret"], "is a list: give text"),
        ({"a": "s3cret"}, "is a mapping: give text, such as JSON"),
        ("s3cret\0", "holds a NUL character"),
    ],
)
@pytest.mark.parametrize("variable", ["environment", "pip_environment"])
def test_environment_is_text(variable: str, value: object, words: str) -> None:
    """A list would be written as Python prints it; the message holds no value."""
    (message,) = application.app_errors(GOOD | {variable: {"NAME": value}})
    assert message.startswith(f"app_{variable}.NAME {words}")
    assert "s3cret" not in message


def test_environment_has_lines_that_the_files_hold() -> None:
    (message,) = application.app_errors(GOOD | {"docker_environment_file": True})
    assert message.startswith("app_environment.SECRET has a line break, which docker.env cannot")


@pytest.mark.parametrize(
    "given",
    [
        GOOD,
        MANAGED,
        GOOD | {"workers": 4, "serial": "25%"},
        GOOD | {"workers": "4", "serial": "100%"},
        GOOD | {"migration_command": ["x"], "migration_pending_command": ["y"]},
        GOOD | {"database_sslmode": "verify-ca", "database_ca_file": "ca.crt"},
        MANAGED | {"database_sslmode": "verify-full"},  # the platform's URLs have their own
        # Without poolers nothing waits in one.
        GOOD | {"poolers": 0, "query_wait_timeout_seconds": 60},
    ],
)
def test_good_variables(given: dict) -> None:
    assert application.app_errors(given) == []


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (
            MANAGED | {"database_url": ""},
            "app_database_url is missing: app_connection_strategy managed takes the platform's own "
            "URLs",
        ),
        (MANAGED | {"database_direct_url": ""}, "app_database_direct_url is missing"),
        (
            GOOD | {"database_url": "postgresql://x"},
            "app_database_url is only for app_connection_strategy managed; remove it",
        ),
        (GOOD | {"database_direct_url": "x"}, "app_database_direct_url is only for"),
        (
            MANAGED | {"environment_names": {"DB_HOST": "host"}},
            "app_environment_names needs a database of the inventory, not app_database_url",
        ),
        (
            GOOD | {"environment_names": {"DB": "database"}},
            "app_environment_names.DB is 'database': give one of host, port, dbname, user, pass",
        ),
        (
            GOOD | {"database_sslmode": "verify-full"},
            "app_database_sslmode is verify-full (database_sslmode): needs database_ca_file",
        ),
        (
            GOOD | {"connect_timeout_seconds": 15},
            "app_timeout_seconds is 30, but connecting may take 30 s (2 hosts x "
            "app_connect_timeout_seconds 15)",
        ),
        (
            GOOD | {"query_wait_timeout_seconds": 30},
            "app_timeout_seconds is 30, but a query may wait 30 s in PgBouncer "
            "(query_wait_timeout)",
        ),
        (
            GOOD | {"database_settings": {"statement_timeout": "30s"}},
            "app_database_settings.statement_timeout is 30s, not less than app_timeout_seconds",
        ),
        (
            GOOD | {"database_settings": {"transaction_timeout": "1min"}},
            "app_database_settings.transaction_timeout is 1min, not less than",
        ),
        (
            GOOD | {"database_settings": {"statement_timeout": "5 seconds"}},
            "app_database_settings.statement_timeout: '5 seconds' is no time: give a number and "
            "one of us, ms, s, min, h, d",
        ),
        (GOOD | {"workers": "many"}, "app_workers is 'many': give a number or auto"),
        (GOOD | {"workers": 0}, "app_workers is 0: give a number or auto"),
        (
            GOOD | {"serial": "half"},
            "app_serial is 'half': give a number or a percentage such as 25%",
        ),
        (GOOD | {"serial": 0}, "app_serial is 0: "),
        (GOOD | {"serial": "101%"}, "app_serial is '101%': "),
        (
            GOOD | {"migration_pending_command": ["y"]},
            "app_migration_pending_command needs app_migration_command beside it",
        ),
        (
            GOOD | {"resource_limits": {"MemoryLimit": "1G"}},
            "app_resource_limits.MemoryLimit is unknown: use CPUQuota, ",
        ),
        (
            GOOD | {"resource_limits": {"MemoryMax": "1G\nUser=root"}},
            "app_resource_limits.MemoryMax is '1G\\nUser=root': give one value of systemd's",
        ),
    ],
)
def test_contradictions(given: dict, error: str) -> None:
    (found,) = application.app_errors(given)
    assert found.startswith(error)


@pytest.mark.parametrize(
    ("processes", "error"),
    [
        ({"worker": {"command": "celery -A config worker", "connections": 4}}, ""),
        ({"tidy": {"command": "manage.py clearsessions", "schedule": "*-*-* 03:00:00"}}, ""),
        ({"rq": {"command": "rq worker", "stop_signal": "SIGINT", "stop_timeout_seconds": 5}}, ""),
        (["worker"], "app_processes is ['worker']: give {name:"),
        ({"Worker": {"command": "x"}}, "app_processes.Worker: use a lower-case letter"),
        ({"a.b": {"command": "x"}}, "app_processes.a.b: use a lower-case letter"),
        ({"worker": "celery"}, "app_processes.worker has no command"),
        ({"worker": {"comand": "x"}}, "app_processes.worker has no command"),
        ({"worker": {"command": "x", "cron": "@daily"}}, "app_processes.worker.cron is unknown"),
        ({"worker": {"command": "x\ny"}}, "app_processes.worker.command is 'x\\ny': give one"),
        ({"worker": {"command": "x", "schedule": "daily\n"}}, "app_processes.worker.schedule is"),
        *(
            ({"worker": {"command": text}}, f"app_processes.worker.command is {text!r}: give one")
            for text in ("a && b", "a; b", "a | b", "a > log", "LANG=C celery worker", "a `b`")
        ),
        (
            {"w": {"command": "x", "schedule": None}},
            "app_processes.w.schedule is None: give a time",
        ),
        ({"w": {"command": "x", "stop_signal": "SIGFOO"}}, "app_processes.w.stop_signal is"),
        ({"worker": {"command": "x", "stop_signal": "9"}}, "app_processes.worker.stop_signal is"),
        ({"w": {"command": "x", "stop_timeout_seconds": 0}}, "app_processes.w.stop_timeout_sec"),
        ({"worker": {"command": "x", "connections": -1}}, "app_processes.worker.connections is"),
    ],
)
def test_further_processes(processes: object, error: str) -> None:
    errors = application.app_errors(GOOD | {"processes": processes})
    assert [text[: len(error)] for text in errors] == ([error] if error else [])


VALUES = {
    "name": "shop",
    "user": "shop",
    "module": "config.wsgi:application",
    "python": "python3.13",
    "bind_address": "127.0.0.1",
    "port": 8000,
    "health_path": "/readyz",
    "database": "shop",
    "database_user": "shop.reader",
    "database_owner": "shop_owner",
    "database_url_scheme": "postgresql+asyncpg",
    "migration_timeout_seconds": 14400,
    "hosts": [["127.0.0.1", 6432], ["db1.example.com", "5432"], ["2001:db8::1", 5432]],
    "health_headers": {"Host": "shop.example.com", "X-Number": 1},
    "environment": ["APP_SECRET_KEY", "_x"],
    "environment_names": ["DB_HOST"],
    "pip_environment": ["PIP_INDEX_URL", "https_proxy"],
    "state_directories": ["media", "log_files.d"],
    "build_commands": ["npm ci", "npm run build"],
    "system_packages": ["libgdal36", "g++", "libstdc++6"],
}


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"module": "app:create_app()", "bind_address": "::", "port": "65535"},
        {"module": 'app.main:create_app("prod", debug=False)', "bind_address": "fe80::1"},
        {"python": "/opt/python-3.13/bin/python3", "health_path": "/health?full=1&x=%20"},
        {"python": "python3", "module": "wsgi", "hosts": [], "health_headers": {}},
    ],
)
def test_values_of_the_right_form(given: dict) -> None:
    assert application.app_value_errors(VALUES | given) == []


@pytest.mark.parametrize(
    ("key", "value", "error"),
    [
        ("name", "shop\n", "app_name is 'shop\\n': use a lower-case letter"),
        ("name", "Shop", "app_name is 'Shop': use a lower-case letter"),
        ("name", "a" * 24, "app_name is "),
        ("user", "shop\nUser=root", "app_user is "),
        ("user", "root", "app_user is 'root', an account of something else"),
        ("user", "pgbouncer", "app_user is 'pgbouncer', an account of something else"),
        ("user", "nobody", "app_user is 'nobody', an account of something else"),
        ("user", "_apt", "app_user is '_apt': use a lower-case letter"),
        ("python", "python3; reboot", "app_python is 'python3; reboot': give a command"),
        ("python", "$(id)", "app_python is "),
        ("python", "/opt/my python/bin/python3", "app_python is "),
        ("python", "-c", "app_python is "),
        ("python", "/home/deploy/python/bin/python3", "app_python is "),
        ("python", "python3\n", "app_python is "),
        ("module", "app:app\nUser=root", "app_module is "),
        ("module", "app:create('%h')", "app_module is "),
        ("module", 'app:create("$HOME")', "app_module is "),
        ("module", "app:app --reload", "app_module is "),
        ("bind_address", "localhost", "app_bind_address is 'localhost': give an IPv4 or IPv6"),
        ("bind_address", "127.0.0.1\nAccept=yes", "app_bind_address is "),
        ("bind_address", "fe80::1%eth0", "app_bind_address is "),
        ("bind_address", "", "app_bind_address is ''"),
        ("port", 0, "app_port is 0: give a number from 1 to 65535"),
        ("port", 65536, "app_port is 65536: "),
        ("port", "80\n", "app_port is '80\\n': "),
        ("port", "http", "app_port is 'http': "),
        ("health_path", "readyz", "app_health_path is 'readyz': give a path"),
        ("health_path", "/a b", "app_health_path is "),
        ("health_path", "/a\r\nX: y", "app_health_path is "),
        ("health_path", "/prüfung", "app_health_path is "),
        ("database", "shop\nuser=x", "app_database is 'shop\\nuser=x': use 1 to 63 of"),
        ("database_user", "a b", "app_database_user is 'a b'"),
        ("database_owner", "", "app_database_owner is ''"),
        ("database_url_scheme", "postgresql\n", "app_database_url_scheme is "),
        ("migration_timeout_seconds", 0, "app_migration_timeout_seconds is 0: give a number"),
        ("hosts", [["db1\nuser=x", 5432]], "'db1\\nuser=x' in app_database_host or app_poolers"),
        ("hosts", [["db1", "5432\nuser=x"]], "the port of db1 in app_database_port or app_poolers"),
        ("health_headers", {"X": "secret\nY: z"}, "app_health_headers.X has a line break"),
        ("health_headers", {"X Y": "z"}, "app_health_headers: 'X Y' is no name of a header"),
        ("environment", ["A B"], "app_environment: 'A B' is no name of a variable"),
        ("environment_names", ["A=1\nB"], "app_environment_names: 'A=1\\nB' is no name"),
        *(
            ("state_directories", [name], f"app_state_directories has {name!r}: give a name")
            for name in ("/media", "../media", "a/b", "media/", "", "a b", "50%", ".hidden", "ä")
        ),
        *(
            ("system_packages", [name], f"app_system_packages has {name!r}: give the name")
            for name in ("libgdal36 -o x", "-y", "Lib", "a", "g++;reboot")
        ),
        ("state_directories", "media", "app_state_directories is the text 'media': give a list"),
        ("system_packages", "npm", "app_system_packages is the text 'npm': give a list"),
        ("build_commands", "npm ci", "app_build_commands is the text 'npm ci': give a list"),
        ("pip_environment", ["x; reboot"], "app_pip_environment: 'x; reboot' is no name"),
    ],
)
def test_values_of_another_form(key: str, value: object, error: str) -> None:
    (found,) = application.app_value_errors(VALUES | {key: value})
    assert found.startswith(error)
    assert "secret" not in found


def test_every_value_of_the_preflight_is_checked() -> None:
    text = (ROOT / "roles/app/tasks/variables.yml").read_text()
    (task,) = (t for t in yaml.safe_load(text) if "__app_values" in t.get("vars", {}))
    assert task["vars"]["__app_values"].keys() == VALUES.keys()


@pytest.mark.parametrize(
    ("version", "path", "python", "name"),
    [
        ("3.13", "/usr/bin/python3.13", "python3", "py3.13-abcdefabcdef"),
        ("3.13", "/usr/bin/python3.13", "python3.13", "py3.13-abcdefabcdef"),
        ("", "", "python3.14", "py3.14-abcdefabcdef"),  # not installed yet
        # printf /opt/a/bin/python3.13 | sha256sum
        ("3.13", "/opt/a/bin/python3.13", "/opt/a/bin/python3", "py3.13-5fd612c8-abcdefabcdef"),
    ],
)
def test_virtual_environment_knows_its_interpreter(
    version: str, path: str, python: str, name: str
) -> None:
    found = {"version": version, "path": path}
    assert application.venv_name(found, python, "abcdef" * 10) == name


def test_every_contradiction_is_named_at_once() -> None:
    given = GOOD | {"workers": "many", "serial": "half", "database_url": "x"}
    assert len(application.app_errors(given)) == 3


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1500, 1.5), ("250", 0.25), ("250ms", 0.25), ("5s", 5), ("1.5min", 90), (" 2 h ", 7200)],
)
def test_seconds(value: object, expected: float) -> None:
    assert values.seconds(value) == pytest.approx(expected)


@pytest.mark.parametrize("value", ["", "s", "-1s", "5 sec", "1h30min", None])
def test_no_seconds(value: object) -> None:
    with pytest.raises(ValueError, match="is no time: give a number"):
        values.seconds(value)


def batches(hosts: dict[str, tuple]) -> list[list[str]]:
    """Return the batches of hosts, given as name: (application, app_serial or nothing)."""
    hostvars = {
        name: {"__app_host": {}, **dict(zip(("app_name", "app_serial"), facts, strict=False))}
        for name, facts in hosts.items()
    }
    left_out = {"other": {"app_name": "a"}}  # by --limit
    groups = {"applications": [*left_out, *hosts]}
    return fleet.rollout_batches(left_out | hostvars, groups, "__app_host")


def test_each_host_is_a_batch_by_default() -> None:
    assert batches({"a1": ("a",), "a2": ("a",)}) == [["a1"], ["a2"]]


@pytest.mark.parametrize(
    ("serial", "sizes"),
    [
        (1, [1, 1, 1, 1, 1]),
        ("2", [2, 2, 1]),
        (9, [5]),
        ("40%", [2, 2, 1]),
        ("59%", [2, 2, 1]),
        ("1%", [1, 1, 1, 1, 1]),  # at least one
        ("100%", [5]),
    ],
)
def test_numbers_and_percentages(serial: object, sizes: list[int]) -> None:
    found = batches({f"a{number}": ("a", serial) for number in range(5)})
    assert [len(batch) for batch in found] == sizes
    assert [host for batch in found for host in batch] == [f"a{number}" for number in range(5)]


def test_applications_side_by_side() -> None:
    hosts = {"a1": ("a", 1), "b1": ("b", "50%"), "a2": ("a", 1), "a3": ("a", 1), "b2": ("b", "50%")}
    assert batches(hosts) == [["a1", "b1"], ["a2", "b2"], ["a3"]]


def test_no_applications() -> None:
    assert batches({}) == []


@pytest.mark.parametrize("serial", ["half", "0", 0, "0%", "101%", "1.5", -1])
def test_unusable_serial_names_its_host(serial: object) -> None:
    with pytest.raises(AnsibleFilterError, match=r"^a1: app_serial is .*: give a number"):
        batches({"a1": ("a", serial)})


@pytest.mark.parametrize(
    ("states", "target"),
    [
        ([("new", "old"), ("new", "old")], "old"),
        ([("new", "old"), ("old", "older")], "old"),  # a rollout that stopped half-way
        ([("old", "older"), ("new", "old")], "old"),  # a rollback that stopped half-way
        ([("old", None), ("new", "old")], "old"),
        ([("new", "old"), ("old", "new")], "old"),  # a rollout of what had served before
        ([("new", "old"), ("old", None)], "old"),
        ([("new", "old")], "old"),
    ],
)
def test_every_host_goes_back_to_one_release(states: list, target: str) -> None:
    """states: what serves on each host, and what served before."""
    present = ["older", "old", "new"]
    hosts = [
        (f"web{number}", {"previous": serves, "release": before, "releases": present})
        for number, (serves, before) in enumerate(states)
    ]
    assert application.rollback_release(hosts) == {"target": target, "problem": ""}


FULL = {"previous": "new", "release": "old", "releases": ["new", "old"]}
ADDED = {"msg": "shop: there is nothing to go back to", "previous": "new", "releases": ["new"]}


@pytest.mark.parametrize(
    ("hosts", "problem"),
    [
        ([("web1", ADDED)], "web1: shop: there is nothing to go back to"),
        (
            [("web1", FULL), ("web2", FULL), ("web3", ADDED)],  # added after that release
            "the release old is not on web3: deploy its source instead (ansible/playbooks/app.yml)",
        ),
        (
            [("web1", FULL), ("web2", {"msg": "shop: there is no /etc/poolkit/shop", "rc": 1})],
            "not every host can go back: web2: shop: there is no /etc/poolkit/shop",
        ),
        (
            [("web1", {"unreachable": True, "msg": "timed out"}), ("web2", None)],
            "not every host can go back: web1: timed out; web2: it was not asked",
        ),
    ],
)
def test_rollback_that_not_every_host_can_take(hosts: list, problem: str) -> None:
    assert application.rollback_release(hosts) == {"target": "", "problem": problem}


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        ({"msg": "web1: no such file\n"}, "web1: no such file"),
        (
            {"msg": "non-zero return code", "stdout": "x", "stderr": "No matching distribution\n"},
            "non-zero return code: No matching distribution",
        ),
        ({"msg": "boom", "module_stderr": "boom"}, "boom"),
        ({"msg": "x", "stderr": "a" * 3000 + "the end"}, "x: " + "a" * 1993 + "the end"),
        ({"msg": "all", "results": [{"msg": "fine"}, {"failed": True, "msg": "second"}]}, "second"),
        ({"censored": "hidden by no_log"}, "hidden by no_log"),
        ({}, "no message"),
    ],
)
def test_reason_of_a_failure(result: dict, reason: str) -> None:
    assert application.failure_reason(result) == reason


def test_failures_and_what_serves() -> None:
    hostvars = {
        "web1": {"__app_serving": {"serving": "r1 goes on serving"}},
        "web2": {"__app_serving": {"serving": "r1 goes on serving"}},
        "web3": {},
    }
    mark = {host: hashlib.sha1(host.encode()).hexdigest() for host in ("web1", "web4")}
    noted = {f"__app_failure_{mark['web1']}": "Build: no", "other": 1}
    noted[f"__app_failure_{mark['web4']}"] = "Build: web4: no"
    hosts = ["web1", "web2", "web3", "web4"]
    assert application.application_failures(noted, hosts, ["web1", "web2", "web4"]) == [
        "web1, web4: Build: no",
        "web3 does not answer any more, or failed before",
    ]
    summary = application.serving_summary(hostvars, ["web1", "web2", "web3"])
    assert summary == "on web1, web2 r1 goes on serving; on web3 nobody knows"


@pytest.mark.parametrize(
    ("requires", "version", "fits"),
    [
        (">=3.12", "3.13", True),
        (">=3.12", "3.11", False),
        (">=3.11,<3.13", "3.13", False),
        (">=3.13.2", "3.13", True),  # a patch that only the host knows
        ("==3.13.*", "3.13", True),
        (">=3.14", "3.14.0", True),
        ("", "3.9", True),
        (">=3.12", "3", True),  # the distribution's, to be installed
        ("not a version", "3.9", True),
    ],
)
def test_python_of_the_source(requires: str, version: str, fits: bool) -> None:
    said = application.python_misfit(requires, version, "python3")
    assert (said == "") == fits
    if said:
        assert f"version {version}, but the source's pyproject.toml says requires-python" in said
