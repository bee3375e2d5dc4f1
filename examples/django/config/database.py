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


def database(variable: str) -> dict:
    options = conninfo_to_dict(os.environ.get(variable, os.environ["DATABASE_URL"]))
    parts = {setting: options.pop(name, "") for setting, name in PARTS.items()}
    return {"ENGINE": "django.db.backends.postgresql", **parts, "OPTIONS": options}


def pooled(variable: str) -> dict:
    found = database(variable)
    if POOL_SIZE:  # one for each process, without CONN_MAX_AGE; a request waits 4 s for it
        pool = {"min_size": 1, "max_size": POOL_SIZE, "max_lifetime": MAX_AGE, "timeout": 4}
        found["OPTIONS"]["pool"] = {**pool, "reset": leave_the_pool}
    found["OPTIONS"] = {**LOST_HOST, **found["OPTIONS"]}
    found["DISABLE_SERVER_SIDE_CURSORS"] = os.getenv("DATABASE_TRANSACTION_POOLING", "1") == "1"
    return {**found, "CONN_HEALTH_CHECKS": True, "CONN_MAX_AGE": 0 if POOL_SIZE else MAX_AGE}


def note_the_way(connection, **_) -> None:
    """Keep a connection past the pooler for 5 to 10 s, each its own time: it may be back then."""
    alias, made, driver = connection.alias, time.monotonic(), connection.connection
    if alias not in PREFIXES:
        return
    connection.is_usable = lambda: is_usable(alias, connection.connection, made)
    way = {"HOST": driver.info.host, "PORT": str(driver.info.port)}
    past = database(f"{PREFIXES[alias]}DATABASE_DIRECT_URL").items() >= way.items()
    if past and "," in DATABASES[alias]["HOST"]:
        driver.until = getattr(driver, "until", made + random.uniform(5, 10))
        connection.close_at = min(connection.close_at, driver.until)


def is_usable(alias: str, connection, made: float) -> bool:
    """Do without the query of CONN_HEALTH_CHECKS in each request.

    A connection that the other end has closed is readable. One that is idle is not. Where one was
    lost, the older ones of the other threads are not tried either: each would have to fail first.
    """
    idle = select.poll()
    if connection and not connection.closed:
        idle.register(connection.fileno(), select.POLLIN)
    if not connection or connection.closed or idle.poll(0):
        lost[alias] = time.monotonic()
    return made > lost.get(alias, 0)


def leave_the_pool(connection) -> None:
    """Let the pool replace a connection past the pooler that is old enough."""
    if time.monotonic() > getattr(connection, "until", float("inf")):
        connection.close()


lost = {}  # when a connection of each database was last found to be gone
connection_created.connect(note_the_way)
further = [name[:-19] for name in os.environ if name.endswith("_DATABASE_DIRECT_URL")]  # REPORTS_
PREFIXES = {"default": "", **{prefix[:-1].lower(): prefix for prefix in further}}
DATABASES = {alias: pooled(f"{prefix}DATABASE_URL") for alias, prefix in PREFIXES.items()}
# PostgreSQL itself, for large streams through a server-side cursor; not kept between requests.
DATABASES["direct"] = {**database("DATABASE_DIRECT_URL"), "TEST": {"MIRROR": "default"}}
