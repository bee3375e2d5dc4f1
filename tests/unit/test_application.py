"""What the variables of an application must not contradict, and the batches of a rollout."""

from pathlib import Path

import application
import poolkit
import pytest
import yaml
from ansible.errors import AnsibleFilterError

ROOT = Path(__file__).resolve().parents[2]

GOOD = {
    "strategy": "pgbouncer",
    "database_url": "",
    "database_direct_url": "",
    "environment_names": {"DB_HOST": "host"},
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
    "given",
    [
        GOOD,
        MANAGED,
        GOOD | {"workers": 4, "serial": "25%"},
        GOOD | {"workers": "4", "serial": "100%"},
        GOOD | {"migration_command": ["x"], "migration_pending_command": ["y"]},
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


def test_every_contradiction_is_named_at_once() -> None:
    given = GOOD | {"workers": "many", "serial": "half", "database_url": "x"}
    assert len(application.app_errors(given)) == 3


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1500, 1.5), ("250", 0.25), ("250ms", 0.25), ("5s", 5), ("1.5min", 90), (" 2 h ", 7200)],
)
def test_seconds(value: object, expected: float) -> None:
    assert application.seconds(value) == pytest.approx(expected)


@pytest.mark.parametrize("value", ["", "s", "-1s", "5 sec", "1h30min", None])
def test_no_seconds(value: object) -> None:
    with pytest.raises(ValueError, match="is no time: give a number"):
        application.seconds(value)


def batches(hosts: dict[str, tuple]) -> list[list[str]]:
    """Return the batches of hosts, given as name: (application, app_serial or nothing)."""
    hostvars = {
        name: {"__app_host": {}, **dict(zip(("app_name", "app_serial"), facts, strict=False))}
        for name, facts in hosts.items()
    }
    left_out = {"other": {"app_name": "a"}}  # by --limit
    groups = {"applications": [*left_out, *hosts]}
    return poolkit.rollout_batches(left_out | hostvars, groups, "__app_host")


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


def test_longest_wait_of_the_poolers() -> None:
    hostvars = {
        "p1": {},
        "p2": {"pgbouncer_settings": {"query_wait_timeout": "25"}},
        "p3": {"pgbouncer_settings": None},
    }
    wait = application.pooler_query_wait_timeout
    assert wait(hostvars, {"pgbouncer": ["p1", "p2", "p3"]}) == 25
    assert wait(hostvars, {"pgbouncer": ["p1"]}) == 10
    hostvars["p4"] = {"pgbouncer_settings": {"query_wait_timeout": 0}}  # without end
    assert wait(hostvars, {"pgbouncer": ["p2", "p4"]}) == 0
    assert wait(hostvars, {}) == 10


def test_default_wait_is_the_roles() -> None:
    text = (ROOT / "roles/pgbouncer/vars/main.yml").read_text()
    settings = yaml.safe_load(text)["_pgbouncer_settings"]
    assert settings["query_wait_timeout"] == application.QUERY_WAIT_TIMEOUT


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
    assert application.rollback_release(hosts) == target


def test_nothing_to_go_back_to() -> None:
    with pytest.raises(AnsibleFilterError, match="nothing to go back to"):
        application.rollback_release([("web1", {"msg": "shop: there is nothing to go back to"})])


def test_host_without_the_release_is_named() -> None:
    """It was added after that release."""
    full = {"previous": "new", "release": "old", "releases": ["new", "old"]}
    added = {"msg": "shop: there is nothing to go back to", "previous": "new", "releases": ["new"]}
    with pytest.raises(AnsibleFilterError, match="old is not on web3: nothing was changed"):
        application.rollback_release([("web1", full), ("web2", full), ("web3", added)])
