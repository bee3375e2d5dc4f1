import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from html import escape
from pathlib import Path
from string import Template
from typing import Annotated, Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from pydantic import AfterValidator, BaseModel, Field
from sqlalchemy import select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import InterfaceError, InternalError, OperationalError, TimeoutError
from starlette.exceptions import HTTPException

from app.database import Reader, Session, database_path, reading
from app.engine import engine
from app.models import Item
from app.settings import APP_NAME, APP_VERSION

logger = logging.getLogger(__name__)
INDEX = Template(Path(__file__).with_name("index.html").read_text(encoding="utf-8"))


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield
    await engine.dispose()


app = FastAPI(title=APP_NAME, version=APP_VERSION, lifespan=lifespan)


def storable(value: str) -> str:
    if "\0" in value:
        raise ValueError("PostgreSQL cannot store NUL characters")
    return value


class NewItem(BaseModel):
    key: Annotated[str, Field(min_length=1, max_length=200), AfterValidator(storable)]
    name: Annotated[str, Field(min_length=1, max_length=1000), AfterValidator(storable)]


@app.exception_handler(RequestValidationError)
async def invalid_request(request: Request, error: RequestValidationError) -> JSONResponse:
    """Answer 400 with one message, as the service's clients expect, instead of 422 with a list."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return JSONResponse({"error": f"{where}: {first['msg']}"}, status_code=400)


@app.exception_handler(HTTPException)
async def http_error(request: Request, error: HTTPException) -> JSONResponse:
    return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)


@app.exception_handler(InterfaceError)
@app.exception_handler(InternalError)
@app.exception_handler(OperationalError)
@app.exception_handler(TimeoutError)
async def unavailable(request: Request, error: Exception) -> JSONResponse:
    """503 where the database is lost, full or too slow: load balancers and clients try again."""
    if isinstance(error, InternalError) and error.orig.sqlstate:
        raise error  # PostgreSQL's own; the driver's, without a state, mean a lost connection
    logger.error("database not available: %s", str(error).partition("\n")[0])
    body = {"error": "the database is not available"}
    return JSONResponse(body, status_code=503, headers={"Retry-After": "2"})


async def status() -> dict[str, str]:
    """What /readyz and the start page tell about this service."""
    service = {"service": APP_NAME, "version": APP_VERSION}
    try:
        return {"database": "ok", "path": await database_path(), **service}
    except Exception as error:  # whatever is wrong, the answer is "not ready"
        cause = getattr(error, "orig", None) or error  # the driver's words, not SQLAlchemy's
        reason = (str(cause) or type(cause).__name__).splitlines()[0]
        logger.warning("database check failed: %s", reason)
        return {"database": "error", "reason": reason, **service}


@app.get("/", response_class=HTMLResponse)
async def index() -> str:
    state = await status()
    database = "reachable" if "path" in state else f"not reachable: {state['reason']}"
    values = {"service": APP_NAME, "version": APP_VERSION, "database": database}
    values["path"] = state.get("path", "none")
    return INDEX.substitute({name: escape(value) for name, value in values.items()})


@app.get("/healthz")
async def healthz() -> dict[str, str]:
    """The process is alive; the database is /readyz's business."""
    return {"status": "ok"}


@app.get("/readyz")
async def readyz() -> JSONResponse:
    body = await status()
    return JSONResponse(body, status_code=200 if body["database"] == "ok" else 503)


@app.get("/ping-db")
async def ping_db() -> dict[str, int]:
    async with reading() as connection:
        return {"result": await connection.scalar(text("SELECT 1"))}


@app.get("/nodb")
async def nodb() -> dict[str, int]:
    """The answer of /ping-db without the query, to compare with."""
    return {"result": 1}


@app.get("/items")
async def newest_items(session: Reader) -> dict[str, list[dict[str, Any]]]:
    query = select(Item).order_by(Item.created_at.desc(), Item.id.desc()).limit(50)
    return {"items": [item.as_dict() for item in await session.scalars(query)]}


@app.post("/items")
async def create_item(new: NewItem, session: Session) -> JSONResponse:
    """Add an item, or return the one that has this key: safe to repeat, also at the same time.

    When another transaction is adding the same key, the insert waits for it; the select, with a
    newer snapshot, then sees the other's row.
    """
    values = new.model_dump()
    add = insert(Item).values(values).on_conflict_do_nothing(index_elements=[Item.key])
    async with session.begin():
        created = await session.scalar(add.returning(Item))
        item = created or await session.scalar(select(Item).where(Item.key == new.key))
    return JSONResponse(item.as_dict(), status_code=201 if created else 200)


@app.get("/export")
async def export(session: Session) -> StreamingResponse:
    """Read through a server-side cursor, so that the table never is in memory as a whole.

    The session's transaction lasts until the last line is sent, and holds one of the pooler's
    server connections for as long.
    """
    query = select(Item).order_by(Item.id).execution_options(yield_per=1000)
    rows = await session.stream_scalars(query)

    async def lines() -> AsyncIterator[str]:
        async for chunk in rows.partitions():
            yield "".join(json.dumps(item.as_dict()) + "\n" for item in chunk)

    return StreamingResponse(lines(), media_type="application/x-ndjson")
