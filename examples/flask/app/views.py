import json
import re
from collections.abc import Iterator
from typing import Any

from flask import Blueprint, Request, Response, current_app, render_template, request
from sqlalchemy import Engine, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import InterfaceError, InternalError, OperationalError, TimeoutError
from sqlalchemy.orm import Session

from app.models import Item, db
from app.readiness import database_path

views = Blueprint("views", __name__)

Answer = tuple[dict[str, Any], int]


def status() -> dict[str, str]:
    """What /readyz and the start page tell about this service."""
    service = {
        "service": current_app.config["APP_NAME"],
        "version": current_app.config["APP_VERSION"],
    }
    try:
        return {"database": "ok", "path": database_path(db.engine), **service}
    except Exception as error:  # whatever is wrong, the answer is "not ready"
        cause = getattr(error, "orig", None) or error  # the driver's words, not SQLAlchemy's
        reason = (str(cause) or type(cause).__name__).splitlines()[0]
        current_app.logger.warning("database check failed: %s", reason)
        return {"database": "error", "reason": reason, **service}


@views.app_errorhandler(InterfaceError)
@views.app_errorhandler(InternalError)
@views.app_errorhandler(OperationalError)
@views.app_errorhandler(TimeoutError)
def unavailable(error: Exception) -> tuple[dict[str, str], int, dict[str, str]]:
    """503 where the database is lost, full or too slow: load balancers and clients try again."""
    if isinstance(error, InternalError) and getattr(error.orig, "sqlstate", None):
        raise error  # PostgreSQL's own; the driver's, without a state, mean a lost connection
    current_app.logger.error("database not available: %s", str(error).partition("\n")[0])
    return {"error": "the database is not available"}, 503, {"Retry-After": "2"}


@views.get("/")
def index() -> str:
    return render_template("index.html", **status())


@views.get("/healthz")
def healthz() -> dict[str, str]:
    """The process is alive; the database is /readyz's business."""
    return {"status": "ok"}


@views.get("/readyz")
def readyz() -> Answer:
    body = status()
    return body, 200 if body["database"] == "ok" else 503


def reader() -> Session:
    """The request's session, whose statements are each a transaction of their own.

    A lone SELECT is a transaction by itself: BEGIN and ROLLBACK would be two more round trips.
    """
    db.session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
    return db.session


@views.get("/ping-db")
def ping_db() -> dict[str, int]:
    return {"result": reader().scalar(text("SELECT 1"))}


@views.get("/nodb")
def nodb() -> dict[str, int]:
    """The answer of /ping-db without the query, to compare with."""
    return {"result": 1}


@views.get("/items")
def newest_items() -> dict[str, list[dict[str, Any]]]:
    query = select(Item).order_by(Item.created_at.desc(), Item.id.desc()).limit(50)
    return {"items": [item.as_dict() for item in reader().scalars(query)]}


@views.post("/items")
def create_item() -> Answer:
    """Add an item, or return the one that has this key: safe to repeat, also at the same time.

    When another transaction is adding the same key, the insert waits for it; the select, with a
    newer snapshot, then sees the other's row.
    """
    try:
        key, name = parse_item(request)
    except ValueError as error:
        return {"error": str(error)}, 400
    add = insert(Item).values(key=key, name=name).on_conflict_do_nothing(index_elements=[Item.key])
    with db.session.begin():
        created = db.session.scalar(add.returning(Item))
        item = created or db.session.scalar(select(Item).where(Item.key == key))
        return item.as_dict(), 201 if created else 200


def parse_item(request: Request) -> tuple[str, str]:
    """Return the request's key and name; raise ValueError with a message for the client."""
    # A page of another site cannot send this type unasked, which is why no CSRF token is needed.
    if request.mimetype != "application/json":
        raise ValueError("the content type must be application/json")
    try:
        data = json.loads(request.get_data())
    except (ValueError, RecursionError):
        raise ValueError("the body is not valid JSON") from None
    if not isinstance(data, dict):
        raise ValueError("the body must be a JSON object")
    return parse_text(data, "key", limit=200), parse_text(data, "name", limit=1000)


def parse_text(data: dict[str, Any], field: str, limit: int) -> str:
    value = data.get(field)
    if not isinstance(value, str) or not 1 <= len(value) <= limit:
        raise ValueError(f"{field} must be a string of 1 to {limit} characters")
    if re.search("[\0\ud800-\udfff]", value):
        raise ValueError(f"{field} has characters that PostgreSQL cannot store")
    return value


@views.get("/export")
def export() -> Response:
    return Response(export_lines(db.engine), mimetype="application/x-ndjson")


def export_lines(engine: Engine) -> Iterator[str]:
    """Read through a server-side cursor, so that the table never is in memory as a whole.

    The request's own session ends with the view, before the first line is sent; hence another.
    Its transaction lasts until the last line is sent, and holds one of the pooler's server
    connections for as long.
    """
    query = select(Item).order_by(Item.id).execution_options(yield_per=1000)
    with Session(engine) as session:
        for chunk in session.scalars(query).partitions():
            yield "".join(json.dumps(item.as_dict()) + "\n" for item in chunk)
