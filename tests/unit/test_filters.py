"""The filters: what they derive, how they quote, and what they refuse."""

import base64
import hashlib
import hmac
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

import poolkit
import psycopg.pq
import pytest
import yaml
from ansible.errors import AnsibleFilterError
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jinja2.nativetypes import NativeEnvironment
from psycopg.conninfo import conninfo_to_dict

ROOT = Path(__file__).resolve().parents[2]
SEED = "0123456789abcdef"
# What a password may hold: anything printable (a password file takes no line break).
TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1)


def test_verifier_matches_rfc_7677s_own_arithmetic() -> None:
    """RFC 5802: StoredKey = H(HMAC(salted, "Client Key")), ServerKey = HMAC(salted, …)."""
    verifier = poolkit.scram_verifier("pencil", "user", SEED)
    scheme, iterations_salt, keys = verifier.split("$")
    iterations, salt = iterations_salt.split(":")
    stored_key, server_key = (base64.b64decode(key) for key in keys.split(":"))
    salted = hashlib.pbkdf2_hmac("sha256", b"pencil", base64.b64decode(salt), int(iterations))
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    assert scheme == "SCRAM-SHA-256"
    assert (int(iterations), len(base64.b64decode(salt))) == (4096, 16)
    assert stored_key == hashlib.sha256(client_key).digest()
    assert server_key == hmac.digest(salted, b"Server Key", "sha256")


def test_verifier_is_stable_and_differs_by_user_and_seed() -> None:
    first = poolkit.scram_verifier("pencil", "user", SEED)
    assert first == poolkit.scram_verifier("pencil", "user", SEED)
    assert first != poolkit.scram_verifier("pencil", "other", SEED)
    assert first != poolkit.scram_verifier("pencil", "user", SEED[::-1])


@pytest.mark.parametrize(
    ("password", "seed", "words"),
    [
        ("pencil", "short", "scram_salt_seed must have at least 16 characters"),
        ("", SEED, "the password of the database role 'user' is empty"),
        ("a\u0007b", SEED, "SASLprep"),
    ],
)
def test_verifier_refuses(password: str, seed: str, words: str) -> None:
    with pytest.raises(AnsibleFilterError, match=words):
        poolkit.scram_verifier(password, "user", seed)


@given(user=TEXT, password=TEXT, dbname=TEXT)
def test_uri_comes_back_from_libpqs_own_parser(user: str, password: str, dbname: str) -> None:
    uri = poolkit.pg_uri(
        user, password, dbname, [("127.0.0.1", 6432), ("db1", 5432)], {"connect_timeout": 2}
    )
    assert conninfo_to_dict(uri) == {
        "user": user,
        "password": password,
        "dbname": dbname,
        "host": "127.0.0.1,db1",
        "port": "6432,5432",
        "connect_timeout": "2",
    }


PRINTABLE = "".join(map(chr, range(0x20, 0x7F)))


@example(user=PRINTABLE, password=PRINTABLE, dbname=PRINTABLE)
@given(user=TEXT, password=TEXT, dbname=TEXT)
def test_uri_with_several_hosts_has_the_form_that_url_parsers_read(
    user: str, password: str, dbname: str
) -> None:
    """What SQLAlchemy and dj-database-url take from it: no address, and two lists in the query."""
    hosts = [("127.0.0.1", 6432), ("2001:db8::1", 5432)]
    uri = poolkit.pg_uri(user, password, dbname, hosts, {"application_name": "a,b&c"})
    assert "@/" in uri
    assert "?host=127.0.0.1,2001:db8::1&port=6432,5432&application_name=" in uri
    parts = urlsplit(uri)
    assert (parts.hostname, unquote(parts.username), unquote(parts.password)) == (
        None,
        user,
        password,
    )
    assert unquote(parts.path[1:]) == dbname
    assert dict(parse_qsl(parts.query)) == {
        "host": "127.0.0.1,2001:db8::1",
        "port": "6432,5432",
        "application_name": "a,b&c",
    }


@example(password=PRINTABLE)
@given(password=TEXT)
def test_uri_comes_back_from_any_url_parser(password: str) -> None:
    uri = poolkit.pg_uri("u", password, "d", [("h", 1)])
    assert unquote(uri.removeprefix("postgresql://u:").removesuffix("@h:1/d")) == password


@pytest.mark.parametrize(
    ("host", "start"),
    [
        ("db1", "postgresql+asyncpg://u:p@db1:5432/d"),
        ("2001:db8::1", "postgresql+asyncpg://u:p@[2001:db8::1]:5432/d"),
        ("/run/x", "postgresql+asyncpg://u:p@/d?host=/run/x&port=5432"),
    ],
)
def test_uri_with_one_host_is_plain(host: str, start: str) -> None:
    uri = poolkit.pg_uri("u", "p", "d", [(host, 5432)], scheme="postgresql+asyncpg")
    assert uri == start
    known = conninfo_to_dict(uri.replace("+asyncpg", ""))
    assert (known["host"], known["port"]) == (host, "5432")


@settings(max_examples=25, deadline=None)
@given(password=TEXT.filter(lambda text: len(text) < 200))
def test_password_file_is_read_by_libpq(tmp_path_factory, password: str) -> None:
    """libpq itself looks the password up; no server is needed to ask which one it found."""
    path = tmp_path_factory.mktemp("pgpass") / "pgpass"
    fields = ["*", "*", *(poolkit.pgpass_field(value) for value in ("d:b", r"u\ser", password))]
    path.write_text(":".join(fields) + "\n")
    path.chmod(0o600)
    conninfo = f"host=127.0.0.1 port=1 dbname=d:b user='u\\\\ser' passfile='{path}'"
    connection = psycopg.pq.PGconn.connect_start(conninfo.encode())
    assert connection.password == password.encode()
    connection.finish()


@settings(max_examples=25, deadline=None)
@given(value=st.text(st.characters(codec="ascii", exclude_characters="\0\r")))
def test_environment_file_is_read_as_a_shell_would(value: str) -> None:
    r"""systemd's double quotes and sh's agree on the escapes of `"`, `\`, `` ` `` and `$`."""
    line = f"VALUE={poolkit.env_file_quote(value)}"
    script = f'{line}\nprintf %s "$VALUE" | od -An -v -tx1'
    output = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout
    assert bytes.fromhex("".join(output.split())) == value.encode()


def test_uri_for_asyncpg_has_only_what_it_takes() -> None:
    parameters = {"connect_timeout": 2, "application_name": "shop", "sslmode": "require"}
    uri = poolkit.pg_uri("u", "p", "d", [("h", 1)], parameters, "postgresql+asyncpg")
    assert uri == "postgresql+asyncpg://u:p@h:1/d?ssl=require"


def read_systemd(text: str) -> dict[str, str]:
    r"""systemd.exec(5): in double quotes a backslash makes the next character literal."""
    variables = {}
    for name, body in re.findall(r'(?ms)^(\w+)="((?:\\.|[^"\\])*)"$', text):
        variables[name] = re.sub(r"(?s)\\(.)", r"\1", body)
    return variables


def read_docker(text: str) -> dict[str, str]:
    """docker run's documentation: lines of VARIABLE=VALUE; # begins a comment, nothing is quoted.

    A line loses the blanks before its name, and only the first = counts (docker/cli,
    pkg/kvfile).
    """
    variables = {}
    for line in text.split("\n"):
        line = line.removesuffix("\r").lstrip(" \t")
        if line and not line.startswith("#"):
            name, _, value = line.partition("=")
            variables[name] = value
    return variables


NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,9}", fullmatch=True)


@example(variables={"PASSWORD": PRINTABLE, "A": "# no comment", "B": " 'quoted' ", "C": ""})
@given(variables=st.dictionaries(NAMES, st.text(st.characters(exclude_characters="\0\r\n"))))
def test_environment_files_come_back(variables: dict[str, str]) -> None:
    assert read_systemd(poolkit.environment_file(variables, "systemd")) == variables
    assert read_docker(poolkit.environment_file(variables, "docker")) == variables


def test_environment_file_is_sorted_and_takes_numbers() -> None:
    variables = {"B": 5, "A": "x y", "C": "two\nlines"}
    text = poolkit.environment_file(variables, "systemd")
    assert text == 'A="x y"\nB="5"\nC="two\nlines"\n'
    assert read_systemd(text)["C"] == "two\nlines"


@pytest.mark.parametrize(
    ("variables", "format", "words"),
    [
        ({"KEY": "two\nlines"}, "docker", "KEY has a line break"),
        ({"KEY": "two\rlines"}, "docker", "KEY has a line break"),
        ({"A=B": "x"}, "docker", "'A=B' is no name"),
        ({"A B": "x"}, "docker", "'A B' is no name"),
        ({"#A": "x"}, "docker", "'#A' is no name"),
        ({"": "x"}, "docker", "'' is no name"),
        ({"my.name": "x"}, "systemd", "'my.name' is no name of a variable in systemd's"),
        ({"A": "x\0"}, "systemd", "NUL"),
        ({}, "toml", "no environment file has the format 'toml'"),
    ],
)
def test_environment_file_refuses(variables: dict, format: str, words: str) -> None:
    with pytest.raises(AnsibleFilterError, match=words):
        poolkit.environment_file(variables, format)


@given(value=TEXT)
def test_user_list_comes_back(value: str) -> None:
    quoted = poolkit.userlist_quote(value)
    assert quoted[0] == quoted[-1] == '"'
    assert quoted[1:-1].replace('""', '"') == value
    assert '"' not in quoted[1:-1].replace('""', "")


@given(value=TEXT)
def test_connection_string_value_comes_back(value: str) -> None:
    quoted = poolkit.connstr_quote(value)
    assert quoted[1:-1].replace("''", "'") == value
    assert "'" not in quoted[1:-1].replace("''", "")


@pytest.mark.parametrize(
    ("function", "value"),
    [
        (poolkit.pgpass_field, "a\nb"),
        (poolkit.env_file_quote, "a\0b"),
        (poolkit.userlist_quote, "a\nb"),
        (poolkit.connstr_quote, ""),
        (poolkit.connstr_quote, "a\nb"),
        (poolkit.quote_ident, ""),
    ],
)
def test_what_a_file_cannot_hold_is_refused(function, value: str) -> None:
    with pytest.raises(AnsibleFilterError):
        function(value)


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


def test_applications_are_collected_once() -> None:
    (shop,) = poolkit.applications(hosts(), BOTH)
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
    ],
)
def test_contradictions_are_refused(changes: dict, words: str) -> None:
    with pytest.raises(AnsibleFilterError, match=words):
        poolkit.applications(hosts(**changes), BOTH, "root")


@pytest.mark.parametrize(
    ("value", "literal"),
    [
        (5000, "'5000'"),
        (True, "'on'"),
        ("O'Neil", "'O''Neil'"),
        ("a\\b", "E'a\\\\b'"),
        (["shop", "public"], "'shop', 'public'"),
    ],
)
def test_role_setting_literal(value: object, literal: str) -> None:
    assert poolkit.setting_literal(value) == literal


def test_defaults_agree_with_the_role() -> None:
    """The filter serves plays that cannot see roles/app/defaults: both must say the same."""
    defaults = yaml.safe_load((ROOT / "roles/app/defaults/main.yml").read_text())
    (shop,) = poolkit.applications(hosts(), inventory("web1"))
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
    pooler = yaml.safe_load((ROOT / "roles/pgbouncer/defaults/main.yml").read_text())
    assert pooler["pgbouncer_listen_port"] == poolkit.POOLER_PORT


def test_rules_name_exactly_the_hosts() -> None:
    apps = poolkit.applications(hosts(), BOTH)
    rules = poolkit.hba_rules(apps, hosts(), BOTH, "admin")
    assert [(r["database"], r["user"], r["address"]) for r in rules] == [
        ("shop", "shop", "192.0.2.1/32"),
        ("shop", "shop_owner", "192.0.2.1/32"),
        ("shop", "shop", "192.0.2.2/32"),
        ("shop", "shop_owner", "192.0.2.2/32"),
        ("all", "admin", "192.0.2.1/32"),
    ]


def test_rules_ask_for_a_missing_address() -> None:
    facts = hosts(private_address=None)
    apps = poolkit.applications(facts, BOTH)
    with pytest.raises(AnsibleFilterError, match="web2: private_address is missing"):
        poolkit.hba_rules(apps, facts, BOTH, "admin")


def test_pooler_beside_the_application_serves_its_own_host() -> None:
    apps = poolkit.applications(hosts(app_name="blog"), BOTH)
    assert poolkit.pooler_applications(apps, "web2") == [
        {
            "name": "blog",
            "database": "blog",
            "user": "blog",
            "password": "p",
            "owner": "blog_owner",
            "pool_mode": "transaction",
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
    assert [
        poolkit.pooler_endpoints(mixed(), MIXED, host) for host in ("web1", "web2", "web3")
    ] == [
        [{"host": "127.0.0.1", "port": 6432}],
        [second, first],
        [first, second],
    ]


def test_pooler_beside_the_application_keeps_its_port() -> None:
    assert poolkit.pooler_endpoints(hosts(pgbouncer_listen_port=6500), BOTH, "web2") == [
        {"host": "127.0.0.1", "port": 6500}
    ]


@pytest.mark.parametrize(
    "groups", [inventory("web1", "web2", poolers=["web1"]), {"applications": ["web1", "web2"]}]
)
def test_host_without_a_pooler_is_refused(groups: dict) -> None:
    with pytest.raises(AnsibleFilterError, match=r"web[12]: no pooler .* group pgbouncer"):
        poolkit.pooler_endpoints(hosts(), groups, "web2")
    with pytest.raises(AnsibleFilterError, match=r"web[12]: no pooler .* group pgbouncer"):
        poolkit.applications(hosts(), groups)


def test_tier_without_an_address_is_refused() -> None:
    facts = {**mixed(), "pool2": {}}
    with pytest.raises(AnsibleFilterError, match="pool2: private_address is missing"):
        poolkit.pooler_endpoints(facts, MIXED, "web2")


def test_tier_serves_what_has_no_pooler_beside_it() -> None:
    apps = poolkit.applications(mixed(), MIXED)
    served = {
        host: [app["name"] for app in poolkit.pooler_applications(apps, host)]
        for host in MIXED["pgbouncer"]
    }
    assert served == {"web1": ["shop"], "pool1": ["shop", "blog"], "pool2": ["shop", "blog"]}


def test_pooler_lets_exactly_its_clients_in() -> None:
    clients = {
        host: poolkit.pooler_client_addresses(mixed(), MIXED, host) for host in MIXED["pgbouncer"]
    }
    tier = ["192.0.2.2/32", "2001:db8::3/128"]
    assert clients == {"web1": ["127.0.0.1/32"], "pool1": tier, "pool2": tier}


def test_pooler_listens_where_its_clients_come_in() -> None:
    assert poolkit.pooler_listen_addr(mixed(), MIXED, "web1") == "127.0.0.1"
    assert poolkit.pooler_listen_addr(mixed(), MIXED, "pool1") == "127.0.0.1,192.0.2.11"


def test_tier_reaches_the_database_as_the_applications_user_only() -> None:
    apps = poolkit.applications(mixed(), MIXED)
    rules = poolkit.hba_rules(apps, mixed(), MIXED, "admin")
    assert [(r["user"], r["address"]) for r in rules if r["address"] == "192.0.2.11/32"] == [
        ("shop", "192.0.2.11/32"),
        ("blog", "192.0.2.11/32"),
    ]
    assert [r["user"] for r in rules if r["address"] == "192.0.2.1/32"] == [
        "shop",
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
    (app,) = poolkit.applications(facts, groups)
    assert (app["poolers"], app["clients"]) == ([], {})
    assert poolkit.pooler_endpoints(facts, groups, "web1") == []
    for pooler in poolers:
        assert poolkit.pooler_applications([app], pooler) == []
        assert poolkit.pooler_client_addresses(facts, groups, pooler) in ([], ["127.0.0.1/32"])
    rules = poolkit.hba_rules([app], facts, groups, "")
    assert [(r["user"], r["address"]) for r in rules] == [
        (strategy, "192.0.2.1/32"),
        (f"{strategy}_owner", "192.0.2.1/32"),
    ]


def test_database_of_a_platform_is_not_ours() -> None:
    """Neither passwords nor an address are asked of a managed application."""
    facts = {**strategies(web2="native"), "web1": {"app_name": "a"}}
    facts["web1"]["app_connection_strategy"] = "managed"
    groups = {"applications": ["web1", "web2"]}
    assert [app["name"] for app in poolkit.applications(facts, groups)] == ["native"]
    assert poolkit.uses_database(facts, groups)
    alone = {"applications": ["web1"]}
    assert poolkit.applications(facts, alone) == []
    assert not poolkit.uses_database(facts, alone)
    assert poolkit.pooler_endpoints(facts, alone, "web1") == []
    assert poolkit.hba_rules([], facts, alone, "") == []


def test_user_list_of_a_pooler_without_applications_is_no_empty_file() -> None:
    """Ansible makes None of an empty template, which pgbouncer_config would take for no file."""
    template = ROOT / "roles/pgbouncer/templates/etc/pgbouncer/userlist.txt.j2"
    environment = NativeEnvironment(trim_blocks=True)
    environment.filters.update(poolkit.FilterModule().filters())
    text = environment.from_string(template.read_text()).render(pgbouncer_applications=[])
    assert text.startswith("; ")


def test_tier_knows_which_hosts_may_come() -> None:
    shop, blog = poolkit.applications(mixed(), MIXED)
    assert shop["clients"] == {"web1": ["web1"], "pool1": ["web2"], "pool2": ["web2"]}
    assert blog["clients"] == {"pool1": ["web3"], "pool2": ["web3"]}


def test_pool_mode_reaches_the_poolers_entry() -> None:
    facts = {"web1": {**hosts()["web1"], "app_pool_mode": "session"}}
    apps = poolkit.applications(facts, inventory("web1"))
    (known,) = poolkit.pooler_applications(apps, "web1")
    entry = {"host": "db1", "port": 5432, "dbname": "shop"}
    assert poolkit.pooler_database(known, "db1", 5432) == {**entry, "pool_mode": "session"}
    for mode in ({}, {"pool_mode": "transaction"}, {"pool_mode": None}):
        assert poolkit.pooler_database({"database": "shop", **mode}, "db1", 5432) == entry


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
    (app,) = poolkit.applications(facts, inventory("web1"))
    assert app["schema"] == schema
    assert app["owner_settings"].get("search_path") == path


def test_workers_may_differ_between_hosts() -> None:
    (app,) = poolkit.applications(hosts(app_workers="4"), BOTH)
    assert app["workers"] == {"web1": "auto", "web2": 4}


def test_roles_carry_verifier_mark_and_limit() -> None:
    facts = {"web1": {**hosts()["web1"], "app_database_connection_limit": 20}}
    roles = poolkit.database_roles(poolkit.applications(facts, inventory("web1")), SEED)
    assert list(roles) == ["shop", "shop_owner"]
    assert roles["shop"]["verifier"] == poolkit.scram_verifier("p", "shop", SEED)
    assert roles["shop_owner"]["verifier"] == poolkit.scram_verifier("o", "shop_owner", SEED)
    assert roles["shop"]["connection_limit"] == 20
    assert roles["shop_owner"]["connection_limit"] == 5
    assert roles["shop"]["fingerprint"] != roles["shop_owner"]["fingerprint"]


def test_unknown_variable_comes_with_the_nearest_known_one() -> None:
    spec = {"app_framework": {}, "app_name": {}}
    assert poolkit.unknown_variables(["app_name", "app_framwork", "app_xyz"], spec) == [
        "app_framwork (did you mean app_framework?)",
        "app_xyz",
    ]
