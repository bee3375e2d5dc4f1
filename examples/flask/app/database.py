"""Flask-SQLAlchemy's settings from the environment, for every connection strategy, with psycopg.

The URL may name several hosts, to be tried in turn: libpq's own parser reads it. A pooler in
transaction mode lends out a server connection for one transaction only: a statement prepared in one
would be missing, or in the way, in the next.
"""

import os

from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import NullPool

connect_args = conninfo_to_dict(os.environ["DATABASE_URL"])
if os.environ.get("DATABASE_TRANSACTION_POOLING", "1") == "1":
    connect_args["prepare_threshold"] = None
pool = {"poolclass": NullPool}
if pool_size := int(os.environ.get("DATABASE_POOL_SIZE", "5")):
    pool = {
        "pool_size": pool_size,
        "max_overflow": 0,
        "pool_timeout": 10,  # how many seconds a request waits for a connection
        "pool_recycle": int(os.environ.get("DATABASE_CONNECTION_MAX_AGE_SECONDS", "60")),
        "pool_pre_ping": True,
    }
SQLALCHEMY_DATABASE_URI = "postgresql+psycopg://"
SQLALCHEMY_ENGINE_OPTIONS = {"connect_args": connect_args, **pool}
