"""Everything that differs between installations comes from the environment."""

import os

APP_NAME = os.environ.get("APP_NAME", "items")
APP_VERSION = os.environ.get("APP_VERSION", "dev")
DATABASE_URL = os.environ["DATABASE_URL"]
POOL_SIZE = int(os.environ.get("DATABASE_POOL_SIZE", "5"))
CONNECTION_MAX_AGE = int(os.environ.get("DATABASE_CONNECTION_MAX_AGE_SECONDS", "60"))
