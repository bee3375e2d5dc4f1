"""Settings, all of them from the environment: the same build runs everywhere."""

import os
from typing import Any

from psycopg.conninfo import conninfo_to_dict

APP_NAME = os.environ.get("APP_NAME", "items")
APP_VERSION = os.environ.get("APP_VERSION", "dev")
SECRET_KEY = os.environ["APP_SECRET_KEY"]
ALLOWED_HOSTS = os.environ.get("APP_ALLOWED_HOSTS", "127.0.0.1,localhost").split(",")
DEBUG = False

INSTALLED_APPS = ["items"]
MIDDLEWARE = ["django.middleware.security.SecurityMiddleware"]
ROOT_URLCONF = "config.urls"
WSGI_APPLICATION = "config.wsgi.application"
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
TIME_ZONE = "UTC"


def database(url: str, **settings: Any) -> dict[str, Any]:
    """Turn a libpq URI into a DATABASES entry.

    libpq's own parser is used because the URI may name several hosts, to be tried in turn; the
    usual URL helpers know only one. HOST and PORT then hold comma separated lists, which Django
    passes on as they are.
    """
    options = conninfo_to_dict(url)
    return {
        "ENGINE": "django.db.backends.postgresql",
        "HOST": options.pop("host", ""),
        "PORT": options.pop("port", ""),
        "NAME": options.pop("dbname", ""),
        "USER": options.pop("user", ""),
        "PASSWORD": options.pop("password", ""),
        "OPTIONS": options,
        **settings,
    }


DATABASE_URL = os.environ["DATABASE_URL"]
DATABASES = {
    # The pooler lends out a server connection for one transaction only. Keeping the connection to
    # the pooler is cheap and saves a login per request; a server-side cursor, which outlives its
    # transaction, would not be found again.
    "default": database(
        DATABASE_URL,
        CONN_MAX_AGE=int(os.environ.get("DATABASE_CONNECTION_MAX_AGE_SECONDS", "60")),
        CONN_HEALTH_CHECKS=True,
        DISABLE_SERVER_SIDE_CURSORS=True,
    ),
    # PostgreSQL itself, for the export's server-side cursor; not kept between requests.
    "direct": database(
        os.environ.get("DATABASE_DIRECT_URL", DATABASE_URL),
        CONN_MAX_AGE=0,
        TEST={"MIRROR": "default"},
    ),
}

# With DEBUG off Django only mails errors; a service's errors belong on stderr.
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["stderr"], "level": "WARNING"},
    "loggers": {"django.request": {"level": "ERROR"}},  # a client's mistake is no news
}
