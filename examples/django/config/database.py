"""DATABASES from the environment, for every connection strategy, WSGI and ASGI.

The URL may name several hosts, to be tried in turn: libpq's own parser reads it, and Django passes
the lists in HOST and PORT on. A pooler in transaction mode lends out a server connection for one
transaction only; a server-side cursor that outlives its transaction would not be found again.
"""

import os
import random
import select
import time

from django.db.backends.signals import connection_created
from psycopg.conninfo import conninfo_to_dict

POOL_SIZE = int(os.environ.get("DATABASE_POOL_SIZE", "0"))
MAX_AGE = int(os.environ.get("DATABASE_CONNECTION_MAX_AGE_SECONDS", "60"))
PARTS = {"HOST": "host", "PORT": "port", "NAME": "dbname", "USER": "user", "PASSWORD": "password"}
# A host that is gone, and sends not even a refusal, is noticed within 2 s with a query under way
# (milliseconds) and within 8 s without one.
LOST_HOST = {"tcp_user_timeout": 2000, "keepalives_idle": 5}
LOST_HOST |= {"keepalives_interval": 1, "keepalives_count": 3}


def database(url: str) -> dict:
    options = conninfo_to_dict(url)
    parts = {setting: options.pop(name, "") for setting, name in PARTS.items()}
    return {"ENGINE": "django.db.backends.postgresql", **parts, "OPTIONS": options}


def note_the_way(connection, **_) -> None:
    """Keep a connection past the pooler for 5 to 10 s: by then the pooler may be back.

    Each has a time of its own, so that they do not all come back at once.
    """
    if connection.alias != "default":
        return
    made, driver = time.monotonic(), connection.connection
    connection.is_usable = lambda: is_usable(connection.connection, made)
    way = (driver.info.host, str(driver.info.port))
    if "," in default["HOST"] and way == (direct["HOST"], direct["PORT"] or "5432"):
        driver.until = getattr(driver, "until", made + random.uniform(5, 10))
        connection.close_at = min(connection.close_at, driver.until)


def is_usable(connection, made: float) -> bool:
    """Do without the query of CONN_HEALTH_CHECKS in each request.

    A connection that the other end has closed is readable. One that is idle is not. Where one was
    lost, the older ones of the other threads are not tried either: each would have to fail first.
    """
    idle = select.poll()
    if connection and not connection.closed:
        idle.register(connection.fileno(), select.POLLIN)
    if not connection or connection.closed or idle.poll(0):
        lost[0] = time.monotonic()
    return made > lost[0]


def leave_the_pool(connection) -> None:
    """Let the pool replace a connection past the pooler that is old enough."""
    if time.monotonic() > getattr(connection, "until", float("inf")):
        connection.close()


lost = [0.0]  # when a connection was last found to be gone
connection_created.connect(note_the_way)
default = database(os.environ["DATABASE_URL"])
default["OPTIONS"] = {**LOST_HOST, **default["OPTIONS"]}
default["CONN_HEALTH_CHECKS"] = True
default["DISABLE_SERVER_SIDE_CURSORS"] = os.environ.get("DATABASE_TRANSACTION_POOLING", "1") == "1"
default["CONN_MAX_AGE"] = 0 if POOL_SIZE else MAX_AGE  # Django wants 0 beside a pool
if POOL_SIZE:  # one pool for each process; "timeout" is how many seconds a request waits for it
    pool = {"min_size": 1, "max_size": POOL_SIZE, "max_lifetime": MAX_AGE, "timeout": 4}
    default["OPTIONS"]["pool"] = {**pool, "reset": leave_the_pool}
# PostgreSQL itself, for large streams through a server-side cursor; not kept between requests.
direct = database(os.environ.get("DATABASE_DIRECT_URL", os.environ["DATABASE_URL"]))
DATABASES = {"default": default, "direct": {**direct, "TEST": {"MIRROR": "default"}}}
