"""Flask-SQLAlchemy's settings from the environment, for every connection strategy, with psycopg.

The URL may name several hosts, to be tried in turn: libpq's own parser reads it. A pooler in
transaction mode lends out a server connection for one transaction only: a statement prepared in one
would be missing, or in the way, in the next.
"""

import math
import os
import random
import select
import time

from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import NullPool
from sqlalchemy.exc import DisconnectionError

# A host that is gone, and sends not even a refusal, is noticed within 2 s with a query under way
# (milliseconds) and within 8 s without one.
LOST_HOST = {"tcp_user_timeout": 2000, "keepalives_idle": 5}
LOST_HOST |= {"keepalives_interval": 1, "keepalives_count": 3}


def check(_, record, __) -> None:
    """Do without a query what pool_pre_ping asks in each request; the pool then reconnects.

    A connection that the other end has closed is readable. One that is idle is not.
    """
    idle, connection = select.poll(), record.driver_connection
    if not connection.closed:
        idle.register(connection.fileno(), select.POLLIN)
    if connection.closed or idle.poll(0) or time.monotonic() > record.info["until"]:
        raise DisconnectionError


def options(prefix: str = "") -> dict:
    """Return an engine's options; prefix: of its variables, REPORTS_ for REPORTS_DATABASE_URL."""
    connect_args = {**LOST_HOST, **conninfo_to_dict(os.environ[f"{prefix}DATABASE_URL"])}
    direct = conninfo_to_dict(os.environ.get(f"{prefix}DATABASE_DIRECT_URL", ""))
    if os.environ.get("DATABASE_TRANSACTION_POOLING", "1") == "1":
        connect_args["prepare_threshold"] = None

    def note_the_way(_, record) -> None:
        """Keep a connection past the pooler for 5 to 10 s: by then the pooler may be back.

        Each has a time of its own, so that they do not all come back at once.
        """
        info = record.driver_connection.info
        past = (direct.get("host"), direct.get("port", "5432")) == (info.host, str(info.port))
        past = past and "," in connect_args.get("host", "")
        record.info["until"] = time.monotonic() + (random.uniform(5, 10) if past else math.inf)

    pool = {"poolclass": NullPool}
    if pool_size := int(os.environ.get("DATABASE_POOL_SIZE", "5")):
        pool = {"pool_size": pool_size, "max_overflow": 0}
        pool["pool_timeout"] = 4  # how many seconds a request waits for a connection
        pool["pool_recycle"] = int(os.environ.get("DATABASE_CONNECTION_MAX_AGE_SECONDS", "60"))
    events = [(note_the_way, "connect"), (check, "checkout")]
    return {"connect_args": connect_args, **pool, "pool_events": events}


SQLALCHEMY_DATABASE_URI = "postgresql+psycopg://"
SQLALCHEMY_ENGINE_OPTIONS = options()
END = "DATABASE_DIRECT_URL"  # REPORTS_DATABASE_DIRECT_URL: beside it is REPORTS_DATABASE_URL
further = [name.removesuffix(END) for name in os.environ if name.endswith(f"_{END}")]
SQLALCHEMY_BINDS = {
    prefix[:-1].lower(): {"url": SQLALCHEMY_DATABASE_URI, **options(prefix)} for prefix in further
}
