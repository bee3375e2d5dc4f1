"""What AWS refuses: botocore's own model of the ECS API, and a table of rules beyond it.

Sentences in quotes are the documentation in botocore's service model (botocore 1.44.8, ecs).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import botocore.session
from botocore.model import ServiceModel, Shape
from botocore.validate import ParamValidator
from moto.ecs.exceptions import ECSException

MODEL: ServiceModel = botocore.session.get_session().get_service_model("ecs")

FARGATE_SIZES = {
    256: {512, 1024, 2048},
    512: set(range(1024, 4097, 1024)),
    1024: set(range(2048, 8193, 1024)),
    2048: set(range(4096, 16385, 1024)),
    4096: set(range(8192, 30721, 1024)),
    8192: set(range(16384, 61441, 4096)),
    16384: set(range(32768, 122881, 8192)),
}
"""RegisterTaskDefinition, memory: "512 (0.5 GB), 1024 (1 GB), 2048 (2 GB) - Available cpu values:
256 (.25 vCPU)", and so on; MiB by cpu units."""

RANGES = {
    ("startTimeout",): (2, 120),  # "The valid values for Fargate are 2-120 seconds."
    ("stopTimeout",): (2, 120),  # "the max stop timeout value is 120 seconds"
    ("healthCheck", "interval"): (5, 300),  # "You may specify between 5 and 300 seconds."
    ("healthCheck", "timeout"): (2, 60),  # "You may specify between 2 and 60 seconds."
    ("healthCheck", "retries"): (1, 10),  # "You may specify between 1 and 10 retries."
    ("healthCheck", "startPeriod"): (0, 300),  # "You can specify between 0 and 300 seconds."
    # "a minimum restartAttemptPeriod of 60 seconds and a maximum ... of 1800 seconds"
    ("restartPolicy", "restartAttemptPeriod"): (60, 1800),
}

NOT_ON_FARGATE = ("privileged", "links", "dnsServers", "dnsSearchDomains", "dockerSecurityOptions")
"""ContainerDefinition: "This parameter is not supported for ... tasks run on Fargate.", or for
the network mode awsvpc."""


def client_error(message: str) -> ECSException:
    return ECSException("ClientException", message)


def parameter_error(message: str) -> ECSException:
    return ECSException("InvalidParameterException", message)


def check_shape(operation: str, parameters: dict[str, Any]) -> None:
    """Refuse what the model does not allow: members, types, ranges and the words of enums."""
    shape = MODEL.operation_model(operation).input_shape
    report = ParamValidator().validate(parameters, shape)
    problems = [report.generate_report()] if report.has_errors() else []
    if not problems:
        problems = list(wrong_words(shape, parameters, ""))
    if problems:
        raise parameter_error("; ".join(problems))


def wrong_words(shape: Shape, value: Any, where: str) -> Iterator[str]:
    if shape.type_name == "structure":
        for key, member in value.items():
            yield from wrong_words(shape.members[key], member, f"{where}.{key}")
    elif shape.type_name == "list":
        for number, member in enumerate(value):
            yield from wrong_words(shape.member, member, f"{where}[{number}]")
    elif getattr(shape, "enum", None) and value not in shape.enum:
        yield f"{where} is {value!r}, should be one of {shape.enum}"


def check_definition(definition: dict[str, Any]) -> None:
    """Refuse a task definition (the parameters of RegisterTaskDefinition)."""
    for problem in problems_of(definition):
        raise client_error(problem)


def problems_of(definition: dict[str, Any]) -> Iterator[str]:
    containers = definition["containerDefinitions"]
    names = [container.get("name") for container in containers]
    if len(set(names)) != len(names):
        yield "Container names must be unique."
    # "All tasks must have at least one essential container."
    if not any(container.get("essential", True) for container in containers):
        yield "A task definition must have at least one essential container."
    by_name = dict(zip(names, containers, strict=True))
    for container in containers:
        yield from problems_of_container(container, by_name, definition)
    if cycle(by_name):
        yield "There is a cycle in the container dependencies."
    if "FARGATE" in definition.get("requiresCompatibilities", ()):
        yield from problems_on_fargate(definition)


def problems_of_container(
    container: dict[str, Any], by_name: dict[str, Any], definition: dict[str, Any]
) -> Iterator[str]:
    name = container["name"]
    for dependency in container.get("dependsOn", ()):
        other, condition = by_name.get(dependency["containerName"]), dependency["condition"]
        if other is None:
            yield f"{name}: dependsOn names an unknown container {dependency['containerName']}."
        # "This condition can't be set on an essential container."
        elif condition in ("COMPLETE", "SUCCESS") and other.get("essential", True):
            yield f"{name}: condition {condition} cannot be set on an essential container."
        # "This requires that the dependent container has health checks configured."
        elif condition == "HEALTHY" and not other.get("healthCheck"):
            yield f"{name}: {dependency['containerName']} has no health check."
    for path, (low, high) in RANGES.items():
        value: Any = container
        for key in path:
            value = (value or {}).get(key)
        if value is not None and not low <= value <= high:
            yield f"{name}: {'.'.join(path)} is {value}, must be between {low} and {high}."
    command = container.get("healthCheck", {}).get("command", ["CMD"])
    # "The string array must start with CMD ... or CMD-SHELL"
    if not command or command[0] not in ("CMD", "CMD-SHELL"):
        yield f"{name}: the health check's command must start with CMD or CMD-SHELL."
    # "You can specify a maximum of 50 container exit codes."
    if len(container.get("restartPolicy", {}).get("ignoredExitCodes", ())) > 50:
        yield f"{name}: more than 50 ignoredExitCodes."
    volumes = {volume["name"] for volume in definition.get("volumes", ())}
    for mount in container.get("mountPoints", ()):
        if mount.get("sourceVolume") not in volumes:
            yield f"{name}: Unknown volume '{mount.get('sourceVolume')}'."
    # "You must also specify a value for 'executionRoleArn'" (AWS's message)
    if container.get("secrets") and not definition.get("executionRoleArn"):
        yield f"{name}: when you specify container secrets, you must also specify executionRoleArn."
    given = [row["name"] for key in ("environment", "secrets") for row in container.get(key, ())]
    if len(given) != len(set(given)):
        yield f"{name}: the secret name must be unique and not shared with the environment."


def problems_on_fargate(definition: dict[str, Any]) -> Iterator[str]:
    cpu, memory = (size(definition.get(key)) for key in ("cpu", "memory"))
    if memory not in FARGATE_SIZES.get(cpu, ()):
        yield f"No Fargate configuration exists for given values: {cpu} CPU, {memory} memory."
    # networkMode: "If you are using the Fargate launch type, the awsvpc network mode is required."
    if definition.get("networkMode") != "awsvpc":
        yield "Fargate only supports network mode 'awsvpc'."
    for volume in definition.get("volumes", ()):
        # "If you're using the Fargate launch type, the sourcePath parameter is not supported."
        if volume.get("host", {}).get("sourcePath"):
            yield f"volume {volume['name']}: host.sourcePath is not supported on Fargate."
    for container in definition["containerDefinitions"]:
        name, linux = container["name"], container.get("linuxParameters", {})
        for key in NOT_ON_FARGATE:
            if container.get(key):
                yield f"{name}: {key} is not supported on Fargate."
        # "Tasks launched on Fargate only support adding the SYS_PTRACE kernel capability."
        if set(linux.get("capabilities", {}).get("add", ())) - {"SYS_PTRACE"}:
            yield f"{name}: only the capability SYS_PTRACE can be added on Fargate."
        # LinuxParameters: "If you are using tasks that use the Fargate launch type, the ...
        # parameter is not supported."
        for key in ("devices", "sharedMemorySize", "tmpfs", "maxSwap", "swappiness"):
            if linux.get(key):
                yield f"{name}: linuxParameters.{key} is not supported on Fargate."
        for mapping in container.get("portMappings", ()):
            if mapping.get("hostPort", 0) not in (0, mapping.get("containerPort")):
                # "The hostPort can be left blank or it must be the same value"
                yield f"{name}: hostPort must be the containerPort with the network mode awsvpc."
        logs = container.get("logConfiguration", {})
        if logs.get("logDriver") == "awslogs":
            for option in ("awslogs-group", "awslogs-region", "awslogs-stream-prefix"):
                if not logs.get("options", {}).get(option):
                    yield f"{name}: log driver awslogs requires option {option} on Fargate."
            if not definition.get("executionRoleArn"):
                yield "Fargate requires an execution role ARN to support log driver awslogs."


def size(value: str | None) -> int:
    """Read cpu units or MiB: "String values are converted to an integer" (1 vCPU, 2GB)."""
    text = (value or "0").lower().replace(" ", "")
    for unit in ("vcpu", "gb"):
        if text.endswith(unit):
            return int(float(text.removesuffix(unit)) * 1024)
    return int(text) if text.isdigit() else 0


def cycle(by_name: dict[str, Any]) -> bool:
    left = {
        name: {row["containerName"] for row in container.get("dependsOn", ())}
        for name, container in by_name.items()
    }
    while free := [name for name, needs in left.items() if not needs & left.keys()]:
        for name in free:
            del left[name]
    return bool(left)
