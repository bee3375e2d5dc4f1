"""The engine from the environment, for every connection strategy: SQLAlchemy with asyncpg.

asyncpg has names of its own for libpq's parameters and refuses the others. Its timeout is for all
hosts together: the next host is tried when the first refuses, not when it is silent. Without the
two caches no statement keeps a name, which the next server connection would not know; that needs
asyncpg 0.31 or later.
"""

import os

from sqlalchemy import NullPool, make_url
from sqlalchemy.ext.asyncio import create_async_engine

url = make_url(os.environ["DATABASE_URL"]).set(drivername="postgresql+asyncpg")
connect_args = {
    "timeout": float(url.query.get("connect_timeout", "60")),
    "ssl": url.query.get("sslmode", "prefer"),
    "server_settings": {"application_name": url.query.get("application_name", "")},
}
if os.environ.get("DATABASE_TRANSACTION_POOLING", "1") == "1":
    connect_args |= {"statement_cache_size": 0, "prepared_statement_cache_size": 0}
pool = {"poolclass": NullPool}
if pool_size := int(os.environ.get("DATABASE_POOL_SIZE", "5")):
    age = int(os.environ.get("DATABASE_CONNECTION_MAX_AGE_SECONDS", "60"))
    pool = {"pool_size": pool_size, "max_overflow": 0, "pool_timeout": 10}
    pool |= {"pool_recycle": age, "pool_pre_ping": True}
url = url.difference_update_query(["connect_timeout", "sslmode", "application_name"])
engine = create_async_engine(url, connect_args=connect_args, **pool)
