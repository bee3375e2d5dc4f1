"""auth_query: who PostgreSQL knows gets in, and nobody who should not."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import psycopg
import pytest
from conftest import Pooler
from controller import ansible, cut_off, played

PASSWORD = 'it\'s "50%" \\ $1 #:@/'
REFUSED = "login rejected|no such user|SASL authentication failed"


@pytest.fixture(scope="module", autouse=True)
def people(superuser_sql: Callable[..., str]) -> Iterator[None]:
    """Roles that the inventory does not know."""
    quoted = PASSWORD.replace("'", "''")
    roles = {
        "ana": "LOGIN",
        "expired": "LOGIN VALID UNTIL '2020-01-01'",
        "root_too": "LOGIN SUPERUSER",
        "standby": "LOGIN REPLICATION",
    }
    for name, options in roles.items():
        superuser_sql(f"CREATE ROLE {name} {options} PASSWORD '{quoted}'")
        superuser_sql(f"GRANT CONNECT ON DATABASE shop TO {name}")
    yield
    for name in roles:
        superuser_sql(f"DROP OWNED BY {name}; DROP ROLE {name}")


def test_user_of_postgresql_gets_in(pooler: Pooler) -> None:
    with pooler.connect(user="ana", password=PASSWORD) as connection:
        assert connection.execute("SELECT current_user").fetchone() == ("ana",)


@pytest.mark.parametrize("user", ["expired", "root_too", "standby", "nobody", "shop_owner"])
def test_others_stay_out(pooler: Pooler, user: str) -> None:
    with pytest.raises(psycopg.OperationalError, match=REFUSED):
        pooler.connect(user=user, password=PASSWORD)


def test_wrong_password_stays_out(pooler: Pooler) -> None:
    with pytest.raises(psycopg.OperationalError, match=REFUSED):
        pooler.connect(user="ana", password="wrong")


def test_application_still_passes_its_keys_through(pooler: Pooler) -> None:
    with pooler.connect() as connection:
        assert connection.execute("SELECT current_user").fetchone() == ("shop",)


def test_database_is_bounded(pooler: Pooler) -> None:
    """The pool of 10, its reserve of 2, 5 for other users, 2 for the lookups."""
    (row,) = [row for row in pooler.console("SHOW DATABASES") if row["name"] == "shop"]
    assert row["max_connections"] == "19"


def test_role_may_look_up_logins_and_nothing_else(
    pooler: Pooler, superuser_sql: Callable[..., str]
) -> None:
    as_role = "SET ROLE pgbouncer_auth; SELECT username FROM poolkit.pooler_login('{}')".format
    assert superuser_sql(as_role("ana")) == "ana"
    assert superuser_sql(as_role("root_too")) == superuser_sql(as_role("poolkit_admin")) == ""
    readable = "SELECT has_table_privilege('pgbouncer_auth', 'pg_shadow', 'SELECT')"
    assert superuser_sql(readable) == "f"
    password = pooler.password  # the scenario gives both the same
    with pytest.raises(psycopg.OperationalError, match=REFUSED):
        pooler.connect(user="pgbouncer_auth", password=password)
    with (
        pooler.connect(user="ana", password=PASSWORD) as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        connection.execute("SELECT * FROM poolkit.pooler_login('shop')")


def test_callers_search_path_does_not_count(superuser_sql: Callable[..., str]) -> None:
    """A pg_shadow of the caller's own is not read."""
    rows = superuser_sql(
        "CREATE SCHEMA evil; CREATE VIEW evil.pg_shadow AS SELECT 'postgres'::name AS usename, "
        "'x'::text AS passwd, false AS usesuper, false AS userepl, NULL::timestamptz AS valuntil; "
        "SET search_path = evil, pg_catalog; SELECT * FROM poolkit.pooler_login('postgres'); "
        "DROP SCHEMA evil CASCADE"
    )
    assert "x" not in rows.replace("SET", "")


def test_changed_function_is_made_anew(superuser_sql: Callable[..., str]) -> None:
    superuser_sql(
        "SET ROLE poolkit_admin; CREATE OR REPLACE FUNCTION poolkit.pooler_login(name text, OUT "
        "username text, OUT secret text) RETURNS SETOF record LANGUAGE sql STABLE SECURITY "
        "DEFINER AS 'SELECT NULL::text, NULL::text'"
    )
    first, second = (ansible("ansible-playbook", "ansible/playbooks/database.yml") for _ in "12")
    assert first.returncode == 0, first.stdout[-2000:]
    assert "changed=1" in first.stdout
    assert "changed=0" in second.stdout
    text = superuser_sql("SELECT pg_get_functiondef('poolkit.pooler_login(text)'::regprocedure)")
    assert "SET search_path TO 'pg_catalog', 'pg_temp'" in text


class Logins(threading.Thread):
    """Logs in through auth_query, again and again, until it is stopped."""

    def __init__(self, pooler: Pooler) -> None:
        super().__init__()
        self.pooler = pooler
        self.done = 0
        self.refused: list[str] = []
        self.stopped = threading.Event()
        self.between = threading.Lock()
        """Free while nobody is being looked up."""

    def run(self) -> None:
        while not self.stopped.wait(0.05):
            with self.between:
                try:
                    self.pooler.connect(user="ana", password=PASSWORD).close()
                except psycopg.OperationalError as error:
                    self.refused.append(str(error))
                self.done += 1


def test_password_of_the_lookups_changes_while_people_log_in(
    poolers: dict[str, Pooler], superuser_sql: Callable[..., str]
) -> None:
    """Killed when only PostgreSQL has it, run again, and back.

    The lookups' connections stay open meanwhile; new ones have the new password.
    """
    connected = "FROM pg_stat_activity WHERE usename = 'pgbouncer_auth'"
    mark = "SELECT shobj_description('pgbouncer_auth'::regrole, 'pg_authid')"
    rotate = ("ansible-playbook", "ansible/playbooks/rotate_password.yml", "-e")
    new = json.dumps({"pgbouncer_auth_query_password": "n:e'w \\"})
    logins = [Logins(pooler) for pooler in poolers.values()]

    def look_up_anew() -> None:
        before = superuser_sql(f"SELECT pid {connected}").splitlines()
        with ExitStack() as stack:
            for thread in logins:
                stack.enter_context(thread.between)
            superuser_sql(f"SELECT pg_terminate_backend(pid) {connected}")
        for thread in logins:
            number = thread.done
            while thread.done < number + 5:
                assert thread.is_alive()
                thread.stopped.wait(0.1)
        after = superuser_sql(f"SELECT pid {connected}").splitlines()
        assert after and not set(before) & set(after)

    for thread in logins:
        thread.start()
    try:
        cut_off([*rotate, new], "Change the pooler")
        assert superuser_sql(mark).endswith(":changing")
        refused = played(ansible("ansible-playbook", "ansible/playbooks/plan.yml", "-e", new))
        assert refused.code != 0
        assert "hosts may still have the old one of pgbouncer_auth" in refused.output
        for variables in (new, "{}"):
            run = played(ansible(*rotate, variables))
            assert run.code == 0, run.output[-3000:]
            assert "the password of the inventory: pgbouncer_auth" in run.output
            look_up_anew()
        again = played(ansible(*rotate, "{}"))
        assert "Every role has the password of the inventory" in again.output
        assert set(again.changed.values()) == {0}
    finally:
        for thread in logins:
            thread.stopped.set()
            thread.join()
        print([(thread.pooler.name, thread.done, len(thread.refused)) for thread in logins])
    assert [refusal for thread in logins for refusal in thread.refused] == []
