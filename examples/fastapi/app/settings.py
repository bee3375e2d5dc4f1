"""What differs between installations comes from the environment; see also app/engine.py."""

import os

APP_NAME = os.environ.get("APP_NAME", "items")
APP_VERSION = os.environ.get("APP_VERSION", "dev")
