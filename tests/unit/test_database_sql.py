"""The SQL of the role database, as text, and what tells that it changed something.

What it does on a server, the scenarios prove.
"""

import json
from pathlib import Path

import pytest
from collection import COLLECTION
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from plugins.filter import database, quoting
from plugins.plugin_utils.applications import applications

ROOT = Path(__file__).resolve().parents[2]
SQL = ROOT / "roles/database"
TEMPLATES = Environment(
    loader=FileSystemLoader(SQL / "templates/sql"), undefined=StrictUndefined, trim_blocks=True
)
TEMPLATES.filters.update(
    {
        f"{COLLECTION}.{name}": function
        for name, function in quoting.FilterModule().filters().items()
    }
)


def application(**facts: object) -> dict:
    base = {
        "app_name": "shop",
        "app_database_password": "p",
        "app_database_owner_password": "o",
        "app_database_connection_limit": 20,
    }
    groups = {"applications": ["web1"], "pgbouncer": ["web1"]}
    (app,) = applications({"web1": {**base, **facts}}, groups)
    return app


def grants(**facts: object) -> list[str]:
    """Return the statements, each in one line."""
    text = TEMPLATES.get_template("grants.sql.j2").render(
        _database_app=application(**facts), _database_auth_roles={}
    )
    lines = [line for line in text.splitlines() if not line.startswith("--")]
    return [" ".join(part.split()) for part in "\n".join(lines).split(";\n")]


def test_owner_has_the_migrations_limits() -> None:
    statements = grants(app_migration_statement_timeout="1h")
    assert 'ALTER ROLE "shop_owner" IN DATABASE "shop" RESET ALL' in statements
    owner = 'ALTER ROLE "shop_owner" IN DATABASE "shop" SET'
    assert [s.removeprefix(owner) for s in statements if s.startswith(owner)] == [
        " \"lock_timeout\" = '5s'",
        " \"statement_timeout\" = '1h'",
    ]
    assert not any(s.startswith('ALTER ROLE "shop" IN DATABASE "shop" SET') for s in statements)


def test_no_schema_is_made_where_none_is_declared() -> None:
    statements = grants(app_database_settings={"search_path": ["$user", "public"]})
    assert not any("CREATE SCHEMA" in s for s in statements)
    assert sum(s.startswith("GRANT USAGE ON SCHEMA") for s in statements) == 1


def test_declared_schema_is_made_and_opened_as_its_owner() -> None:
    path = {"search_path": ["$user", "Shop's", "public"]}
    statements = grants(app_database_settings=path)
    for role in ("shop", "shop_owner"):
        line = f'ALTER ROLE "{role}" IN DATABASE "shop" SET "search_path" = '
        assert line + "'$user', 'Shop''s', 'public'" in statements
    assert 'CREATE SCHEMA IF NOT EXISTS "Shop\'s" AUTHORIZATION "shop_owner"' in statements
    as_owner = statements.index('SET LOCAL ROLE "shop_owner"')
    rights = [
        'GRANT USAGE ON SCHEMA public TO "shop"',
        'ALTER DEFAULT PRIVILEGES GRANT USAGE ON SCHEMAS TO "shop"',
        'ALTER DEFAULT PRIVILEGES GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO "shop"',
        'ALTER DEFAULT PRIVILEGES GRANT USAGE, SELECT ON SEQUENCES TO "shop"',
    ]
    for right in rights:
        assert statements.index(right) > as_owner
    assert not any("ON ALL TABLES" in s for s in statements), "somebody else's would stop it"


def test_schema_of_somebody_else_is_refused_with_its_variable() -> None:
    text = " ".join(grants(app_database_settings={"search_path": "store"}))
    assert "RAISE EXCEPTION" in text
    assert "app_database_settings.search_path of shop: the schema store belongs to another" in text


@pytest.mark.parametrize("part", ["nspname", "nspowner", "nspacl", "setconfig", "defaclnamespace"])
def test_snapshot_sees_schemas_and_settings(part: str) -> None:
    assert part in (SQL / "files/sql/access_snapshot.sql").read_text()


def result(name: str, before: dict, after: dict) -> dict:
    rows = [[{"settings": json.dumps(settings)}] for settings in (before, {}, after)]
    return {"item": name, "query_all_results": rows}


def test_changed_settings_are_those_of_the_applications_user() -> None:
    apps = [application(), application(app_name="blog"), application(app_name="wiki")]
    results = [
        result("shop", {"shop": ["a=1"]}, {"shop": ["a=2"]}),
        # The owner does not come through a pooler.
        result("blog", {"blog": ["a=1"]}, {"blog": ["a=1"], "blog_owner": ["a=1"]}),
        {"item": "wiki", "skipped": True},
        result("gone", {}, {"gone": ["a=1"]}),
    ]
    assert database.changed_settings(results, apps) == ["shop"]
    assert database.changed_settings([result("wiki", {"wiki": ["a=1"]}, {})], apps) == ["wiki"]
    assert database.changed_settings([], apps) == []


def test_objects_move_in_one_transaction_that_does_not_wait_for_long() -> None:
    app = application(
        app_database_settings={"search_path": ["store"]}, app_migration_lock_timeout="3s"
    )
    objects = [{"kind": "TABLE", "name": 'a"b'}, {"kind": "TYPE", "name": "mood"}]
    text = TEMPLATES.get_template("move_objects.sql.j2").render(
        _database_app=app, __database_objects=objects
    )
    assert text.splitlines() == [
        'SET LOCAL ROLE "shop_owner";',
        "SET LOCAL lock_timeout = '3s';",
        'ALTER TABLE public."a""b" SET SCHEMA "store";',
        'ALTER TYPE public."mood" SET SCHEMA "store";',
        "RESET ROLE;",
    ]


def test_schema_is_looked_up_under_its_exact_name() -> None:
    app = application(app_database_settings={"search_path": ["O'Store"]})
    text = TEMPLATES.get_template("public_objects.sql.j2").render(_database_app=app)
    assert "to_regnamespace('\"O''Store\"')" in text
    assert "rolname = 'shop_owner'" in text
