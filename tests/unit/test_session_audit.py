"""The readiness audit: what needs a session is found, what does not is left alone."""

from __future__ import annotations

import json
import os
import re
import string
from pathlib import Path

import audit
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plugins.module_utils.audited_files import LARGEST
from plugins.module_utils.audited_files import audit as audited
from plugins.module_utils.session_audit import (
    BREAKS,
    RULES,
    custom_settings,
    findings,
    project_findings,
    sql_findings,
    statements,
)

ROOT = Path(__file__).resolve().parents[2]

DJANGO = (
    "DATABASES = {'default': {'ENGINE': 'django.db.backends.postgresql', "
    "'DISABLE_SERVER_SIDE_CURSORS': True, %s}}"
)


def rules(text: str, file: str = "a.py") -> list[str]:
    return [finding.rule for finding in findings(file, text)]


@pytest.mark.parametrize(
    ("statement", "rule"),
    [
        ("SET statement_timeout = '5s'", "session-setting"),
        ("set search_path to shop", "session-setting"),
        ("SET search_path = shop, public", "session-setting"),
        ("SET SESSION work_mem TO '64MB'", "session-setting"),
        ("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", "session-setting"),
        ("SET SESSION AUTHORIZATION reader", "session-setting"),
        ("SET ROLE reader", "session-setting"),
        ("RESET ROLE", "session-setting"),
        ("SET SCHEMA 'shop'", "session-setting"),
        ("DISCARD ALL", "session-setting"),
        ("SELECT set_config('app.tenant', %s, false)", "session-setting"),
        ("SELECT pg_catalog.set_config('app.x', cast(1 as text), 'f')", "session-setting"),
        ("SELECT pg_advisory_lock(1)", "advisory-lock"),
        ("SELECT pg_try_advisory_lock(%s, %s)", "advisory-lock"),
        ("SELECT pg_advisory_lock_shared(hashtext('a'))", "advisory-lock"),
        ("SELECT pg_advisory_unlock_all()", "advisory-lock"),
        ("LISTEN jobs", "listen"),
        ('LISTEN "jobs"', "listen"),
        ("UNLISTEN *", "listen"),
        ("CREATE TEMP TABLE t (a int)", "temporary-table"),
        ("create temporary table if not exists t as select 1", "temporary-table"),
        ("CREATE TEMP TABLE t (a int) ON COMMIT DELETE ROWS", "temporary-table"),
        ("CREATE TABLE pg_temp.t (a int)", "temporary-table"),
        ("CREATE OR REPLACE TEMP VIEW v AS SELECT 1", "temporary-table"),
        ("SELECT 1 INTO TEMP t", "temporary-table"),
        ("DECLARE c CURSOR WITH HOLD FOR SELECT 1", "cursor-with-hold"),
        ("PREPARE p (int) AS SELECT $1", "sql-prepare"),
        ("DEALLOCATE ALL", "sql-prepare"),
        ("SELECT lastval()", "sequence-value"),
        ("BEGIN; SET lock_timeout = 1; COMMIT", "session-setting"),
        ("/* for reports */ SET work_mem = '1GB'", "session-setting"),
        ("DO $$ BEGIN PERFORM pg_advisory_lock(1); END $$", "advisory-lock"),
    ],
)
def test_sql_that_needs_a_session(statement: str, rule: str) -> None:
    assert rules(f"cursor.execute({statement!r})") == [rule]
    assert rules(f"{statement};", "a.sql") == [rule]


@pytest.mark.parametrize(
    "statement",
    [
        "SET LOCAL statement_timeout = '5s'",
        "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
        "SET CONSTRAINTS ALL DEFERRED",
        # PgBouncer tracks these.
        "SET timezone = 'UTC'",
        "SET TIME ZONE 'UTC'",
        "SET client_encoding TO 'UTF8'",
        "SET NAMES utf8",
        "SELECT set_config('TimeZone', %s, false)",
        # MySQL's.
        "SET FOREIGN_KEY_CHECKS = 0",
        "SET SESSION innodb_lock_wait_timeout = 5",
        "SET time_zone = '+00:00'",
        "UPDATE t SET a = 1",
        "UPDATE t\nSET a = 1\nWHERE b = 2",
        "SET a = 1 WHERE b = 2",
        "SET a = 1, b = 2",
        "ALTER ROLE shop SET search_path = shop",
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql SET search_path = shop AS 'SELECT 1'",
        "SELECT set_config('app.tenant', %s, true)",
        "SELECT set_config('app.tenant', %s, true), coalesce(1, false)",
        "SELECT pg_advisory_xact_lock(1)",
        "SELECT pg_try_advisory_xact_lock_shared(1)",
        "NOTIFY jobs",
        "SELECT pg_notify('jobs', '1')",
        "CREATE TEMP TABLE t ON COMMIT DROP AS SELECT 1",
        "CREATE TABLE temp (a int)",
        "DECLARE c CURSOR FOR SELECT 1",
        "PREPARE TRANSACTION 'x'",
        "-- SET a = 1\nSELECT 1",
        "INSERT INTO t VALUES ('a; SET b = 1')",
        "Set the timeout to 5",
        "listening to nothing",
        "LISTEN to all of it",
    ],
)
def test_sql_that_a_transaction_keeps(statement: str) -> None:
    assert rules(f"cursor.execute({statement!r})") == []


@pytest.mark.parametrize(
    ("code", "rule"),
    [
        # The ways to write SQL.
        ('cursor.execute(f"SET search_path = {tenant}")', "session-setting"),
        ('cursor.execute("SET search_path = " + tenant)', "session-setting"),
        ('cursor.execute("SET search_path TO %s" % tenant)', "session-setting"),
        ('cursor.execute("SET search_path TO {}".format(tenant))', "session-setting"),
        ('cursor.execute("SET {} = %s".format(name), [value])', "session-setting"),
        ('session.execute(text("SET ROLE reader"))', "session-setting"),
        ('c.execute(sql.SQL("LISTEN {}").format(sql.Identifier(a)))', "listen"),
        ('c.execute(sql.SQL("LISTEN ") + sql.Identifier(a))', "listen"),
        ('c.execute("LISTEN " + channel)', "listen"),
        ("SQL = 'set role reader'\nc.execute(SQL)", "session-setting"),
        (
            "class A:\n    lock = 'select pg_advisory_lock(1)'\n    def f(s): s.c.execute(s.lock)",
            None,
        ),
        ("LOCK = 'SELECT pg_advisory_lock(%s)'", "advisory-lock"),
        ("c.execute(' '.join(['CREATE TEMP TABLE', name, '(a int)']))", "temporary-table"),
        ("Item.objects.raw('SELECT pg_advisory_lock(1), id FROM item')", "advisory-lock"),
        ("c.execute('''\n  SET ROLE a;\n''')", "session-setting"),
        (
            "@event.listens_for(engine, 'connect')\ndef f(c, _):\n"
            "    c.cursor().execute('SET search_path TO a')",
            "session-setting",
        ),
        ("session.execute(select(func.pg_advisory_lock(1)))", "advisory-lock"),
        ("session.execute(select(func.set_config('a.b', x, False)))", "session-setting"),
        ("c.callproc('pg_advisory_lock', [1])", "advisory-lock"),
        ("Func(Value(1), function='pg_advisory_lock')", "advisory-lock"),
        ("c.execute('SELECT set_config(%s, %s, %s)', ['a.b', x, False])", "session-setting"),
        ("c.execute('RESET ALL')", "session-setting"),
        # Drivers and frameworks.
        ("await connection.add_listener('jobs', f)", "listen"),
        ("for n in conn.notifies(): pass", "listen"),
        ("for row in Item.objects.filter(a=1).iterator(): pass", "server-side-cursor"),
        ("for row in queryset.iterator(chunk_size=10): pass", "server-side-cursor"),
        ("connection.chunked_cursor()", "server-side-cursor"),
        ("connection.cursor('big', withhold=True)", "cursor-with-hold"),
        ("psycopg.ServerCursor(conn, 'big', withhold=True)", "cursor-with-hold"),
        ("connection.cursor(name='big')", "cursor-in-transaction"),
        ("connection.cursor('big')", "cursor-in-transaction"),
        ("psycopg.ServerCursor(conn, 'big')", "cursor-in-transaction"),
        (
            "create_engine(u, isolation_level='AUTOCOMMIT')\nc.options(stream_results=True)",
            "cursor-in-transaction",
        ),
        ("conn.set_session(readonly=True, autocommit=True)", "session-setting"),
        ("Table('t', m, prefixes=['TEMPORARY'])", "temporary-table"),
        # Startup parameters.
        ("psycopg.connect(url, options='-c search_path=shop')", "startup-options"),
        ("psycopg.connect(\"dbname=a options='-c search_path=b'\")", "startup-options"),
        ("create_engine(u, connect_args={'options': f'-c search_path={a}'})", "startup-options"),
        ("create_engine(u, connect_args={'options': given})", "startup-options"),
        ("create_engine('postgresql://h/d?options=-csearch_path%3Da')", "startup-options"),
        ("ConnectionPool(u, kwargs={'options': '-c lock_timeout=1'})", "startup-options"),
        (DJANGO % "'OPTIONS': {'options': '-c lock_timeout=1'}", "startup-options"),
        ("asyncpg.connect(u, server_settings={'jit': 'off'})", "startup-options"),
        (
            "create_async_engine(u, connect_args={'server_settings': {'search_path': 'a'}})",
            "startup-options",
        ),
        ("os.environ['PGOPTIONS'] = '-c a=b'", "startup-options"),
        ("os.environ.setdefault('PGOPTIONS', '-c a=b')", "startup-options"),
        ("env = {'PGOPTIONS': '-c a=b'}", "startup-options"),
        ("import asyncpg\nserver_settings['search_path'] = a", "startup-options"),
        ("connect_args['options'] = a", "startup-options"),
        (
            DJANGO % "'NAME': 'a'" + "\nDATABASES['default']['OPTIONS']['options'] = '-c a=b'",
            "startup-options",
        ),
        ("os.environ.update(PGOPTIONS='-c a=b')", "startup-options"),
        ("create_engine(u, connect_args=dict(options='-c a=b'))", "startup-options"),
        # Django's settings, libraries.
        ("DATABASES = {'default': {'ENGINE': 'django.db.backends.postgresql'}}", None),
        ("DATABASES = {'default': env.db()}", "server-side-cursor"),
        (DJANGO % "'OPTIONS': {'assume_role': 'a'}", "session-setting"),
        (DJANGO % "'OPTIONS': {'isolation_level': 4}", "isolation-level"),
        (DJANGO % "'CONN_MAX_AGE': None", "connection-age"),
        ("INSTALLED_APPS = ['django_tenants', 'shop']", "schema-per-tenant"),
        ("INSTALLED_APPS = ['procrastinate.contrib.django']", "session-library"),
        ("from django_pglocks import advisory_lock", "session-library"),
        ("import procrastinate", "session-library"),
        ("psycopg.connect(u, prepare_threshold=5)", "driver-prepared-statement"),
        ("asyncpg.connect(u, statement_cache_size=100)", "driver-prepared-statement"),
    ],
)
def test_code_that_needs_a_session(code: str, rule: str | None) -> None:
    expected = rule or ("server-side-cursor" if "DATABASES" in code else "advisory-lock")
    found = [one for one in rules(code) if one not in ("server-side-cursor",)] or rules(code)
    assert found == [expected]


@pytest.mark.parametrize(
    "code",
    [
        '"""SET a = 1"""',
        "def f():\n    'LISTEN jobs'\n",
        "class A:\n    x = 1\n    'SET a = 1'\n",
        "numbers.iterator()",
        "parser = {'options': 'none'}",
        "connect(host='db')",
        "connection.cursor()",
        "cursor(cursor_factory=RealDictCursor)",
        "log.info('SET search_path = %s', a)",
        "parser.add_argument('--x', help='SET x = 1')",
        "raise ValueError('pg_advisory_lock failed')",
        "if sql.startswith('SET ROLE'): pass",
        "assert 'LISTEN jobs' in sql",
        "sql = 'UPDATE t ' + 'SET a = 1'",
        "sql = ' '.join(['UPDATE t', 'SET a = 1'])",
        "state = 'set x to y'",
        "label = 'RESET password'",
        "c.execute('SELECT set_config(%s, %s, true)', ['a.b', x])",
        "redis.execute_command('SET', 'a', 'b')",
        "with transaction.atomic():\n    for x in Item.objects.iterator(): pass",
        "@transaction.atomic\ndef f():\n    for x in Item.objects.iterator(): pass",
        "with conn.transaction():\n    conn.cursor(name='a')",
        "session.execute(q.execution_options(yield_per=100))",
        "create_engine(u, isolation_level='SERIALIZABLE')",
        "asyncpg.connect(u, statement_cache_size=0)",
        "psycopg.connect(u, prepare_threshold=None)",
        "asyncpg.connect(u, server_settings={'application_name': 'a'})",
        "Table('t', m, prefixes=['TEMPORARY'], postgresql_on_commit='DROP')",
        "select(func.pg_advisory_xact_lock(1), func.set_config('a.b', x, True))",
        DJANGO % "'CONN_MAX_AGE': 60, 'OPTIONS': {'pool': True, 'sslmode': 'require'}",
        "DATABASES = {'default': {'ENGINE': 'django.db.backends.sqlite3'}}",
        "conn.set_session(autocommit=True)",
        "os.environ['PGSERVICE'] = 'shop'",
        "manager.add_listener(plugin)",
        "import asyncpg\nserver_settings['application_name'] = 'a'",
        "server_settings['port'] = 'a'",
    ],
)
def test_code_that_does_not(code: str) -> None:
    found, _, _ = project_findings({"a.py": code})
    assert [finding.rule for finding in found] == []


def test_settings_of_the_project_decide_on_server_side_cursors() -> None:
    use = "for row in Item.objects.iterator(): pass"
    settings = "DATABASES = {'default': env.db()}\n"
    for more, expected in (
        ("", ["server-side-cursor", "server-side-cursor"]),
        ("DATABASES['default']['DISABLE_SERVER_SIDE_CURSORS'] = True", []),
        ("DATABASES['default']['DISABLE_SERVER_SIDE_CURSORS'] = os.getenv('A') == '1'", []),
        ("A = dj_database_url.config(disable_server_side_cursors=True)", []),
        ("DATABASES['default']['DISABLE_SERVER_SIDE_CURSORS'] = False", ["server-side-cursor"] * 2),
        ("# DISABLE_SERVER_SIDE_CURSORS", ["server-side-cursor"] * 2),
    ):
        found, _, _ = project_findings({"a.py": use, "s.py": settings + more})
        assert [finding.rule for finding in found] == expected, more


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        (".env", "PGOPTIONS=-c search_path=a", ["startup-options"]),
        (".env", "# PGOPTIONS=-c search_path=a", []),
        ("compose.yml", "  DATABASE_URL: postgres://h/d?options=-csearch_path%3Da", None),
        ("run.sh", "export PGOPTIONS='-c a=b'", ["startup-options"]),
        ("dump.sql", "--\n-- PostgreSQL database dump\n--\nSET statement_timeout = 0;", []),
    ],
)
def test_other_files(file: str, text: str, expected: list[str] | None) -> None:
    assert rules(text, file) == (["startup-options"] if expected is None else expected)


def test_finding_tells_where_why_and_what_to_do() -> None:
    text = 'x = 1\ncursor.execute("""\n    SELECT 1;\n    LISTEN jobs\n""")\n'
    (finding,) = findings("shop/jobs.py", text)
    assert str(finding).startswith("shop/jobs.py:4: listen: notifications arrive")
    assert "Instead: listen on a connection of DATABASE_DIRECT_URL" in str(finding)
    (check,) = findings("a.sql", "\n\nSELECT lastval();")
    assert str(check).startswith("a.sql:3: sequence-value (check): ")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("x = (\n  'SELECT 1; '\n  'SET ROLE a'\n)", 2),  # the first line of the text
        ("x = '''SELECT '\n\n';\n-- a\n/* b\n */ SET ROLE a'''", 6),
        ("x = 1\r\ny = 'SET ROLE a'\r\n", 2),
        ("x = '\\n\\nSET ROLE a'", 1),
        ("x = '\x0c'\ny = 'SET ROLE a'", 2),
    ],
)
def test_line_of_a_finding(text: str, line: int) -> None:
    (finding,) = findings("a.py", text)
    assert (finding.rule, finding.line) == ("session-setting", line)


REASON = "poolkit: allow listen: over DATABASE_DIRECT_URL"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"c.execute('LISTEN jobs')  # {REASON}", []),
        (f"# {REASON}\nc.execute('LISTEN jobs')", []),
        (f"# {REASON}\nc.execute(\n    '''\n  LISTEN jobs\n'''\n)", []),
        (f"c.execute(\n    '''\n  LISTEN jobs\n'''\n)  # {REASON}", []),
        (f"c.execute('''\n  -- {REASON}\n  LISTEN jobs\n''')", []),
        (f"# {REASON}\n\nc.execute('LISTEN jobs')", ["unused-silence", "listen"]),
        (f"x = 1  # {REASON}", ["unused-silence"]),
        (
            "c.execute('LISTEN jobs')  # poolkit: allow listen",
            ["listen", "silence-without-reason"],
        ),
        (
            "c.execute('LISTEN jobs')  # poolkit: allow listen:  ",
            ["listen", "silence-without-reason"],
        ),
        ("c.execute('LISTEN jobs')  # poolkit: allow", ["listen", "silence-without-reason"]),
        ("x = 1  # poolkit: allow lisden: a", ["silence-without-reason"]),
        ("c.execute('LISTEN jobs')  # poolkit: allow sql-prepare: a", ["listen", "unused-silence"]),
    ],
)
def test_place_is_silenced_with_a_reason_only(text: str, expected: list[str]) -> None:
    assert rules(text) == expected


def test_silence_in_sql() -> None:
    assert rules("-- poolkit: allow listen: direct\nLISTEN jobs;", "a.sql") == []
    assert rules("LISTEN a;\n\nLISTEN b; -- poolkit: allow listen: x", "a.sql") == ["listen"]


def test_every_rule_has_a_reason_and_a_remedy() -> None:
    assert all(rule.why and rule.remedy for rule in RULES.values())


def test_remedies_name_variables_that_exist() -> None:
    known = (ROOT / "docs/variables.md").read_text() + (ROOT / "docs/strategies.md").read_text()
    known += (ROOT / "docs/timeouts.md").read_text() + (ROOT / "docs/applications.md").read_text()
    names = [
        word.strip(".,:;()")
        for rule in RULES.values()
        for word in rule.remedy.split()
        if word.startswith(("app_", "DATABASE_", "DISABLE_", "prepare_", "statement_cache"))
    ]
    assert len(names) >= 10
    assert [name for name in names if name not in known] == []


def test_custom_settings_are_named() -> None:
    text = "SELECT set_config('app.tenant', 'a', false); set x.y to 1; SET LOCAL a.b = 1; SET c=1"
    assert custom_settings(text) == {"app.tenant", "x.y"}


SQL = st.lists(
    st.sampled_from(
        ["SET ROLE a", ";", "'", '"', "$$", "$a$", "--", "/*", "*/", "\n", " ", "(", "set_config("]
    )
).map("".join)


@given(SQL)
def test_any_text_of_sql_is_read(text: str) -> None:
    lines = text.count("\n") + 1
    assert all(0 <= line < lines for _, line in statements(text))
    assert all(0 <= line < lines for _, line in sql_findings(text))


@given(st.integers(0, 20), st.sampled_from(["SELECT 1;\n", "-- a;\n", "'a;\n';", "/*\n;*/\n"]))
def test_line_of_a_statement_is_where_it_begins(times: int, before: str) -> None:
    text = before * times + "SET ROLE a"
    expected = [("session-setting", text.count("\n"))]
    assert list(sql_findings(text)) == expected


@given(st.text(string.printable, max_size=60))
def test_any_text_in_a_program_is_read(text: str) -> None:
    assert isinstance(findings("a.py", f"c.execute({text!r})"), list)


@pytest.mark.parametrize("example", ["django", "fastapi", "flask"])
def test_examples_are_ready(example: str) -> None:
    """Their migrations set a time-out for the session, and go past the pooler."""
    found, unread, _ = audited(ROOT / "examples" / example)
    assert ([str(finding) for finding in found], unread) == ([], [])
    whole, _, _ = audited(ROOT / "examples" / example, everything=True)
    assert {finding.rule for finding in whole} == {"session-setting"}


def run(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, *words: object) -> tuple:
    monkeypatch.setattr("sys.argv", ["audit.py", *map(str, words)])
    code = audit.main()
    said = capsys.readouterr()
    return code, said.out, said.err


def test_program(tmp_path: Path, capsys, monkeypatch) -> None:
    (tmp_path / "migrations").mkdir()
    (tmp_path / "migrations/0001.py").write_text("execute('LISTEN a')")
    assert run(capsys, monkeypatch, tmp_path)[:2] == (0, "no place needs a session\n")
    code, out, _ = run(capsys, monkeypatch, tmp_path, "--all")
    assert code == 1
    assert "migrations/0001.py:1: listen" in out
    (tmp_path / "a.py").write_text("c.cursor(name='a')")
    assert run(capsys, monkeypatch, tmp_path)[0] == 0  # a place to check is no error
    code, out, _ = run(capsys, monkeypatch, tmp_path, "--json")
    report = json.loads(out)
    assert [(f["file"], f["line"], f["level"]) for f in report["findings"]] == [
        ("a.py", 1, "check")
    ]
    assert run(capsys, monkeypatch, tmp_path / "nothing")[0] == 2


def test_odd_files(tmp_path: Path, capsys, monkeypatch) -> None:
    """None stops the audit, and each that was not read is named."""
    files = {
        "broken.py": b"def",
        "python2.py": b"print 'a'\n",
        "zero.py": b"a = 1\x00",
        "latin.py": b"# -*- coding: latin-1 -*-\nc.execute('SET ROLE \xe9')",
        "undeclared.py": b"a = '\xe9'",
        "unknown.py": b"# coding: nothing\n",
        "mark.py": b"\xef\xbb\xbfc.execute('SET ROLE a')",
        "deep.py": b"a = " + b"(" * 5000 + b")" * 5000,
        "long.py": b"a = " + b"1+" * 5000 + b"1",
        "large.py": b"#" * (LARGEST + 1),
        "data.sql": b"INSERT INTO t VALUES ('\xff');\nSET ROLE a;",
        "a.ipynb": b"c.execute('SET ROLE a')",
        "empty.py": b"",
        "test_a.py": b"c.execute('SET ROLE a')",
        "site-packages/a.py": b"c.execute('SET ROLE a')",
        ".hidden/a.py": b"c.execute('SET ROLE a')",
        "v/pyvenv.cfg": b"",
        "v/a.py": b"c.execute('SET ROLE a')",
        "db/versions/1.py": b"from alembic import op\nop.execute('SET ROLE a')",
        "db/0001.py": b"class Migration(migrations.Migration):\n    a = RunSQL('SET ROLE a')",
        "own.py": b"class Migration(Base):\n    a = 'SET ROLE a'",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "gone.py").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe.py")
    code, out, err = run(capsys, monkeypatch, tmp_path)
    assert code == 1
    assert [line.split(": ")[0] for line in out.splitlines()[:-1]] == [
        *("data.sql:2", "latin.py:2", "mark.py:1", "own.py:2")
    ]
    unread = {line.split(":")[1].strip() for line in err.splitlines()}
    assert {"broken.py", "python2.py", "zero.py", "undeclared.py", "unknown.py"} <= unread
    assert {"deep.py", "large.py"} <= unread
    assert f"{len(unread)} files were not read" in out


def test_levels() -> None:
    assert {rule.level for rule in RULES.values()} == {BREAKS, "check"}


def test_page_has_every_rule() -> None:
    page = (ROOT / "docs/audit.md").read_text().partition("| rule |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| `([\w-]+)`( \(check\))? \|", page, re.MULTILINE)
    assert {name: bool(check) for name, check in rows} == {
        name: rule.level != BREAKS for name, rule in RULES.items()
    }
