"""What follows from an inventory: who serves whom, and what contradicts itself."""

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from ansible.errors import AnsibleFilterError
from jinja2.nativetypes import NativeEnvironment

from plugins.filter import database
from plugins.filter import fleet as fleet_filters
from plugins.filter.connection_budget import connection_budget
from plugins.filter.pooler_configuration import pooler_database
from plugins.plugin_utils import role_defaults, topology
from plugins.plugin_utils.applications import applications
from plugins.plugin_utils.names import AUTH_USER
from plugins.plugin_utils.roles import application_roles
from plugins.plugin_utils.scram import scram_verifier

ROOT = Path(__file__).resolve().parents[2]
SEED = "0123456789abcdef"


def derived(facts: dict, groups: dict) -> dict:
    return fleet_filters.fleet(facts, groups)


def served(facts: dict, groups: dict, host: str) -> list[dict]:
    return fleet_filters.pooler_applications(derived(facts, groups), host, facts)


def ways(facts: dict, groups: dict, host: str) -> list[dict]:
    return topology.endpoints(facts, topology.poolers_of(facts, groups)[host], host)


def hosts(**changes: object) -> dict[str, dict]:
    facts = {
        "app_name": "shop",
        "app_database_password": "p",
        "app_database_owner_password": "o",
        "private_address": "192.0.2.1",
    }
    return {"web1": facts, "web2": {**facts, "private_address": "192.0.2.2", **changes}}


def inventory(*apps: str, poolers: Sequence[str] | None = None) -> dict[str, list[str]]:
    """Groups: hosts that run applications, with a pooler beside each unless others are named."""
    pgbouncer = list(apps if poolers is None else poolers)
    return {"applications": list(apps), "pgbouncer": pgbouncer, "database_admin": ["web1"]}


BOTH = inventory("web1", "web2")
VERIFIED = {"database_sslmode": "verify-full"}


def test_applications_are_collected_once() -> None:
    (shop,) = applications(hosts(), BOTH)
    assert (shop["hosts"], shop["database"], shop["user"]) == (["web1", "web2"], "shop", "shop")
    assert shop["owner"] == "shop_owner"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"app_name": None}, "web2: app_name is missing"),
        ({"app_database_password": ""}, "web2: app_database_password is missing"),
        ({"app_database": "other"}, "web2 and web1 both run the application 'shop' but differ"),
        ({"app_database": "a b"}, "web2: app_database is 'a b'"),
        ({"app_database_user": 'x"y'}, "web2: app_database_user is"),
        (
            {"app_database_owner": "shop"},
            "app_database_user and app_database_owner are both 'shop'",
        ),
        ({"app_name": "blog", "app_database_user": "shop"}, "both use the role 'shop'"),
        ({"app_name": "blog", "app_database": "shop"}, "both use the database 'shop'"),
        ({"app_fallback_connections": "many"}, "web2: app_fallback_connections is 'many'"),
        ({"app_connection_strategy": "direct"}, "both run .* 'shop' but differ in strategy"),
        ({"app_connection_strategy": "managed"}, "both run .* 'shop' but differ in strategy:"),
        ({"app_connection_strategy": "nativ"}, "web2: app_connection_strategy is 'nativ': use one"),
        ({"app_pool_mode": "statement"}, "web2: app_pool_mode is 'statement': use one of transact"),
        ({"app_workers": 0}, "web2: app_workers is 0: give a number of processes, or auto"),
        ({"app_serial": "half"}, "web2: app_serial is 'half': give a number or"),
        ({"app_migration_lock_timeout": "5 seconds"}, "web2: app_migration_lock_timeout is '5 sec"),
        ({"app_database_settings": {"search_path": "a, b"}}, r"give a list, \[shop, public\]"),
        ({"app_database_settings": {"search_path": []}}, "give a list of schemas"),
        ({"app_name": "root"}, "'root' uses the role 'root', which is database_admin_user"),
        *(
            ({"app_database_user": name}, f"web2: app_database_user is '{name}', which has a mean")
            for name in ("public", "none", "user", "current_user", "session_user", "postgres")
        ),
        *(
            ({"app_database_owner": name}, f"web2: app_database_owner is '{name}', which has a me")
            for name in ("pg_monitor", "rdsadmin", "rds_superuser", "azure_pg_admin", "postgres")
        ),
        *(
            ({"app_database": name}, f"web2: app_database is '{name}', which has a meaning")
            for name in ("postgres", "template0", "template1", "rdsadmin", "replication")
        ),
        ({"app_name": "cloudsqlsuperuser"}, "app_database_user is 'cloudsqlsuperuser', which"),
    ],
)
def test_contradictions_are_refused(changes: dict, words: str) -> None:
    with pytest.raises(AnsibleFilterError, match=words):
        applications(hosts(**changes), BOTH, "root")


def test_defaults_agree_with_the_role() -> None:
    """The filter serves plays that cannot see roles/app/defaults: both must say the same."""
    defaults = yaml.safe_load((ROOT / "roles/app/defaults/main.yml").read_text())
    (shop,) = applications(hosts(), inventory("web1"))
    pairs = {
        "app_database": "database",
        "app_database_user": "user",
        "app_database_owner": "owner",
        "app_database_owner_connection_limit": "owner_connection_limit",
        "app_database_settings": "settings",
        "app_fallback_connections": "fallback_connections",
        "app_connection_strategy": "strategy",
        "app_pool_mode": "pool_mode",
        "app_threads": "threads",
        "app_connection_pool_size": "connection_pool_size",
    }
    for variable, key in pairs.items():
        value = defaults[variable]
        if isinstance(value, str):
            value = NativeEnvironment().from_string(value).render(app_name="shop")
        assert value == shop[key], variable
    assert defaults["app_serial"] == shop["hosts_at_once"]
    assert shop["workers"] == {"web1": defaults["app_workers"]}
    assert shop["owner_settings"] == {
        "lock_timeout": defaults["app_migration_lock_timeout"],
        "statement_timeout": defaults["app_migration_statement_timeout"],
    }


def test_rules_name_exactly_the_hosts() -> None:
    apps = applications(hosts(), BOTH)
    rules = topology.hba_rules(apps, hosts(), BOTH, "admin")
    assert [(r["database"], r["user"], r["address"]) for r in rules] == [
        ("shop", "shop", "192.0.2.1/32"),
        ("shop", "shop_rotation", "192.0.2.1/32"),
        ("shop", "shop_owner", "192.0.2.1/32"),
        ("shop", "shop", "192.0.2.2/32"),
        ("shop", "shop_rotation", "192.0.2.2/32"),
        ("shop", "shop_owner", "192.0.2.2/32"),
        ("all", "admin", "192.0.2.1/32"),
    ]


def test_rules_ask_for_a_missing_address() -> None:
    facts = hosts(private_address=None)
    apps = applications(facts, BOTH)
    with pytest.raises(AnsibleFilterError, match="web2: private_address is missing"):
        topology.hba_rules(apps, facts, BOTH, "admin")


def test_pooler_beside_the_application_serves_its_own_host() -> None:
    assert served(hosts(app_name="blog"), BOTH, "web2") == [
        {
            "name": "blog",
            "database": "blog",
            "user": "blog",
            "password": "p",
            "owner": "blog_owner",
            "pool_mode": "transaction",
            "statement_timeout": "0",
            "idle_in_transaction_session_timeout": "0",
        }
    ]


MIXED = inventory("web1", "web2", "web3", poolers=["web1", "pool1", "pool2"])
"""web1 has a pooler beside it; web2 and web3 share a tier of two."""


def mixed() -> dict[str, dict]:
    return {
        **hosts(),
        "web3": {**hosts()["web1"], "app_name": "blog", "private_address": "2001:db8::3"},
        "pool1": {"private_address": "192.0.2.11", "pgbouncer_listen_port": "6433"},
        "pool2": {"private_address": "192.0.2.12"},
    }


def test_endpoints_spread_over_the_tier() -> None:
    first, second = {"host": "192.0.2.11", "port": 6433}, {"host": "192.0.2.12", "port": 6432}
    assert [ways(mixed(), MIXED, host) for host in ("web1", "web2", "web3")] == [
        [{"host": "127.0.0.1", "port": 6432}],
        [second, first],
        [first, second],
    ]


def test_pooler_beside_the_application_keeps_its_port() -> None:
    assert ways(hosts(pgbouncer_listen_port=6500), BOTH, "web2") == [
        {"host": "127.0.0.1", "port": 6500}
    ]


@pytest.mark.parametrize(
    ("given", "host"),
    [
        (VERIFIED, "/run/pgbouncer/1"),
        ({"app_database_sslmode": "verify-ca"}, "/run/pgbouncer/1"),
        ({**VERIFIED, "app_database_sslmode": "require"}, "127.0.0.1"),
        ({**VERIFIED, "pgbouncer_processes": "2"}, "127.0.0.1"),
        ({**VERIFIED, "app_database_fallback_enabled": "no"}, "127.0.0.1"),
        ({**VERIFIED, "pgbouncer_socket_auth_method": "peer"}, "127.0.0.1"),
        ({**VERIFIED, "pgbouncer_settings": {"unix_socket_mode": "0770"}}, "127.0.0.1"),
        ({**VERIFIED, "pgbouncer_settings": {"max_client_conn": 50}}, "/run/pgbouncer/1"),
        ({**VERIFIED, "pgbouncer_hba_rules": [{"type": "local"}]}, "127.0.0.1"),
        ({**VERIFIED, "pgbouncer_hba_rules": [{"type": "host"}]}, "/run/pgbouncer/1"),
    ],
)
def test_verified_fallback_needs_the_poolers_socket(given: dict, host: str) -> None:
    """Of all hosts in a URL, sslmode counts for those that are reached over TCP."""
    assert ways(hosts(**given), BOTH, "web2") == [{"host": host, "port": 6432}]


@pytest.mark.parametrize(
    "groups", [inventory("web1", "web2", poolers=["web1"]), {"applications": ["web1", "web2"]}]
)
def test_host_without_a_pooler_is_refused(groups: dict) -> None:
    with pytest.raises(AnsibleFilterError, match=r"web[12]: no pooler .* group pgbouncer"):
        ways(hosts(), groups, "web2")
    with pytest.raises(AnsibleFilterError, match=r"web[12]: no pooler .* group pgbouncer"):
        applications(hosts(), groups)


def test_tier_without_an_address_is_refused() -> None:
    facts = {**mixed(), "pool2": {}}
    with pytest.raises(AnsibleFilterError, match="pool2: private_address is missing"):
        ways(facts, MIXED, "web2")


def test_tier_serves_what_has_no_pooler_beside_it() -> None:
    found = {
        host: [app["name"] for app in served(mixed(), MIXED, host)] for host in MIXED["pgbouncer"]
    }
    assert found == {"web1": ["shop"], "pool1": ["shop", "blog"], "pool2": ["shop", "blog"]}


def test_pooler_lets_exactly_its_clients_in() -> None:
    poolers = derived(mixed(), MIXED)["poolers"]
    clients = {host: poolers[host]["client_addresses"] for host in MIXED["pgbouncer"]}
    tier = ["192.0.2.2/32", "2001:db8::3/128"]
    assert clients == {"web1": ["127.0.0.1/32"], "pool1": tier, "pool2": tier}


def test_pooler_listens_where_its_clients_come_in() -> None:
    poolers = derived(mixed(), MIXED)["poolers"]
    assert poolers["web1"]["listen_addr"] == "127.0.0.1"
    assert poolers["pool1"]["listen_addr"] == "127.0.0.1,192.0.2.11"


def test_tier_reaches_the_database_as_the_applications_user_only() -> None:
    apps = applications(mixed(), MIXED)
    rules = topology.hba_rules(apps, mixed(), MIXED, "admin")
    assert [(r["user"], r["address"]) for r in rules if r["address"] == "192.0.2.11/32"] == [
        ("shop", "192.0.2.11/32"),
        ("shop_rotation", "192.0.2.11/32"),
        ("blog", "192.0.2.11/32"),
        ("blog_rotation", "192.0.2.11/32"),
    ]
    assert [r["user"] for r in rules if r["address"] == "192.0.2.1/32"] == [
        "shop",
        "shop_rotation",
        "shop_owner",
        "admin",
    ]


def strategies(**by_host: str) -> dict[str, dict]:
    """Hosts with an application each, of the name of its strategy."""
    facts = hosts()["web1"]
    return {
        host: {**facts, "app_name": strategy, "app_connection_strategy": strategy}
        for host, strategy in by_host.items()
    }


@pytest.mark.parametrize("strategy", ["native", "direct"])
@pytest.mark.parametrize("poolers", [["web1"], ["pool1"], []])
def test_strategy_without_poolers_needs_none(strategy: str, poolers: list[str]) -> None:
    facts = {**strategies(web1=strategy), "pool1": {"private_address": "192.0.2.11"}}
    groups = inventory("web1", poolers=poolers)
    (app,) = applications(facts, groups)
    assert (app["poolers"], app["clients"]) == ([], {})
    assert ways(facts, groups, "web1") == []
    for pooler in poolers:
        assert served(facts, groups, pooler) == []
        clients = derived(facts, groups)["poolers"][pooler]["client_addresses"]
        assert clients in ([], ["127.0.0.1/32"])
    rules = topology.hba_rules([app], facts, groups, "")
    assert [(r["user"], r["address"]) for r in rules] == [
        (strategy, "192.0.2.1/32"),
        (f"{strategy}_rotation", "192.0.2.1/32"),
        (f"{strategy}_owner", "192.0.2.1/32"),
    ]


def test_database_of_a_platform_is_not_ours() -> None:
    """Neither passwords nor an address are asked of a managed application."""
    facts = {**strategies(web2="native"), "web1": {"app_name": "a"}}
    facts["web1"]["app_connection_strategy"] = "managed"
    groups = {"applications": ["web1", "web2"]}
    assert [app["name"] for app in applications(facts, groups)] == ["native"]
    assert topology.uses_database(facts, groups)
    alone = {"applications": ["web1"]}
    assert applications(facts, alone) == []
    assert not topology.uses_database(facts, alone)
    assert ways(facts, alone, "web1") == []
    assert topology.hba_rules([], facts, alone, "") == []


def test_tier_knows_which_hosts_may_come() -> None:
    shop, blog = applications(mixed(), MIXED)
    assert shop["clients"] == {"web1": ["web1"], "pool1": ["web2"], "pool2": ["web2"]}
    assert blog["clients"] == {"pool1": ["web3"], "pool2": ["web3"]}


def test_pool_mode_reaches_the_poolers_entry() -> None:
    facts = {"web1": {**hosts()["web1"], "app_pool_mode": "session"}}
    (known,) = served(facts, inventory("web1"), "web1")
    entry = {"host": "db1", "port": 5432, "dbname": "shop"}
    assert pooler_database(known, "db1", 5432) == {
        **entry,
        "pool_mode": "session",
    }
    for mode in ({}, {"pool_mode": "transaction"}, {"pool_mode": None}):
        assert pooler_database({"database": "shop", **mode}, "db1", 5432) == entry


@pytest.mark.parametrize(
    ("path", "schema"),
    [
        (None, "public"),
        ("shop", "shop"),
        (["$user", "public"], "public"),
        (['"$user"', "public", "shop", "other"], "shop"),
        (["pg_catalog", "Shop x"], "Shop x"),
    ],
)
def test_schema_is_the_first_own_one_of_the_search_path(path: object, schema: str) -> None:
    settings = {} if path is None else {"search_path": path}
    facts = {"web1": {**hosts()["web1"], "app_database_settings": settings}}
    (app,) = applications(facts, inventory("web1"))
    assert app["schema"] == schema
    assert app["owner_settings"].get("search_path") == path


def test_workers_may_differ_between_hosts() -> None:
    (app,) = applications(hosts(app_workers="4"), BOTH)
    assert app["workers"] == {"web1": "auto", "web2": 4}


def test_roles_carry_verifier_mark_and_limit() -> None:
    facts = {"web1": {**hosts()["web1"], "app_database_connection_limit": 20}}
    roles = application_roles(applications(facts, inventory("web1")), SEED)
    assert list(roles) == ["shop", "shop_owner"]
    assert roles["shop"]["verifier"] == scram_verifier("p", "shop", SEED)
    assert roles["shop_owner"]["verifier"] == scram_verifier("o", "shop_owner", SEED)
    assert roles["shop"]["connection_limit"] == 20
    assert roles["shop_owner"]["connection_limit"] == 5
    assert roles["shop"]["fingerprint"] != roles["shop_owner"]["fingerprint"]


FLEET = {
    "database_host": "db1",
    "database_port": 5432,
    "database_admin_user": "admin",
    "database_admin_password": "a",
    "scram_salt_seed": SEED,
}


def fleet(**changes: object) -> dict[str, dict]:
    return {"web1": {**hosts()["web1"], **FLEET, **changes}}


ONE = inventory("web1")


def test_a_right_inventory_has_no_errors() -> None:
    assert derived(fleet(), ONE)["errors"] == []
    managed = {"app_name": "shop", "app_connection_strategy": "managed"}
    assert derived({"web1": managed}, {"applications": ["web1"]})["errors"] == []


@pytest.mark.parametrize("role", ["poolers", "admin"])
def test_facts_of_every_host_that_asks_are_checked(role: str) -> None:
    """PostgreSQL has the verifiers of database_admin's host, the pooler those of its own."""
    other = {**FLEET, "scram_salt_seed": "another-seed-0123456789"}
    groups = {"applications": ["web1"], "pgbouncer": ["web1"], "database_admin": ["web1"]}
    groups["pgbouncer" if role == "poolers" else "database_admin"] = ["db1"]
    facts = {**fleet(), "db1": {**other, "private_address": "192.0.2.1"}}
    facts["web1"]["app_connection_strategy"] = "native"
    facts["web1"]["app_workers"] = 1
    (error,) = derived(facts, groups)["errors"]
    assert error.startswith("scram_salt_seed differs between hosts")
    if role == "admin":
        facts["db1"]["database_host"] = ""
        assert derived(facts, groups)["errors"][0].startswith("database_host is missing")


def test_application_with_the_name_of_anothers_account_is_refused() -> None:
    facts = {"web1": hosts()["web1"], "web2": {**hosts()["web1"], "app_name": "shop-build"}}
    with pytest.raises(AnsibleFilterError, match="'shop-build' has the name of a unit or account"):
        applications(facts, inventory("web1", "web2"))
    alone = {"web2": facts["web2"]}
    assert applications(alone, inventory("web2"))[0]["name"] == "shop-build"


@pytest.mark.parametrize(
    ("changes", "groups", "words"),
    [
        ({}, {}, "no host in the group applications"),
        ({}, {**ONE, "database_admin": []}, "no host in the group database_admin"),
        ({"database_admin_password": ""}, ONE, "database_admin_password is missing"),
        ({"database_port": None}, ONE, "database_port is missing"),
        ({"database_sslmod": "x"}, ONE, r"database_sslmod \(did you mean database_sslmode\?\)"),
        ({"scram_salt_seed": "short"}, ONE, "must have at least 16 characters"),
        ({"app_database_user": "admin"}, ONE, "which is database_admin_user"),
        ({"pgbouncer_serial": "half"}, ONE, "web1: pgbouncer_serial is 'half': give a number or"),
    ],
)
def test_what_the_fleet_shares_is_checked(changes: dict, groups: dict, words: str) -> None:
    (error,) = derived(fleet(**changes), groups)["errors"]
    assert re.search(words, error), error


def test_everything_that_is_missing_is_said_at_once() -> None:
    errors = derived(hosts(), {**ONE, "database_admin": []})["errors"]
    assert len(errors) == 1 + len(FLEET)


def test_poolers_are_changed_tier_first_then_beside_each_application() -> None:
    names = ("web1", "web2", "web3", "blog1")
    facts: dict[str, dict] = {name: {"app_name": "shop", "marked": {}} for name in names}
    facts["blog1"]["app_name"] = "blog"
    facts |= {"pool1": {"marked": {}}, "pool2": {"marked": {}}}
    groups = {"applications": list(names), "pgbouncer": ["web1", "pool1", *names[1:], "pool2"]}
    assert fleet_filters.pooler_batches(facts, groups, "marked") == [
        ["pool1"],
        ["pool2"],
        ["web1", "web2", "web3", "blog1"],
    ]
    for facts_of_host in facts.values():
        facts_of_host["pgbouncer_serial"] = "34%"
    del facts["pool2"]["marked"]  # --limit leaves it out
    assert fleet_filters.pooler_batches(facts, groups, "marked") == [
        ["pool1"],
        ["web1", "blog1"],
        ["web2"],
        ["web3"],
    ]


def server_errors(facts: dict, server: dict, may_change_passwords: bool) -> list[str]:
    return database.server_errors(derived(facts, ONE), facts, server, may_change_passwords)


def answer(owner: str = "shop_owner", **roles: dict) -> dict:
    """What roles/database/tasks/ask.yml registers, with the application's own roles in place."""
    wanted = application_roles(
        [{"connection_limit": None, **app} for app in applications(fleet(), ONE)], SEED
    )
    known = {name: {"fingerprint": role["fingerprint"]} for name, role in wanted.items()}
    known |= roles
    rows = [
        {"rolsuper": False, "rolreplication": False, "rolcreaterole": False, "rolname": name, **row}
        for name, row in known.items()
    ]
    return {"query_all_results": [rows, [{"datname": "shop", "owner": owner}], []]}


def test_nothing_is_refused_without_an_answer_or_reason() -> None:
    assert server_errors(fleet(), {"msg": "no route"}, False) == []
    assert server_errors(fleet(), {"skipped": True}, False) == []
    assert server_errors(fleet(), answer(), False) == []
    empty = {"query_all_results": [[], [], []]}
    assert server_errors(fleet(), empty, False) == []


@pytest.mark.parametrize("allowed", [True, False])
@pytest.mark.parametrize(
    ("server", "words"),
    [
        (answer(owner="someone"), "database shop exists and belongs to someone, not to shop_owner"),
        (
            answer(shop={"fingerprint": None, "rolsuper": True, "rolreplication": True}),
            "role shop, the app_database_user of shop, exists and is a superuser and a role for "
            'replication, .* ALTER ROLE "shop" NOSUPERUSER NOREPLICATION',
        ),
        (
            answer(shop_owner={"fingerprint": None, "rolcreaterole": True}),
            "the app_database_owner of shop, exists and is a role that may create roles",
        ),
    ],
)
def test_what_belongs_to_others_is_refused(server: dict, words: str, allowed: bool) -> None:
    (error,) = server_errors(fleet(), server, allowed)
    assert re.search(words, error), error


def test_changed_passwords_are_refused_and_explained() -> None:
    changed = fleet(app_database_password="new")
    (error,) = server_errors(changed, answer(), False)
    assert "another password than PostgreSQL at db1:5432 for shop (app_database_password" in error
    assert "rotate_password.yml changes them while the applications serve" in error
    assert server_errors(changed, answer(), True) == []
    both = fleet(app_database_password="new", app_database_owner_password="new")
    assert "for shop, shop_owner (" in server_errors(both, answer(), False)[0]


def test_role_that_poolkit_has_not_made_keeps_its_password() -> None:
    for comment in (None, "of the web team"):
        taken = answer(shop={"fingerprint": comment})
        (error,) = server_errors(fleet(), taken, False)
        assert "has shop already, with a password that poolkit has not set" in error
        assert "run the whole site.yml with -e database_password_change=true" in error


def test_server_that_was_left_is_refused_except_to_move_back() -> None:
    left = answer()
    left["query_all_results"][1][0]["moved_to"] = "db2:5432"
    for may_change in (False, True):
        (error,) = server_errors(fleet(), left, may_change)
        assert "database shop of db1:5432 was moved to db2:5432, and is closed" in error
    assert server_errors(fleet(database_old_host="db2"), left, False) == []
    assert server_errors(fleet(database_old_host="db3"), left, False) != []
    assert server_errors(fleet(database_old_host="db2", database_old_port=6000), left, False) != []
    # A copy of everything may have brought the note along.
    assert server_errors(fleet(database_host="db2"), left, False) == []


def test_copy_is_compared_with_what_it_was_made_of() -> None:
    table = {"name": "public.items", "kind": "table", "owner": "o", "rights": '["u SELECT"]'}
    original = [
        {**table, "number": 7},
        {**table, "name": "public.items_id_seq", "kind": "sequence", "number": 9},
    ]

    def errors(*changes: dict) -> list[str]:
        copy = [row | change for row, change in zip(original, changes, strict=False)]
        return database.copy_errors([original, copy])

    assert errors({}, {}) == []
    more = {**table, "name": "public.more", "number": 1}
    assert database.copy_errors([original, [*original, more]]) == []
    # Logical replication does not copy sequences; whoever sets them may leave a gap.
    assert errors({}, {"number": 1000}) == []
    assert errors({}, {"number": 8}) == ["sequence public.items_id_seq is at 8, and not at 9"]
    for change, words in (
        ({"number": 6}, "has 6 rows, and not 7"),
        ({"number": 8}, "has 8 rows, and not 7"),
        ({"owner": "admin"}, "belongs to admin, and not to o"),
        ({"rights": "[]"}, "lacks rights: u SELECT"),
        ({"kind": "view"}, "is missing"),
        ({"name": "other.items"}, "is missing"),
    ):
        assert errors(change, {}) == [f"table public.items {words}"]
    assert len(errors({"owner": "admin", "number": 0}, {})) == 2
    objects = [{**table, "name": "all", "kind": "large objects", "number": n} for n in (3, 2, 4)]
    assert database.copy_errors([objects[:1], objects[2:]]) == []
    assert database.copy_errors([objects[:1], objects[1:2]]) == [
        "it has 2 large objects, and not 3"
    ]
    # Where rows are not counted.
    original[0]["number"] = None
    assert errors({}, {}) == []


def changes(
    roles: Sequence[str] = (),
    databases: dict[str, tuple] | None = None,
    former: Sequence[str] = (),
    **options: bool,
) -> dict:
    """Return database_changes of the applications a and b.

    roles: names; with * the administrator is no member, with ! the password is another one.
    """
    apps = [
        {"name": app, "database": app, "user": app, "owner": f"{app}_owner", "adopt_from": former}
        for app in "ab"
    ]
    wanted = {app[kind]: {"fingerprint": "f"} for app in apps for kind in ("user", "owner")}
    if options.pop("auth", False):
        wanted["pgbouncer_auth"] = {"fingerprint": "f"}
    rows = [
        {
            "rolname": name.rstrip("*!"),
            "usable": "*" not in name,
            "fingerprint": None if "!" in name else "f",
        }
        for name in roles
    ]
    found = [
        {"datname": name, "owner": owner, "encoding": encoding}
        for name, (owner, encoding) in (databases or {}).items()
    ]
    server = {"query_all_results": [rows, found, []]}
    asked = {"reset": False, "check": False, **options}
    return database.database_changes(server, apps, wanted, **asked)


EVERY = ["a", "a_owner", "b", "b_owner"]
MADE = {"a": ("a_owner", "UTF8"), "b": ("b_owner", "UTF8"), "other": ("admin", "LATIN1")}


def test_nothing_is_made_where_everything_is_there() -> None:
    nothing = {"roles": [], "memberships": [], "databases": [], "adopted": [], "ready": ["a", "b"]}
    nothing["left_over"] = []
    for check in (False, True):
        assert changes([*EVERY, "admin"], MADE, check=check) == nothing
    assert changes(EVERY, MADE, reset=True) == {**nothing, "roles": EVERY}


def test_an_empty_server_gets_everything() -> None:
    owners = ["a_owner", "b_owner"]
    every = {"roles": EVERY, "memberships": owners, "databases": ["a", "b"], "adopted": []}
    every |= {"ready": ["a", "b"], "left_over": []}
    assert changes() == every
    # Check mode makes none of it, and PostgreSQL would refuse the rest.
    assert changes(check=True) == {**every, "memberships": [], "ready": []}


def test_only_what_differs_is_made() -> None:
    found = changes(["a!", "a_owner*", "b", "b_owner"], {**MADE, "b": ("b_owner", "LATIN1")})
    assert found == {
        **{"roles": ["a"], "memberships": ["a_owner"]},
        **{"databases": ["b"], "adopted": [], "ready": ["a", "b"], "left_over": []},
    }
    assert changes(EVERY, {**MADE, "a": ("b_owner", "UTF8")})["databases"] == ["a"]


def test_what_is_adopted_and_joined() -> None:
    """The administrator has to be a member of a former owner that is there."""
    found = changes([*EVERY, "old*"], {"a": ("old", "UTF8")}, former=["old", "older"])
    assert found["adopted"] == ["a"]
    assert found["memberships"] == ["old"]
    assert found["databases"] == ["a", "b"]


def test_former_owner_is_no_stranger() -> None:
    given = fleet(app_database_adopt_from="someone")  # as -e gives one
    assert server_errors(given, answer(owner="someone"), False) == []
    (error,) = server_errors(fleet(), answer(owner="someone"), False)
    assert "app_database_adopt_from: [someone]" in error


def test_role_that_keeps_connect_has_to_be_there() -> None:
    given = fleet(app_database_connect_roles=["monitor"])
    (error,) = server_errors(given, answer(), False)
    assert error.startswith("app_database_connect_roles of shop has monitor, which PostgreSQL")
    assert server_errors(given, answer(monitor={}), False) == []


def test_check_mode_grants_nothing_that_lacks_a_role_or_its_database() -> None:
    def ready(*arguments: object, **options: bool) -> list[str]:
        return changes(*arguments, check=True, **options)["ready"]

    assert ready(["a_owner", "b", "b_owner"], MADE) == ["b"]
    assert ready(["a", "a_owner", "b", "b_owner*"], MADE) == ["a"]
    assert ready(EVERY, {"a": MADE["a"]}) == ["a"]
    assert ready(EVERY, MADE, auth=True) == []
    assert ready([*EVERY, "pgbouncer_auth"], MADE, auth=True) == ["a", "b"]


def test_another_host_asks_with_the_administrators_variables() -> None:
    facts = {"database_host": "db1", "database_sslmode": "require", "app_name": "shop"}
    found = database.database_variables(facts)
    assert (found["database_host"], found["database_sslmode"]) == ("db1", "require")
    assert (found["database_admin_database"], found["database_ca_file"]) == ("postgres", "")
    assert "app_name" not in found


def test_the_role_gets_no_passwords() -> None:
    (app,) = database.database_applications(derived(fleet(), ONE), {"shop": 40})
    assert app["connection_limit"] == 40
    assert set(app) == set(role_defaults.options("database")["database_applications"]["options"])


def test_role_of_auth_query_keeps_its_password() -> None:
    auth = {"pgbouncer_auth_query_enabled": True, "pgbouncer_auth_query_password": "q"}
    (error,) = server_errors(
        fleet(**auth), answer(pgbouncer_auth={"fingerprint": "poolkit:other"}), False
    )
    assert "for pgbouncer_auth (" in error


def test_auth_query_has_one_name_for_its_role() -> None:
    """The roles' own templates cannot read Python's constant."""
    assert role_defaults.role_constants("pgbouncer")["_pgbouncer_auth_user"] == AUTH_USER
    roles = role_defaults.role_constants("database")["_database_auth_roles"]
    assert set(re.findall(r"pgbouncer_\w+", roles)) == {AUTH_USER}


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("app_framwork", "app_framework"),
        ("app_prot", "app_port"),
        ("app_ports", "app_port"),
        ("pgbouncer_listen_prot", "pgbouncer_listen_port"),
    ],
)
def test_misspelt_variable_comes_with_the_one_that_was_meant(name: str, meant: str) -> None:
    assert fleet_filters.misspelt_variables(["app_name", name], meant.partition("_")[0]) == [
        f"{name} (did you mean {meant}?)"
    ]


def test_variables_of_an_inventorys_own_are_not_misspelt() -> None:
    own = ("app_domain", "app_version", "app_host", "app_hostname", "app_url", "pgbouncer_port")
    for role in ("app", "pgbouncer"):
        assert fleet_filters.misspelt_variables(own, role) == []
    assert (
        fleet_filters.misspelt_variables(["database_password", "database_role"], "database") == []
    )


def test_foreign_variables_are_told_and_misspelt_ones_are_not_among_them() -> None:
    groups = inventory("web1")
    facts = {
        "web1": {
            **hosts()["web1"],
            **dict.fromkeys(("app_domain", "database_user", "database_port", "other"), "x"),
            **dict.fromkeys(
                ("pgbouncer_pool_mode", "pgbouncer_drain_seconds", "app_framwork"), "x"
            ),
        }
    }
    assert derived(facts, groups)["foreign"] == [
        "app_domain",
        "database_user",
        "pgbouncer_pool_mode",
    ]


def test_longest_wait_of_the_poolers() -> None:
    def wait(*settings: dict | None) -> int:
        poolers = [f"p{number}" for number in range(len(settings))]
        own = {
            name: {"pgbouncer_settings": given}
            for name, given in zip(poolers, settings, strict=True)
        }
        facts = {**mixed(), **own, "pool1": mixed()["pool1"]}
        for name in poolers:
            facts[name]["private_address"] = "192.0.2.99"
        return derived(facts, {**MIXED, "pgbouncer": ["pool1", *poolers]})["query_wait_timeout"]

    assert wait({}, {"query_wait_timeout": "25"}, None) == 25
    assert wait() == 4
    assert wait({"query_wait_timeout": "25"}, {"query_wait_timeout": 0}) == 0  # without end


def test_the_fleet_holds_no_secret() -> None:
    facts = mixed() | {"pool1": {**mixed()["pool1"], "pgbouncer_auth_query_enabled": True}}
    for host in facts.values():
        host.update({name: f"hidden-{name}-0123456789" for name in fleet_filters.SECRETS})
        host["app_databases"] = {"archive": {"password": "hidden-archive"}}
        host.update(FLEET | {"scram_salt_seed": "hidden-seed-0123456789"})
        host["database_admin_password"] = "hidden-admin"
        host["pgbouncer_databases"] = {"reports": {"host": "db2", "password": "hidden-report"}}
    found = derived(facts, MIXED)
    assert found["errors"] == []
    assert [*found["applications"]] == ["shop", "shop.archive", "blog", "blog.archive"]
    assert "hidden" not in repr(found)


@pytest.mark.parametrize("name", fleet_filters.TYPES)
def test_a_value_of_another_type_is_told(name: str) -> None:
    found = derived(fleet(**{name: "text"}), ONE)
    assert found["errors"][0].startswith(f"web1: {name} is text: give a ")


def test_connection_string_of_a_database_is_not_shown() -> None:
    for value in ("host=db2 password=hidden", {"reports": "host=db2 password=hidden"}):
        (error,) = derived(fleet(pgbouncer_databases=value), ONE)["errors"]
        assert error.startswith("web1: pgbouncer_databases")
        assert "hidden" not in error


def test_every_variable_that_is_derived_from_is_read() -> None:
    """Another one would silently have its default."""
    plugins = ROOT / "ansible/plugins"
    sources = [*(plugins / "plugin_utils").glob("*.py"), plugins / "filter/connection_budget.py"]
    text = "".join(path.read_text() for path in sources) + Path(fleet_filters.__file__).read_text()
    named = set(re.findall(r'"(\w+)"', text)) & role_defaults.known_variables()
    assert len(named) > 40
    assert named <= {*fleet_filters.FACTS, *role_defaults.options("database")}


def test_misspelt_database_variable_of_any_host_is_found() -> None:
    facts = {**fleet(), "db1": {**FLEET, "private_address": "192.0.2.1", "database_prot": 1}}
    (error,) = derived(facts, {**ONE, "database_admin": ["db1"]})["errors"]
    assert "database_prot (did you mean database_port?)" in error


@pytest.mark.parametrize("name", fleet_filters.FACTS)
def test_no_value_ends_in_a_traceback(name: str) -> None:
    """A wrong value is refused in words, here or by the role whose variable it is."""
    for value in ("x", "30s", "", -1, 0, 1.5, None, True, [], ["x"], {}, {"shop": 1}, {"shop": {}}):
        facts = fleet(**{"pgbouncer_auth_query_enabled": True, name: value})
        found = derived(facts, {**ONE, "postgres": ["web1"]})
        assert all(isinstance(error, str) for error in found["errors"])
        budget = connection_budget(found, {})
        assert budget["fits"] or budget["message"], value
