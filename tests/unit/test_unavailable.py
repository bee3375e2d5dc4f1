"""Which errors Django's example answers with 503; the fault matrix asks all three frameworks."""

from __future__ import annotations

import runpy
from pathlib import Path

import django.db
import psycopg
import pytest
from django.conf import settings

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("error", "cause", "status"),
    [
        (django.db.OperationalError, psycopg.OperationalError("connection refused"), 503),
        (django.db.InterfaceError, psycopg.InterfaceError("the connection is closed"), 503),
        # Of a server that went while it answered; no state, since the driver says so itself.
        (django.db.InternalError, psycopg.InternalError("received 2 results"), 503),
        (django.db.InternalError, psycopg.errors.InFailedSqlTransaction("aborted"), None),
        (django.db.IntegrityError, psycopg.errors.UniqueViolation("twice"), None),
        (ValueError, None, None),
    ],
)
def test_lost_connections_are_told_from_mistakes(
    error: type[Exception], cause: Exception | None, status: int | None
) -> None:
    if not settings.configured:
        settings.configure(USE_TZ=True)
    names = runpy.run_path(str(ROOT / "examples/django/items/unavailable.py"))
    middleware = names["UnavailableMiddleware"](lambda request: None)
    raised = error("words\nmore")
    raised.__cause__ = cause
    answer = middleware.process_exception(None, raised)
    assert (answer and answer.status_code) == status
    assert answer is None or answer["Retry-After"] == "2"
