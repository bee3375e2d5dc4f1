"""Settings in connection options: what is certain to break is refused, the rest is mentioned."""

import pytest

from plugins.filter.connection_options import connection_options

POOLERS = [{"host": "127.0.0.1", "port": 6432}, {"host": "2001:db8::1", "port": "6433"}]
PATH = "options=-c%20search_path%3Dshop"


def found(environment: dict, strategy: str = "pgbouncer", url: str = "") -> tuple[int, int]:
    """Return the numbers of errors and warnings."""
    poolers = POOLERS if strategy.startswith("pgbouncer") else []
    result = connection_options(environment, poolers, url)
    return len(result["errors"]), len(result["warnings"])


@pytest.mark.parametrize(
    ("name", "value", "numbers"),
    [
        ("PGOPTIONS", "-c search_path=shop", (1, 0)),
        ("PGOPTIONS", "-csearch_path=shop -c timezone=UTC", (1, 0)),
        ("PGOPTIONS", "--statement-timeout=5s", (1, 0)),
        # Since 1.20 PgBouncer takes what it keeps for each client.
        ("PGOPTIONS", "-c TimeZone=UTC", (0, 0)),
        ("PGOPTIONS", "", (0, 0)),
        ("URL", f"postgresql://u:p@127.0.0.1:6432/d?{PATH}", (1, 0)),
        ("URL", f"postgres://u:p@localhost:6432/d?{PATH}", (1, 0)),
        ("URL", f"postgresql+psycopg://u:p@/d?host=127.0.0.1,db1&port=6432,5432&{PATH}", (1, 0)),
        ("URL", f"postgresql://u:p@[2001:db8::1]:6433,db1:5432/d?{PATH}", (1, 0)),
        ("URL", "postgresql://u:p@127.0.0.1:6432/d?connect_timeout=2", (0, 0)),
        # Another database, or PostgreSQL itself, takes them.
        ("URL", f"postgresql://u:p@reports:5432/d?{PATH}", (0, 1)),
        ("URL", f"postgresql://u:p@reports/d?host=other&{PATH}", (0, 1)),
        ("DB_OPTIONS", "-c search_path=shop", (0, 1)),
        ("CONNINFO", "host=x options='-c search_path=shop'", (0, 1)),
        ("COMMAND", "serve -c config.toml --verbose", (0, 0)),
        ("TEXT", "a=b", (0, 0)),
        ("NUMBER", 5, (0, 0)),
    ],
)
def test_what_is_certain_is_an_error(name: str, value: object, numbers: tuple[int, int]) -> None:
    assert found({name: value}) == numbers
    assert found({name: value}, "pgbouncer_nopool") == numbers


@pytest.mark.parametrize("strategy", ["native", "direct"])
def test_postgresql_itself_takes_them(strategy: str) -> None:
    assert found({"PGOPTIONS": "-c search_path=shop"}, strategy) == (0, 0)


def test_platforms_may_take_them() -> None:
    """Some proxies read options of their own."""
    url = f"postgresql://u:p@pool.example.com/d?{PATH}"
    assert found({"PGOPTIONS": "-c search_path=shop"}, "managed", url) == (0, 2)
    assert found({}, "managed", "postgresql://u:p@neon/d?options=endpoint%3Dx") == (0, 0)


def test_message_names_the_variable_and_no_value() -> None:
    environment = {
        "PGOPTIONS": "-c search_path=secret1 -c jit=secret2",
        "OTHER": "-c role=secret3",
    }
    result = connection_options(environment, POOLERS, "")
    (error,), (warning,) = result["errors"], result["warnings"]
    assert error.startswith("app_environment.PGOPTIONS sets jit, search_path in its connection")
    assert "declare them in app_database_settings" in error
    assert warning.startswith("app_environment.OTHER sets role ")
    assert "secret" not in error + warning
