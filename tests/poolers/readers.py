"""Read a URL with libraries of others, and log in; prints {reader: {form: result}} as JSON.

Standard input: [urls] with list (a list of hosts), one (one host, with parameters) and plain (one
host without parameters). Runs in a virtual environment of its own: test_drivers_readers.py.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable
from configparser import ConfigParser

SELECT = "SELECT current_user"


def django(settings: dict) -> str:
    from django.conf import settings as configured
    from django.db.utils import ConnectionHandler

    if not configured.configured:
        configured.configure(USE_TZ=True)
    connection = ConnectionHandler({"default": settings})["default"]
    with connection.cursor() as cursor:
        cursor.execute(SELECT)
        return cursor.fetchone()[0]


def django_environ(url: str) -> str:
    import environ

    os.environ["DATABASE_URL"] = url
    return django(environ.Env().db())


def dj_database_url(url: str) -> str:
    import dj_database_url

    return django(dj_database_url.parse(url))


def environs(url: str) -> str:
    from environs import Env

    os.environ["DATABASE_URL"] = url
    return django(Env().dj_db_url("DATABASE_URL"))


def psycopg_through(url: str) -> str:
    import psycopg

    with psycopg.connect(url, prepare_threshold=None) as connection:
        return connection.execute(SELECT).fetchone()[0]


def pydantic(url: str) -> str:
    from pydantic import PostgresDsn, TypeAdapter

    return psycopg_through(str(TypeAdapter(PostgresDsn).validate_python(url)))


def asyncpg(url: str) -> str:
    import asyncpg

    async def ask() -> str:
        connection = await asyncpg.connect(url, statement_cache_size=0)
        try:
            return await connection.fetchval(SELECT)
        finally:
            await connection.close()

    return asyncio.run(ask())


def tortoise(url: str) -> str:
    from tortoise import Tortoise, connections

    async def ask() -> str:
        await Tortoise.init(db_url=url.replace("postgresql:", "asyncpg:"), modules={"models": []})
        try:
            rows = await connections.get("default").execute_query_dict(SELECT)
            return rows[0]["current_user"]
        finally:
            await connections.close_all()

    return asyncio.run(ask())


def databases(url: str) -> str:
    from databases import Database

    async def ask() -> str:
        async with Database(url, min_size=1, max_size=1, statement_cache_size=0) as database:
            return await database.fetch_val(SELECT)

    return asyncio.run(ask())


def sqlalchemy_14(url: str) -> str:
    from sqlalchemy import create_engine

    with create_engine(url).connect() as connection:
        return connection.execute(SELECT).scalar()


def alembic(url: str) -> str:
    from alembic.config import Config

    config = Config()
    config.set_main_option("sqlalchemy.url", url)
    return sqlalchemy_14(config.get_main_option("sqlalchemy.url"))


def alembic_doubled(url: str) -> str:
    return alembic(url.replace("%", "%%"))


def peewee(url: str) -> str:
    from playhouse.db_url import connect

    return connect(url, unquote_password=True, unquote_user=True).execute_sql(SELECT).fetchone()[0]


READERS: dict[str, Callable[[str], str]] = {
    "django-environ": django_environ,
    "dj-database-url": dj_database_url,
    "environs": environs,
    "pydantic PostgresDsn": pydantic,
    "psycopg": psycopg_through,
    "asyncpg": asyncpg,
    "Tortoise": tortoise,
    "databases": databases,
    "SQLAlchemy 1.4": sqlalchemy_14,
    "Alembic's ini": alembic,
    "Alembic's ini, % doubled": alembic_doubled,
    "peewee": peewee,
}


def attempt(reader: Callable[[str], str], url: str) -> str:
    try:
        return "yes" if reader(url) == "shop" else "another user"
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:300]


def main() -> None:
    # The URLs hold a password: they come on standard input.
    given = ConfigParser(interpolation=None)
    given.read_file(sys.stdin)
    urls = given["urls"]
    found = {
        name: {form: attempt(reader, urls[form]) for form in ("list", "one", "plain")}
        for name, reader in READERS.items()
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
