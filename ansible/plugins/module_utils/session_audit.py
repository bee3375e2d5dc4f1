"""What of an application's source does not go with transaction pooling. Every function is pure.

In transaction mode a client has a server connection for a transaction, and another one for the
next. What a session keeps beyond that is lost, or reaches somebody else: settings, advisory locks,
LISTEN, temporary tables, cursors WITH HOLD, statements prepared by SQL. (pgbouncer.org/features)
What PgBouncer itself carries from one server connection to the next is left alone: the settings of
TRACKED, and the statements that a driver prepares (max_prepared_statements, from 1.21 on).
"""

from __future__ import annotations

import ast
import dataclasses
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

ALLOW = re.compile(r"(?:#|--)\s*poolkit: allow\b[ \t]*([\w-]*)[ \t]*(?::[ \t]*(\S.*))?")
"""`# poolkit: allow advisory-lock: why`, on the line, at its statement, or on the line before."""

TRACKED = ("client_encoding", "datestyle", "timezone", "standard_conforming_strings")
TRACKED += ("application_name", "names", "time")
"""Settings that PgBouncer gives each server connection anew, as with SET NAMES and TIME ZONE."""

OF_OTHER_SERVERS = re.compile(
    r"global|\w+_checks|sql_\w+|innodb_\w+|time_zone|autocommit|(?:lock_)?wait_timeout|net_\w+|"
    r"max_execution_time|group_concat_max_len|character_set_\w+|collation_\w+|identity_insert"
)
"""What follows SET in SQL of MySQL alone."""

BREAKS, CHECK = "breaks", "check"
"""A finding needs a session, or only in some cases, which its text names."""


@dataclass(frozen=True)
class Rule:
    """Why a place matters, what to do instead, and how sure it is: BREAKS or CHECK.

    pattern: what a statement of SQL begins with; empty for what Python's own code tells.
    """

    why: str
    remedy: str
    pattern: str = ""
    level: str = BREAKS


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split(" "))


ARGUMENT = r"(?:[^()]|\([^()]*\))*?"
DIRECT = "a connection of DATABASE_DIRECT_URL"

RULES = {
    "session-setting": Rule(
        "the setting stays on a server connection that other clients get next",
        "SET LOCAL in a transaction, or app_database_settings for the whole application",
        r"SET\s+(?!LOCAL\b|CONSTRAINTS\b|TRANSACTION\b)(?:SESSION\s+(?!AUTHORIZATION|CHARACT))?"
        r"(?P<name>[\w.]+)\s*(?:=|\bTO\b)(?!.*\bWHERE\b)(?!\s*[^,]*,\s*\w+\s*=)"
        r"|(?:RE)?SET\s+(?:SESSION\s+)?(?:SESSION\s+AUTHORIZATION|ROLE)\b|DISCARD\s+ALL\b"
        r"|RESET\s+(?:ALL|\w+[._]\w+)\s*$"
        r"|SET\s+SESSION\s+CHARACTERISTICS\b|SET\s+(?:SCHEMA|SEED)\s+\S|LOAD\s+['x]"
        r"|.*\bset_config\s*\(\s*(?:'(?P<set>[\w.]+)')?(?!.*set_config)"
        + ARGUMENT
        + r",\s*(?:false|'f(?:alse)?')(?:::bool\w*)?\s*\)",
    ),
    "advisory-lock": Rule(
        "the lock belongs to a server connection: the unlock may reach another one",
        f"pg_advisory_xact_lock, or {DIRECT}",
        r".*\bpg_(?:try_)?advisory_(?:lock|unlock)(?:_shared|_all)?\b",
    ),
    "listen": Rule(
        "notifications arrive at a server connection that the client does not keep",
        f"listen on {DIRECT} (NOTIFY may go through the pooler)",
        r"(?:UN)?LISTEN\s+(?:[\w.$*]+|\"[^\"]*\")\s*$",
    ),
    "temporary-table": Rule(
        "the table is on one server connection, and the next transaction may have another",
        "ON COMMIT DROP in the transaction that uses it, or DATABASE_DIRECT_URL",
        r"CREATE\s+(?:OR\s+REPLACE\s+)?(?:(?:GLOBAL|LOCAL)\s+)?TEMP(?:ORARY)?\s+"
        r"(?:RECURSIVE\s+)?(?:TABLE|SEQUENCE|VIEW)\b(?!.*\bON\s+COMMIT\s+DROP\b)"
        r"|CREATE\s+(?:UNLOGGED\s+)?TABLE\s+(?:IF\s+NOT\s+EXISTS\s+)?pg_temp\."
        r"(?!.*\bON\s+COMMIT\s+DROP\b)"
        r"|(?:SELECT|WITH)\b.*\bINTO\s+TEMP(?:ORARY)?\s+(?:TABLE\s+)?[\w\"]",
    ),
    "cursor-with-hold": Rule(
        "the cursor outlives its transaction on a server connection that the client loses",
        "read inside of one transaction, or over DATABASE_DIRECT_URL",
        r"DECLARE\s+.*\bWITH\s+HOLD\b",
    ),
    "sql-prepare": Rule(
        "PgBouncer follows statements that the driver prepares, and not those of SQL",
        "the driver's own prepared statements (max_prepared_statements)",
        r"PREPARE\s+(?!TRANSACTION\b)\w+\s*(?:\([^)]*\)\s*)?AS\b|DEALLOCATE\s+\w+",
    ),
    "sequence-value": Rule(
        "it is right in the transaction that called nextval or inserted, and nowhere else",
        "INSERT … RETURNING, or both statements in one transaction",
        r"SELECT\s+(?:pg_catalog\.)?(?:currval|lastval)\s*\(",
        CHECK,
    ),
    "server-side-cursor": Rule(
        "Django reads it with a cursor WITH HOLD outside of a transaction",
        "DISABLE_SERVER_SIDE_CURSORS: True in DATABASES (the settings file of poolkit has it), or "
        "transaction.atomic() around the loop",
    ),
    "cursor-in-transaction": Rule(
        "a server-side cursor is right as long as its transaction is open: a commit between two "
        "reads ends it, and it keeps a server connection for as long",
        "one transaction around all reads, shorter than idle_in_transaction_session_timeout, or "
        "DATABASE_DIRECT_URL for long ones",
        level=CHECK,
    ),
    "startup-options": Rule(
        "PgBouncer refuses startup parameters other than those that it tracks",
        "app_database_settings, which the role in PostgreSQL keeps",
    ),
    "session-library": Rule(
        "it works with LISTEN or advisory locks, which belong to a session",
        "give it DATABASE_DIRECT_URL, and add the connections to app_fallback_connections",
    ),
    "schema-per-tenant": Rule(
        "it sets search_path for the session: a query may reach another tenant's schema",
        "app_pool_mode: session",
    ),
    "driver-prepared-statement": Rule(
        "PgBouncer follows prepared statements from 1.21 on: Debian 12 has 1.18",
        "prepare_threshold: None, statement_cache_size: 0 if DATABASE_TRANSACTION_POOLING is 1",
        level=CHECK,
    ),
    "isolation-level": Rule(
        "Django with psycopg2 sets it for the session; with psycopg (3) it is right",
        "psycopg (3), or default_transaction_isolation in app_database_settings",
        level=CHECK,
    ),
    "connection-age": Rule(
        "a connection that went past the pooler during a fault never comes back to it",
        "CONN_MAX_AGE from DATABASE_CONNECTION_MAX_AGE_SECONDS, as the settings file of poolkit",
        level=CHECK,
    ),
    "silence-without-reason": Rule(
        "a comment that silences a finding names one rule and says why the place is right",
        "poolkit: allow RULE: why it is right",
    ),
    "unused-silence": Rule(
        "the comment silences nothing", "remove it, or correct the rule's name", level=CHECK
    ),
}
"""By the name that silences one. Patterns are matched from the start of a statement."""

OWN_RULES = ("silence-without-reason", "unused-silence")

LIBRARIES = (
    # Advisory locks.
    *("django_pglocks", "django_pg_utils.locks", "pglock", "django_pglock", "sqlalchemy_dlock"),
    *("pals", "django_advisory_lock", "postgres_locks"),
    # LISTEN.
    *("procrastinate", "pgqueuer", "dramatiq_pg", "django_dramatiq_pg", "pgpubsub", "pgnotify"),
    *("django_pgpubsub", "django_pgnotify", "asyncpg_listen", "psycopg2_pgevents", "chancy"),
    *("channels_postgres", "dbos", "pgq", "django_pgq"),
)
TENANTS = ("django_tenants", "tenant_schemas", "django_pgschemas")

EXECUTES = _words(
    "execute executemany executescript exec_driver_sql fetch fetchrow fetchval fetch_all fetch_one "
    "fetch_val mogrify text raw RunSQL RawSQL SQL copy_expert copy read_sql read_sql_query scalar "
    "scalars stream run_sql DDL query_sql callproc"
)
"""Calls whose first argument is SQL, in lower case as well."""

SURELY_SQL = re.compile(
    r"set (?:session )?(?:search_path|role|session_replication_role|row_security|work_mem|jit|"
    r"client_min_messages|default_\w+|synchronous_commit|enable_\w+|\w+_timeout) *(?:=|to\b)|"
    r"(?:select )?pg_(?:try_)?advisory_(?:un)?lock\w*\b|create temp(?:orary)? table |"
    r"select set_config\("
)
"""Texts in lower case that no sentence begins with."""

TELLS = _words(
    "debug info warning warn error exception critical fatal log print write writelines secho echo "
    "add_argument gettext gettext_lazy ngettext _ fail skip CommandError ValidationError "
    "Exception ValueError RuntimeError TypeError startswith endswith"
)
"""Calls whose texts are for people, or are compared."""

TELLING_WORDS = _words("help help_text verbose_name description message msg label doc")


@dataclass(frozen=True)
class Finding:
    """A place in a source: file, line (from 1), the rule's name, why it matters, what to do.

    level: BREAKS, or CHECK for what is right in the case that `why` names. subject: the library
    that is meant, or empty.
    """

    file: str
    line: int
    rule: str
    why: str
    remedy: str
    level: str = BREAKS
    subject: str = ""

    def __str__(self) -> str:
        check = "" if self.level == BREAKS else " (check)"
        subject = f"{self.subject}: " if self.subject else ""
        why = f"{subject}{self.why}. Instead: {self.remedy}"
        return f"{self.file}:{self.line}: {self.rule}{check}: {why}"


@dataclass(frozen=True)
class Place:
    """A rule's name and a line; first and last: the lines of the statement around it.

    subject: the library that is meant, or empty.
    """

    rule: str
    line: int
    first: int
    last: int
    subject: str = ""


PARTS = re.compile(
    r"--[^\n]*|/\*.*?\*/|'(?:[^']|'')*'|\"[^\"]*\"|(?P<tag>\$\w*\$)(?P<body>.*?)(?P=tag)|;",
    re.DOTALL,
)


def statements(text: str) -> Iterator[tuple[str, int]]:
    """Yield (statement without comments, the line of its first word, from 0) of a text of SQL.

    The statements of a body in dollar quotes come after the statement that has it.
    """
    begin, line, kept = 0, 0, []
    bodies: list[tuple[str, int]] = []

    def whole(end: int) -> tuple[str, int]:
        words = "".join([*kept, text[begin:end]])
        lead = len(words) - len(words.lstrip())
        return words.strip(), line - words.count("\n", lead)

    for found in PARTS.finditer(text):
        part = found[0]
        line += text.count("\n", begin, found.start())
        if part == ";":
            yield whole(found.start())
            kept = []
        else:
            kept.append(text[begin : found.start()])
            breaks = "\n" * part.count("\n")
            if found["body"] is not None:
                at = line + found["tag"].count("\n")
                bodies.append((found["body"], at))
                kept.append(f" '{breaks}' ")
            else:
                kept.append(f" {breaks} " if part[:2] in ("--", "/*") else part)
        line += part.count("\n")
        begin = found.end()
    line += text.count("\n", begin)
    yield whole(len(text))
    for body, at in bodies:
        yield from ((inner, at + offset) for inner, offset in statements(body))


COMPILED = {
    name: re.compile(rule.pattern, re.IGNORECASE | re.DOTALL)
    for name, rule in RULES.items()
    if rule.pattern
}
IN_BODY = re.compile(
    r"\A.*\b(?:BEGIN|THEN|ELSE|LOOP)\s+(?=(?:SET|EXECUTE|CREATE)\b)|\AEXECUTE\s+'(?=SET\b)",
    re.IGNORECASE | re.DOTALL,
)
"""What comes before a statement in a function's body."""
HINT = re.compile(
    r"set|advisory|listen|temp|hold|prepare|deallocate|discard|load|currval|lastval", re.IGNORECASE
)


def sql_findings(text: str) -> Iterator[tuple[str, int]]:
    """Yield (rule, line from 0) for each statement of a text of SQL that a rule names."""
    if not HINT.search(text):
        return
    for statement, line in statements(text):
        words = IN_BODY.sub("", statement)
        for name, pattern in COMPILED.items():
            found = pattern.match(words)
            if found and not (name == "session-setting" and _carried(found)):
                yield name, line
                break


def _carried(found: re.Match[str]) -> bool:
    """Say whether PgBouncer keeps what a SET changes, or another server is meant."""
    name = (found["name"] or found["set"] or "").lower()
    return name in TRACKED or bool(OF_OTHER_SERVERS.fullmatch(name))


def custom_settings(text: str) -> set[str]:
    """Return the names with a dot that a source sets for a session, such as app.tenant.

    PostgreSQL shows them in no list: a trial has to ask for each.
    """
    pattern = r"\bset_config\s*\(\s*'(\w+\.\w+)'|\bSET\s+(?:SESSION\s+)?(\w+\.\w+)\s*(?:=|TO\b)"
    return {a or b for a, b in re.findall(pattern, text, re.IGNORECASE)}


def _called(node: ast.AST) -> str:
    """Return the last part of the name that a call has."""
    function = node.func if isinstance(node, ast.Call) else node
    return getattr(function, "attr", getattr(function, "id", ""))


def _folded(node: ast.AST, depth: int = 0) -> str | None:
    """Return the text that an expression makes, x in the place of what is not known; None: none.

    Concatenation, % and format, f-strings, "".join of a list, SQL(…), text(…), dedent(…).
    """
    if depth > 50:
        return None
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(
            str(part.value) if isinstance(part, ast.Constant) else "x" for part in node.values
        )
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Mod):
        left = _folded(node.left, depth + 1)
        if isinstance(node.op, ast.Mod):
            return left
        right = _folded(node.right, depth + 1)
        if left is None and right is None:
            return None
        return ("x" if left is None else left) + ("x" if right is None else right)
    if isinstance(node, ast.Call):
        name, function = _called(node), node.func
        if name in ("SQL", "text", "dedent", "DDL", "cleandoc") and node.args:
            return _folded(node.args[0], depth + 1)
        if isinstance(function, ast.Attribute):
            if name in ("format", "strip", "lstrip", "rstrip", "bindparams"):
                return _folded(function.value, depth + 1)
            if name == "join" and node.args and isinstance(node.args[0], ast.List | ast.Tuple):
                between = _folded(function.value, depth + 1)
                parts = (_folded(part, depth + 1) or "x" for part in node.args[0].elts)
                return None if between is None else between.join(parts)
    return None


def _plain(text: str) -> str:
    """Return SQL with a word in the place of each placeholder, on as many lines."""

    def word(found: re.Match[str]) -> str:
        return "x" + "\n" * found[0].count("\n")

    return re.sub(r"\"?(?:\{[^{}]*\}|%\(\w+\)s|%s)\"?", word, text)


class _Source:
    """A parsed program: each node's parent, and what is asked of it."""

    def __init__(self, tree: ast.Module) -> None:
        self.nodes = list(ast.walk(tree))
        self.parents = {
            id(child): node for node in self.nodes for child in ast.iter_child_nodes(node)
        }
        self.executed = {
            _called(part)
            for call in self.nodes
            if isinstance(call, ast.Call) and _called(call) in EXECUTES and call.args
            for part in ast.walk(call.args[0])
            if isinstance(part, ast.Name | ast.Attribute)
        }
        """Names of what is passed to calls that execute SQL."""
        imported = {
            str(getattr(node, "module", node.names[0].name)).partition(".")[0]
            for node in self.nodes
            if isinstance(node, ast.Import | ast.ImportFrom)
        }
        self.django = "django" in imported
        self.drivers = bool(imported & {"asyncpg", "sqlalchemy"})
        self.autocommit = any(
            isinstance(node, ast.Call)
            and _called(node) in ("create_engine", "create_async_engine")
            and any(_constant(word.value) == "AUTOCOMMIT" for word in node.keywords)
            for node in self.nodes
        )

    def above(self, node: ast.AST) -> Iterator[ast.AST]:
        while (parent := self.parents.get(id(node))) is not None:
            yield parent
            node = parent

    def place(self, rule: str, node: ast.expr, line: int | None = None) -> Place:
        """Return the place of an expression; line: within a text of several lines."""
        first, last = node.lineno, node.end_lineno or node.lineno
        for parent in self.above(node):
            if isinstance(parent, ast.stmt):
                first = parent.lineno
                simple = not hasattr(parent, "body")
                last = (parent.end_lineno or last) if simple else last
                break
        return Place(rule, line or node.lineno, first, last)

    def in_transaction(self, node: ast.AST) -> bool:
        """Say whether a transaction is opened around a place, in the same function."""
        for parent in self.above(node):
            if isinstance(parent, ast.With | ast.AsyncWith) and any(
                _called(item.context_expr) in ("atomic", "transaction", "begin", "begin_nested")
                for item in parent.items
            ):
                return True
            if isinstance(parent, ast.FunctionDef | ast.AsyncFunctionDef):
                return any(
                    _called(one) in ("atomic", "transaction") for one in parent.decorator_list
                )
        return False

    def texts(self) -> Iterator[tuple[ast.expr, str]]:
        """Yield (expression, its text) of the strings that may be SQL, the longest ones."""
        inside: set[int] = set()
        for node in self.nodes:  # from the outside in
            if id(node) in inside or not isinstance(node, ast.expr):
                continue
            text = _folded(node)
            if text is None:
                continue
            inside |= {id(part) for part in ast.walk(node)}
            if text and HINT.search(text) and self.may_be_sql(node, text):
                yield node, text

    def may_be_sql(self, node: ast.expr, text: str) -> bool:
        """Say whether a text may be SQL: keywords in upper case, or executed; not for people."""
        words = re.sub(r"\A(?:\s|--[^\n]*(?:\n|\Z)|/\*.*?\*/)+", "", text, flags=re.DOTALL)
        first = re.match(r"[A-Za-z_]+", words)
        if not first:
            return False
        executed = False
        child: ast.AST = node
        for parent in self.above(node):
            if isinstance(parent, ast.Raise | ast.Compare | ast.Assert):
                return False
            if isinstance(parent, ast.Call) and child is not parent.func:
                if _called(parent) in TELLS:
                    return False
                executed |= _called(parent) in EXECUTES
            if isinstance(parent, ast.keyword) and parent.arg in TELLING_WORDS:
                return False
            if isinstance(parent, ast.stmt):
                if isinstance(parent, ast.Expr) and parent.value is node:
                    return False  # a docstring, or a text that nothing reads
                if isinstance(parent, ast.Assign | ast.AnnAssign | ast.AugAssign):
                    targets = getattr(parent, "targets", [getattr(parent, "target", None)])
                    executed |= any(_called(target) in self.executed for target in targets)
                break
            child = parent
        return executed or first[0].isupper() or bool(SURELY_SQL.match(words))


QUERIES = _words(
    "objects filter all exclude values values_list order_by annotate select_related only defer "
    "distinct prefetch_related using _default_manager _base_manager get_queryset"
)


def _is_query(source: _Source, call: ast.Call) -> bool:
    """Say whether iterator() is called of one of Django's queries: in its programs, always."""
    receiver = call.func.value if isinstance(call.func, ast.Attribute) else call.func
    if source.django and not call.args:
        return True
    names = {part.attr for part in ast.walk(receiver) if isinstance(part, ast.Attribute)}
    named = re.search(r"(?:^|_)(?:qs|queryset|query|objects)\d*$", _called(receiver))
    chunks = any(word.arg == "chunk_size" for word in call.keywords)
    return bool(names & QUERIES or named or chunks)


def _constant(node: ast.AST | None) -> object:
    """Return the value of a constant; Ellipsis for everything else, and for nothing."""
    return node.value if isinstance(node, ast.Constant) else ...


def _untracked(name: ast.AST | None) -> bool:
    return str(_constant(name)).lower() not in TRACKED


def _named(call: ast.Call, text: str) -> bool:
    return bool(call.args) and _constant(call.args[0]) == text


def _refused_settings(node: ast.AST | None) -> bool:
    """Say whether asyncpg's server_settings have one that PgBouncer does not track."""
    return isinstance(node, ast.Dict) and any(
        _untracked(key) for key in node.keys if key is not None
    )


CONNECTS = ("connect", "ConnectionPool", "AsyncConnectionPool", "NullConnectionPool", "create_pool")
CONNECTS += ("AsyncNullConnectionPool", "ThreadedConnectionPool", "SimpleConnectionPool")


def _calls(source: _Source, call: ast.Call) -> Iterator[tuple[str, ast.expr]]:
    """Yield (rule, expression) of what a call asks of a session."""
    name = _called(call)
    method = isinstance(call.func, ast.Attribute)
    given = {word.arg: word.value for word in call.keywords}
    # asyncpg's add_listener(channel, callback); many other things have listeners.
    if method and (name == "notifies" or (name == "add_listener" and len(call.args) == 2)):
        yield "listen", call
    if re.fullmatch(r"pg_(?:try_)?advisory_(?:lock|unlock)(?:_shared|_all)?", name):
        yield "advisory-lock", call
    if name == "set_config" and len(call.args) == 3 and _constant(call.args[2]) is False:
        yield from (("session-setting", call),) if _untracked(call.args[0]) else ()
    outside = not source.in_transaction(call)
    queried = name == "chunked_cursor" or (name == "iterator" and _is_query(source, call))
    if method and queried and outside:
        yield "server-side-cursor", call
    if name in ("cursor", "ServerCursor", "AsyncServerCursor"):
        named = (name == "cursor" and call.args and isinstance(_constant(call.args[0]), str)) or (
            _constant(given.get("name")) is not None and "name" in given
        )
        if _constant(given.get("withhold")) is True or _constant(given.get("hold")) is True:
            yield "cursor-with-hold", call
        elif (named or name != "cursor") and outside:
            yield "cursor-in-transaction", call
    streams = _constant(given.get("stream_results")) is True or "yield_per" in given
    streams |= name == "yield_per" or _constant(given.get("server_side_cursors")) is True
    if streams and outside and source.autocommit:  # SQLAlchemy opens a transaction otherwise
        yield "cursor-in-transaction", call
    if name in CONNECTS and "options" in given:
        yield "startup-options", given["options"]
    if _refused_settings(given.get("server_settings")):
        yield "startup-options", given["server_settings"]
    for option in ("prepare_threshold", "statement_cache_size"):
        if type(value := _constant(given.get(option))) is int and (
            value or option == "prepare_threshold"
        ):
            yield "driver-prepared-statement", given[option]
    if name == "dict" and re.match(r"\s*(?:-c|--\w)", _folded(given.get("options", call)) or ""):
        yield "startup-options", given["options"]
    if "PGOPTIONS" in given:
        yield "startup-options", given["PGOPTIONS"]
    if name in EXECUTES and len(call.args) > 1 and "set_config" in (_folded(call.args[0]) or ""):
        values = call.args[1].elts if isinstance(call.args[1], ast.List | ast.Tuple) else call.args
        if any(_constant(value) is False for value in values):
            yield "session-setting", call.args[0]
    if name == "set_session" and _constant(given.get("autocommit")) is True and len(given) > 1:
        yield "session-setting", call
    if name == "Table" and isinstance(prefixes := given.get("prefixes"), ast.List | ast.Tuple):
        kinds = {str(_constant(part)).upper() for part in prefixes.elts}
        drop = str(_constant(given.get("postgresql_on_commit"))).upper() == "DROP"
        if kinds & {"TEMP", "TEMPORARY"} and not drop:
            yield "temporary-table", call
    if name in ("setdefault", "putenv", "setenv") and _named(call, "PGOPTIONS"):
        yield "startup-options", call


def _entries(source: _Source, node: ast.Dict) -> Iterator[tuple[str, ast.expr]]:
    """Yield (rule, expression) of what the entries of a dictionary ask of a session."""
    owner = source.parents.get(id(node))
    name = ""
    if isinstance(owner, ast.keyword):
        name = owner.arg or ""
    elif isinstance(owner, ast.Dict):
        name = next(
            (str(_constant(k)) for k, v in zip(owner.keys, owner.values, strict=True) if v is node),
            "",
        )
    elif isinstance(owner, ast.Assign):
        name = _called(owner.targets[0])
    settings = name in ("OPTIONS", "connect_args", "CONNECT_ARGS") or (
        name == "kwargs" and isinstance(owner, ast.keyword)
    )
    for key, value in zip(node.keys, node.values, strict=True):
        entry = _constant(key)
        if entry == "options":
            text = _folded(value) or ""
            if re.search(r"(?:^|\s)(?:-c\s*\w|--\w+=)", text) or (settings and not text):
                yield "startup-options", value
        elif entry == "PGOPTIONS" or (entry == "server_settings" and _refused_settings(value)):
            yield "startup-options", value
        elif entry == "assume_role" and settings and _constant(value) is not None:
            yield "session-setting", value
        elif entry == "isolation_level" and name == "OPTIONS":
            yield "isolation-level", value
        elif entry == "CONN_MAX_AGE" and _constant(value) is None:
            yield "connection-age", value
        elif entry in ("prepare_threshold", "statement_cache_size") and settings:
            number = _constant(value)
            if type(number) is int and (number or entry == "prepare_threshold"):
                yield "driver-prepared-statement", value
        elif entry == "stream_results" and _constant(value) is True and source.autocommit:
            yield "cursor-in-transaction", value
        elif entry == "ENGINE" and str(_constant(value)).startswith(TENANTS):
            yield "schema-per-tenant", value


def _library(name: str) -> str:
    """Return the library of LIBRARIES or TENANTS that a module belongs to; empty: none."""
    known = (*TENANTS, *LIBRARIES)
    return next((one for one in known if name == one or name.startswith(f"{one}.")), "")


def _libraries(node: ast.AST) -> Iterator[tuple[str, str, ast.AST]]:
    """Yield (rule, library, node) for imports, and for texts in lists such as INSTALLED_APPS."""
    named: list[tuple[str, ast.AST]] = []
    if isinstance(node, ast.Import):
        named = [(alias.name, node) for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and not node.level:
        named = [(node.module or "", node)]
    elif isinstance(node, ast.List | ast.Tuple):
        texts = [(_constant(part), part) for part in node.elts]
        named = [(text, part) for text, part in texts if isinstance(text, str) and len(text) > 4]
    for name, where in named:
        if library := _library(name):
            tenants = library in TENANTS
            yield ("schema-per-tenant" if tenants else "session-library"), library, where


def _settings(source: _Source) -> Iterator[tuple[str, ast.expr]]:
    """Yield (rule, expression) of Django's DATABASES, and of PGOPTIONS in the environment."""
    for node in source.nodes:
        if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
            continue
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        for target in targets:
            if isinstance(target, ast.Subscript):
                entry, owner = _constant(target.slice), _called(target.value)
                if isinstance(target.value, ast.Subscript):
                    owner = str(_constant(target.value.slice))
                if (
                    entry == "PGOPTIONS"
                    or (entry == "options" and owner in ("OPTIONS", "connect_args"))
                    or (owner == "server_settings" and source.drivers and _untracked(target.slice))
                ):
                    yield "startup-options", node.value
                if entry == "CONN_MAX_AGE" and _constant(node.value) is None:
                    yield "connection-age", node.value
            if _called(target) == "DATABASES" and isinstance(node.value, ast.Dict):
                engines = [
                    str(_constant(value))
                    for part in ast.walk(node.value)
                    if isinstance(part, ast.Dict)
                    for key, value in zip(part.keys, part.values, strict=True)
                    if _constant(key) == "ENGINE"
                ]
                others = ("sqlite", "mysql", "oracle", "mssql", "dummy", "spatialite")
                if node.value.values and not (
                    engines and all(any(one in engine for one in others) for engine in engines)
                ):
                    yield "server-side-cursor", node.value


def disables_server_side_cursors(text: str) -> bool:
    """Say whether a program sets Django's DISABLE_SERVER_SIDE_CURSORS, other than to False."""
    if "disable_server_side_cursors" not in text.lower():
        return False
    try:
        nodes = list(ast.walk(_parsed(text)))
    except SyntaxError:
        return False
    given: list[ast.AST] = []
    for node in nodes:
        if isinstance(node, ast.Dict):
            given += [
                value
                for key, value in zip(node.keys, node.values, strict=True)
                if _constant(key) == "DISABLE_SERVER_SIDE_CURSORS"
            ]
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Subscript):
            if _constant(node.targets[0].slice) == "DISABLE_SERVER_SIDE_CURSORS":
                given.append(node.value)
        elif isinstance(node, ast.keyword) and node.arg in (
            "disable_server_side_cursors",
            "DISABLE_SERVER_SIDE_CURSORS",
        ):
            given.append(node.value)
    return any(_constant(value) is not False for value in given)


IN_TEXT = re.compile(r"\bPGOPTIONS\b\s*[=:]\s*\S|[?&]options=(?:-c|--|%2D|-|%20)", re.IGNORECASE)
"""Startup options in an environment file, a script or a URL."""


def _has_options(text: object) -> bool:
    """Say whether a URL or a connection string asks for startup options."""
    if not isinstance(text, str) or "options=" not in text:
        return False
    return bool(IN_TEXT.search(text) or re.search(r"\boptions='-c", text))


def _parsed(text: str) -> ast.Module:
    """Return the tree of a program. Raises SyntaxError, also where the text is too deep."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(text)
        except (ValueError, RecursionError, MemoryError) as error:
            raise SyntaxError(f"cannot be parsed: {error}") from None


def _program(text: str, server_side_cursors: bool) -> list[Place]:
    """Return the places of a program. Raises SyntaxError."""
    source = _Source(_parsed(text))
    places = [source.place(rule, node) for rule, node in _settings(source)]
    for node in source.nodes:
        for rule, library, where in _libraries(node):
            places.append(dataclasses.replace(source.place(rule, where), subject=library))
        found: list[tuple[str, ast.AST]] = []
        if isinstance(node, ast.Call):
            found += _calls(source, node)
        elif isinstance(node, ast.Dict):
            found += _entries(source, node)
        elif isinstance(node, ast.Constant) and _has_options(node.value):
            found.append(("startup-options", node))
        places += [source.place(rule, where) for rule, where in found]
    for node, string in source.texts():
        # Its lines are those of the file only in a text in three quotes.
        spread = (node.end_lineno or node.lineno) - node.lineno >= string.count("\n")
        for rule, offset in sql_findings(_plain(string)):
            places.append(source.place(rule, node, node.lineno + (offset if spread else 0)))
    if not server_side_cursors:
        places = [place for place in places if place.rule != "server-side-cursor"]
    return places


def findings(file: str, text: str, server_side_cursors: bool = True) -> list[Finding]:
    """Return what a file of a source has that transaction pooling does not keep.

    file: its name; .py and .sql are read as such, others for PGOPTIONS and options of a URL.
    server_side_cursors: False where Django's settings disable them. Raises SyntaxError for Python
    that does not parse.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    lines = text.split("\n")
    if file.endswith(".py"):
        places = _program(text, server_side_cursors)
    elif file.endswith(".sql"):
        places = []
        if "-- PostgreSQL database dump" not in text[:1000]:
            places = [
                Place(rule, line + 1, line + 1, line + 1)
                for rule, line in sql_findings(_plain(text))
            ]
    else:
        places = [
            Place("startup-options", number, number, number)
            for number, line in enumerate(lines, 1)
            if IN_TEXT.search(line) and not line.lstrip().startswith(("#", "//"))
        ]
    return [
        Finding(file, line, rule, RULES[rule].why, RULES[rule].remedy, RULES[rule].level, subject)
        for rule, line, subject in _silenced(places, lines)
    ]


def _silenced(places: Iterable[Place], lines: list[str]) -> list[tuple[str, int, str]]:
    """Return (rule, line, subject) of what no comment silences, and of comments that are wrong."""
    allowed = {
        number: found for number, line in enumerate(lines, 1) if (found := ALLOW.search(line))
    }
    used: set[int] = set()
    kept: set[tuple[str, int, str]] = set()
    for place in places:
        near = {place.line, place.line - 1, place.first, place.first - 1, place.last}
        silence = {n for n in near if n in allowed and allowed[n][1] == place.rule}
        used |= silence
        if not any(allowed[n][2] for n in silence):
            kept.add((place.rule, place.line, place.subject))
    for number, found in allowed.items():
        if not found[2] or found[1] not in RULES or found[1] in OWN_RULES:
            kept.add(("silence-without-reason", number, ""))
        elif number not in used:
            kept.add(("unused-silence", number, ""))
    return sorted(kept, key=lambda place: (place[1], place[0], place[2]))


def project_findings(files: Mapping[str, str]) -> tuple[list[Finding], list[str], set[str]]:
    """Return (findings, what could not be read, custom settings) of a source: name -> text.

    A library is told of once, where it is first named.
    """
    cursors = not any(
        disables_server_side_cursors(text) for name, text in files.items() if name.endswith(".py")
    )
    found: list[Finding] = []
    unread: list[str] = []
    custom: set[str] = set()
    told: set[str] = {""}
    for name, text in files.items():
        try:
            places = findings(name, text, cursors)
            for place in places:
                if not place.subject or place.subject not in told:
                    found.append(place)
                    told.add(place.subject)
        except (SyntaxError, RecursionError) as error:
            unread.append(f"{name}: {error}")
        custom |= custom_settings(text) if name.endswith((".py", ".sql")) else set()
    return found, unread, custom
