"""Settings, all of them from the environment: the same build runs everywhere."""

import os

from config.database import DATABASES  # noqa: F401 (Django reads it here)

APP_NAME = os.environ.get("APP_NAME", "items")
APP_VERSION = os.environ.get("APP_VERSION", "dev")
SECRET_KEY = os.environ["APP_SECRET_KEY"]
ALLOWED_HOSTS = os.environ.get("APP_ALLOWED_HOSTS", "127.0.0.1,localhost").split(",")
DEBUG = False

INSTALLED_APPS = ["items"]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "items.unavailable.UnavailableMiddleware",
]
ROOT_URLCONF = "config.urls"
WSGI_APPLICATION = "config.wsgi.application"
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
TIME_ZONE = "UTC"

# With DEBUG off Django only mails errors; a service's errors belong on stderr.
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["stderr"], "level": "WARNING"},
    "loggers": {"django.request": {"level": "ERROR"}},  # a client's mistake is no news
}
