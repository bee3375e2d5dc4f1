"""Flask-SQLAlchemy's settings from the environment, for every connection strategy, with psycopg2.

The URL may name several hosts, to be tried in turn: libpq's own parser reads it. psycopg2 prepares
no statements, so a pooler in transaction mode needs no setting of its own.
"""

import os

from psycopg2.extensions import parse_dsn
from sqlalchemy import NullPool

pool = {"poolclass": NullPool}
if pool_size := int(os.environ.get("DATABASE_POOL_SIZE", "5")):
    pool = {
        "pool_size": pool_size,
        "max_overflow": 0,
        "pool_timeout": 10,  # how many seconds a request waits for a connection
        "pool_recycle": int(os.environ.get("DATABASE_CONNECTION_MAX_AGE_SECONDS", "60")),
        "pool_pre_ping": True,
    }
SQLALCHEMY_DATABASE_URI = "postgresql+psycopg2://"
SQLALCHEMY_ENGINE_OPTIONS = {"connect_args": parse_dsn(os.environ["DATABASE_URL"]), **pool}
