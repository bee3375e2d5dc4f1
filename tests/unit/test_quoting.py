"""The filters that quote: what each format's own reader makes of them."""

import base64
import hashlib
import hmac
import re
import subprocess
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

import psycopg.pq
import pytest
from ansible.errors import AnsibleFilterError
from collection import COLLECTION
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jinja2.nativetypes import NativeEnvironment
from psycopg.conninfo import conninfo_to_dict

from plugins.filter import quoting

ROOT = Path(__file__).resolve().parents[2]
SEED = "0123456789abcdef"
# What a password may hold: anything printable (a password file takes no line break).
TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1)


def test_verifier_matches_rfc_7677s_own_arithmetic() -> None:
    """RFC 5802: StoredKey = H(HMAC(salted, "Client Key")), ServerKey = HMAC(salted, …)."""
    verifier = quoting.scram_verifier("pencil", "user", SEED)
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
    first = quoting.scram_verifier("pencil", "user", SEED)
    assert first == quoting.scram_verifier("pencil", "user", SEED)
    assert first != quoting.scram_verifier("pencil", "other", SEED)
    assert first != quoting.scram_verifier("pencil", "user", SEED[::-1])


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
        quoting.scram_verifier(password, "user", seed)


@given(user=TEXT, password=TEXT, dbname=TEXT)
def test_uri_comes_back_from_libpqs_own_parser(user: str, password: str, dbname: str) -> None:
    uri = quoting.pg_uri(
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
    uri = quoting.pg_uri(user, password, dbname, hosts, {"application_name": "a,b&c"})
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
    uri = quoting.pg_uri("u", password, "d", [("h", 1)])
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
    uri = quoting.pg_uri("u", "p", "d", [(host, 5432)], scheme="postgresql+asyncpg")
    assert uri == start
    known = conninfo_to_dict(uri.replace("+asyncpg", ""))
    assert (known["host"], known["port"]) == (host, "5432")


@settings(max_examples=25)
@given(password=TEXT.filter(lambda text: len(text) < 200))
def test_password_file_is_read_by_libpq(tmp_path_factory, password: str) -> None:
    """libpq itself looks the password up; no server is needed to ask which one it found."""
    path = tmp_path_factory.mktemp("pgpass") / "pgpass"
    fields = ["*", "*", *(quoting.pgpass_field(value) for value in ("d:b", r"u\ser", password))]
    path.write_text(":".join(fields) + "\n")
    path.chmod(0o600)
    conninfo = f"host=127.0.0.1 port=1 dbname=d:b user='u\\\\ser' passfile='{path}'"
    connection = psycopg.pq.PGconn.connect_start(conninfo.encode())
    assert connection.password == password.encode()
    connection.finish()


@settings(max_examples=25)
@given(value=st.text(st.characters(codec="ascii", exclude_characters="\0\r")))
def test_environment_file_is_read_as_a_shell_would(value: str) -> None:
    r"""systemd's double quotes and sh's agree on the escapes of `"`, `\`, `` ` `` and `$`."""
    line = f"VALUE={quoting.env_file_quote(value)}"
    script = f'{line}\nprintf %s "$VALUE" | od -An -v -tx1'
    output = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout
    assert bytes.fromhex("".join(output.split())) == value.encode()


def test_uri_for_asyncpg_has_only_what_it_takes() -> None:
    parameters = {"connect_timeout": 2, "application_name": "shop", "sslmode": "require"}
    uri = quoting.pg_uri("u", "p", "d", [("h", 1)], parameters, "postgresql+asyncpg")
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
    assert read_systemd(quoting.environment_file(variables, "systemd")) == variables
    assert read_docker(quoting.environment_file(variables, "docker")) == variables


def test_environment_file_is_sorted_and_takes_numbers() -> None:
    variables = {"B": 5, "A": "x y", "C": "two\nlines"}
    text = quoting.environment_file(variables, "systemd")
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
        quoting.environment_file(variables, format)


@given(value=TEXT)
def test_user_list_comes_back(value: str) -> None:
    quoted = quoting.userlist_quote(value)
    assert quoted[0] == quoted[-1] == '"'
    assert quoted[1:-1].replace('""', '"') == value
    assert '"' not in quoted[1:-1].replace('""', "")


@given(value=TEXT)
def test_connection_string_value_comes_back(value: str) -> None:
    quoted = quoting.connstr_quote(value)
    assert quoted[1:-1].replace("''", "'") == value
    assert "'" not in quoted[1:-1].replace("''", "")


@pytest.mark.parametrize(
    ("function", "value"),
    [
        (quoting.pgpass_field, "a\nb"),
        (quoting.env_file_quote, "a\0b"),
        (quoting.userlist_quote, "a\nb"),
        (quoting.connstr_quote, ""),
        (quoting.connstr_quote, "a\nb"),
        (quoting.quote_ident, ""),
    ],
)
def test_what_a_file_cannot_hold_is_refused(function, value: str) -> None:
    with pytest.raises(AnsibleFilterError):
        function(value)


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
    assert quoting.setting_literal(value) == literal


def test_user_list_of_a_pooler_without_applications_is_no_empty_file() -> None:
    """Ansible makes None of an empty template, which pgbouncer_config would take for no file."""
    template = ROOT / "roles/pgbouncer/templates/etc/pgbouncer/userlist.txt.j2"
    environment = NativeEnvironment(trim_blocks=True)
    environment.filters.update(
        {
            **{
                f"{COLLECTION}.{name}": function
                for name, function in quoting.FilterModule().filters().items()
            },
            "bool": bool,
        }
    )
    text = environment.from_string(template.read_text()).render(pgbouncer_applications=[])
    assert text.startswith("; ")
