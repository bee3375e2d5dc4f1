"""The typed catalogue: what is refused, with which words, on which version."""

import re
from pathlib import Path

import pgbouncer_settings
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

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
        known = pgbouncer_settings.known_settings(settings, CATALOGUE, version)
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
        ({"server_check_query": ["a"]}, "is a list: PgBouncer reads one string here"),
        ({"server_tls_ca_file": "ca.pem"}, "give an absolute path"),
        ({"max_client_conn": 99999999999}, "the largest number is 2147483647"),
        ({"job_name": 5}, "give it as text, in quotes"),
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
        st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=("Cs",)), min_size=1),
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
    shares = pgbouncer_settings.per_process(
        {"default_pool_size": limit, "max_client_conn": limit}, processes
    )
    assert shares["default_pool_size"] * processes <= limit
    assert shares["max_client_conn"] * processes >= limit


def test_limits_of_the_host_are_divided() -> None:
    limits = {"default_pool_size": 10, "reserve_pool_size": 2, "max_client_conn": 500, "x": "y"}
    shares = pgbouncer_settings.per_process(limits, 4)
    assert shares == {
        "default_pool_size": 2,
        "reserve_pool_size": 0,
        "max_client_conn": 125,
        "x": "y",
    }
    assert pgbouncer_settings.per_process({"max_client_conn": 10}, 4) == {"max_client_conn": 3}


def test_open_files_cover_clients_and_pools() -> None:
    settings = {"max_client_conn": 5000, "default_pool_size": 10, "reserve_pool_size": 2}
    assert pgbouncer_settings.open_files_limit(settings, {"shop": {}}) == 5000 + 100 + 24
    entry = {"pool_size": 50, "reserve_pool": 0, "max_db_connections": 70}
    assert pgbouncer_settings.open_files_limit(settings, {"shop": entry}) == 5000 + 100 + 140
    assert pgbouncer_settings.open_files_limit({}, {}) == 1024


def test_auth_query_bounds_every_database() -> None:
    settings = {"default_pool_size": 10, "reserve_pool_size": 2}
    databases = {"shop": {"host": "db"}, "blog": {"pool_size": 3, "reserve_pool": 0}}
    apps = [*APPS, {"database": "mail", "user": "post"}]
    databases["mail"] = {}
    users = {"post": {"pool_size": 20}}
    bound = pgbouncer_settings.bound_databases(databases, settings, apps, users, 7)
    assert {name: entry["max_db_connections"] for name, entry in bound.items()} == {
        "shop": 19,
        "blog": 10,
        "mail": 29,
    }
