"""A session per request, and the check behind /readyz."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext, suppress
from time import monotonic
from typing import Annotated

from fastapi import Depends
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_sessionmaker

from app.engine import POOL_TIMEOUT, engine, pool_size

CHECK_TIMEOUT = 4.5  # seconds; whoever probes us should have an answer within 5

new_session = async_sessionmaker(engine, expire_on_commit=False)
# A lone SELECT is a transaction by itself: BEGIN and ROLLBACK would be two more round trips.
autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")


class Turns(asyncio.Semaphore):
    """A queue in front of the pool: as many as it has connections, the others in their order.

    The pool gives a connection that comes back to whoever asks at that moment, and who has waited
    waits again: with 50 clients, one request in a hundred took six times as long.
    """

    async def acquire(self) -> bool:
        try:
            async with asyncio.timeout(POOL_TIMEOUT):
                return await super().acquire()
        except TimeoutError:
            raise PoolTimeoutError(f"no connection came free within {POOL_TIMEOUT} s") from None


turns = Turns(pool_size) if pool_size else nullcontext()


async def session() -> AsyncIterator[AsyncSession]:
    async with turns, closing(new_session()) as session:
        yield session


async def reader() -> AsyncIterator[AsyncSession]:
    """A session whose statements are each a transaction of their own: for requests that read."""
    async with turns, closing(new_session(bind=autocommit)) as session:
        yield session


@asynccontextmanager
async def reading() -> AsyncIterator[AsyncConnection]:
    """The same without the ORM, which takes a third of the time of a short request."""
    async with turns, autocommit.connect() as connection:
        yield connection


@asynccontextmanager
async def closing(session: AsyncSession) -> AsyncIterator[AsyncSession]:
    try:
        yield session
    finally:
        with suppress(DBAPIError):  # of a lost connection: it would cut the answer off
            await asyncio.shield(session.close())


Session = Annotated[AsyncSession, Depends(session)]
Reader = Annotated[AsyncSession, Depends(reader)]

_check: asyncio.Task[str] | None = None
_deadline = 0.0


async def database_path() -> str:
    """Return "pooler" or "direct"; raise an error when the database does not answer in time.

    Callers share the check in flight and its deadline, so a stall costs one connection, not one
    per probe, and once it is known, no more time. A late check is cancelled but not waited for:
    psycopg first asks the server to cancel the query, which a stalled one does not answer either;
    some seconds later it drops the connection.
    """
    global _check, _deadline
    if _check is None or _check.done():
        _check, _deadline = asyncio.create_task(_query_path()), monotonic() + CHECK_TIMEOUT
    check = _check
    await asyncio.wait({check}, timeout=_deadline - monotonic())
    if check.done() and not check.cancelled():
        return check.result()
    if not check.cancelling():  # a second request would cut psycopg's own cancellation short
        check.cancel()
    raise TimeoutError(f"no answer from the database within {CHECK_TIMEOUT} s")


async def _query_path() -> str:
    """Compare the process that we logged in to with the one that runs our query.

    A pooler answers the login itself, with a process id of its own making.
    """
    async with turns, engine.connect() as connection:
        question = text("SELECT pg_backend_pid(), current_setting('transaction_read_only')")
        pid, read_only = (await connection.execute(question)).one()
        if read_only == "on":  # a server that was demoted, or a standby
            raise OSError("the database takes no writes: it is read-only")
        driver_connection = (await connection.get_raw_connection()).driver_connection
        return "direct" if driver_connection.info.backend_pid == pid else "pooler"
