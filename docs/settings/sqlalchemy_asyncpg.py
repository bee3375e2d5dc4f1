"""The engine from the environment, for every connection strategy: SQLAlchemy with asyncpg.

asyncpg has names of its own for libpq's parameters and refuses the others; the authority of a
server's certificate it takes from the environment alone. Its timeout is for all hosts together: the
next host is tried when the first refuses, not when it is silent. Without the two caches no
statement keeps a name, which the next server connection would not know; that needs asyncpg 0.31 or
later.
"""

import math
import os
import random
import time

from sqlalchemy import NullPool, make_url
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.ext.asyncio import create_async_engine

url = make_url(os.environ["DATABASE_URL"]).set(drivername="postgresql+asyncpg")
connect_args = {
    "timeout": float(url.query.get("connect_timeout", "60")),
    "ssl": url.query.get("sslmode", "prefer"),
    "server_settings": {"application_name": url.query.get("application_name", "")},
}
if os.environ.get("DATABASE_TRANSACTION_POOLING", "1") == "1":
    connect_args |= {"statement_cache_size": 0, "prepared_statement_cache_size": 0}
if root := url.query.get("sslrootcert"):
    os.environ["PGSSLROOTCERT"] = root
direct = make_url(os.environ.get("DATABASE_DIRECT_URL", "postgresql://"))
url = url.set(query={name: url.query[name] for name in ("host", "port") if name in url.query})


def note_the_way(_, record) -> None:
    """Keep a connection past the pooler for 5 to 10 s: by then the pooler may be back.

    Each has a time of its own, so that they do not all come back at once.
    """
    way = record.driver_connection._addr  # no public name tells it
    past = "," in url.query.get("host", "") and way == (direct.host, direct.port or 5432)
    record.info["until"] = time.monotonic() + (random.uniform(5, 10) if past else math.inf)


def check(_, record, __) -> None:
    """Do without a query what pool_pre_ping asks in each request; the pool then reconnects."""
    if record.driver_connection.is_closed() or time.monotonic() > record.info["until"]:
        raise DisconnectionError


pool = {"poolclass": NullPool}
if pool_size := int(os.environ.get("DATABASE_POOL_SIZE", "5")):
    pool = {"pool_size": pool_size, "max_overflow": 0, "pool_timeout": 4}
    pool |= {"pool_recycle": int(os.environ.get("DATABASE_CONNECTION_MAX_AGE_SECONDS", "60"))}
pool["pool_events"] = [(note_the_way, "connect"), (check, "checkout")]
engine = create_async_engine(url, connect_args=connect_args, **pool)
