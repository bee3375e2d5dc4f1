"""DATABASES from the environment, for every connection strategy, WSGI and ASGI.

The URL may name several hosts, to be tried in turn: libpq's own parser reads it, and Django passes
the lists in HOST and PORT on. A pooler in transaction mode lends out a server connection for one
transaction only; a server-side cursor that outlives its transaction would not be found again.
"""

import os

from psycopg.conninfo import conninfo_to_dict

POOL_SIZE = int(os.environ.get("DATABASE_POOL_SIZE", "0"))
MAX_AGE = int(os.environ.get("DATABASE_CONNECTION_MAX_AGE_SECONDS", "60"))
PARTS = {"HOST": "host", "PORT": "port", "NAME": "dbname", "USER": "user", "PASSWORD": "password"}


def database(url: str) -> dict:
    options = conninfo_to_dict(url)
    parts = {setting: options.pop(name, "") for setting, name in PARTS.items()}
    return {"ENGINE": "django.db.backends.postgresql", **parts, "OPTIONS": options}


default = database(os.environ["DATABASE_URL"])
default["CONN_HEALTH_CHECKS"] = True
default["DISABLE_SERVER_SIDE_CURSORS"] = os.environ.get("DATABASE_TRANSACTION_POOLING", "1") == "1"
default["CONN_MAX_AGE"] = 0 if POOL_SIZE else MAX_AGE  # Django wants 0 beside a pool
if POOL_SIZE:  # one pool for each process; "timeout" is how many seconds a request waits for it
    pool = {"min_size": 1, "max_size": POOL_SIZE, "max_lifetime": MAX_AGE, "timeout": 10}
    default["OPTIONS"]["pool"] = pool
# PostgreSQL itself, for large streams through a server-side cursor; not kept between requests.
direct = database(os.environ.get("DATABASE_DIRECT_URL", os.environ["DATABASE_URL"]))
DATABASES = {"default": default, "direct": {**direct, "TEST": {"MIRROR": "default"}}}
