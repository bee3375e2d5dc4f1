"""The connection budget, against sums worked out by hand, and what holds for every inventory."""

import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import yaml
from ansible.errors import AnsibleFilterError
from hypothesis import given
from hypothesis import strategies as st

from plugins.filter import connection_budget, pooler_configuration
from plugins.plugin_utils import pooler_clients, pools, role_defaults
from plugins.plugin_utils.applications import applications

ROOT = Path(__file__).resolve().parents[2]
SERVER = {
    "query_result": [
        {"name": "max_connections", "setting": "100"},
        {"name": "superuser_reserved_connections", "setting": "3"},
        {"name": "reserved_connections", "setting": "0"},
    ]
}
"""PostgreSQL 17 with its defaults: 97 connections for applications."""


def fleet(hosts: dict[str, str], poolers: list[str] | None = None, **facts: object):
    """Return (apps, hostvars, groups) of hosts {name: application}; facts hold for all of them.

    Without poolers each host has one beside it.
    """
    poolers = list(hosts) if poolers is None else poolers
    base = {
        "app_database_password": "p",
        "app_database_owner_password": "o",
        "database_host": "db1",
        "database_port": 5432,
        **facts,
    }
    hostvars = {name: {**base, "app_name": app} for name, app in hosts.items()}
    hostvars |= {name: base for name in poolers if name not in hosts}
    groups = {"applications": list(hosts), "pgbouncer": poolers}
    return applications(hostvars, groups), hostvars, groups


def budget(hosts: dict[str, str], *args, server=SERVER, **facts: object) -> dict:
    return connection_budget.add_up(*fleet(hosts, *args, **facts), server)


AUTO = {"pgbouncer_settings": {"default_pool_size": "auto"}}
ONE = {"web1": "shop"}
TWO = {"web1": "shop", "web2": "shop"}


def test_three_applications_with_defaults() -> None:
    """Each pools 10 + 2, and its stand-in as much; that is more than the fallback's 8."""
    plan = budget({"web1": "django", "web2": "fastapi", "web3": "flask"})
    assert plan["rows"][0] == {
        "application": "django",
        "poolers": "1 x 1",
        "pool": "10 + 2",
        "pooled": 12,
        "direct": 0,
        "rolling": 12,
        "fallback": 8,
        "limit": 24,
        "migrations": 5,
        "auth_query": 0,
    }
    assert plan["totals"] == {
        "limits": 72,
        "migrations": 15,
        "auth_query": 0,
        "others": 5,
        "total": 92,
    }
    assert (plan["available"], plan["fits"], plan["message"]) == (97, True, "")


def test_tier_counts_its_own_hosts() -> None:
    """Three hosts of one application over a tier of two: 2 x 12 pooled, 3 x 9 in the fallback."""
    hosts = {"web1": "shop", "web2": "shop", "web3": "shop"}
    (row,) = budget(hosts, ["pool1", "pool2"], app_fallback_connections=9)["rows"]
    assert (row["poolers"], row["pooled"], row["fallback"], row["limit"]) == ("2 x 1", 24, 27, 51)


def test_processes_share_the_hosts_numbers_and_are_replaced_in_turn() -> None:
    """10 + 2 over 3 processes is 3 + 0 each: 9, and the fallback's 8."""
    (row,) = budget(ONE, pgbouncer_processes=3)["rows"]
    assert (row["pooled"], row["rolling"], row["limit"]) == (9, 0, 17)


@pytest.mark.parametrize(("fallback", "limit"), [(0, 24), (11, 24), (12, 24), (13, 25)])
def test_limit_has_room_for_the_larger_of_a_restart_and_the_fallback(
    fallback: int, limit: int
) -> None:
    """A lone process pools 12, and its stand-in 12."""
    (row,) = budget(ONE, app_fallback_connections=fallback)["rows"]
    assert (row["rolling"], row["fallback"], row["limit"]) == (12, fallback, limit)


@pytest.mark.parametrize(
    ("facts", "pool", "pooled"),
    [
        ({"pgbouncer_settings": {"default_pool_size": 4}}, "4 + 2", 6),
        (
            {
                "pgbouncer_settings": {"default_pool_size": 4, "reserve_pool_size": 1},
                "pgbouncer_databases": {"shop": {"pool_size": "5"}},
            },
            "5 + 1",
            6,
        ),
        (
            {
                "pgbouncer_databases": {"shop": {"pool_size": 5, "reserve_pool": 3}},
                "pgbouncer_users": {"shop": {"pool_size": 6}},
            },
            "6 + 3",
            9,
        ),
        (
            {
                "pgbouncer_databases": {"shop": {"reserve_pool_size": 3}},
                "pgbouncer_users": {"shop": {"reserve_pool_size": 4}},
            },
            "10 + 4",
            14,
        ),
        ({"pgbouncer_databases": {"other": {"pool_size": 50}}}, "10 + 2", 12),
        ({"pgbouncer_settings": {"max_db_connections": 9}}, "10 + 2", 9),
        ({"pgbouncer_settings": {"max_db_connections": 0}}, "10 + 2", 12),
        (
            {
                "pgbouncer_settings": {"max_db_connections": 9},
                "pgbouncer_databases": {"shop": {"max_db_connections": 8}},
                "pgbouncer_users": {"shop": {"max_user_connections": 7}},
            },
            "10 + 2",
            7,
        ),
        # 9 over 2 processes is 4 each.
        (
            {"pgbouncer_settings": {"max_user_connections": 9}, "pgbouncer_processes": 2},
            "10 + 2",
            8,
        ),
    ],
)
def test_which_size_holds(facts: dict, pool: str, pooled: int) -> None:
    (row,) = budget(ONE, **facts)["rows"]
    assert (row["pool"], row["pooled"]) == (pool, pooled)


def test_the_roles_own_numbers_hold_where_the_inventory_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pgbouncer/vars").mkdir(parents=True)
    (tmp_path / "pgbouncer/vars/main.yml").write_text(
        "_pgbouncer_settings: {default_pool_size: 30, reserve_pool_size: 7, x: '{{ y }}'}"
    )
    for role in ("app", "database"):
        (tmp_path / role).symlink_to(role_defaults.ROLES / role)
    (tmp_path / "pgbouncer/defaults").symlink_to(role_defaults.ROLES / "pgbouncer/defaults")
    role_defaults.role_file.cache_clear()
    monkeypatch.setattr(role_defaults, "ROLES", tmp_path)
    assert budget(ONE)["rows"][0]["pool"] == "30 + 7"
    role_defaults.role_file.cache_clear()


def test_auth_query_adds_other_users_and_its_logins() -> None:
    """5 and 2 for one process, and for its stand-in; 6 and 4 for two, replaced in turn."""
    one = budget(TWO, pgbouncer_auth_query_enabled=True)
    assert one["totals"]["auth_query"] == 2 * 2 * 7
    assert one["totals"]["total"] == 2 * 24 + 5 + 28 + 5
    two = budget(
        ONE,
        pgbouncer_auth_query_enabled="true",
        pgbouncer_auth_query_connections=6,
        pgbouncer_processes=2,
    )
    assert two["totals"]["auth_query"] == 10


def test_auth_query_fills_the_databases_limit() -> None:
    """The role bounds a database at 10 + 2 + 5 + 6 = 23, 7 for each process, 3 of them pooled."""
    facts = {"pgbouncer_auth_query_enabled": True, "pgbouncer_processes": 3}
    (row,) = budget(ONE, **facts)["rows"]
    assert (row["pooled"], row["rolling"], row["auth_query"]) == (9, 0, 3 * 4)
    # The general limit gives way to it, the database's own does not.
    (row,) = budget(ONE, pgbouncer_settings={"max_db_connections": 6}, **facts)["rows"]
    assert (row["pooled"], row["auth_query"]) == (9, 3 * 4)
    (row,) = budget(ONE, pgbouncer_databases={"shop": {"max_db_connections": 12}}, **facts)["rows"]
    assert (row["pooled"], row["auth_query"]) == (9, 3 * 1)


def test_given_limit_is_the_share_of_the_application() -> None:
    """It may leave the fallback out, not a restart: 24 + 24; several processes need 24 only."""
    (row,) = budget(TWO, app_database_connection_limit=48, app_fallback_connections=50)["rows"]
    assert (row["pooled"], row["rolling"], row["fallback"], row["limit"]) == (24, 24, 100, 48)
    (row,) = budget(TWO, app_database_connection_limit=24, pgbouncer_processes=2)["rows"]
    assert (row["pooled"], row["rolling"], row["fallback"], row["limit"]) == (24, 0, 16, 24)


def test_limits_reach_the_applications() -> None:
    apps, hostvars, groups = fleet({**TWO, "web3": "blog"}, app_fallback_connections=1)
    plan = connection_budget.add_up(apps, hostvars, groups, {})
    assert plan["connection_limits"] == {"shop": 2 * 24, "blog": 24}


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (
            {"app_database_connection_limit": 47},
            r"shop: app_database_connection_limit is 47, .* 48 connections on web1, web2 .*"
            r"at least 48 \(24 pooled, .* 24 for a restart and 16 for the fallback\), .*"
            r"pgbouncer_settings.default_pool_size",
        ),
        (
            {"app_database_connection_limit": 23, "pgbouncer_processes": 2},
            r"app_database_connection_limit is 23, .* 24 connections .* at least 40 \(24 pooled",
        ),
        (
            {"pgbouncer_settings": {"default_pool_size": 0}},
            r"web1: pgbouncer_settings.default_pool_size is 0, .* unlimited: give at least 1",
        ),
        (
            {"pgbouncer_databases": {"shop": {"pool_size": 2}}, "pgbouncer_processes": 3},
            r"web1: pgbouncer_databases\['shop'\].pool_size is 2, .* give at least 3",
        ),
        (
            {"pgbouncer_settings": {"max_db_connections": 1}, "pgbouncer_processes": 2},
            "web1: pgbouncer_settings.max_db_connections is 1, .* give at least 2",
        ),
        (
            {"pgbouncer_settings": {"default_pool_size": "many"}},
            "web1: pgbouncer_settings.default_pool_size is 'many': give a whole number",
        ),
        (
            {"pgbouncer_users": {"shop": {"pool_size": "auto"}}},
            r"web1: pgbouncer_users\['shop'\].pool_size is 'auto': give a whole number",
        ),
        ({"pgbouncer_processes": 0}, "web1: pgbouncer_processes is 0"),
        ({"database_reserved_for_others": "few"}, "database_reserved_for_others is 'few'"),
        ({"database_max_connections": "1k"}, "database_max_connections is '1k'"),
    ],
)
def test_contradictions_are_refused(facts: dict, words: str) -> None:
    with pytest.raises(AnsibleFilterError, match=words):
        budget(TWO, **facts)


DJANGO = {"app_framework": "django", "app_module": "config.wsgi:application"}
ASGI = {"app_framework": "django", "app_module": "config.asgi:application"}
FASTAPI = {"app_framework": "fastapi", "app_module": "app.main:app"}
FLASK = {"app_framework": "flask", "app_module": "app:create_app()"}


@pytest.mark.parametrize(
    ("framework", "strategy", "connections"),
    [
        # 4 threads and the one that checks the readiness; a pool of 5.
        (DJANGO, "pgbouncer", 5),
        (DJANGO, "pgbouncer_nopool", 5),
        (DJANGO, "direct", 5),
        (DJANGO, "native", 6),
        (ASGI, "pgbouncer", 6),
        (ASGI, "native", 6),
        (ASGI, "pgbouncer_nopool", None),
        (ASGI, "direct", None),
        (FASTAPI, "pgbouncer", 6),
        (FASTAPI, "native", 6),
        (FASTAPI, "pgbouncer_nopool", None),
        (FASTAPI, "direct", None),
        (FLASK, "pgbouncer", 6),
        (FLASK, "native", 6),
        (FLASK, "pgbouncer_nopool", 4),
        (FLASK, "direct", 4),
    ],
)
def test_connections_of_a_worker(framework: dict, strategy: str, connections: int | None) -> None:
    facts = {"app_connection_strategy": strategy, "app_connection_pool_size": 6}
    ((app,), _, _) = fleet(ONE, **framework, **facts)
    assert connection_budget.client_connections(app) == connections


@pytest.mark.parametrize(
    ("framework", "module", "asgi"),
    [
        ("fastapi", "app.main:app", True),
        ("flask", "asgi:app", False),
        ("django", "config.asgi:application", True),
        ("django", "config.asgi", True),
        ("django", "shop_asgi:application", True),
        ("django", "config.wsgi:asgi", False),
        ("django", "asgi.wsgi:application", False),
    ],
)
def test_which_applications_are_asgi(framework: str, module: str, asgi: bool) -> None:
    assert connection_budget.serves_asgi(framework, module) is asgi


def test_pool_of_zero_is_none() -> None:
    sizes = {
        name: connection_budget.client_connections(
            fleet(ONE, app_connection_pool_size=0, app_connection_strategy="native", **facts)[0][0]
        )
        for name, facts in {"django": DJANGO, "fastapi": FASTAPI, "flask": FLASK}.items()
    }
    assert sizes == {"django": 5, "fastapi": None, "flask": 4}


NATIVE = {"app_connection_strategy": "native", "app_workers": 3, **DJANGO}


def test_further_processes_without_a_pooler_are_in_the_demand() -> None:
    facts = {"app_processes": {"worker": {"command": "x", "connections": 7}}}
    before, after = budget(ONE, **NATIVE)["rows"][0], budget(ONE, **NATIVE, **facts)["rows"][0]
    assert after["direct"] - before["direct"] == 7
    assert after["limit"] - before["limit"] == 7


@pytest.mark.parametrize(
    ("serial", "rolling"), [(1, 5), (2, 10), (9, 20), ("50%", 10), ("1%", 5), ("100%", 20)]
)
def test_native_counts_workers_stand_ins_and_second_connections(
    serial: object, rolling: int
) -> None:
    """4 hosts of 3 workers with 5 each; a stand-in of one worker per host of the batch; 8 a host.

    All three at once: nothing keeps DATABASE_DIRECT_URL quiet during a deployment.
    """
    plan = budget({f"web{n}": "shop" for n in range(4)}, [], app_serial=serial, **NATIVE)
    (row,) = plan["rows"]
    assert (row["poolers"], row["pool"], row["pooled"]) == ("none (native)", "", 0)
    assert (row["direct"], row["rolling"], row["fallback"]) == (60, rolling, 32)
    assert row["limit"] == plan["totals"]["limits"] == 60 + rolling + 32


def test_direct_column_appears_where_something_is_direct() -> None:
    table = connection_budget.budget_table(budget(ONE, [], **NATIVE))
    assert "none (native)" in table
    assert "direct + rolling + fallback" in table
    assert max(map(len, table.splitlines())) <= 100
    (row,) = (line.split() for line in table.splitlines() if line.startswith("shop"))
    assert row == ["shop", "none", "(native)", "0", "15", "5", "8", "28", "5"]
    assert "direct" not in connection_budget.budget_table(budget(ONE))


def test_unbounded_application_is_held_by_its_limit() -> None:
    facts = {**FASTAPI, "app_connection_strategy": "direct", "app_workers": 2}
    plan = budget(ONE, [], app_database_connection_limit=40, **facts)
    assert (plan["rows"][0]["direct"], plan["rows"][0]["limit"]) == (None, 40)
    assert "unbounded" in connection_budget.budget_table(plan)


def test_workers_too_many_for_postgresql_are_named() -> None:
    plan = budget(TWO, [], **{**NATIVE, "app_workers": 20})
    assert not plan["fits"]
    assert "largest first: app_workers and client pools of shop (205), " in plan["message"]


def test_workers_of_each_host_count() -> None:
    hosts = {"web1": "shop", "web2": "shop"}
    apps, hostvars, groups = fleet(hosts, [], **NATIVE)
    hostvars["web2"]["app_workers"] = 1
    apps = applications(hostvars, groups)
    plan = connection_budget.add_up(apps, hostvars, groups, SERVER)
    assert plan["rows"][0]["direct"] == 3 * 5 + 1 * 5


SESSION = {"app_pool_mode": "session", "app_workers": 3, **DJANGO}


@pytest.mark.parametrize(
    ("hosts", "poolers", "processes", "size"),
    [
        # 3 workers and the stand-in, 4 threads and the readiness check: 4 x 5 of each host.
        (ONE, None, 1, 20),
        (TWO, None, 1, 20),
        (TWO, ["pool1"], 1, 40),
        # Each of three processes may get all clients.
        (ONE, None, 3, 60),
    ],
)
def test_session_pool_holds_every_client(
    hosts: dict, poolers: list | None, processes: int, size: int
) -> None:
    facts = {"pgbouncer_processes": processes, "database_max_connections": 500, **SESSION}
    plan = budget(hosts, poolers, server={}, **facts)
    entry = {"shop": {"pool_size": size}}
    assert plan["pool_sizes"] == {pooler: entry for pooler in (poolers or hosts)}
    assert plan["rows"][0]["pool"] == f"{size} + 2 (session)"


def test_session_pool_does_not_share_what_is_left() -> None:
    """Neither default_pool_size nor auto is for it; blog's auto pool takes the rest."""
    hosts = {"web1": "shop", "web2": "blog"}
    apps, hostvars, groups = fleet(hosts, **{**SESSION, **AUTO})
    hostvars["web2"].update(app_pool_mode="transaction")
    apps = applications(hostvars, groups)
    plan = connection_budget.add_up(apps, hostvars, groups, SERVER)
    # 87 less 5, 2 x 5 and shop's 2 x 22 leaves 28 for blog's pool and its stand-in.
    assert plan["pool_sizes"] == {
        "web1": {"shop": {"pool_size": 20}},
        "web2": {"blog": {"pool_size": 12}},
    }
    given = {"pgbouncer_databases": {"shop": {"pool_size": "auto"}}}
    assert budget(ONE, **SESSION, **given)["pool_sizes"]["web1"]["shop"] == {"pool_size": 20}


def test_session_pool_may_be_larger_than_its_clients() -> None:
    plan = budget(ONE, pgbouncer_databases={"shop": {"pool_size": 21}}, **SESSION)
    assert (plan["pool_sizes"], plan["rows"][0]["pool"]) == ({}, "21 + 2")


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({**NATIVE, "app_workers": "auto"}, "web1: app_workers is auto, .* is native, which no"),
        ({**SESSION, "app_workers": "auto"}, "web1: app_workers is auto, .* app_pool_mode is sess"),
        (
            {**NATIVE, "app_database_connection_limit": 34},
            r"limit is 34, but its worker processes may open 35 .* at least 51 \(30, 5 for a",
        ),
        (
            {**FASTAPI, "app_connection_strategy": "direct", "app_workers": 1},
            "shop: app_connection_strategy is direct, .* nothing bounds them but app_database_conn",
        ),
        ({"app_connection_strategy": "native", "app_workers": 1}, "shop: app_framework is ''"),
        (
            {**SESSION, **FASTAPI, "app_connection_strategy": "pgbouncer_nopool"},
            "shop: app_pool_mode is session, .* nothing bounds the clients",
        ),
        (
            {**SESSION, "pgbouncer_databases": {"shop": {"pool_size": 19}}},
            r"web1: pgbouncer_databases\['shop'\].pool_size is 19, .* need 20 server",
        ),
        (
            {**SESSION, "pgbouncer_users": {"shop": {"pool_size": 19}}},
            r"web1: pgbouncer_users\['shop'\].pool_size is 19, .* need 20 server",
        ),
        (
            {**SESSION, "pgbouncer_settings": {"max_db_connections": 10}},
            "web1: pgbouncer_settings.max_db_connections is 10, .* need 20 server",
        ),
        (
            {**SESSION, "pgbouncer_databases": {"shop": {"pool_mode": "transaction"}}},
            r"pgbouncer_databases\['shop'\].pool_mode is transaction, but app_pool_mode of shop",
        ),
        (
            {**SESSION, "pgbouncer_users": {"shop": {"pool_mode": "statement"}}},
            r"pgbouncer_users\['shop'\].pool_mode is statement, but app_pool_mode of shop",
        ),
    ],
)
def test_what_cannot_be_added_up_is_refused(facts: dict, words: str) -> None:
    with pytest.raises(AnsibleFilterError, match=words):
        budget(TWO, **facts)


def answer(**values: int) -> dict:
    return {"query_result": [{"name": key, "setting": str(n)} for key, n in values.items()]}


@pytest.mark.parametrize(
    ("server", "facts", "available", "words"),
    [
        (
            answer(max_connections=200, superuser_reserved_connections=4, reserved_connections=6),
            {},
            190,
            "PostgreSQL at db1:5432: max_connections 200 less 10 reserved",
        ),
        (
            answer(max_connections=50, superuser_reserved_connections=3),
            {"database_max_connections": 500},
            47,
            "PostgreSQL at db1:5432: max_connections 50 less 3 reserved; database_max_connections "
            "is 500: correct it",
        ),
        (
            answer(max_connections=500, superuser_reserved_connections=3),
            {"database_max_connections": "500"},
            497,
            "PostgreSQL at db1:5432: max_connections 500 less 3 reserved",
        ),
        (
            {"failed": True, "msg": "no\nlibrary"},
            {"database_max_connections": 500},
            497,
            "database_max_connections 500 less 3 reserved; PostgreSQL at db1:5432 did not answer: "
            "no library",
        ),
        (
            {},
            {},
            97,
            "assumed: PostgreSQL's default 100 less 3 reserved; database_max_connections is not "
            "set, and PostgreSQL at db1:5432 did not answer: it was not asked",
        ),
    ],
)
def test_available_connections_name_their_source(
    server: dict, facts: dict, available: int, words: str
) -> None:
    plan = budget(ONE, server=server, **facts)
    assert (plan["available"], plan["source"]) == (available, words)


def test_too_many_are_refused_with_the_largest_variable_first() -> None:
    """Four hosts with 30 + 2: 128 pooled, 128 in a restart, 5 for migrations, 5 for others."""
    hosts = {f"web{number}": "shop" for number in range(4)}
    plan = budget(hosts, pgbouncer_settings={"default_pool_size": 30})
    assert plan["totals"]["total"] == 266
    assert plan["fits"] is False
    for words in (
        "266 connections may be open at once, 169 more than the 97 that PostgreSQL takes (Postgr",
        "Lower, the largest first: pgbouncer_settings.default_pool_size (240), "
        "pgbouncer_settings.reserve_pool_size (16), database_reserved_for_others (5), "
        "app_database_owner_connection_limit of shop (5). Or raise",
    ):
        assert words in plan["message"]


def test_given_limit_and_fallback_are_named_where_they_are_the_largest() -> None:
    given = budget(ONE, app_database_connection_limit=200)
    assert "largest first: app_database_connection_limit of shop (200), " in given["message"]
    fallback = budget(ONE, app_fallback_connections=90)
    for words in (
        "largest first: app_fallback_connections of shop (90), ",
        "pgbouncer_settings.default_pool_size (10), ",
        "pgbouncer_settings.reserve_pool_size (2)",
    ):
        assert words in fallback["message"]


def test_exactly_full_fits() -> None:
    """12 pooled, 75 in the fallback, 5 for migrations, 5 for others."""
    assert budget(ONE, app_fallback_connections=75)["fits"] is True
    assert budget(ONE, app_fallback_connections=76)["fits"] is False


def test_auto_shares_what_is_left_of_ninety_percent() -> None:
    """90 % of 97 is 87; 5 migrations and 5 others leave 77 for 2 pools and 2 stand-ins: 19 each."""
    plan = budget(TWO, **AUTO)
    size = {"shop": {"pool_size": 17}}
    assert plan["pool_sizes"] == {"web1": size, "web2": size}
    assert plan["totals"]["total"] == 86
    assert plan["rows"][0]["pool"] == "17 + 2 (auto)"


@pytest.mark.parametrize(
    ("processes", "connections", "total"),
    [
        # 87 less 5 and 5 leaves 77: 38 for the process and 38 for its stand-in.
        (1, 38, 10 + 2 * 38),
        # Less the fallback's 8 it leaves 69: 34 for each process.
        (2, 34, 10 + 8 + 2 * 34),
    ],
)
def test_auto_leaves_room_for_a_restart(processes: int, connections: int, total: int) -> None:
    plan = budget(
        ONE,
        pgbouncer_processes=processes,
        pgbouncer_users={"shop": {"reserve_pool_size": 0}},
        **AUTO,
    )
    (size,) = plan["pool_sizes"]["web1"].values()
    assert size["pool_size"] // processes == connections
    assert plan["totals"]["total"] == total


def test_auto_stands_beside_fixed_pools() -> None:
    """blog's 20 + 2 is fixed, twice; shop has 87 - 5 - 2 x 5 - 44 = 28, for 12 + 2 twice."""
    plan = budget(
        {"web1": "shop", "web2": "blog"},
        pgbouncer_databases={"blog": {"pool_size": 20}},
        **AUTO,
    )
    assert plan["pool_sizes"] == {"web1": {"shop": {"pool_size": 12}}}


def test_auto_stays_within_a_given_limit() -> None:
    """Two hosts and a limit of 31: 5 + 2 each, and as much for the stand-ins."""
    plan = budget(TWO, app_database_connection_limit=31, **AUTO)
    assert plan["pool_sizes"]["web1"] == {"shop": {"pool_size": 5}}
    assert plan["totals"]["limits"] == 31


def test_auto_takes_the_inventorys_number_where_the_server_is_silent() -> None:
    plan = budget(ONE, server={}, database_max_connections=100, **AUTO)
    assert plan["pool_sizes"] == budget(ONE, **AUTO)["pool_sizes"]


@pytest.mark.parametrize(
    ("server", "facts", "words"),
    [
        ({}, {}, "default_pool_size is auto, .* set database_max_connections"),
        (
            SERVER,
            {"app_fallback_connections": 80},
            "even pools of 1 make 93 connections, 6 more than 87, 90 % of 97 .*"
            "largest first: app_fallback_connections of shop",
        ),
        (
            SERVER,
            {"app_database_connection_limit": 2, "pgbouncer_processes": 3},
            "app_database_connection_limit is 2, .* 3 connections",
        ),
    ],
)
def test_auto_that_does_not_work_out_is_refused(server: dict, facts: dict, words: str) -> None:
    with pytest.raises(AnsibleFilterError, match=words):
        budget(ONE, server=server, **facts, **AUTO)


def test_the_server_is_asked_only_for_auto() -> None:
    for facts, expected in (
        ({}, False),
        (AUTO, True),
        ({"pgbouncer_databases": {"shop": {"pool_size": "auto"}}}, True),
        ({"pgbouncer_users": {"shop": {"pool_size": 3}}, **AUTO}, False),
    ):
        assert pools.has_auto_pools(*fleet(ONE, **facts)) is expected, facts


def test_table_is_plain_text_of_at_most_100_columns() -> None:
    hosts = {f"web{number}": f"application-{number:02d}" for number in range(3)}
    plan = budget(hosts, server={"msg": "x" * 300}, app_fallback_connections=1000)
    table = connection_budget.budget_table(plan)
    lines = table.splitlines()
    assert max(map(len, lines)) <= 100
    assert all(line == line.rstrip() for line in lines)
    assert lines[0].startswith("application")
    assert "\x1b" not in table
    (row,) = (line.split() for line in lines if line.startswith("application-01"))
    assert row == ["application-01", "1", "x", "1", "10", "+", "2", "12", "12", "1000", "1012", "5"]
    for words in ("3056  total", "97  available (assumed", "-2959  left: the budget does not fit"):
        assert any(line.strip().startswith(words) for line in lines), words


NUMBERS = st.integers(1, 40)


@st.composite
def fleets(draw: st.DrawFn, size: st.SearchStrategy = NUMBERS) -> tuple[dict, list, dict]:
    """Return the arguments of `fleet`: hosts, poolers, facts."""
    count = draw(st.integers(1, 6))
    hosts = {f"web{n}": f"app{draw(st.integers(0, 2))}" for n in range(count)}
    beside = [host for host in hosts if draw(st.booleans())]
    tier = [f"pool{n}" for n in range(draw(st.integers(1, 3)))]
    processes = draw(st.integers(1, 3))
    facts = {
        "app_fallback_connections": draw(st.integers(0, 10)),
        "database_reserved_for_others": draw(st.integers(0, 10)),
        "pgbouncer_processes": processes,
        "pgbouncer_auth_query_enabled": draw(st.booleans()),
        "pgbouncer_settings": {
            "default_pool_size": draw(size),
            "reserve_pool_size": draw(st.integers(0, 9)),
            "max_db_connections": draw(st.sampled_from([0, 3, 7, 30])),
        },
    }
    if isinstance(facts["pgbouncer_settings"]["default_pool_size"], int):
        facts["pgbouncer_settings"]["default_pool_size"] += processes
    further = draw(st.sampled_from([None, {}, {"pool_size": 9}, {"max_db_connections": 8}]))
    if further is not None:
        facts["pgbouncer_databases"] = {"reports": {"host": "db1", **further}}
        facts["pgbouncer_hba_rules"] = draw(st.sampled_from([[], [rule("reports", "all")]]))
    return hosts, beside + tier, facts


@given(fleets(), st.integers(0, 2000))
def test_the_verdict_is_the_sum(arguments: tuple, highest: int) -> None:
    """What the table shows adds up, and fits says whether PostgreSQL has it."""
    hosts, poolers, facts = arguments
    server = answer(max_connections=highest, superuser_reserved_connections=3)
    plan = budget(hosts, poolers, server=server, **facts)
    shown = sum(
        row["pooled"] + max(row["rolling"], row["fallback"]) + row["migrations"]
        for row in plan["rows"]
    )
    shown += plan["totals"]["auth_query"] + facts["database_reserved_for_others"]
    assert plan["totals"]["total"] == shown
    assert plan["fits"] is (shown <= highest - 3)
    assert plan["fits"] is not bool(plan["message"])
    if plan["message"]:
        advice = plan["message"].split("the largest first: ")[1].split(". Or raise")[0]
        assert sum(map(int, re.findall(r" \((\d+)\)", advice))) == shown


@given(fleets(st.just("auto")), st.integers(3, 2000))
def test_auto_is_never_over_and_could_not_be_larger(arguments: tuple, highest: int) -> None:
    hosts, poolers, facts = arguments
    server = answer(max_connections=highest, superuser_reserved_connections=3)
    try:
        plan = budget(hosts, poolers, server=server, **facts)
    except AnsibleFilterError as error:
        assert "is auto, and even pools of" in str(error)
        return
    target = (highest - 3) * 90 // 100
    assert plan["totals"]["total"] <= target
    (size,) = {
        entry["pool_size"] for host in plan["pool_sizes"].values() for entry in host.values()
    }
    assert size >= facts["pgbouncer_processes"]
    sizes = facts["pgbouncer_settings"]
    if not sizes["max_db_connections"]:
        larger = {**sizes, "default_pool_size": size + facts["pgbouncer_processes"]}
        fixed = budget(hosts, poolers, server=server, **{**facts, "pgbouncer_settings": larger})
        assert fixed["totals"]["total"] > target


@given(fleets(), st.booleans(), st.integers(0, 3))
def test_a_host_more_never_lowers_the_total(arguments: tuple, beside: bool, app: int) -> None:
    hosts, poolers, facts = arguments
    before = budget(hosts, poolers, **facts)["totals"]["total"]
    more = {**hosts, "webx": f"app{app}"}
    after = budget(more, poolers + ["webx"] * beside, **facts)["totals"]["total"]
    assert after >= before
    tier = budget(hosts, [*poolers, "poolx"], **facts)["totals"]["total"]
    assert tier >= before


REPORTS = {"reports": {"host": "db1", "dbname": "shop", "pool_size": 50}}
"""A database of the pooler that no application has."""


def rule(database: object, user: object, method: str = "scram-sha-256") -> dict:
    return {"type": "host", "database": database, "user": user, "method": method}


def test_database_that_no_application_has_is_counted() -> None:
    """shop: 12 and 12, 5 for migrations, 5 for others; reports: 50 + 2, and the stand-in's."""
    plan = budget(ONE, pgbouncer_databases=REPORTS)
    assert plan["rows"][1] == {
        "application": "reports",
        "poolers": "1 x 1",
        "pool": "50 + 2",
        "pooled": 52,
        "direct": 0,
        "rolling": 52,
        "fallback": 0,
        "limit": 104,
        "migrations": 0,
        "auth_query": 0,
    }
    assert (plan["totals"]["total"], plan["fits"]) == (34 + 104, False)
    assert "largest first: pgbouncer_databases['reports'].pool_size (100), " in plan["message"]
    table = connection_budget.budget_table(plan)
    (row,) = (line.split() for line in table.splitlines() if line.startswith("reports"))
    assert row == ["reports", "1", "x", "1", "50", "+", "2", "52", "52", "0", "104", "0"]


@pytest.mark.parametrize(
    ("facts", "pooled", "rolling"),
    [
        # Nobody gets in yet: the pool of one user.
        ({}, 12, 12),
        ({"pgbouncer_hba_rules": [rule("reports", "shop", "reject")]}, 12, 12),
        # A pool of each user that the pooler has and a rule lets in.
        ({"pgbouncer_hba_rules": [rule("reports", "blog")]}, 12, 12),
        ({"pgbouncer_hba_rules": [rule(["x", "reports"], ["blog", "shop"])]}, 24, 24),
        ({"pgbouncer_hba_rules": [rule("all", "all")]}, 24, 24),
        ({"pgbouncer_hba_rules": [rule("reports", ["blog", "mail"])]}, 12, 12),
        # The user's own size goes first: 20 + 2 and 10 + 2.
        (
            {
                "pgbouncer_hba_rules": [rule("reports", "all")],
                "pgbouncer_users": {"blog": {"pool_size": 20}},
            },
            34,
            34,
        ),
        # max_db_connections holds them together, max_user_connections each of them.
        (
            {
                "pgbouncer_hba_rules": [rule("reports", "all")],
                "pgbouncer_databases": {"reports": {"host": "db1", "max_db_connections": 15}},
            },
            15,
            15,
        ),
        (
            {
                "pgbouncer_hba_rules": [rule("reports", "all")],
                "pgbouncer_users": {"blog": {"max_user_connections": 4}},
            },
            16,
            16,
        ),
        # Every client is the forced user.
        (
            {
                "pgbouncer_hba_rules": [rule("reports", "all")],
                "pgbouncer_databases": {"reports": {"host": "db1", "user": "reader"}},
                "pgbouncer_users": {"reader": {"pool_size": 3, "reserve_pool_size": 1}},
            },
            4,
            4,
        ),
        # 10 + 2 over 3 processes is 3 + 0 each, replaced in turn.
        ({"pgbouncer_processes": 3}, 9, 0),
    ],
)
def test_pools_of_a_further_database(facts: dict, pooled: int, rolling: int) -> None:
    facts = {"pgbouncer_databases": {"reports": {"host": "db1"}}, **facts}
    hosts = {"web1": "shop", "web2": "blog"}
    row = budget(hosts, ["pool1"], **facts)["rows"][2]
    assert (row["pooled"], row["rolling"], row["limit"]) == (pooled, rolling, pooled + rolling)


def test_every_pooler_with_the_database_counts() -> None:
    plan = budget(ONE, ["web1", "pool1"], pgbouncer_databases=REPORTS)
    assert (plan["rows"][1]["poolers"], plan["rows"][1]["pooled"]) == ("2 x 1", 104)


def test_auth_query_fills_a_further_database() -> None:
    """The role bounds it at 10 + 2 + 5 + 2 = 19; a given bound of 30 is filled as well."""
    facts = {
        "pgbouncer_auth_query_enabled": True,
        "pgbouncer_hba_rules": [rule("reports", "all")],
        "pgbouncer_databases": {"reports": {"host": "db1"}},
    }
    row = budget(ONE, **facts)["rows"][1]
    assert (row["pooled"], row["rolling"], row["auth_query"]) == (12, 12, 2 * 7)
    facts["pgbouncer_databases"] = {"reports": {"host": "db1", "max_db_connections": 30}}
    plan = budget(ONE, **facts)
    assert plan["rows"][1]["auth_query"] == 2 * 18
    assert plan["totals"]["total"] == 24 + 14 + 5 + 5 + 2 * 30


def test_user_has_room_for_its_pools_in_further_databases() -> None:
    """24 for shop's own, 104 for its pool in reports; blog's user does not get in there."""
    facts = {"pgbouncer_databases": REPORTS, "pgbouncer_hba_rules": [rule("reports", "shop")]}
    apps, hostvars, groups = fleet({"web1": "shop", "web2": "blog"}, ["pool1"], **facts)
    plan = connection_budget.add_up(apps, hostvars, groups, SERVER)
    assert plan["connection_limits"] == {"shop": 24 + 104, "blog": 24}
    # A given limit is for both; PostgreSQL holds the user to it in every database.
    with pytest.raises(
        AnsibleFilterError,
        match=r"is 127, .* 128 connections on web1 .* at least 128 \(12 pooled, 104 of its user in",
    ):
        budget(ONE, app_database_connection_limit=127, **facts)
    plan = budget(ONE, app_database_connection_limit=128, **facts)
    assert (plan["rows"][1]["limit"], plan["totals"]["limits"]) == (0, 128)


def test_user_of_another_application_that_a_rule_names_has_a_pool() -> None:
    """Both names stand in the rule; `all` does not say that PostgreSQL lets the user in."""
    hosts = {"web1": "shop", "web2": "blog"}
    rules = [rule("shop", "blog")]
    plan = budget(hosts, ["pool1"], pgbouncer_hba_rules=rules)
    assert [(row["application"], row["pooled"]) for row in plan["rows"]] == [
        ("shop", 12),
        ("blog", 12),
        ("shop", 12),
    ]
    assert plan["connection_limits"] == {"shop": 24, "blog": 48}
    assert len(budget(hosts, ["pool1"], pgbouncer_hba_rules=[rule("all", "all")])["rows"]) == 2


def session_shop(**facts: object) -> dict:
    """Return the budget of shop with a session pool of 25, and blog, which may use its database.

    4 workers and the stand-in, 4 threads and the readiness check: 5 x 5 clients.
    """
    facts = {"pgbouncer_hba_rules": [rule("shop", "blog")], "database_max_connections": 500} | facts
    apps, hostvars, groups = fleet({"web1": "shop", "web2": "blog"}, ["pool1"], **DJANGO, **facts)
    hostvars["web1"].update(app_pool_mode="session", app_workers=4)
    apps = applications(hostvars, groups)
    return connection_budget.add_up(apps, hostvars, groups, {})


@pytest.mark.parametrize(
    ("facts", "sizes", "pool", "pooled"),
    [
        ({}, {"shop": 25}, "25 + 2 (session)", 27),
        # 90 % of 497 is 447; 54 for shop, 54 for blog there, 10 and 5 leave 324: 162 and 162.
        (AUTO, {"shop": 25, "blog": 160}, "25 + 2 (session)", 27),
        (
            {"pgbouncer_databases": {"shop": {"pool_size": "auto", "reserve_pool": 4}}},
            {"shop": 25},
            "25 + 4 (session)",
            29,
        ),
        # max_db_connections holds each; a user's own size goes first, as in PgBouncer.
        (
            {"pgbouncer_databases": {"shop": {"max_db_connections": 26}}},
            {"shop": 25},
            "25 + 2 (session)",
            26,
        ),
        ({"pgbouncer_users": {"blog": {"pool_size": 3}}}, {"shop": 25}, "3 + 2", 5),
        ({"pgbouncer_databases": {"shop": {"pool_size": 30}}}, {}, "30 + 2", 32),
        # shop's own size needs none in [databases], so blog's is the general one.
        ({"pgbouncer_users": {"shop": {"pool_size": 40}}}, {}, "10 + 2", 12),
    ],
)
def test_session_size_of_a_database_holds_for_its_other_users(
    facts: dict, sizes: dict, pool: str, pooled: int
) -> None:
    plan = session_shop(**facts)
    written = plan["pool_sizes"].get("pool1", {})
    assert written == {name: {"pool_size": size} for name, size in sizes.items()}
    row = plan["rows"][2]
    assert (row["application"], row["pool"], row["pooled"]) == ("shop", pool, pooled)
    blog = plan["rows"][1]["limit"]
    assert plan["connection_limits"]["blog"] == blog + 2 * pooled


def test_advice_on_a_shared_session_size_names_what_makes_it() -> None:
    """25 and the stand-in's 25, for shop and for blog."""
    plan = session_shop(database_reserved_for_others=600)
    assert "app_workers and client pools of shop (100), " in plan["message"]


@pytest.mark.parametrize(
    ("session", "facts", "claim"),
    [
        (False, {}, 12),
        (False, {"pgbouncer_databases": {"shop": {"max_db_connections": 11}}}, 11),
        (True, {}, 27),
        (False, {"pgbouncer_databases": {"shop": {"user": "shop"}}}, 0),
    ],
)
def test_with_auth_query_a_user_has_room_in_the_database_of_another_application(
    session: bool, facts: dict, claim: int
) -> None:
    """blog's 24 and its pool in shop, twice; the row of shop has the connections already."""
    hosts = {"web1": "shop", "web2": "blog"}
    facts = {"pgbouncer_auth_query_enabled": True, **facts}
    if session:
        plan = session_shop(**facts)
    else:
        plan = budget(hosts, ["pool1"], pgbouncer_hba_rules=[rule("shop", "blog")], **facts)
    assert [row["application"] for row in plan["rows"]] == ["shop", "blog"]
    assert plan["connection_limits"]["blog"] == 24 + 2 * claim
    assert plan["totals"]["limits"] == sum(row["limit"] for row in plan["rows"])


@pytest.mark.parametrize(
    ("host", "counted"),
    [("db1,db2", True), ("db1", True), ("db2", True), ("db3,db2", True), ("db3", False)],
)
@pytest.mark.parametrize("variable", ["database_host", "pgbouncer_database_host"])
def test_each_of_several_database_hosts_is_the_server(
    variable: str, host: str, counted: bool
) -> None:
    facts = {variable: "db1,db2", "pgbouncer_databases": {"reports": {"host": host}}}
    plan = budget(ONE, **facts)
    assert (len(plan["rows"]), len(plan["notes"])) == ((2, 0) if counted else (1, 1))


@pytest.mark.parametrize(
    ("entry", "counted"),
    [
        ({"host": "db1"}, True),
        ({"host": "db1", "port": "5432"}, True),
        ({"host": "db2,db1"}, True),
        ({"host": "192.0.2.5"}, True),
        ({"host": "127.0.0.1"}, True),
        ({"host": "/run/postgresql"}, True),
        ({"host": "db1", "port": 5433}, False),
        ({"host": "db2"}, False),
    ],
)
def test_a_database_of_another_server_is_named_and_not_counted(entry: dict, counted: bool) -> None:
    """The pooler stands on the database's host, which has two names and an address."""
    apps, hostvars, groups = fleet(ONE, ["pg1"], pgbouncer_databases={"reports": entry})
    hostvars["pg1"] = {**hostvars["pg1"], "private_address": "192.0.2.5"}
    groups["postgres"] = ["pg1"]
    plan = connection_budget.add_up(apps, hostvars, groups, SERVER)
    assert (len(plan["rows"]), len(plan["notes"])) == ((2, 0) if counted else (1, 1))
    if not counted:
        words = f"pgbouncer_databases['reports'] of pg1 leads to {entry['host']}:"
        assert words in connection_budget.budget_table(plan)


def test_local_addresses_are_the_server_only_on_its_host() -> None:
    plan = budget(ONE, pgbouncer_databases={"reports": {"host": "127.0.0.1"}})
    assert (len(plan["rows"]), len(plan["notes"])) == (1, 1)


def test_auto_pool_of_a_further_database_gets_the_same_share() -> None:
    """87 less 5 and 5 leaves 77 for 2 pools and 2 stand-ins: 19 each, 2 of them the reserve."""
    facts = {"pgbouncer_databases": {"reports": {"host": "db1", "pool_size": "auto"}}, **AUTO}
    plan = budget(ONE, **facts)
    sizes = {name: {"pool_size": 17} for name in ("shop", "reports")}
    assert plan["pool_sizes"] == {"web1": sizes}
    apps, hostvars, groups = fleet(ONE, pgbouncer_databases=facts["pgbouncer_databases"])
    assert pools.has_auto_pools(apps, hostvars, groups)


WORKERS = {"app_workers": 33, **DJANGO}
QUEUE = {"app_processes": {"worker": {"command": "x", "connections": 8}, "beat": {"command": "y"}}}


@pytest.mark.parametrize(
    ("hosts", "poolers", "facts", "clients", "limit"),
    [
        # 33 workers and the stand-in, 4 threads and the readiness check; 20 for people.
        (ONE, None, WORKERS, 34 * 5 + 20, 500),
        ({f"web{n}": "shop" for n in range(4)}, ["pool1"], WORKERS, 4 * 34 * 5 + 20, 700),
        # Each host of a tier must hold all, the others may be gone.
        ({f"web{n}": "shop" for n in range(4)}, ["p1", "p2"], WORKERS, 4 * 34 * 5 + 20, 700),
        ({"web1": "shop", "web2": "blog"}, ["pool1"], WORKERS, 2 * 34 * 5 + 20, 500),
        # The kernel may hand all of them to one of 3 processes.
        (ONE, None, {**WORKERS, "pgbouncer_processes": 3}, 190, 570),
        (ONE, None, {**WORKERS, **FASTAPI, "app_connection_pool_size": 20}, 34 * 20 + 20, 700),
        (ONE, None, {**WORKERS, "pgbouncer_auth_query_enabled": True}, 195, 500),
        # Each host has the application's further processes as well.
        (ONE, None, {**WORKERS, **QUEUE}, 34 * 5 + 9 + 20, 500),
        (
            {"web1": "shop", "web2": "shop"},
            ["p1"],
            {**WORKERS, **QUEUE},
            2 * (34 * 5 + 9) + 20,
            500,
        ),
        (ONE, None, {**WORKERS, "app_pool_mode": "session", "app_workers": 3}, 4 * 5 + 20, 500),
    ],
)
def test_max_client_conn_holds_every_client(
    hosts: dict, poolers: list | None, facts: dict, clients: int, limit: int
) -> None:
    plan = budget(hosts, poolers, **facts)
    for row in plan["clients"]:
        assert (row["clients"], row["max_client_conn"], row["at_least"]) == (clients, limit, False)
    assert plan["client_limits"] == {
        host: {"max_client_conn": limit} for host in (poolers or hosts)
    }
    assert plan["notes"] == []


def limited(variable: str, limit: int) -> dict:
    """Return facts with a limit of clients in one of the places where it may stand."""
    section, _, name = variable.partition(".")
    return {section: {name: limit} if section.endswith("settings") else {"shop": {name: limit}}}


@pytest.mark.parametrize(
    ("variable", "shown", "need"),
    [
        ("pgbouncer_settings.max_client_conn", "pgbouncer_settings.max_client_conn", 190),
        ("pgbouncer_settings.max_db_client_connections", "pgbouncer_settings.max_db_client", 170),
        ("pgbouncer_settings.max_user_client_connections", "pgbouncer_settings.max_user_", 170),
        ("pgbouncer_databases.max_db_client_connections", "pgbouncer_databases['shop'].max_", 170),
        ("pgbouncer_users.max_user_client_connections", "pgbouncer_users['shop'].max_user_", 170),
    ],
)
@pytest.mark.parametrize("processes", [1, 2])
def test_limit_of_clients_without_room_is_refused(
    variable: str, shown: str, need: int, processes: int
) -> None:
    """170 of the application and 20 more for max_client_conn, in each process."""
    facts = {**WORKERS, "pgbouncer_processes": processes}
    enough = need * processes
    plan = budget(ONE, **facts, **limited(variable, enough))
    assert plan["clients"][0]["given"] is variable.endswith("max_client_conn")
    with pytest.raises(AnsibleFilterError) as refused:
        budget(ONE, **facts, **limited(variable, enough - processes))
    for words in (
        f"web1: {shown}",
        f"{need} clients may come at once",
        "go past the pooler",
        f"give at least {enough}, leave it out, or lower app_workers",
    ):
        assert words in str(refused.value)


def test_no_limit_of_clients_is_no_limit() -> None:
    facts = limited("pgbouncer_databases.max_db_client_connections", 0)
    assert budget(ONE, **WORKERS, **facts)["fits"]


def test_given_max_client_conn_is_not_overruled() -> None:
    plan = budget(ONE, **WORKERS, pgbouncer_settings={"max_client_conn": 200})
    assert (plan["client_limits"], plan["clients"][0]["max_client_conn"]) == ({}, 200)


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        # 3 workers of one core and the stand-in: 20 and 20 more. 460 are 92 workers: 95, 47 cores.
        (
            {**DJANGO, "app_workers": "auto"},
            "web1, web2: app_workers is auto, 2 x its cores + 1, so that the clients of shop are "
            "not known; max_client_conn 500 of web1 is enough for 47 cores a host: for more, give "
            "app_workers as a number",
        ),
        (
            {**FASTAPI, "app_workers": 1, "app_connection_strategy": "pgbouncer_nopool"},
            "shop: app_connection_strategy is pgbouncer_nopool, so that nothing bounds the clients "
            "of web1, web2; those beyond max_client_conn 500 of web1 go past the pooler: choose "
            "pgbouncer, or give pgbouncer_settings.max_client_conn",
        ),
    ],
)
def test_clients_that_are_not_known_are_named(facts: dict, words: str) -> None:
    plan = budget(TWO, **facts)
    assert plan["notes"] == [words]
    assert plan["clients"][0]["at_least"]
    table = connection_budget.budget_table(plan)
    assert words in " ".join(table.split())
    assert "or more" in table


def test_cores_are_those_of_the_pooler_with_the_least_room() -> None:
    """Beside web1, which has a number, is more. Two applications share pool1.

    Each has 3 workers and a stand-in of 5, with 20 more 60 clients; what is left of 500 is 44 more
    workers on each host, 47 in all, of 23 cores.
    """
    apps, hostvars, groups = fleet(TWO, **DJANGO, app_workers=2)
    hostvars["web2"]["app_workers"] = "auto"
    apps = applications(hostvars, groups)
    (note,) = connection_budget.add_up(apps, hostvars, groups, SERVER)["notes"]
    assert note.startswith("web2: app_workers is auto")
    assert "max_client_conn 500 of web2 is enough for 47 cores a host" in note
    shared = budget({"web1": "shop", "web2": "blog"}, ["pool1"], **DJANGO, app_workers="auto")
    assert len(shared["notes"]) == 2
    assert all("of pool1 is enough for 23 cores a host" in note for note in shared["notes"])


def test_a_tier_has_room_for_workers_that_are_not_known() -> None:
    """10 hosts with 2 x 16 + 1 workers and a stand-in of 5 each, and 20 more."""
    plan = budget({f"web{n}": "shop" for n in range(10)}, ["pool1"], **DJANGO, app_workers="auto")
    assert plan["client_limits"] == {"pool1": {"max_client_conn": 10 * 34 * 5 + 20}}
    assert "is enough for 16 cores a host" in plan["notes"][0]


def test_auto_is_what_gunicorn_makes_of_it() -> None:
    template = (ROOT / "roles/app/templates/etc/poolkit/gunicorn.conf.py.j2").read_text()
    assert "workers = 2 * len(os.sched_getaffinity(0)) + 1\n" in template
    assert pooler_clients.AUTO_WORKERS == 2 * 1 + 1
    assert pooler_clients.ROOMY_WORKERS == 2 * 16 + 1


def test_workers_of_auto_are_enough_for_the_cores_that_the_plan_names() -> None:
    """With 47 cores 2 x 47 + 1 workers and the stand-in fit, with 48 they do not."""
    for cores, limit in ((47, 500), (48, 510)):
        plan = budget(ONE, **DJANGO, app_workers=2 * cores + 1)
        assert plan["clients"][0]["max_client_conn"] == limit


def test_table_shows_the_clients_of_pooler_hosts() -> None:
    hosts = {f"web{n}": "shop" for n in range(5)}
    table = connection_budget.budget_table(budget(hosts, **WORKERS))
    lines = [" ".join(line.split()) for line in table.splitlines()]
    assert "web0, web1, web2 and 2 more 190 500" in lines
    assert max(map(len, table.splitlines())) <= 100
    given = budget(ONE, **WORKERS, pgbouncer_settings={"max_client_conn": 200})
    assert "190      200 (given)" in connection_budget.budget_table(given)
    assert "clients of" not in connection_budget.budget_table(budget(ONE, [], **NATIVE))


VALUES = st.one_of(st.none(), st.integers(1, 3000))


@given(st.tuples(*[VALUES] * 7))
def test_the_budget_and_the_files_take_the_same_size(values: tuple) -> None:
    """PgBouncer: the user's, else the database's, else the general one; each under any name."""
    names = ("pool_size", "reserve_pool_size")
    user = {name: v for name, v in zip(names, values[:2], strict=True) if v is not None}
    database = {
        name: v
        for name, v in zip((*names, "reserve_pool"), values[2:5], strict=True)
        if v is not None
    }
    general = {
        name: v
        for name, v in zip(("default_pool_size", names[1]), values[5:], strict=True)
        if v is not None
    }
    facts = {
        "pgbouncer_users": {"shop": user},
        "pgbouncer_databases": {"shop": database},
        "pgbouncer_settings": general,
    }
    (row,) = budget(
        ONE, **facts, server=answer(max_connections=1, superuser_reserved_connections=0)
    )["rows"]
    size = user.get("pool_size", database.get("pool_size", general.get("default_pool_size", 10)))
    reserve = database.get("reserve_pool_size", database.get("reserve_pool"))
    reserve = general.get("reserve_pool_size", 2) if reserve is None else reserve
    pooled = size + user.get("reserve_pool_size", reserve)
    assert row["pooled"] == pooled
    held = {"default_pool_size": 10, "reserve_pool_size": 2, "max_client_conn": 5000, **general}
    apps = [{"database": "shop", "user": "shop"}]
    rest = (apps, {"shop": user})
    bound = pooler_configuration.bound_databases({"shop": database}, held, *rest, 0)
    assert bound["shop"]["max_db_connections"] == pooled
    files = pooler_configuration.open_files_limit(held, {"shop": database}, {"shop": user}, apps)
    assert files == 5000 + 100 + 2 * pooled


FULL = answer(max_connections=20, superuser_reserved_connections=3)


@pytest.mark.parametrize(
    ("server", "made", "facts", "available", "source", "remedy"),
    [
        (FULL, False, {}, 17, "max_connections 20 less 3", "raise max_connections of the server"),
        (
            FULL,
            True,
            {"postgres_max_connections": 20},
            17,
            "PostgreSQL at db1:5432: max_connections 20 less 3",
            "raise postgres_max_connections, and run ansible/playbooks/postgres.yml first",
        ),
        (
            FULL,
            True,
            {"postgres_max_connections": 200},
            17,
            "PostgreSQL at db1:5432: max_connections 20 less 3",
            "raise the server to the inventory's number: run ansible/playbooks/postgres.yml "
            "first, since postgres_max_connections is 200",
        ),
        # The server that the inventory makes is not there yet.
        (
            {},
            True,
            {"postgres_max_connections": 20},
            17,
            "postgres_max_connections 20 less 3 reserved; PostgreSQL at db1:5432 did not answer",
            "raise postgres_max_connections",
        ),
        (
            {},
            True,
            {"postgres_max_connections": 20, "database_max_connections": 500},
            17,
            "it was not asked; database_max_connections is 500: correct it",
            "raise postgres_max_connections",
        ),
        (
            {},
            False,
            {"database_max_connections": 20},
            17,
            "database_max_connections 20 less 3",
            "raise database_max_connections, where the server takes more",
        ),
        (
            {},
            False,
            {"database_reserved_for_others": 90},
            97,
            "assumed: PostgreSQL's default 100",
            "raise the assumption: set database_max_connections to what the server takes",
        ),
        ({}, True, {"database_reserved_for_others": 90}, 97, "postgres_max_connections 100", ""),
    ],
)
def test_the_way_to_more_connections_is_the_one_that_helps(
    server: dict, made: bool, facts: dict, available: int, source: str, remedy: str
) -> None:
    apps, hostvars, groups = fleet(ONE, **facts)
    if made:
        groups["postgres"] = ["db1"]
        hostvars["db1"] = hostvars["web1"]
    plan = connection_budget.add_up(apps, hostvars, groups, server)
    assert plan["available"] == available
    assert source in plan["source"]
    assert plan["message"].partition(". Or ")[2].startswith(remedy)
    assert plan["message"].endswith(remedy) or not remedy


def test_auto_takes_the_number_that_the_new_server_will_have() -> None:
    apps, hostvars, groups = fleet(ONE, **AUTO)
    groups["postgres"] = ["db1"]
    hostvars["db1"] = {}
    plan = connection_budget.add_up(apps, hostvars, groups, {})
    assert plan["pool_sizes"] == budget(ONE, **AUTO)["pool_sizes"]


def smallest(variable: str, facts: dict) -> dict | None:
    """Return facts with a variable that the advice names at its smallest; None if it is."""
    section, _, name = variable.partition(".")
    if section == "pgbouncer_databases['reports']":
        entry = {**facts["pgbouncer_databases"]["reports"], name: facts["pgbouncer_processes"]}
        return {**facts, "pgbouncer_databases": {"reports": entry}}
    if section == "pgbouncer_settings":
        processes = facts["pgbouncer_processes"]
        least = 0 if name == "reserve_pool_size" else processes
        if facts[section][name] // processes == least // processes:
            return None
        values = {**facts[section], name: least}
        old = facts[section]
    else:
        section = variable.partition(" of ")[0]
        defaults = {
            "app_database_owner_connection_limit": 5,
            "pgbouncer_auth_query_connections": 5,
        }
        values, old = 0, facts.get(section, defaults.get(section))
    return None if values == old else {**facts, section: values}


@given(fleets())
def test_each_piece_of_advice_lowers_the_total(arguments: tuple) -> None:
    hosts, poolers, facts = arguments
    server = answer(max_connections=3, superuser_reserved_connections=3)
    plan = budget(hosts, poolers, server=server, **facts)
    if plan["fits"]:
        return
    advice = plan["message"].split("the largest first: ")[1].split(". Or ")[0]
    for variable in re.findall(r"(\S+(?: of \S+)?) \(\d+\)", advice):
        changed = smallest(variable, facts)
        if changed:
            total = budget(hosts, poolers, server=server, **changed)["totals"]["total"]
            assert total < plan["totals"]["total"], variable


def test_advice_names_the_limit_that_holds() -> None:
    """A smaller pool would change nothing: max_db_connections is what counts, 40 and 40 again."""
    facts = {"pgbouncer_settings": {"default_pool_size": 90, "max_db_connections": 40}}
    plan = budget(ONE, database_reserved_for_others=80, **facts)
    assert "pgbouncer_settings.max_db_connections (80), " in plan["message"]
    assert "default_pool_size" not in plan["message"]
    facts = {"pgbouncer_databases": {"shop": {"max_db_connections": 60}}}
    plan = budget(ONE, pgbouncer_auth_query_enabled=True, **facts)
    assert "first: pgbouncer_databases['shop'].max_db_connections (120), " in plan["message"]


def test_advice_on_a_tight_limit_names_what_it_is_for() -> None:
    """A limit of 24 for 12 and 12 cannot be lowered alone."""
    plan = budget(ONE, app_database_connection_limit=24, database_reserved_for_others=90)
    words = "app_database_connection_limit of shop with pgbouncer_settings.default_pool_size (24)"
    assert words in plan["message"]


@pytest.fixture
def plan_playbook(
    tmp_path: Path, ansible_playbook: Callable[..., CompletedProcess[str]]
) -> Callable[..., CompletedProcess[str]]:
    """Run plan.yml for one host on this machine, with a database that nobody listens for."""
    hosts = {"web1": {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}}
    facts = {
        "app_name": "shop",
        "app_database_password": "p",
        "app_database_owner_password": "o",
        "database_host": "127.0.0.1",
        "database_port": 1,
        "database_admin_user": "admin",
        "database_admin_password": "a",
    }
    children = {name: {"hosts": hosts} for name in ("applications", "pgbouncer", "database_admin")}
    inventory = tmp_path / "hosts.yml"
    inventory.write_text(yaml.safe_dump({"all": {"vars": facts, "children": children}}))
    return partial(ansible_playbook, "-i", inventory, "ansible/playbooks/plan.yml")


def test_plan_shows_the_table_without_a_server(
    plan_playbook: Callable[..., CompletedProcess[str]],
) -> None:
    run = plan_playbook("--check")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "97  available (assumed" in run.stdout
    assert "changed=0" in run.stdout


def test_plan_fails_over_budget_after_the_table(
    plan_playbook: Callable[..., CompletedProcess[str]],
) -> None:
    run = plan_playbook("-e", "database_reserved_for_others=90")
    assert run.returncode != 0
    words = " ".join(run.stdout.split())
    assert "119 total" in words  # 12 pooled, 12 in a restart, 5 for migrations, 90 for others
    assert "Lower, the largest first: database_reserved_for_others (90)" in words
