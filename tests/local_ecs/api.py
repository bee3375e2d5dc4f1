"""moto's server in this process, whose calls are recorded and whose ECS we answer ourselves.

moto keeps clusters, task definitions, tags and every other service. Services, deployments and
tasks are answered by operations.py, because moto only pretends to run them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from moto.core.exceptions import ServiceException
from moto.core.responses import ActionResult, BaseResponse
from moto.moto_api._internal.models import moto_api_backend
from moto.server import ThreadedMotoServer

from .rules import check_shape

ACCOUNT = "123456789012"
REGION = "eu-central-1"
OUR_AGENT = "local-ecs"
"""Part of the user agent of the facade's own clients: their calls are not recorded."""

Answer = Callable[[dict[str, Any]], dict[str, Any] | None]


@dataclass(frozen=True)
class Call:
    """One request to the API, as an IAM policy names it: service:operation."""

    service: str
    operation: str
    parameters: dict[str, Any]

    @property
    def action(self) -> str:
        prefix = {"elbv2": "elasticloadbalancing"}.get(self.service, self.service)
        return f"{prefix}:{self.operation}"


class Api:
    """The server, as a context manager. answers maps ECS operations to ours.

    An answer that returns None leaves the request to moto.
    """

    def __init__(self, answers: dict[str, Answer], address: str = "127.0.0.1") -> None:
        self.answers = answers
        self.calls: list[Call] = []
        self.server = ThreadedMotoServer(ip_address=address, port=0, verbose=False)
        self.original = BaseResponse.call_action
        moto_api_backend.reset()
        logging.getLogger("werkzeug").setLevel(logging.WARNING)

    def __enter__(self) -> Api:
        api = self

        def call_action(response: BaseResponse) -> Any:
            return api.call(response)

        BaseResponse.call_action = call_action  # type: ignore[method-assign]
        self.server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.stop()
        BaseResponse.call_action = self.original  # type: ignore[method-assign]

    @property
    def endpoint(self) -> str:
        host, port = self.server.get_host_and_port()
        return f"http://{host}:{port}"

    def call(self, response: BaseResponse) -> Any:
        service, operation = response.boto3_service_name, response._get_action()
        parameters = self.parameters(response)
        if operation and OUR_AGENT not in response.headers.get("User-Agent", ""):
            self.calls.append(Call(service, operation, parameters))
        if service != "ecs":
            return self.original(response)
        try:
            check_shape(operation, parameters)
            answer = self.answers.get(operation, lambda _: None)(parameters)
        except ServiceException as error:
            # As moto's call_action does with what a method of its own raises.
            status, headers, body = response.serialized(ActionResult(error))
            return status, headers | {"status": str(status)}, body
        if answer is None:
            return self.original(response)
        return response.serialized(ActionResult(answer))

    @staticmethod
    def parameters(response: BaseResponse) -> dict[str, Any]:
        """Return the request's parameters by the service's model, or as sent where it fails."""
        if response.boto3_service_name == "ecs":
            return json.loads(response.body or "{}")
        if not response.automated_parameter_parsing:
            with suppress(Exception):
                response.parse_parameters(response.normalized_request)
        return dict(getattr(response, "params", None) or {})
