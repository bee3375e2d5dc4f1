"""The connection budget, against sums worked out by hand, and what holds for every inventory."""

import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from subprocess import CompletedProcess

import connection_budget
import poolkit
import pytest
import yaml
from ansible.errors import AnsibleFilterError
from hypothesis import given, settings
from hypothesis import strategies as st

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
    return poolkit.applications(hostvars, groups), hostvars, groups


def budget(hosts: dict[str, str], *args, server=SERVER, **facts: object) -> dict:
    return connection_budget.connection_budget(*fleet(hosts, *args, **facts), server)


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
    (tmp_path / "vars").mkdir()
    (tmp_path / "vars/main.yml").write_text(
        "_pgbouncer_settings: {default_pool_size: 30, reserve_pool_size: 7, x: '{{ y }}'}"
    )
    connection_budget._role_settings.cache_clear()
    monkeypatch.setattr(connection_budget, "ROLE", tmp_path)
    assert budget(ONE)["rows"][0]["pool"] == "30 + 7"
    connection_budget._role_settings.cache_clear()


def test_defaults_agree_with_the_role() -> None:
    """Other plays cannot see the role's defaults; a variable that it has must have the same."""
    defaults = yaml.safe_load((ROOT / "roles/pgbouncer/defaults/main.yml").read_text())
    for variable, value in {
        "pgbouncer_processes": connection_budget.PROCESSES,
        "pgbouncer_auth_query_enabled": False,
        "pgbouncer_auth_query_connections": connection_budget.AUTH_QUERY_CONNECTIONS,
    }.items():
        assert defaults.get(variable, value) == value, variable


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
    limited = connection_budget.connection_limits(apps, hostvars, groups, {})
    assert [app["connection_limit"] for app in limited] == [2 * 24, 24]
    assert limited[0]["owner"] == "shop_owner"


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
    apps = poolkit.applications(hostvars, groups)
    plan = connection_budget.connection_budget(apps, hostvars, groups, SERVER)
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
    apps = poolkit.applications(hostvars, groups)
    plan = connection_budget.connection_budget(apps, hostvars, groups, SERVER)
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
            "says 500: correct it",
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
        apps, hostvars, _ = fleet(ONE, **facts)
        assert connection_budget.has_auto_pools(apps, hostvars) is expected, facts


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
    return hosts, beside + tier, facts


@settings(deadline=None)
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


@settings(deadline=None)
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


@settings(deadline=None)
@given(fleets(), st.booleans(), st.integers(0, 3))
def test_a_host_more_never_lowers_the_total(arguments: tuple, beside: bool, app: int) -> None:
    hosts, poolers, facts = arguments
    before = budget(hosts, poolers, **facts)["totals"]["total"]
    more = {**hosts, "webx": f"app{app}"}
    after = budget(more, poolers + ["webx"] * beside, **facts)["totals"]["total"]
    assert after >= before
    tier = budget(hosts, [*poolers, "poolx"], **facts)["totals"]["total"]
    assert tier >= before


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
