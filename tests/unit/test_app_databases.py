"""Further databases of an application (app_databases), and one that two applications share."""

from __future__ import annotations

import pytest
from ansible.errors import AnsibleFilterError

from plugins.filter import database, fleet
from plugins.filter.application import application_databases
from plugins.filter.connection_budget import connection_budget, more_than_counted
from plugins.filter.pooler_configuration import bound_databases, pooler_database
from plugins.plugin_utils import role_defaults
from plugins.plugin_utils.applications import further_databases

SEED = "0123456789abcdef"
GROUPS = {
    "applications": ["web1"],
    "pgbouncer": ["web1"],
    "database_admin": ["web1"],
    "postgres": ["db1"],
}
MAIN = {
    "name": "shop",
    "database": "shop",
    "user": "shop",
    "owner": "shop_owner",
    "password": "hidden-main",
    "owner_password": "hidden-owner",
    "settings": {},
    "pooler_hosts": [["127.0.0.1", 6432]],
    "fallback_hosts": [["db1", 5432]],
    "direct_hosts": [["db1", 5432]],
}


def facts(**given: object) -> dict[str, dict]:
    web1 = {
        "app_name": "shop",
        "app_framework": "django",
        "app_module": "config.wsgi:application",
        "app_workers": 2,
        "app_database_password": "hidden-main",
        "app_database_owner_password": "hidden-owner",
        "private_address": "192.0.2.1",
        "database_host": "db1",
        "database_port": 5432,
        "database_admin_user": "root",
        "database_admin_password": "hidden-admin",
        "scram_salt_seed": SEED,
        **given,
    }
    return {"web1": web1, "db1": {"private_address": "192.0.2.9", "scram_salt_seed": SEED}}


def test_further_database_is_made_like_the_first() -> None:
    hosts = facts(app_databases={"reports": {}})
    found = fleet.fleet(hosts, GROUPS)
    assert found["errors"] == []
    assert list(found["applications"]) == ["shop", "shop.reports"]
    reports = found["applications"]["shop.reports"]
    assert (reports["database"], reports["user"]) == ("shop_reports", "shop_reports")
    assert reports["owner"] == "shop_reports_owner"
    assert found["hosts_of"] == {"shop": ["web1"]}
    roles = database.database_roles(found, hosts, {}, SEED)
    assert set(roles) == {"shop", "shop_owner", "shop_reports", "shop_reports_owner"}
    made = database.database_applications(found, {"shop.reports": 20})
    assert [(app["database"], app["connection_limit"]) for app in made] == [
        ("shop", None),
        ("shop_reports", 20),
    ]
    rules = {(rule["database"], rule["user"]) for rule in found["hba_rules"]}
    assert rules >= {("shop_reports", "shop_reports"), ("shop_reports", "shop_reports_owner")}
    pooled = fleet.pooler_applications(found, "web1", hosts)
    assert [(app["database"], app["user"], app["password"]) for app in pooled] == [
        ("shop", "shop", "hidden-main"),
        ("shop_reports", "shop_reports", "hidden-main"),
    ]
    # A row of its own, and each worker of the application may be a client of both.
    plan = connection_budget(found, {})
    assert [(row["application"], row["limit"]) for row in plan["rows"]] == [
        ("shop", 24),
        ("shop.reports", 24),
    ]
    assert plan["connection_limits"] == {"shop": 24, "shop.reports": 24}
    assert plan["clients"][0]["clients"] == 2 * (2 + 1) * 5 + 20


def test_own_passwords_reach_roles_and_pooler_and_stay_secret() -> None:
    own = {"user": "rep", "password": "hidden-rep", "owner_password": "hidden-rep-owner"}
    hosts = facts(app_databases={"reports": own})
    found = fleet.fleet(hosts, GROUPS)
    assert "hidden" not in repr(found)
    (_, pooled) = fleet.pooler_applications(found, "web1", hosts)
    assert (pooled["user"], pooled["password"]) == ("rep", "hidden-rep")
    same = database.database_roles(
        found, facts(app_databases={"reports": {"user": "rep"}}), {}, SEED
    )
    different = database.database_roles(found, hosts, {}, SEED)
    assert {name for name in same if same[name] != different[name]} == {"rep", "shop_reports_owner"}


def test_replica_is_pooled_beside_the_first_and_nothing_is_made_there() -> None:
    hosts = facts(app_databases={"replica": {"host": "db2"}})
    found = fleet.fleet(hosts, GROUPS)
    assert found["errors"] == []
    assert set(database.database_roles(found, hosts, {}, SEED)) == {"shop", "shop_owner"}
    assert [app["name"] for app in database.database_applications(found, {})] == ["shop"]
    assert {rule["database"] for rule in found["hba_rules"]} == {"shop", "all"}
    (_, replica) = fleet.pooler_applications(found, "web1", hosts)
    assert (replica["database"], replica["user"]) == ("shop_replica", "shop")
    assert pooler_database(replica, "db1", 5432) == {"host": "db2", "port": 5432, "dbname": "shop"}
    plan = connection_budget(found, {})
    assert [row["application"] for row in plan["rows"]] == ["shop"]
    assert plan["notes"] == [
        "shop.replica is on db2:5432, which is not the server of this budget: its pools, one on "
        "each of web1, are not counted"
    ]
    assert plan["clients"][0]["clients"] == 2 * (2 + 1) * 5 + 20


def test_session_mode_gives_a_replica_its_pool_too() -> None:
    hosts = facts(app_databases={"replica": {"host": "db2"}}, app_pool_mode="session")
    plan = connection_budget(fleet.fleet(hosts, GROUPS), {})
    assert plan["pool_sizes"] == {
        "web1": {"shop": {"pool_size": 15}, "shop_replica": {"pool_size": 15}}
    }


def test_user_of_its_own_on_another_server_is_the_poolers_login_there() -> None:
    other = {"host": "db2", "port": 5433, "database": "facts", "user": "reader"}
    hosts = facts(app_databases={"warehouse": {**other, "password": "hidden-there"}})
    found = fleet.fleet(hosts, GROUPS)
    assert "hidden" not in repr(found)
    (_, entry) = fleet.pooler_applications(found, "web1", hosts)
    assert pooler_database(entry, "db1", 5432) == {
        **{"host": "db2", "port": 5433, "dbname": "facts"},
        **{"user": "reader", "password": "hidden-there"},
    }


def test_ways_of_the_application() -> None:
    given = {
        "reports": {},
        "replica": {"host": "db2"},
        "warehouse": {"host": "db3", "database": "facts", "user": "r", "password": "p"},
    }
    main, reports, replica, warehouse = application_databases(given, MAIN)
    assert (main["name"], main["prefix"], main["database"]) == ("shop", "", "shop")
    pooler, first = ["127.0.0.1", 6432], ["db1", 5432]
    assert (reports["name"], reports["prefix"]) == ("shop.reports", "REPORTS_")
    assert (reports["hosts"], reports["direct_hosts"]) == ([pooler, first], [first])
    # The pooler knows the replica's database by another name, so that one URL has no fallback.
    assert (replica["database"], replica["dbname"]) == ("shop_replica", "shop")
    assert (replica["hosts"], replica["direct_hosts"]) == ([pooler], [["db2", 5432]])
    assert warehouse["hosts"] == [pooler, ["db3", 5432]]
    assert [entry["made"] for entry in (main, reports, replica, warehouse)] == [
        *(True, True),
        *(False, False),
    ]


def test_ways_without_a_pooler() -> None:
    _, replica = application_databases({"replica": {"host": "db2"}}, {**MAIN, "pooler_hosts": []})
    assert (replica["database"], replica["hosts"]) == ("shop", [["db2", 5432]])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("reports", "is no mapping"),
        ({"Reports": {}}, "app_databases.Reports: use a lower-case letter"),
        ({"default": {}}, "app_databases.default: use"),
        ({"direct": {}}, "app_databases.direct: use"),
        ({"re-ports": {}}, "app_databases.re-ports: use"),
        ({"reports": "shop"}, "app_databases.reports is no mapping"),
        ({"reports": {"name": "x"}}, "app_databases.reports.name is unknown: use database, user"),
        ({"reports": {"database": 5}}, "app_databases.reports.database is no text"),
        ({"reports": {"password": None}}, "app_databases.reports.password is no text"),
        ({"reports": {"settings": []}}, "app_databases.reports.settings is no mapping"),
        ({"reports": {"port": 5432}}, "app_databases.reports.port is only for another server"),
        ({"r": {"host": "db2", "owner": "x"}}, "app_databases.r.owner is for a database that"),
        ({"r": {"host": "db2", "user": "x"}}, "app_databases.r: give user and password toget"),
        ({"r": {"host": "db2", "password": "x"}}, "app_databases.r: give user and password toget"),
        ({"r_direct": {}}, "app_databases.r_direct: use a lower-case letter"),
        ({"r": {"host": "db2 db3"}}, "app_databases.r.host is 'db2 db3'"),
        ({"r": {"host": "db2", "port": "x"}}, "app_databases.r.port is 'x': give a whole number"),
    ],
)
def test_what_is_refused(given: object, words: str) -> None:
    with pytest.raises(AnsibleFilterError, match=words) as raised:
        further_databases(given, MAIN)
    assert "hidden" not in str(raised.value)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"reports": {"database": "a b"}}, "web1: app_databases.reports.database is 'a b'"),
        ({"reports": {"database": "postgres"}}, "reports.database is 'postgres', which has"),
        ({"reports": {"user": "x", "owner": "x"}}, "reports.user and app_databases.reports.owner"),
        ({"reports": {"user": "shop"}}, "both use the role 'shop'"),
        ({"reports": {"settings": {"search_path": "a, b"}}}, "reports.settings.search_path is"),
        ({"a": {"host": "db2", "database": "x"}, "b": {"host": "db3", "database": "x"}}, "on two"),
        (
            {"a": {"host": "db2", "database": "x", "user": "shop", "password": "other"}},
            "shop and shop.a both log in as 'shop' through web1, with different passwords",
        ),
        (
            {"a": {"host": "db2", "database": "x", "user": "shop_owner", "password": "other"}},
            "are both 'shop_owner'",
        ),
        ({"a": {"host": "db1"}}, "app_databases.a.host is the inventory's own server"),
        ({"a": {"database": "shop"}}, "'shop' and 'shop.a' both use the role 'shop'"),
    ],
)
def test_what_contradicts_itself(given: dict, words: str) -> None:
    found = fleet.fleet(facts(app_databases=given), GROUPS)
    assert words in found["errors"][0]


def shared(**changes: object) -> dict:
    """Return the fleet of two applications with one pooler and one database."""
    hosts = facts()
    blog = {"app_name": "blog", "app_database": "shop", "app_database_owner": "shop_owner"}
    hosts["web2"] = {**hosts["web1"], **blog, "private_address": "192.0.2.2", **changes}
    hosts["pool1"] = {**hosts["web1"], "private_address": "192.0.2.3"}
    groups = GROUPS | {"applications": ["web1", "web2"], "pgbouncer": ["pool1"]}
    return fleet.fleet(hosts, groups)


def test_two_applications_share_a_database() -> None:
    found = shared()
    assert found["errors"] == []
    shop, blog = found["applications"].values()
    assert (shop["database"], shop["user"]) == ("shop", "shop")
    assert (blog["database"], blog["user"]) == ("shop", "blog")
    plan = connection_budget(found, {})
    # A pool for each pair of database and user: no further row for either.
    assert [(row["application"], row["pooled"]) for row in plan["rows"]] == [
        ("shop", 12),
        ("blog", 12),
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"app_database_owner": "blog_owner"}, "both use the database 'shop'"),
        ({"app_database_user": "shop"}, "both use the role 'shop'"),
        ({"app_database_owner_password": "x"}, "but differ in app_database_owner_password"),
        ({"app_migration_lock_timeout": "9s"}, "but differ in app_migration_lock_timeout"),
        ({"app_database_settings": {"search_path": ["blog"]}}, "search_path of app_database_sett"),
        ({"app_pool_mode": "session"}, "but differ in app_pool_mode"),
    ],
)
def test_what_they_must_agree_on(changes: dict, words: str) -> None:
    assert words in shared(**changes)["errors"][0]


def test_auth_query_bounds_a_shared_database_by_both_pools() -> None:
    apps = [{"database": "shop", "user": "shop"}, {"database": "shop", "user": "blog"}]
    settings = {"default_pool_size": 10, "reserve_pool_size": 2}
    bound = bound_databases({"shop": {}, "other": {}}, settings, apps, {}, 5)
    assert bound == {"shop": {"max_db_connections": 29}, "other": {"max_db_connections": 17}}


@pytest.mark.parametrize(
    ("given", "opened", "most"),
    [
        ({}, 15, 15),  # (2 workers and a stand-in) x (4 threads and the readiness check)
        ({}, 16, 15),
        ({"app_databases": {"reports": {}}}, 31, 30),
        ({"app_processes": {"worker": {"command": "x", "connections": 4}}}, 20, 19),
        ({"app_workers": "auto"}, 31, 30),  # 2 cores: 5 workers
        ({"app_framework": "flask", "app_connection_pool_size": 2}, 7, 6),
    ],
)
def test_application_that_opens_more_than_is_counted(given: dict, opened: int, most: int) -> None:
    found = fleet.fleet(facts(**given), GROUPS)
    said = more_than_counted(found, "shop", "web1", {"pooled": opened, "cores": 2})
    if opened <= most:
        assert said == ""
    else:
        assert f"has {opened} connections to its poolers, and the budget counts {most}:" in said
    assert more_than_counted(found, "shop", "web1", {"pooled": most, "cores": 2}) == ""


def test_nothing_is_said_of_what_nobody_counts() -> None:
    for given in ({"app_connection_strategy": "native"}, {"app_connection_strategy": "managed"}):
        found = fleet.fleet(facts(**given), GROUPS)
        assert more_than_counted(found, "shop", "web1", {"pooled": 99, "cores": 2}) == ""
    assert more_than_counted(fleet.fleet(facts(), GROUPS), "shop", "web1", {"msg": "x"}) == ""


def test_names_are_one_poolers_matter() -> None:
    """Two applications with poolers of their own may have users of one name on two servers."""
    entry = {"host": "db2", "database": "facts", "user": "reader", "password": "p"}
    hosts = facts(app_databases={"facts": entry})
    other = {"facts": {**entry, "host": "db3", "password": "q"}}
    blog = {"app_name": "blog", "private_address": "192.0.2.2", "app_databases": other}
    hosts["web2"] = {**hosts["web1"], **blog}
    groups = GROUPS | {"applications": ["web1", "web2"], "pgbouncer": ["web1", "web2"]}
    assert fleet.fleet(hosts, groups)["errors"] == []
    hosts["pool1"] = {**hosts["web1"], "private_address": "192.0.2.3"}
    assert "on two servers" in fleet.fleet(hosts, groups | {"pgbouncer": ["pool1"]})["errors"][0]


def elsewhere(**changes: object) -> dict:
    """Return the fleet of two applications that use one database on another server."""
    warehouse = {"host": "db2", "database": "facts", "user": "reader", "password": "p"}
    hosts = facts(app_databases={"facts": warehouse})
    given = changes.pop("given", {})
    second = {"app_name": "blog", "private_address": "192.0.2.2", **changes}
    hosts["web2"] = {**hosts["web1"], **second}
    hosts["web2"]["app_databases"] = {"facts": {**warehouse, **given}}
    hosts["pool1"] = {**hosts["web1"], "private_address": "192.0.2.3"}
    groups = GROUPS | {"applications": ["web1", "web2"], "pgbouncer": ["pool1"]}
    return fleet.fleet(hosts, groups)


def test_two_applications_share_a_database_elsewhere_as_one_user() -> None:
    assert elsewhere()["errors"] == []
    (error,) = elsewhere(given={"user": "other"})["errors"]
    assert "shop.facts and blog.facts share 'facts' on another server" in error
    assert "app_pool_mode transaction" in elsewhere(app_pool_mode="session")["errors"][0]
    taken = elsewhere(given={"database": "blog_facts", "user": "shop_owner"})["errors"][0]
    assert "blog.facts logs in as 'shop_owner', the app_database_owner of shop" in taken


def test_what_a_pooler_gets_fits_its_roles_spec() -> None:
    """Ansible validates it: an option that the spec does not know stops the deployment."""
    spec = role_defaults.options("pgbouncer")["pgbouncer_applications"]["options"]
    other = {"host": "db2", "database": "facts", "user": "r", "password": "hidden-there"}
    hosts = facts(app_databases={"reports": {}, "replica": {"host": "db2"}, "facts": other})
    for entry in fleet.pooler_applications(fleet.fleet(hosts, GROUPS), "web1", hosts):
        assert set(entry) <= set(spec)
        assert set(entry.get("server", {})) <= set(spec["server"]["options"])
    assert spec["server"]["options"]["password"]["no_log"] is True


def test_replica_does_not_unbind_a_hung_server() -> None:
    """query_timeout follows from the time-outs of every user; a replica has the same role."""
    settings = {"statement_timeout": "4s", "idle_in_transaction_session_timeout": "4s"}
    given = {"app_databases": {"replica": {"host": "db2"}}, "app_database_settings": settings}
    hosts = facts(**given)
    _, replica = fleet.pooler_applications(fleet.fleet(hosts, GROUPS), "web1", hosts)
    assert replica["statement_timeout"] == "4s"


def test_automatic_pool_elsewhere_is_refused() -> None:
    sizes = {"shop_replica": {"pool_size": "auto"}}
    hosts = facts(app_databases={"replica": {"host": "db2"}}, pgbouncer_databases=sizes)
    plan = connection_budget(fleet.fleet(hosts, GROUPS), {})
    assert "shop_replica is on another server, whose connections nobody adds up" in plan["message"]


def test_limits_of_clients_hold_for_all_who_share_them() -> None:
    replica = {"replica": {"host": "db2"}}
    limit = {"pgbouncer_users": {"shop": {"max_user_client_connections": 15}}}
    fits = connection_budget(fleet.fleet(facts(**limit), GROUPS), {})
    assert fits["fits"]
    plan = connection_budget(fleet.fleet(facts(app_databases=replica, **limit), GROUPS), {})
    assert (
        "is 15, but 30 clients may come at once (15 of shop, 15 of shop.replica)"
        in (plan["message"])
    )
