"""Worker processes of an application, with the settings of a fragment and the frameworks' drivers.

The processes are forked from one that has the frameworks in memory, so that a test may have new
ones for each of its settings: what a driver counts, such as the names of its prepared statements,
starts anew in each.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import resource
import runpy
import threading
from collections.abc import Callable, Coroutine
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PROCESSES = 2
CLIENTS = 5  # threads or tasks of each process
TRANSACTIONS = 8  # of each client
STATEMENTS = 8  # of each transaction; psycopg prepares what it has executed 5 times
ROWS = "driver_rows"  # a table (id integer, label text)

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(
    [
        "asyncpg",
        "django.db.backends.postgresql.base",
        "django.db.models",
        "flask_sqlalchemy",
        "psycopg_pool",
        "sqlalchemy.dialects.postgresql.asyncpg",
        "sqlalchemy.dialects.postgresql.psycopg",
        "sqlalchemy.dialects.postgresql.psycopg2",
        "sqlalchemy.ext.asyncio",
    ]
)


def run(
    job: Callable[..., Any], environment: dict[str, str], *arguments: Any, processes: int = 1
) -> list[Any]:
    """Run a function in processes of its own, all at once; return what each of them returned."""
    pipes, workers = [], []
    for _ in range(processes):
        ours, theirs = context.Pipe(duplex=False)
        workers.append(context.Process(target=_work, args=(theirs, job, environment, arguments)))
        workers[-1].start()
        theirs.close()
        pipes.append(ours)
    results = [pipe.recv() if pipe.poll(60) else TimeoutError("60 s") for pipe in pipes]
    for worker in workers:
        worker.join(5)
        worker.kill()
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results


def errors(
    job: Callable[..., list[str]], environment: dict[str, str], *arguments: Any
) -> list[str]:
    """Return the messages of the clients that failed, of all processes."""
    results = run(job, environment, *arguments, processes=PROCESSES)
    return [message for result in results for message in result]


def _work(pipe: Connection, job: Callable, environment: dict[str, str], arguments: tuple) -> None:
    os.environ.update(environment)
    try:
        pipe.send(job(*arguments))
    except Exception as error:
        pipe.send(RuntimeError(f"{type(error).__name__}: {error}"))


def requests(fragment: str) -> list[str]:
    """Run transactions as the fragment's framework would; return the failed clients' messages."""
    names = runpy.run_path(str(ROOT / fragment))
    if "DATABASES" in names:
        return _in_threads(_django_client(names["DATABASES"]))
    if "engine" in names:
        return asyncio.run(_in_tasks(_asyncio_client(names["engine"])))
    return _in_threads(_flask_client(names))


def _in_threads(client: Callable[[], None]) -> list[str]:
    failed: list[str] = []

    def guarded() -> None:
        try:
            client()
        except Exception as error:
            failed.append(_message(error))

    threads = [threading.Thread(target=guarded) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return failed


async def _in_tasks(client: Callable[[], Coroutine]) -> list[str]:
    done = await asyncio.gather(*(client() for _ in range(CLIENTS)), return_exceptions=True)
    return [_message(result) for result in done if result is not None]


def _message(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _same(found: list[Any]) -> None:
    """A transaction has its own numbers back, all of them from one server connection."""
    assert [number for number, _ in found] == list(range(STATEMENTS)), found
    assert len({backend for _, backend in found}) == 1, found


def _django_model(databases: dict[str, Any]) -> Any:
    import django
    from django.conf import settings
    from django.db import models

    settings.configure(DATABASES=databases, USE_TZ=True)
    django.setup()

    class Row(models.Model):
        id = models.IntegerField(primary_key=True)
        label = models.TextField()

        class Meta:
            app_label = "workers"
            managed = False
            db_table = ROWS

    return Row


def _django_client(databases: dict[str, Any]) -> Callable[[], None]:
    from django.db import close_old_connections, connection, transaction

    rows = _django_model(databases).objects.filter(id__lte=500)

    def client() -> None:
        for _ in range(TRANSACTIONS):
            close_old_connections()  # as at the beginning and the end of a request
            found = []
            with transaction.atomic(), connection.cursor() as cursor:
                for number in range(STATEMENTS):
                    cursor.execute("SELECT %s::int, pg_backend_pid()", [number])
                    found.append(cursor.fetchone())
            _same(found)
            # Outside a transaction: a server-side cursor would be read in transactions of its own.
            assert sum(1 for _ in rows.iterator(chunk_size=100)) == 500
            close_old_connections()

    return client


def _flask_client(names: dict[str, Any]) -> Callable[[], None]:
    import flask
    from flask_sqlalchemy import SQLAlchemy
    from sqlalchemy import text

    app = flask.Flask("workers")
    app.config.update({name: value for name, value in names.items() if name.isupper()})
    db = SQLAlchemy(app)
    statement = text("SELECT CAST(:number AS int), pg_backend_pid()")

    def client() -> None:
        for _ in range(TRANSACTIONS):
            with app.app_context():
                rows = (db.session.execute(statement, {"number": n}) for n in range(STATEMENTS))
                _same([tuple(row.one()) for row in rows])
                db.session.commit()

    return client


def _asyncio_client(engine: Any) -> Callable[[], Coroutine]:
    from sqlalchemy import text

    statement = text("SELECT CAST(:number AS int), pg_backend_pid()")

    async def client() -> None:
        for _ in range(TRANSACTIONS):
            async with engine.begin() as connection:
                found = []
                for number in range(STATEMENTS):
                    result = await connection.execute(statement, {"number": number})
                    found.append(tuple(result.one()))
            _same(found)

    return client


def psycopg_transactions(prepare_threshold: int | None) -> list[str]:
    """Run transactions with psycopg alone."""
    import psycopg

    def client() -> None:
        url = os.environ["DATABASE_URL"]
        with psycopg.connect(url, prepare_threshold=prepare_threshold) as connection:
            for _ in range(TRANSACTIONS):
                statement = "SELECT %s::int, pg_backend_pid()"
                rows = (connection.execute(statement, [n]) for n in range(STATEMENTS))
                _same([row.fetchone() for row in rows])
                connection.commit()

    return _in_threads(client)


def asyncpg_transactions() -> list[str]:
    """Run transactions with asyncpg alone, and its defaults."""
    import asyncpg
    from psycopg.conninfo import conninfo_to_dict

    parts = conninfo_to_dict(os.environ["DATABASE_URL"])
    login = {name: parts[name] for name in ("user", "password")} | {"database": parts["dbname"]}
    login |= {name: parts[name].split(",")[0] for name in ("host", "port")}

    async def client() -> None:
        connection = await asyncpg.connect(**login)
        try:
            for _ in range(TRANSACTIONS):
                async with connection.transaction():
                    statement = "SELECT $1::int, pg_backend_pid()"
                    found = [await connection.fetchrow(statement, n) for n in range(STATEMENTS)]
                _same([tuple(row) for row in found])
        finally:
            await connection.close(timeout=5)

    return asyncio.run(_in_tasks(client))


def django_stream(fragment: str, alias: str) -> tuple[int, int]:
    """Read the whole table with .iterator(); return (rows, bytes that the process grew by)."""
    rows = _django_model(runpy.run_path(str(ROOT / fragment))["DATABASES"]).objects.using(alias)
    assert rows.first().id == 1  # connects, and loads what is loaded once
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    count = sum(1 for _ in rows.order_by("id").iterator(chunk_size=2000))
    return count, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
