"""The typed catalogue: what is refused, with which words, on which version."""

import contextlib
import re
import socket
from pathlib import Path

import pytest
import yaml
from ansible.errors import AnsibleFilterError
from hypothesis import given
from hypothesis import strategies as st

from plugins.filter import pgbouncer_settings, pooler_configuration, quoting

ROOT = Path(__file__).resolve().parents[2]
CATALOGUE = yaml.safe_load((ROOT / "roles/pgbouncer/files/settings.yml").read_text())
FIXED = {"listen_port": "pgbouncer_listen_port"}


APPS = [{"name": "shop", "database": "shop", "user": "shop", "password": "x"}]
INPUTS = {
    "applications": APPS,
    "settings": {},
    "databases": {},
    "users": {},
    "processes": 1,
    "hba_rules": [],
    "listen_addr": "127.0.0.1",
    "listen_port": 6432,
    "database_host": "db1",
    "database_port": 5432,
    "auth_query_connections": 5,
    "drain_seconds": 60,
    "exporter_listen_addr": "127.0.0.1",
    "exporter_port": 9127,
    "watchdog_interval_seconds": 1,
    "watchdog_silent_answers": 3,
    "listen_on_all_addresses": False,
    "client_addresses": ["127.0.0.1/32"],
    "tcp_auth_method": "scram-sha-256",
    "tls_certificate_file": "",
    "tls_key_file": "",
    "tls_client_ca_file": "",
    "auth_query_enabled": False,
    "exporter_enabled": False,
    "auth_query_password": "",
}
TRIXIE, BOOKWORM = "1.24.1-1+deb13u2", "1.18.0-1+deb12u1"


def errors(settings=None, databases=None, users=None, version=TRIXIE, **others) -> list[str]:
    inputs = {**INPUTS, "settings": settings or {}, **others}
    inputs |= {"databases": databases or {}, "users": users or {}}
    inputs["effective_settings"] = {"default_pool_size": 10, **inputs["settings"]}
    return pgbouncer_settings.pgbouncer_errors(inputs, CATALOGUE, version, FIXED)


def test_catalogue_is_whole() -> None:
    counts = {section: len(names) for section, names in CATALOGUE.items()}
    assert counts == {"pgbouncer": 101, "databases": 23, "users": 10, "peers": 3}
    types = {spec["type"] for names in CATALOGUE.values() for spec in names.values()}
    assert types <= {*pgbouncer_settings.NUMBER, "enum", "comma_list", "path", "string"}


def test_defaults_of_the_role_pass_on_every_version() -> None:
    defaults = yaml.safe_load((ROOT / "roles/pgbouncer/vars/main.yml").read_text())
    settings = {**defaults["_pgbouncer_settings"], "server_tls_sslmode": "prefer"}
    for version in defaults["_pgbouncer_versions"].values():
        known = pooler_configuration.known_settings(settings, CATALOGUE, version)
        assert errors(known, version=version) == []
        assert ("max_prepared_statements" in known) == (version != "1.18.0")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"query_wait_timeout": "30s"}, "is '30s': PgBouncer reads seconds without a unit"),
        ({"query_wait_timeout": -1}, "is -1: PgBouncer reads seconds"),
        ({"default_pool_size": "abc"}, "is 'abc': PgBouncer reads a whole number"),
        ({"default_pool_size": 1.5}, "is 1.5: PgBouncer reads a whole number"),
        ({"default_pool_size": True}, "is True: PgBouncer reads a whole number"),
        ({"log_connections": True}, "is True: PgBouncer reads 0 or 1"),
        ({"log_connections": "yes"}, "is 'yes': PgBouncer reads 0 or 1"),
        ({"stats_period": "1.5"}, "is '1.5': PgBouncer reads whole seconds without a unit"),
        ({"unix_socket_mode": 511}, "is 511: PgBouncer reads an octal number"),
        ({"pool_mode": "query"}, "is 'query': use one of session, transaction, statement"),
        ({"pool_mode": "transaction ; fast"}, "use one of"),
        ({"admin_users": "admin ; ops"}, "a comment at the end of a line"),
        ({"admin_users": ["a b"]}, "no blanks and commas inside a name"),
        ({"server_check_query": "select 1\n[users]"}, "has a line break"),
        ({"server_check_query": " select 1"}, "a blank at its start or end"),
        ({"server_check_query": "select 1\x85[users]"}, "has a line break"),
        ({"admin_users": ["ops\x01"]}, "no blanks and commas inside a name"),
        ({"default_pool_size": "\u0663"}, "PgBouncer reads a whole number"),
        ({"server_check_query": ["a"]}, "is a list: PgBouncer reads one string here"),
        ({"server_tls_ca_file": "ca.pem"}, "give an absolute path"),
        ({"max_client_conn": 99999999999}, "the largest number is 2147483647"),
        ({"job_name": 5}, "is a number: give it as text, in quotes"),
        ({"defalt_pool_size": 5}, "no such setting (did you mean default_pool_size?)"),
        ({"listen_port": 5}, "the role sets it: use pgbouncer_listen_port"),
        ({"transaction_timeout": 5}, "needs PgBouncer 1.25.0, the host has 1.24.1"),
        ({"idle_in_transaction_session_timeout": 5}, "use idle_transaction_timeout here"),
        ({"statement_timeout": 5}, "use query_timeout here"),
        ({"max_connections": 5}, "use max_client_conn"),
        ({"pool_size": 5}, "use default_pool_size"),
    ],
)
def test_setting_is_refused(settings: dict, words: str) -> None:
    (message,) = errors(settings)
    assert message.startswith(f"pgbouncer_settings.{next(iter(settings))}")
    assert words in message


@pytest.mark.parametrize(
    ("databases", "words"),
    [
        ({"shop": {"pool_size": "abc"}}, "pgbouncer_databases['shop'].pool_size is 'abc'"),
        ({"shop": {"idle_transaction_timeout": 5}}, "use it in pgbouncer_settings or"),
        ({"shop": {"default_pool_size": 5}}, "use pool_size"),
        ({"shop": {"password": "x"}}, "leave it out"),
        ({"shop": {"pool_mode": "query"}}, "use one of session, transaction, statement"),
        ({"shop": 5}, "is 5: give a mapping"),
        ({"shop": {"connect_query": ""}}, "pgbouncer_databases['shop'].connect_query is empty"),
        ({"shop": {"connect_query": None}}, "pgbouncer_databases['shop'].connect_query is empty"),
        ({"shop": {"pool_size": ""}}, "pgbouncer_databases['shop'].pool_size is empty"),
        ({"shop": {"host": "db1\u2028x"}}, "['shop'].host has a line break"),
        ({"my shop": {}}, "use the characters"),
        ({"a]\n[users": {}}, "use the characters"),
        ({"pgbouncer": {}}, "not the name pgbouncer"),
    ],
)
def test_database_is_refused(databases: dict, words: str) -> None:
    (message,) = errors(databases=databases)
    assert words in message


@pytest.mark.parametrize(
    ("users", "words"),
    [
        ({"shop": {"max_db_connections": 5}}, "use max_user_connections"),
        ({"shop": {"query_timeout": "5s"}}, "whole seconds without a unit"),
        ({"shop": {"pool_mod": "session"}}, "did you mean pool_mode?"),
        ({'a"b': {}}, "use the characters"),
        ({"shop": {"pool_mode": None}}, "pgbouncer_users['shop'].pool_mode is empty"),
    ],
)
def test_user_is_refused(users: dict, words: str) -> None:
    (message,) = errors(users=users)
    assert words in message


@pytest.mark.parametrize(
    ("settings", "databases", "users", "words"),
    [
        ({"max_prepared_statements": 100}, {}, {}, "needs PgBouncer 1.21.0, the host has 1.18.0"),
        ({"peer_id": 1}, {}, {}, "needs PgBouncer 1.19.0"),
        ({}, {"shop": {"reserve_pool_size": 1}}, {}, "needs PgBouncer 1.24.0, the host has 1.18.0"),
        ({}, {"shop": {"reserve_pool_size": 1}}, {}, "use reserve_pool"),
        ({}, {}, {"shop": {"pool_size": 1}}, "needs PgBouncer 1.23.0"),
    ],
)
def test_older_version_is_respected(settings, databases, users, words: str) -> None:
    (message,) = errors(settings, databases, users, version="1.18.0-1+deb12u1")
    assert words in message


def test_good_values_pass() -> None:
    settings = {
        "query_wait_timeout": 7.5,
        "unix_socket_mode": "0770",
        "admin_users": ["ops", "root"],
        "auth_query": "SELECT usename; -- not a comment of PgBouncer",
        "default_pool_size": "7",
        "logfile": "",
    }
    assert errors(settings, {"shop": {"pool_size": 5, "pool_mode": "session"}}) == []
    assert errors(users={"shop": {"max_user_connections": 3}}) == []
    assert pgbouncer_settings.pgbouncer_value(["ops", "root"]) == "ops, root"


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"processes": 0}, "at least one"),
        ({"processes": 2, "version": BOOKWORM}, "needs PgBouncer 1.19.0, the host has 1.18.0"),
        ({"processes": 20}, "default_pool_size is 10: less than pgbouncer_processes (20)"),
        ({"databases": {"shp": {"pool_size": 5}}}, "no application of this pooler has this data"),
        ({"users": {"shp": {"pool_mode": "session"}}}, "no application of this pooler has this u"),
        ({"listen_addr": "0.0.0.0"}, "set pgbouncer_listen_on_all_addresses: true"),
        ({"listen_addr": "127.0.0.1, *"}, "set pgbouncer_listen_on_all_addresses: true"),
        ({"client_addresses": ["10.0.0.1/33"]}, "'10.0.0.1/33' is no network"),
        ({"client_addresses": ["10.0.0.1/8"]}, "'10.0.0.1/8' is no network"),
        ({"exporter_enabled": True}, "add pgbouncer-exporter"),
        (
            {
                "tcp_auth_method": "cert",
                "tls_client_ca_file": "/a",
                "tls_certificate_file": "/b",
                "tls_key_file": "/c",
            },
            "needs pgbouncer_settings.client_tls_sslmode verify-full",
        ),
        (
            {
                "auth_query_enabled": True,
                "auth_query_password": "x",
                "databases": {"shop": {"max_db_connections": 0}},
            },
            "max_db_connections is 0: with auth_query",
        ),
        ({"tcp_auth_method": "cert"}, "needs pgbouncer_tls_client_ca_file"),
        ({"tls_certificate_file": "/a"}, "give both"),
        ({"auth_query_enabled": True}, "pgbouncer_auth_query_password is missing"),
        ({"settings": {"server_tls_sslmode": "verify-full"}}, "needs database_ca_file"),
        ({"settings": {"ignore_startup_parameters": "extra_float_digits"}}, "CVE-2026-107349"),
    ],
)
def test_relation_is_refused(variables: dict, words: str) -> None:
    (message,) = errors(**variables)
    assert words in message


EVERY = "set pgbouncer_listen_on_all_addresses: true"
NO_ADDRESS = "that is no IP address and no host name"


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("127.0.0.1\nauth_type = any", NO_ADDRESS),
        ("127.0.0.1\n", NO_ADDRESS),  # YAML's |
        ("127.0.0.1\r", NO_ADDRESS),
        ("127.0.0.1\x85", NO_ADDRESS),
        ("127.0.0.1\u2028auth_type = any", NO_ADDRESS),
        ("127.0.0.1\0", NO_ADDRESS),
        ("db1\nauth_type = any", NO_ADDRESS),
        ("fe80::1%eth0\nauth_type = any", NO_ADDRESS),
        ("127.0.0.1%lo", NO_ADDRESS),
        ("10.0.0.300", NO_ADDRESS),
        ("[::1]", NO_ADDRESS),
        ("-x", NO_ADDRESS),
        ("127.0.0.1,,10.0.0.1", "holds ''"),
        ("", "holds ''"),
        (None, "holds None"),
        (0, "holds 0"),
        ("127.1", "is read as 127.0.0.1: write it so"),
        ("0x7f000001", "is read as 127.0.0.1: write it so"),
        ("*", EVERY),
        ("127.0.0.1, *", EVERY),
        ("0.0.0.0", EVERY),
        ("::", EVERY),
        ("::0", EVERY),
        ("0:0:0:0:0:0:0:0", EVERY),
        ("0000::0000%lo", EVERY),
        ("::ffff:0.0.0.0", EVERY),
        ("::FFFF:0:0", EVERY),
        (" 0.0.0.0 ", EVERY),
        ("0", "is read as 0.0.0.0: write it so"),
        ("000.0.0.0", "is read as 0.0.0.0: write it so"),
        ("0x0", "is read as 0.0.0.0: write it so"),
        ("0X0.0", "is read as 0.0.0.0: write it so"),
        ("[::]", NO_ADDRESS),
    ],
)
def test_address_to_listen_on_is_refused(address: object, words: str) -> None:
    """Whatever the resolver would read as an address is compared as one."""
    (message,) = errors(listen_addr=address)
    assert message.startswith("pgbouncer_listen_addr ")
    assert words in message
    found = errors(exporter_listen_addr=address)
    assert any(m.startswith("pgbouncer_exporter_listen_addr ") for m in found)


@pytest.mark.parametrize(
    "address", ["127.0.0.1, 10.0.0.5", "::1", "fe80::1%eth0", "localhost", "pool_1.example.org."]
)
def test_address_to_listen_on_passes(address: str) -> None:
    assert errors(listen_addr=address) == []


@given(text=st.text(max_size=40) | st.from_regex(r"[0-9a-fx:.%*, \n-]{1,40}"))
def test_address_that_passes_is_one_line_and_never_every_address(text: str) -> None:
    """The resolver is asked what it makes of each part; it looks up numbers only here."""
    if errors(listen_addr=text):
        return
    assert not pgbouncer_settings.CONTROL.search(text)
    for part in text.split(","):
        with contextlib.suppress(OSError):
            found = socket.getaddrinfo(part.strip(), 1, flags=socket.AI_NUMERICHOST)
            assert not {"0.0.0.0", "::"} & {entry[4][0] for entry in found}


def test_every_address_passes_when_asked_for() -> None:
    assert errors(listen_addr="*, ::", listen_on_all_addresses=True) == []
    assert errors(exporter_listen_addr="0.0.0.0", listen_on_all_addresses=True) == []


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"listen_port": "6432\n"}, "pgbouncer_listen_port is '6432\\n': give a whole number"),
        ({"listen_port": 0}, "pgbouncer_listen_port is 0"),
        ({"listen_port": 443}, "pgbouncer_listen_port is 443: give a whole number from 1024"),
        ({"auth_query_connections": "five"}, "pgbouncer_auth_query_connections is 'five'"),
        ({"listen_port": 65536}, "pgbouncer_listen_port is 65536"),
        ({"listen_port": True}, "pgbouncer_listen_port is True"),
        ({"exporter_port": "9127\nUser=root"}, "pgbouncer_exporter_port is"),
        ({"database_port": -1}, "pgbouncer_database_port is -1"),
        ({"drain_seconds": "60\n"}, "pgbouncer_drain_seconds is"),
        ({"database_host": "db1\n[users]"}, "pgbouncer_database_host (database_host) holds"),
        ({"database_host": "db1,/run/a\rb"}, "pgbouncer_database_host (database_host) holds"),
        ({"database_host": ""}, "pgbouncer_database_host (database_host) holds ''"),
        ({"exporter_listen_addr": "::1"}, "give one IPv4 address or host name"),
        (
            {"applications": [{**APPS[0], "password": "a\x85b"}]},
            "application shop: password has a line break",
        ),
        (
            {"applications": [{**APPS[0], "database": "shop\n"}]},
            "application shop: database has a line break",
        ),
        ({"auth_query_password": "a\nb"}, "pgbouncer_auth_query_password has a line break"),
    ],
)
def test_value_that_a_file_would_hold_is_refused(variables: dict, words: str) -> None:
    (message,) = errors(**variables)
    assert words in message
    assert "\n" not in message


@pytest.mark.parametrize("host", ["db1", "10.0.0.1,db2.example.org", "/run/postgresql", "::1"])
def test_host_of_the_database_passes(host: str) -> None:
    assert errors(database_host=host, database_port="5432", drain_seconds="0") == []


def test_database_sslmode_is_checked_as_the_setting_that_it_becomes() -> None:
    inputs = {**INPUTS, "effective_settings": {"server_tls_sslmode": "prefer\nauth_type = any"}}
    (message,) = pgbouncer_settings.pgbouncer_errors(inputs, CATALOGUE, TRIXIE, FIXED)
    assert message.startswith("database_sslmode is ")


@pytest.mark.parametrize("mark", ["\n", "\r", "\0", "\x0b", "\x1e", "\x85", "\u2028", "\u2029"])
def test_no_value_becomes_two_lines(mark: str) -> None:
    """Defence in depth: what the checks above let pass does not reach a file."""
    for render in (
        lambda text: pgbouncer_settings.pgbouncer_value(text),
        lambda text: pgbouncer_settings.pgbouncer_value(["a", text]),
        lambda text: pgbouncer_settings.hba_line({**RULE, "method": text}),
        lambda text: pgbouncer_settings.hba_line({**RULE, "user": text, "method": "reject"}),
        quoting.userlist_quote,
        quoting.connstr_quote,
    ):
        with pytest.raises(AnsibleFilterError, match="line break"):
            render(f"127.0.0.1{mark}auth_type = any")


RULE = {"type": "host", "database": "shop", "user": "all", "address": "10.0.0.0/8"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"method": "trust"}, "trust lets anyone in"),
        ({"method": "peer"}, "the method 'peer' does not go with host"),
        ({"method": "scram"}, "use one of scram-sha-256, md5, reject"),
        ({"method": "reject", "address": "10.0.0.300"}, "is no network in CIDR notation"),
        ({"method": "reject", "address": ""}, "host needs an address"),
        ({"method": "reject", "type": "local"}, "local takes no address"),
        ({"method": "reject", "user": "a\nb"}, "give a name, names, or all"),
        ({"method": "reject", "user": "a\x85b"}, "give a name, names, or all"),
        ({"method": "reject", "address": "::%\nlocal all all peer #/0"}, "is no network"),
        ({"method": "reject", "address": "10.0.0.0/0.0.0.255"}, "is no network"),
        ({"method": "reject", "address": "0/0"}, "is no network"),
        ({"method": "reject", "database": []}, ""),
        ({"method": "reject", "user": ["all", "x"]}, "give a name, names, or all"),
    ],
)
def test_hba_rule_is_refused(change: dict, words: str) -> None:
    if not words:  # an empty list of names matches nothing, so PgBouncer would read another rule
        words = "give a name, names, or all"
    (message,) = errors(hba_rules=[{**RULE, **change}])
    assert message.startswith("pgbouncer_hba_rules[0]")
    assert words in message


def test_hba_line_quotes_names() -> None:
    line = pgbouncer_settings.hba_line({**RULE, "user": ["any", 'a"b'], "method": "reject"})
    assert line == 'host "shop" "any","a""b" 10.0.0.0/8 reject'
    local = {"type": "local", "database": "all", "user": "x", "method": "peer"}
    assert pgbouncer_settings.hba_line(local) == 'local all "x" peer'


@given(
    names=st.lists(
        st.text(st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp")), min_size=1),
        min_size=1,
        max_size=3,
    )
)
def test_names_of_a_rule_come_back(names: list[str]) -> None:
    """Read as PgBouncer's src/hba.c does: quoted, a quote doubled, separated by commas."""
    line = pgbouncer_settings.hba_line(
        {"type": "local", "database": "all", "user": names, "method": "reject"}
    )
    found = re.fullmatch(r'local all ((?:"(?:[^"]|"")*",?)+) reject', line)
    quoted = re.findall(r'"((?:[^"]|"")*)"(?:,|$)', found.group(1))
    assert [name.replace('""', '"') for name in quoted] == names


@given(limit=st.integers(1, 10_000), processes=st.integers(1, 64))
def test_shares_hold_the_hosts_numbers(limit: int, processes: int) -> None:
    shares = pooler_configuration.per_process(
        {"default_pool_size": limit, "max_client_conn": limit}, processes
    )
    assert shares["default_pool_size"] * processes <= limit
    assert shares["max_client_conn"] * processes >= limit


@pytest.mark.parametrize(
    ("timeouts", "change", "expected"),
    [
        (["4s"], {}, 4.5),
        (["4s", "250ms"], {}, 4.5),
        ([], {}, None),
        (["4s", "0"], {}, None),  # one that may take as long as it likes
        (["4s", "soon"], {}, None),  # the role app refuses it
        (["4s"], {"auth_query_enabled": True}, None),
        (["4s"], {"databases": {"reports": {}}}, None),
        (["4s"], {"databases": {"app0": {"pool_size": 3}}}, 4.5),
        (["4s"], {"hba_rules": [{"user": "ann"}]}, None),
        (["4s"], {"settings": {"query_timeout": 60}}, 60),
        (["2s"], {}, 3.5),  # query_timeout ends an idle transaction, too
        (["4s"], {"applications": [{"database": "app0", "statement_timeout": "4s"}]}, None),
    ],
)
def test_silence_of_the_server_is_bounded_by_the_statement_timeout(
    timeouts: list[str], change: dict, expected: float | None
) -> None:
    idle = {"idle_in_transaction_session_timeout": "3s"}
    apps = [{"database": f"app{i}", "statement_timeout": t, **idle} for i, t in enumerate(timeouts)]
    inputs = {**INPUTS, "applications": apps, **change}
    inputs |= {"usual_settings": {}, "derived_settings": {}, "fixed_settings": {}}
    inputs |= {"client_limits": {}, "pool_sizes": {}}
    found = pooler_configuration.given_configuration(inputs, CATALOGUE, TRIXIE)
    assert found["effective_settings"].get("query_timeout") == expected


def test_limits_of_the_host_are_divided() -> None:
    limits = {"default_pool_size": 10, "reserve_pool_size": 2, "max_client_conn": 500, "x": "y"}
    shares = pooler_configuration.per_process(limits, 4)
    assert shares == {
        "default_pool_size": 2,
        "reserve_pool_size": 0,
        "max_client_conn": 125,
        "x": "y",
    }
    assert pooler_configuration.per_process({"max_client_conn": 10}, 4) == {"max_client_conn": 3}


def test_open_files_cover_clients_and_pools() -> None:
    settings = {"max_client_conn": 5000, "default_pool_size": 10, "reserve_pool_size": 2}
    assert pooler_configuration.open_files_limit(settings, {"shop": {}}) == 5000 + 100 + 24
    entry = {"pool_size": 50, "reserve_pool": 0, "max_db_connections": 70}
    assert pooler_configuration.open_files_limit(settings, {"shop": entry}) == 5000 + 100 + 140
    assert pooler_configuration.open_files_limit({}, {}) == 1024


def test_open_files_know_which_size_holds() -> None:
    """The user's size goes before the database's, and each user that a rule lets in has a pool."""
    settings = {"max_client_conn": 5000, "default_pool_size": 10, "reserve_pool_size": 2}
    users = {"shop": {"pool_size": 2000, "reserve_pool_size": 3}}
    limit = pooler_configuration.open_files_limit
    assert limit(settings, {"shop": {"pool_size": 50}}, users, APPS) == 5000 + 100 + 2 * 2003
    apps = [*APPS, {"database": "blog", "user": "blog"}]
    databases = {"shop": {}, "blog": {}, "reports": {"host": "db1"}}
    rules = [{"database": "reports", "user": "all", "method": "scram-sha-256"}]
    pools = 2003 + 12 + 2003 + 12
    assert limit(settings, databases, users, apps, rules) == 5000 + 100 + 2 * pools
    forced = {"reports": {"host": "db1", "user": "shop"}}
    assert limit(settings, forced, users, apps, rules) == 5000 + 100 + 2 * 2003


def test_bound_of_auth_query_knows_the_users_reserve() -> None:
    settings = {"default_pool_size": 10, "reserve_pool_size": 2}
    users = {"shop": {"reserve_pool_size": 9}}
    databases = {"shop": {"reserve_pool": 1}}
    bound = pooler_configuration.bound_databases(databases, settings, APPS, users, 7)
    assert bound["shop"]["max_db_connections"] == 10 + 9 + 7


def test_auth_query_bounds_every_database() -> None:
    settings = {"default_pool_size": 10, "reserve_pool_size": 2}
    databases = {"shop": {"host": "db"}, "blog": {"pool_size": 3, "reserve_pool": 0}}
    apps = [*APPS, {"database": "mail", "user": "post"}]
    databases["mail"] = {}
    users = {"post": {"pool_size": 20}}
    bound = pooler_configuration.bound_databases(databases, settings, apps, users, 7)
    assert {name: entry["max_db_connections"] for name, entry in bound.items()} == {
        "shop": 19,
        "blog": 10,
        "mail": 29,
    }
