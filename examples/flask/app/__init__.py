import os

from flask import Flask
from flask_migrate import Migrate
from sqlalchemy.exc import DBAPIError

from app.models import db
from app.views import views


def forget_lost_connection(_: BaseException | None) -> None:
    """Runs before Flask-SQLAlchemy's own, whose error would replace the answer by a 500."""
    try:
        db.session.remove()
    except DBAPIError:
        db.session.registry.clear()


def create_app() -> Flask:
    """Everything that differs between installations comes from the environment."""
    app = Flask(__name__)
    app.json.sort_keys = False
    app.config.update(
        APP_NAME=os.environ.get("APP_NAME", "items"),
        APP_VERSION=os.environ.get("APP_VERSION", "dev"),
        SECRET_KEY=os.environ.get("APP_SECRET_KEY"),
    )
    app.config.from_object("app.database")
    db.init_app(app)
    app.teardown_appcontext(forget_lost_connection)
    Migrate(app, db)
    app.register_blueprint(views)
    return app
