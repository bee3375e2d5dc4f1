"""What libraries of others make of the URL: the table of docs/databases.md, row by row."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pytest
import readers
from conftest import Pooler

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    *("psycopg[binary]==3.3.9", "psycopg2-binary==2.9.13", "asyncpg==0.32.0", "django==5.2.19"),
    *("dj-database-url==3.1.2", "django-environ==0.14.0", "environs==15.2.0", "peewee==4.5.3"),
    *("pydantic==2.14.4", "tortoise-orm==0.19.1", "databases[asyncpg]==0.8.0"),
    *("sqlalchemy==1.4.54", "alembic==1.19.2"),
)
"""They want another SQLAlchemy than poolkit's own tests, so they have an environment of theirs."""

FORMS = ("list", "one", "plain")
TABLE = {
    cells[0]: dict(zip(FORMS, cells[1:], strict=True))
    for line in (ROOT / "docs/databases.md").read_text().splitlines()
    if len(cells := [cell.strip() for cell in line.strip("|").split("|")]) == 4
    and re.match(r"yes|no:", cells[1])
}


@pytest.fixture(scope="module")
def found(
    poolers: dict[str, Pooler], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, str]]:
    """Return {reader: {form: "yes", or what it says}}, through the pooler of Debian 13."""
    folder = tmp_path_factory.mktemp("readers") / "venv"
    for command in (["venv", str(folder)], ["pip", "install", "-p", str(folder), *PACKAGES]):
        subprocess.run([Path(sys.executable).parent / "uv", *command, "--quiet"], check=True)
    pooler = poolers["trixie1"]
    login, parameters = f"shop:{quote(pooler.password, safe='')}", "connect_timeout=2"
    one = f"postgresql://{login}@{pooler.address}:6432/shop"
    # The fallback refuses, so what answers is the pooler.
    hosts = f"host={pooler.address},127.0.0.1&port=6432,1"
    urls = {
        "list": f"postgresql://{login}@/shop?{hosts}&{parameters}&application_name=shop",
        "one": f"{one}?{parameters}&application_name=shop",
        "plain": one,
    }
    given = "[urls]\n" + "".join(f"{name} = {url}\n" for name, url in urls.items())
    done = subprocess.run(
        [folder / "bin/python", readers.__file__], input=given, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_the_page_has_every_reader() -> None:
    assert set(TABLE) == set(readers.READERS)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("reader", TABLE)
def test_reader(found: dict[str, dict[str, str]], reader: str, form: str) -> None:
    said, expected = found[reader][form], TABLE[reader][form]
    if expected == "yes":
        assert said == "yes"
    else:
        assert expected.removeprefix("no: ") in said
