"""Filters of the role ecs. Every function is pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ansible.errors import AnsibleFilterError

from ..module_utils.secret_values import passwords_of
from ..plugin_utils.ecs_tasks import maximum_percent, tasks_of

DIGEST = r"\S+@sha256:[0-9a-f]{64}"
ARN = r"arn:[\w-]+:elasticloadbalancing:[\w-]+:\d+:targetgroup/\S+"
FARGATE = {
    256: (512, 1024, 2048),
    512: tuple(range(1024, 4097, 1024)),
    1024: tuple(range(2048, 8193, 1024)),
    2048: tuple(range(4096, 16385, 1024)),
    4096: tuple(range(8192, 30721, 1024)),
    8192: tuple(range(16384, 61441, 4096)),
    16384: tuple(range(32768, 122881, 8192)),
}
"""{CPU units: the MiB of memory that a task of Fargate may have with them}."""

LONGEST_STOP_SECONDS = 120
"""Fargate's maximum of stopTimeout."""

OWN_VARIABLES = ("APP_HEALTH_HEADERS", "GUNICORN_CONF", "DATABASE_CA", "MIGRATION")
"""Variables of the containers beside those of the role app's environment."""

CA_BYTES = 16384
"""The largest database_ca_file: both containers hold it, and a definition has 64 KiB in all."""


def ecs_maximum_percent(tasks: int, serial: str) -> int:
    """Return ECS's maximumPercent: room for one batch (app_serial) beside all tasks."""
    return maximum_percent(int(tasks), str(serial))


def ecs_errors(given: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the variables of a service, each with the variable to change.

    given: of the role ecs misspelt (messages), region, service, base_image, registry, tasks,
    tasks_max, cpu, memory_mib; of the role app timeout_seconds, strategy, processes,
    state_directories, resource_limits, target_group_arns; pgbouncer_processes,
    pgbouncer_exporter_enabled, tls (pgbouncer_tls_certificate_file), listen_addr of the pooler,
    database_ca_bytes, the names in build_environment and in secrets, and plain, those of poolkit's
    own variables that are no secrets.
    """
    errors = [f"unknown variable {message}" for message in given["misspelt"]]
    if not re.fullmatch(r"[a-z]{2}(-[a-z]+)+-\d", str(given["region"])):
        errors.append(f"ecs_region is {given['region']!r}: set AWS_REGION, such as eu-central-1")
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,200}", str(given["service"])):
        errors.append(f"ecs_service is {given['service']!r}: use letters, digits, - and _")
    if not re.fullmatch(DIGEST, str(given["base_image"])):
        errors.append(
            f"ecs_base_image is {given['base_image']!r}: give an image with its digest, "
            "debian@sha256:…, as `docker pull debian:13-slim` prints it"
        )
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*(:\d+)?(/[a-z0-9._-]+)*", str(given["registry"])):
        errors.append(
            f"ecs_registry is {given['registry']!r}: give a host and a path in small letters, "
            "such as 123456789012.dkr.ecr.eu-central-1.amazonaws.com/shop"
        )
    try:
        tasks_of({"ecs_tasks": given["tasks"], "ecs_tasks_max": given["tasks_max"]}, "ecs")
    except AnsibleFilterError as error:
        errors.append(str(error).removeprefix("ecs: "))
    cpu, memory = int(given["cpu"]), int(given["memory_mib"])
    if memory not in FARGATE.get(cpu, ()):
        right = FARGATE.get(cpu) or tuple(FARGATE)
        what = f"with ecs_cpu {cpu} give as ecs_memory_mib" if cpu in FARGATE else "give as ecs_cpu"
        errors.append(
            f"ecs_cpu is {cpu} and ecs_memory_mib {memory}, which Fargate does not have: {what} "
            f"one of {', '.join(str(size) for size in right)}"
        )
    if int(given["timeout_seconds"]) + 5 > LONGEST_STOP_SECONDS:
        errors.append(
            f"app_timeout_seconds is {given['timeout_seconds']}, and Fargate kills a task that "
            f"takes {LONGEST_STOP_SECONDS} s to stop: give at most {LONGEST_STOP_SECONDS - 5}"
        )
    if given["strategy"] == "managed":
        errors.append("app_connection_strategy is managed, which services of ECS do not have yet")
    for variable, value, advice in (
        (
            "app_processes",
            given["processes"],
            "run workers and schedules on hosts, or as services "
            "of your own with this image (app-start run COMMAND)",
        ),
        (
            "app_state_directories",
            given["state_directories"],
            "a task's files end with it: keep them in S3 or in EFS",
        ),
        ("app_resource_limits", given["resource_limits"], "give ecs_cpu and ecs_memory_mib"),
        (
            "pgbouncer_exporter_enabled",
            given["pgbouncer_exporter_enabled"],
            "a task has no exporter",
        ),
        ("pgbouncer_tls_certificate_file", given["tls"], "nothing but the task reaches its pooler"),
    ):
        if value:
            errors.append(f"{variable} is set, which a service of ECS cannot have: {advice}")
    if str(given["listen_addr"]) != "127.0.0.1":
        # All containers of a task share its address, with and without port mappings.
        errors.append(
            f"pgbouncer_listen_addr is {given['listen_addr']}: others than its task would reach "
            "the pooler; leave it out, and pgbouncer_listen_on_all_addresses too"
        )
    if int(given["pgbouncer_processes"]) != 1:
        errors.append("pgbouncer_processes is not 1: a task has one; give more ecs_tasks instead")
    errors += [
        f"app_target_group_arns has {arn!r}: give the ARN of a target group"
        for arn in given["target_group_arns"]
        if not re.fullmatch(ARN, str(arn))
    ]
    errors += [
        f"ecs_secrets.{name}: poolkit makes this variable itself; leave it out"
        for name in given["secrets"]
        if name in (*OWN_VARIABLES, *given["plain"])
        or re.search(r"(^|_)DATABASE_(DIRECT_)?URL$", str(name))
    ]
    if len(given["target_group_arns"]) > 5:
        errors.append("app_target_group_arns has more than 5, the most that a service of ECS takes")
    errors += [
        f"ecs_build_environment: {name!r} is no name of a variable: use letters, digits and _"
        for name in given["build_environment"]
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", str(name))
    ]
    if int(given["database_ca_bytes"]) > CA_BYTES:
        errors.append(
            f"database_ca_file has {given['database_ca_bytes']} bytes, and a task definition has "
            f"room for {CA_BYTES}: give your region's file, https://truststore.pki.rds.amazonaws.com/"
            "REGION/REGION-bundle.pem, instead of global-bundle.pem"
        )
    return errors


def environment_secrets(environment: Mapping[str, Any]) -> list[str]:
    """Return the values of an environment that are secret, by their names and by their form."""
    return sorted(passwords_of({name: str(value) for name, value in environment.items()}))


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Any]:
        return {
            "ecs_errors": ecs_errors,
            "ecs_maximum_percent": ecs_maximum_percent,
            "environment_secrets": environment_secrets,
        }
