import json
import logging
import re
from collections.abc import Iterator
from typing import Any

from django.conf import settings
from django.core.exceptions import RequestDataTooBig
from django.db import connection, transaction
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_GET, require_http_methods

from items.models import Item
from items.readiness import database_path

logger = logging.getLogger(__name__)


def status() -> dict[str, str]:
    """What /readyz and the start page tell about this service."""
    service = {"service": settings.APP_NAME, "version": settings.APP_VERSION}
    try:
        return {"database": "ok", "path": database_path(), **service}
    except Exception as error:  # whatever is wrong, the answer is "not ready"
        reason = (str(error) or type(error).__name__).splitlines()[0]
        logger.warning("database check failed: %s", reason)
        return {"database": "error", "reason": reason, **service}


@require_GET
def index(request: HttpRequest) -> HttpResponse:
    return render(request, "items/index.html", status())


@require_GET
def healthz(request: HttpRequest) -> JsonResponse:
    """The process is alive; the database is /readyz's business."""
    return JsonResponse({"status": "ok"})


@require_GET
def readyz(request: HttpRequest) -> JsonResponse:
    body = status()
    return JsonResponse(body, status=200 if body["database"] == "ok" else 503)


@require_GET
def ping_db(request: HttpRequest) -> JsonResponse:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        (result,) = cursor.fetchone()
    return JsonResponse({"result": result})


@require_GET
def nodb(request: HttpRequest) -> JsonResponse:
    """The answer of /ping-db without the query, to compare with."""
    return JsonResponse({"result": 1})


@require_http_methods(["GET", "POST"])
def items(request: HttpRequest) -> JsonResponse:
    if request.method == "POST":
        return create_item(request)
    newest = Item.objects.order_by("-created_at", "-id")[:50]
    return JsonResponse({"items": [item.as_dict() for item in newest]})


def create_item(request: HttpRequest) -> JsonResponse:
    """Add an item, or return the one that has this key: safe to repeat, also at the same time."""
    try:
        key, name = parse_item(request)
    except ValueError as error:
        return JsonResponse({"error": str(error)}, status=400)
    with transaction.atomic():
        item, created = Item.objects.get_or_create(key=key, defaults={"name": name})
    return JsonResponse(item.as_dict(), status=201 if created else 200)


def parse_item(request: HttpRequest) -> tuple[str, str]:
    """Return the request's key and name; raise ValueError with a message for the client."""
    # A page of another site cannot send this type unasked, which is why no CSRF token is needed.
    if request.content_type != "application/json":
        raise ValueError("the content type must be application/json")
    try:
        data = json.loads(request.body)
    except (ValueError, RecursionError, RequestDataTooBig):
        raise ValueError("the body is not valid JSON, or too large") from None
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


@require_GET
def export(request: HttpRequest) -> StreamingHttpResponse:
    return StreamingHttpResponse(export_lines(), content_type="application/x-ndjson")


def export_lines() -> Iterator[str]:
    """Read through a server-side cursor, so that the table never is in memory as a whole.

    The transaction spares PostgreSQL from storing the result first, as a cursor that has to
    outlive its transaction makes it do.
    """
    with transaction.atomic(using="direct"):
        rows = Item.objects.using("direct").order_by("id")
        for item in rows.iterator(chunk_size=2000):
            yield json.dumps(item.as_dict()) + "\n"
