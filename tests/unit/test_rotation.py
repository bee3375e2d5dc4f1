"""Which passwords change, and the roles that stand in meanwhile."""

from __future__ import annotations

import base64

import pytest

from plugins.filter import database
from plugins.filter import fleet as fleet_filters
from plugins.filter.connection_budget import connection_budget
from plugins.plugin_utils.scram import scram_verifier, verifier_fingerprint
from plugins.plugin_utils.stand_ins import stand_in_of

SEED = "0123456789abcdef"
GROUPS = {
    "applications": ["web1", "web2"],
    "pgbouncer": ["web1", "web2"],
    "database_admin": ["web1"],
    "postgres": ["web1"],
}
HOST = {
    "app_name": "shop",
    "app_database_password": "new",
    "app_database_owner_password": "own",
    "database_host": "db1",
    "database_port": 5432,
    "database_admin_user": "admin",
    "database_admin_password": "a",
    "scram_salt_seed": SEED,
    "app_framework": "django",
    "app_module": "config.wsgi:application",
    "app_workers": 2,
    "app_threads": 4,
    "postgres_max_connections": 200,
}


def hosts(**changes: object) -> dict[str, dict]:
    return {
        f"web{number}": {**HOST, "private_address": f"192.0.2.{number}", **changes}
        for number in (1, 2)
    }


def fleet(rotation: dict[str, bool] | None = None, **changes: object) -> dict:
    found = fleet_filters.fleet(hosts(**changes), GROUPS, rotation)
    assert found["errors"] == []
    return found


def server(**passwords: str) -> dict:
    """Return what PostgreSQL answers where poolkit has set these passwords; shop: before."""
    rows = []
    for name, password in {"shop": "old", "shop_owner": "own", **passwords}.items():
        mark = verifier_fingerprint(scram_verifier(password or "any", name, SEED))
        row = {"rolname": name, "fingerprint": mark if password else "somebody's"}
        rows.append({**row, "rolsuper": False, "rolreplication": False, "rolcreaterole": False})
    return {"query_all_results": [rows, [{"datname": "shop", "owner": "shop_owner"}], []]}


def rotation(answer: dict, **changes: object) -> dict:
    return database.password_rotation(fleet(**changes), hosts(**changes), answer)


def test_a_changed_password_of_a_user_needs_a_stand_in() -> None:
    found = rotation(server())
    assert found["users"] == {"shop": True}
    assert found["logins"] == {"shop": "shop_rotation"}
    assert (found["others"], found["applications"], found["errors"]) == ([], ["shop"], [])


def test_an_owner_needs_none() -> None:
    found = rotation(server(shop="new", shop_owner="before"))
    assert (found["users"], found["others"]) == ({}, ["shop_owner"])
    assert found["applications"] == ["shop"]


def test_a_change_whose_clients_may_not_have_it_is_ended() -> None:
    """PostgreSQL has the new password of the owner; a pooler or a host may have the old one."""
    wanted = database.database_roles(fleet(), hosts(), {}, SEED, ["shop_owner"])
    answer = server(shop="new")
    rows = {row["rolname"]: row for row in answer["query_all_results"][0]}
    rows["shop_owner"]["fingerprint"] = wanted["shop_owner"]["fingerprint"]
    found = rotation(answer)
    assert (found["others"], found["applications"], found["errors"]) == (
        ["shop_owner"],
        ["shop"],
        [],
    )
    for may_change in (False, True):
        (error,) = database.server_errors(fleet(), hosts(), answer, may_change)
        assert "hosts may still have the old one of shop_owner. Run ansible/playbooks/rot" in error
    assert database.server_errors(fleet({}), hosts(), answer, False) == []
    other = {**rows["shop_owner"], "rolname": "other_owner"}  # of another fleet
    answer["query_all_results"][0].append(other)
    rows["shop_owner"]["fingerprint"] = database.database_roles(fleet(), hosts(), {}, SEED)[
        "shop_owner"
    ]["fingerprint"]
    assert database.server_errors(fleet(), hosts(), answer, False) == []


def test_another_server_cannot_know_who_stands_in() -> None:
    replica = {"host": "192.0.2.9"}
    assert rotation(server(), app_databases={"replica": replica})["errors"] == []
    own = {**replica, "user": "shop", "password": "new"}
    (error,) = rotation(server(), app_databases={"replica": own})["errors"]
    assert "app_databases of shop: replica is on another server with the user shop" in error


def test_auth_query_that_was_switched_off_is_not_waited_for() -> None:
    answer = server(shop="new", pgbouncer_auth="before")
    answer["query_all_results"][0][-1]["fingerprint"] += database.CHANGING
    assert database.server_errors(fleet(), hosts(), answer, False) == []


def test_nothing_changes_where_all_are_equal() -> None:
    found = rotation(server(shop="new"))
    assert (found["users"], found["others"], found["applications"]) == ({}, [], [])


def test_a_rotation_that_was_cut_off_goes_on_where_it_was() -> None:
    before = rotation(server(shop_rotation="new"))
    assert before["users"] == {"shop": True}
    after = rotation(server(shop="new", shop_rotation="new"))
    assert (after["users"], after["logins"]) == ({"shop": False}, {})
    assert after["stand_ins"] == ["shop_rotation"]


def test_another_password_in_between_is_refused() -> None:
    (error,) = rotation(server(shop_rotation="between"))["errors"]
    assert "give shop that password again" in error


def test_a_password_that_poolkit_has_not_set_is_refused() -> None:
    (error,) = rotation(server(shop=""))["errors"]
    assert "has shop already, with a password that poolkit has not set" in error


def test_every_other_playbook_refuses_to_come_between() -> None:
    cut_off = server(shop="new", shop_rotation="new")
    for may_change in (False, True):
        (error,) = database.server_errors(fleet(), hosts(), cut_off, may_change)
        assert "Run ansible/playbooks/rotate_password.yml again" in error
    assert database.server_errors(fleet({"shop": False}), hosts(), cut_off, False) == []
    assert database.server_errors(fleet({}), hosts(), cut_off, False) == []


@pytest.mark.parametrize("waits", [True, False])
def test_stand_ins_are_known_everywhere(waits: bool) -> None:
    found = fleet({"shop": waits})
    roles = database.database_roles(found, hosts(), {}, SEED)
    assert set(roles) == {"shop_owner", "shop_rotation"} | (set() if waits else {"shop"})
    for rules in (found["hba_rules"], fleet()["hba_rules"]):
        assert [row["user"] for row in rules].count("shop_rotation") == 2
    assert len(database.database_applications(found, {})) == 1
    stand_ins = database.database_stand_ins(found, {"shop (shop_rotation)": 7})
    assert stand_ins["shop_rotation"]["user"] == "shop"
    assert stand_ins["shop_rotation"]["connection_limit"] == 7
    users = fleet_filters.pooler_applications(found, "web1", hosts())
    assert [row["user"] for row in users] == ["shop", "shop_rotation"]


def test_a_user_that_waits_keeps_the_poolers_verifier() -> None:
    text = '"other" "x"\n"shop" "SCRAM-SHA-256$4096:a""b$c:d"\n'
    slurped = {"content": base64.b64encode(text.encode()).decode()}
    facts = hosts(__pooler_userlist=slurped)
    first, second = fleet_filters.pooler_applications(fleet({"shop": True}), "web1", facts)
    assert first["secret"] == 'SCRAM-SHA-256$4096:a"b$c:d'
    assert "secret" not in second
    for row in fleet_filters.pooler_applications(fleet({"shop": False}), "web1", facts):
        assert "secret" not in row


def test_the_budget_counts_the_connections_of_both() -> None:
    alone, both = (connection_budget(fleet(users), {}) for users in (None, {"shop": True}))
    limits = [budget["totals"]["limits"] for budget in (alone, both)]
    assert limits[1] == 2 * limits[0]
    assert alone["totals"]["migrations"] == both["totals"]["migrations"]
    # A client logs in as one of them.
    assert alone["client_limits"] == both["client_limits"]


def test_names_are_as_long_as_postgresql_takes() -> None:
    assert stand_in_of("a" * 63) == "a" * 54 + "_rotation"
    assert fleet_filters.fleet(hosts(app_database_user="shop_rotation"), GROUPS)["errors"]
