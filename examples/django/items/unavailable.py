"""503 where the database is lost, full or too slow: load balancers and clients try again."""

import logging

from django.db import InterfaceError, InternalError, OperationalError
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.utils.deprecation import MiddlewareMixin

logger = logging.getLogger(__name__)


class UnavailableMiddleware(MiddlewareMixin):
    """Answer errors of the connection; those of the application's own code stay 500."""

    def process_exception(self, request: HttpRequest, error: Exception) -> HttpResponse | None:
        # PostgreSQL's own internal errors have a state; the driver's, without one, mean a lost
        # connection.
        lost = isinstance(error, InternalError) and not getattr(error.__cause__, "sqlstate", None)
        if not lost and not isinstance(error, (OperationalError, InterfaceError)):
            return None
        logger.error("database not available: %s", str(error).partition("\n")[0])
        body = {"error": "the database is not available"}
        return JsonResponse(body, status=503, headers={"Retry-After": "2"})
