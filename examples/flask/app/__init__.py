import os

from flask import Flask
from flask_migrate import Migrate
from psycopg.conninfo import conninfo_to_dict

from app.models import db
from app.views import views


def create_app() -> Flask:
    """Everything that differs between installations comes from the environment."""
    app = Flask(__name__)
    app.json.sort_keys = False
    app.config.update(
        APP_NAME=os.environ.get("APP_NAME", "items"),
        APP_VERSION=os.environ.get("APP_VERSION", "dev"),
        SECRET_KEY=os.environ.get("APP_SECRET_KEY"),
        # The URL may name several hosts, which psycopg tries in turn. SQLAlchemy's URLs know only
        # one, so the parts go to psycopg as they are. The pooler lends out a server connection for
        # one transaction only: a statement prepared in one would be missing, or in the way, in the
        # next.
        SQLALCHEMY_DATABASE_URI="postgresql+psycopg://",
        SQLALCHEMY_ENGINE_OPTIONS={
            "connect_args": {
                **conninfo_to_dict(os.environ["DATABASE_URL"]),
                "prepare_threshold": None,
            },
            "pool_size": int(os.environ.get("DATABASE_POOL_SIZE", "5")),
            "max_overflow": 0,
            "pool_recycle": int(os.environ.get("DATABASE_CONNECTION_MAX_AGE_SECONDS", "60")),
            "pool_pre_ping": True,
        },
    )
    db.init_app(app)
    Migrate(app, db)
    app.register_blueprint(views)
    return app
