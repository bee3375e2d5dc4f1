"""What messages hide of an application's environment, and what they must show."""

import json
import shlex
import traceback
from pathlib import Path
from urllib.parse import quote

import pytest

from plugins.filter.quoting import env_file_quote
from plugins.module_utils.secret_values import hide, of_environment, of_url


def environment(**variables: str) -> str:
    return "".join(f"{name}={env_file_quote(value)}\n" for name, value in variables.items())


STORE = {
    "APP_NAME": "storefront",
    "DATABASE_URL": (
        "postgresql://store_user:hunter2@/storefront_db?host=127.0.0.1,database1.example.com"
        "&port=6432,5432&sslmode=require&application_name=storefront"
    ),
    "DATABASE_DIRECT_URL": "postgresql://store_user:hunter2@database1.example.com:5432/storefront_db",
    "DB_HOST": "127.0.0.1,database1.example.com",
    "DB_PORT": "6432,5432",
    "DB_NAME": "storefront_db",
    "DB_USER": "store_user",
    "MAIL_HOST": "database1.example.com",
    "SITE": "storefront",
    "DEBUG": "true",
}


@pytest.mark.parametrize(
    "said",
    [
        "[type=int_parsing, input_value='6432,5432', input_type=str]",
        "No such file: /srv/storefront/venvs/py3.13-0123",
        'could not translate host name "database1.example.com" to address',
        'FATAL: role "store_user" is not permitted to log in to "storefront_db"',
        "connection to 127.0.0.1,database1.example.com, port 6432,5432 failed",
    ],
)
def test_names_stay_readable(said: str) -> None:
    """Host, port, database and role are what such a message is about."""
    assert hide(said, of_environment(environment(**STORE))) == said


def test_short_password_is_hidden() -> None:
    """Wherever a program quotes it."""
    hidden = of_environment(environment(**STORE))
    for said in ("password=hunter2", "pw 'hunter2'", STORE["DATABASE_URL"], str({"a": "hunter2"})):
        assert "hunter2" not in hide(said, hidden)
    # Also as the password of a database whose user and host it is not.
    same = environment(DATABASE_URL="postgresql://shop:shop@db1/shop")
    assert "shop" not in hide("user shop", of_environment(same))


@pytest.mark.parametrize(
    ("name", "value", "hidden"),
    [
        ("MAIL_PASSWORD", "abc", True),
        ("PGPASSWORD", "abc", True),
        ("DB_PASS", "abc", True),
        ("API_KEY", "abcd", True),
        ("SORT_KEY", "id", False),
        ("PASSWORD_MIN_LENGTH", "12", False),
        ("REQUIRE_PASSWORD", "true", False),
        ("MODE", "abc", False),
        ("MODE", "abcdefgh", True),
        ("BROKER", "redis://:abc@cache/0", True),
        ("REPLICA", "host=db2 user=me password=abc", True),
        ("REPLICA", "host=db2 user=me password='a b\\'c'", True),
        ("INDEX", "https://abc@pypi.example.com/simple", True),
        ("EMPTY_PASSWORD", "", False),
    ],
)
def test_what_is_a_secret(name: str, value: str, hidden: bool) -> None:
    secrets = of_environment(environment(**{name: value}))
    words = {"redis": "abc", "host=": "abc", "https": "abc"}
    word = next((w for start, w in words.items() if value.startswith(start)), value)
    if "'" in value:
        word = "a b'c"
    assert (word in secrets) is hidden


def test_of_url() -> None:
    assert of_url("postgresql://me:p%40ss@a:1,b:2/x") == {"p%40ss", "p@ss"}
    assert of_url("postgresql://me@a/x?password=p%40ss&sslmode=require") == {"p%40ss", "p@ss"}
    assert of_url("https://token@host/x") == {"token"}
    assert of_url("ssh://git@host/x") == set()
    assert of_url("no url") == set()
    assert of_url("http://[broken") == set()


SECRET = 'it\'s "quoted"\\ and\nhas % two lines ü'


@pytest.mark.parametrize(
    "written",
    [
        SECRET,
        repr(SECRET),
        repr({"a": [SECRET]}),
        json.dumps(SECRET),
        json.dumps(SECRET, ensure_ascii=False),
        quote(SECRET),
        quote(SECRET, safe=""),
        shlex.quote(SECRET),
        "".join(traceback.format_exception_only(ValueError(SECRET))),
    ],
)
def test_every_notation_is_hidden(written: str) -> None:
    said = hide(f"before {written} after", {SECRET})
    assert "quoted" not in said
    assert "lines" not in said
    assert said.startswith("before ")
    assert said.endswith(" after")


def test_line_of_a_secret_is_hidden() -> None:
    """The end of a log may begin in the middle of it."""
    key = "-----BEGIN KEY-----\n" + "MIIEvQIBADANBgkqhkiG9w0BAQ\n" * 2 + "-----END KEY-----\n"
    secrets = of_environment(environment(SIGNING=key))
    assert "MIIE" not in hide("  MIIEvQIBADANBgkqhkiG9w0BAQ\n-----END KEY-----", secrets)


def test_secret_of_asterisks() -> None:
    assert hide("a*b hunter2", {"*", "hunter2"}) == "a********b ********"


def test_paths_of_the_host_are_no_secrets(tmp_path: Path) -> None:
    long = "/" + "A" * 300  # a key in base64 may begin like a path
    found = of_environment(environment(DATA=str(tmp_path), SIGNING=long, OTHER="/no/such/path"))
    assert str(tmp_path) not in found
    assert {long, "/no/such/path"} <= found
