"""Who may reach what: the pooler holds the clients, and PostgreSQL refuses everybody else."""

import re

import psycopg
import pytest
from conftest import Application
from controller import ansible

HOLD_CLIENTS = """
import os, psycopg, time
connections = [psycopg.connect(os.environ["DATABASE_URL"]) for _ in range(60)]
for connection in connections:
    connection.execute("SELECT 1").fetchone()
    connection.commit()
print("holding", flush=True)
time.sleep(float(os.environ["SECONDS"]))
"""


def test_the_pooler_not_postgresql_holds_the_clients(
    application: Application, superuser_sql
) -> None:
    """60 idle clients on one pooler need no more server connections than one pool has."""
    name, host = application.name, application.host
    host.run("systemctl stop hold-clients")  # of an interrupted run
    venv = f"/srv/{name}/current/.venv"
    host.check_output(
        "systemd-run --collect --unit=hold-clients --property=Type=exec --property=User=%s"
        " --property=EnvironmentFile=/etc/poolkit/%s/app.env --setenv=SECONDS=30"
        " %s/bin/python -c %s",
        *(name, name, venv, HOLD_CLIENTS),
    )
    try:
        host.check_output(
            "timeout 20 sh -c 'until journalctl -q -o cat _SYSTEMD_UNIT=hold-clients.service"
            " --since=-25s | grep -q holding; do sleep 0.2; done'"
        )
        pools = [pool for pool in application.pools() if pool["database"] == name]
        clients = sum(int(pool["cl_active"]) + int(pool["cl_waiting"]) for pool in pools)
        servers = int(
            superuser_sql(
                name,
                f"SELECT count(*) FROM pg_stat_activity WHERE usename = '{name}'"
                f" AND datname = '{name}'",
            )
        )
        assert clients >= 60, pools
        assert 1 <= servers <= 12, (
            f"{servers} server connections; the pool has 10 and a reserve of 2"
        )
    finally:
        host.run("systemctl stop hold-clients")


def test_migration_outside_a_transaction_has_run(application: Application, superuser_sql) -> None:
    """The index of CREATE INDEX CONCURRENTLY exists, is valid, and belongs to the owner role."""
    row = superuser_sql(
        application.name,
        "SELECT indisvalid, pg_get_userbyid(relowner) FROM pg_index JOIN pg_class"
        " ON pg_class.oid = indexrelid WHERE relname = 'items_created_at_idx'",
    )
    assert row == f"t|{application.name}_owner"


def test_service_file_names_both_paths(application: Application) -> None:
    """psql reaches the same database either way, and the pooled way comes first."""
    name = application.name
    port = "SELECT inet_server_port() || ' ' || current_user"
    assert application.psql(name, port) == f"5432 {name}"
    assert application.psql(f"{name}_direct", port) == f"5432 {name}"
    assert application.psql(f"{name}_owner", port, PGPASSFILE=f"/etc/poolkit/{name}/migrate.pgpass")
    assert application.psql(name, "SELECT 1", host="127.0.0.1", port="6432") == "1"


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", "6432"), ("", "5432")])
def test_wrong_password_is_refused(application: Application, host: str, port: str) -> None:
    message = application.psql_error(
        application.name,
        "SELECT 1",
        host=host or application.database_host,
        port=port,
        password="wrong",
    )
    assert "authentication failed" in message


def test_owner_is_refused_by_the_pooler(application: Application) -> None:
    """Migrations cannot go through the pooler by mistake: its access rules leave the owner out."""
    name = application.name
    message = application.psql_error(
        f"{name}_owner",
        "SELECT 1",
        host="127.0.0.1",
        port="6432",
        PGPASSFILE=f"/etc/poolkit/{name}/migrate.pgpass",
    )
    assert "login rejected" in message


def test_another_applications_host_is_refused(applications: dict[str, Application]) -> None:
    """The right password from the wrong host is refused."""
    flask, django = applications["flask"], applications["django"]
    message = flask.psql_error("flask_direct", "SELECT 1", dbname="django", user="django")
    assert "no pg_hba.conf entry" in message
    assert django.psql("django_direct", "SELECT 1") == "1"


def test_a_foreign_address_is_refused(applications: dict[str, Application], database) -> None:
    """The controller's own address, with the right password, is refused by the server's rules."""
    django = applications["django"]
    address = database.check_output("hostname -I").split()[0]
    with pytest.raises(psycopg.OperationalError, match=r"no pg_hba\.conf entry"):
        psycopg.connect(
            host=address,
            dbname="django",
            user="django",
            password=django.password,
            connect_timeout=5,
        )


def test_the_pooler_listens_on_loopback_only(application: Application) -> None:
    sockets = application.host.check_output("ss -Hltn 'sport = :6432'").split()
    assert [word for word in sockets if word.endswith(":6432")] == ["127.0.0.1:6432"]


def test_application_role_cannot_change_the_schema(application: Application) -> None:
    message = application.psql_error(application.name, "CREATE TABLE forbidden (id int)")
    assert "permission denied for schema public" in message


def test_verifier_is_the_same_on_both_sides(application: Application, superuser_sql) -> None:
    stored = superuser_sql(
        "postgres", f"SELECT rolpassword FROM pg_authid WHERE rolname = '{application.name}'"
    )
    userlist = application.host.check_output("cat /etc/pgbouncer/userlist.txt")
    assert stored.startswith("SCRAM-SHA-256$4096:")
    assert userlist == f'"{application.name}" "{stored}"'


def test_schemas_of_migrations_are_open_and_others_tables_stop_nothing(
    applications: dict[str, Application], superuser_sql
) -> None:
    """Field cases 5 and 6: an audit table of somebody else, an extension, a schema of the owner."""
    flask, owner = applications["flask"], "SET ROLE flask_owner"
    made = (
        "CREATE TABLE public.replication_audit (id int)",
        "CREATE EXTENSION IF NOT EXISTS pg_buffercache",
        "CREATE ROLE monitor LOGIN; GRANT CONNECT ON DATABASE flask TO PUBLIC",
        f"{owner}; CREATE SCHEMA audit; CREATE TABLE audit.entry (id serial, what text);"
        "CREATE MATERIALIZED VIEW audit.daily AS SELECT count(*) FROM audit.entry",
    )
    gone = (
        "DROP TABLE public.replication_audit",
        "DROP EXTENSION pg_buffercache",
        "DROP OWNED BY monitor; DROP ROLE monitor",
        "DROP SCHEMA audit, later CASCADE",
    )
    book = ("ansible-playbook", "ansible/playbooks/database.yml")
    try:
        for statement in made:
            superuser_sql("flask", statement)
        run = ansible(*book)
        assert run.returncode == 0, run.stdout[-3000:]
        said = re.sub(r"\s+", " ", run.stdout)
        assert "WARNING: monitor could connect to the database flask until now" in said
        assert "flask gets no rights on public.replication_audit (postgres) in the database" in said
        # What a migration makes after that is open at once.
        superuser_sql(
            "flask",
            "SET ROLE flask_owner; CREATE SCHEMA later; CREATE TABLE later.entry (id serial)",
        )
        asked = (
            "INSERT INTO audit.entry (what) VALUES ('a') RETURNING id",
            "SELECT count FROM audit.daily",
            "INSERT INTO later.entry DEFAULT VALUES RETURNING id",
        )
        assert [flask.psql("flask_direct", sql).strip() for sql in asked] == ["1", "0", "1"]
        refused = flask.psql_error("flask_direct", "SELECT FROM public.replication_audit")
        assert "permission denied for table replication_audit" in refused
        kept = ansible(*book, "-e", '{"app_database_connect_roles": ["monitor"]}')
        assert kept.returncode == 0, kept.stdout[-3000:]
        may = "SELECT has_database_privilege('monitor', 'flask', 'CONNECT')"
        assert superuser_sql("flask", may) == "t"
        again = ansible(*book).stdout.rpartition("PLAY RECAP")[2]
        assert " changed=0 " in next(line for line in again.splitlines() if "db1" in line)
    finally:
        for statement in gone:
            superuser_sql("flask", statement)


def test_a_database_of_another_role_is_taken_over_by_name(
    applications: dict[str, Application], superuser_sql
) -> None:
    """An installation before poolkit: one role owns the database, and everything in it."""
    flask = applications["flask"]
    made = (
        "CREATE ROLE old; GRANT old TO poolkit_admin; ALTER DATABASE flask OWNER TO old",
        "CREATE EXTENSION pg_buffercache; CREATE SCHEMA past AUTHORIZATION old; GRANT CREATE ON "
        "SCHEMA public TO old; SET ROLE old; CREATE TABLE public.legacy (id serial, what text);"
        "CREATE TYPE past.mood AS ENUM ('good'); CREATE VIEW past.seen AS TABLE public.legacy;"
        "CREATE FUNCTION past.one(integer) RETURNS integer LANGUAGE sql AS 'SELECT 1'",
    )
    owners = (
        "SELECT DISTINCT pg_get_userbyid(owner) FROM (SELECT datdba FROM pg_database WHERE datname "
        "= 'flask' UNION ALL SELECT relowner FROM pg_class WHERE relname IN ('legacy', 'seen', "
        "'legacy_id_seq') UNION ALL SELECT typowner FROM pg_type WHERE typname = 'mood' UNION ALL "
        "SELECT proowner FROM pg_proc WHERE proname = 'one' UNION ALL SELECT nspowner FROM "
        "pg_namespace WHERE nspname = 'past') AS every (owner)"
    )
    gone = "DROP SCHEMA past CASCADE; DROP TABLE public.legacy; DROP EXTENSION pg_buffercache"
    book = ("ansible-playbook", "ansible/playbooks/database.yml")
    adopt = (*book, "-e", '{"app_database_adopt_from": ["old"]}')
    try:
        for statement in made:
            superuser_sql("flask", statement)
        refused = ansible(*book)
        assert refused.returncode != 0
        assert "app_database_adopt_from: [old]" in re.sub(r"\s+", " ", refused.stdout)
        looked = ansible(*adopt, "--check")
        assert looked.returncode == 0, looked.stdout[-3000:]
        assert "6 objects would be handed over" in re.sub(r"\s+", " ", looked.stdout)
        assert superuser_sql("flask", owners) == "old"
        done = ansible(*adopt)
        assert done.returncode == 0, done.stdout[-3000:]
        assert superuser_sql("flask", owners) == "flask_owner"
        extension = "SELECT DISTINCT pg_get_userbyid(relowner) FROM pg_class WHERE relname"
        assert superuser_sql("flask", f"{extension} = 'pg_buffercache'") == "postgres"
        insert = "INSERT INTO public.legacy (what) VALUES ('a') RETURNING id"
        assert flask.psql("flask_direct", insert).strip() == "1"
        again = ansible(*adopt).stdout.rpartition("PLAY RECAP")[2]
        assert " changed=0 " in next(line for line in again.splitlines() if "db1" in line)
    finally:
        superuser_sql("flask", "ALTER DATABASE flask OWNER TO flask_owner")
        superuser_sql("flask", gone)
        superuser_sql("flask", "DROP OWNED BY old; DROP ROLE old")
