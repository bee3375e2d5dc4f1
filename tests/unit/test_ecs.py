"""Task definitions of ECS: compared, judged and deployed; the tasks of a service in the budget."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from plugins.filter.connection_budget import connection_budget
from plugins.filter.ecs import ecs_errors, ecs_maximum_percent
from plugins.filter.fleet import fleet
from plugins.module_utils import ecs_client
from plugins.module_utils.ecs_definition import (
    BEFORE,
    COMPLETED,
    clear_text,
    definition_errors,
    differences,
    migration_verdict,
    normalised,
    rollback_target,
    verdict,
    why_stopped,
)
from plugins.module_utils.refused import Refused
from plugins.modules import ecs_release, ecs_secret

DIGEST = "example.com/shop@sha256:" + "0" * 64
DEFINITION: dict[str, Any] = {
    "family": "shop",
    "networkMode": "awsvpc",
    "requiresCompatibilities": ["FARGATE"],
    "cpu": "512",
    "memory": "1024",
    "executionRoleArn": "arn:aws:iam::1:role/e",
    "taskRoleArn": "arn:aws:iam::1:role/t",
    "volumes": [{"name": "run"}, {"name": "tmp"}],
    "containerDefinitions": [
        {
            "name": "pgbouncer",
            "image": DIGEST,
            "essential": False,
            "restartPolicy": {"enabled": True, "restartAttemptPeriod": 60},
            "healthCheck": {"command": ["CMD", "check"], "interval": 5, "timeout": 3, "retries": 3},
            "startTimeout": 60,
            "stopTimeout": 30,
            "readonlyRootFilesystem": True,
            "linuxParameters": {"initProcessEnabled": True, "capabilities": {"drop": ["ALL"]}},
            "ulimits": [{"name": "nofile", "softLimit": 900, "hardLimit": 900}],
            "environment": [
                {"name": "PGBOUNCER_INI", "value": "[pgbouncer]\npool_mode = transaction\n"},
                {"name": "PGBOUNCER_HBA", "value": "host all all 127.0.0.1/32 scram-sha-256\n"},
            ],
            "secrets": [{"name": "USERLIST", "valueFrom": "arn:aws:secretsmanager:…:k::v1"}],
        },
        {
            "name": "web",
            "image": DIGEST,
            "command": ["app-start", "serve"],
            "dependsOn": [{"containerName": "pgbouncer", "condition": "HEALTHY"}],
            "portMappings": [{"containerPort": 8000, "protocol": "tcp"}],
            "mountPoints": [{"sourceVolume": "run", "containerPath": "/run/app"}],
            "environment": [{"name": "RATE", "value": "1"}],
            "logConfiguration": {"logDriver": "awslogs", "options": {"awslogs-group": "/ecs/shop"}},
        },
    ],
}


def answered(definition: dict[str, Any]) -> dict[str, Any]:
    """Return a definition as DescribeTaskDefinition returns it: with what ECS fills in."""
    found = copy.deepcopy(definition)
    for container in found["containerDefinitions"]:
        container.setdefault("cpu", 0)
        container.setdefault("essential", True)
        for key in ("environment", "mountPoints", "portMappings", "volumesFrom", "systemControls"):
            container.setdefault(key, [])
        container["environment"].reverse()
        for port in container["portMappings"]:
            port["hostPort"] = port["containerPort"]
    found["containerDefinitions"].reverse()
    answer = {"taskDefinitionArn": "arn:x:task-definition/shop:1", "revision": 1}
    return {
        **found,
        **answer,
        "status": "ACTIVE",
        "placementConstraints": [],
        "compatibilities": [],
        "enableFaultInjection": False,
    }


def leaves(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """Yield the path of each value of a definition."""
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(part, (*path, key))
    else:
        yield path


def changed(definition: dict[str, Any], path: tuple) -> dict[str, Any]:
    """Return a definition with another value at one place."""
    found = copy.deepcopy(definition)
    place = found
    for key in path[:-1]:
        place = place[key]
    value = place[path[-1]]
    other: Any = (
        not value if isinstance(value, bool) else value + 1 if isinstance(value, int) else 0
    )
    place[path[-1]] = f"{value}x" if isinstance(value, str) else other
    return found


def test_what_ecs_fills_in_is_no_difference() -> None:
    assert normalised(answered(DEFINITION)) == normalised(DEFINITION)
    assert differences(normalised(answered(DEFINITION)), normalised(DEFINITION)) == []


@pytest.mark.parametrize(
    "path", list(leaves(DEFINITION)), ids=lambda path: ".".join(map(str, path))
)
def test_each_field_is_compared(path: tuple) -> None:
    """Also a field of a container that a list's order does not matter for."""
    other = normalised(changed(DEFINITION, path))
    assert other != normalised(answered(DEFINITION))
    assert differences(normalised(answered(DEFINITION)), other)


@pytest.mark.parametrize("key", ["dependsOn", "secrets", "healthCheck", "restartPolicy", "ulimits"])
def test_a_field_that_is_left_out_is_a_difference(key: str) -> None:
    other = copy.deepcopy(DEFINITION)
    for container in other["containerDefinitions"]:
        container.pop(key, None)
    assert normalised(other) != normalised(answered(DEFINITION))


def test_differences_are_readable() -> None:
    other = copy.deepcopy(DEFINITION)
    pooler, web = other["containerDefinitions"]
    pooler["environment"][0]["value"] = "[pgbouncer]\npool_mode = session\n"
    web["environment"].append({"name": "NEW", "value": "1"})
    web["command"][1] = "run"
    assert differences(normalised(DEFINITION), normalised(other)) == [
        "pgbouncer.environment.PGBOUNCER_INI:",
        "  -pool_mode = transaction",
        "  +pool_mode = session",
        "web.command: app-start serve -> app-start run",
        "web.environment.NEW: nothing -> 1",
    ]


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("containerDefinitions", 1, "environment", 0, "value"), "postgresql://u:p@h/d", "RATE"),
        (("containerDefinitions", 1, "environment", 0, "value"), "host=h password=p", "RATE"),
        (("containerDefinitions", 1, "command", 1), "--key=hush-hush", "web.command"),
        (("containerDefinitions", 0, "environment", 0, "value"), "a = password=x", "PGBOUNCER_INI"),
        (("containerDefinitions", 1, "image"), "shop:latest", "without a digest"),
        (("containerDefinitions", 0, "portMappings"), [{"containerPort": 6432}], "port mapping"),
    ],
)
def test_definitions_that_are_refused(path: tuple, value: object, words: str) -> None:
    found = copy.deepcopy(DEFINITION)
    place: Any = found
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    (message,) = definition_errors(found, ["hush-hush", ""])
    assert words in message
    assert "hush-hush" not in message


def test_right_definition_passes() -> None:
    assert definition_errors(DEFINITION, ["hush-hush"]) == []
    assert clear_text(DEFINITION, ["hush"]) == []


def row(id_: str, status: str = "PRIMARY", state: str = "IN_PROGRESS", **more: Any) -> dict:
    arn = f"arn:x:task-definition/shop:{id_}"
    counts = {"runningCount": 1, "desiredCount": 2}
    return (
        {"id": id_, "status": status, "rolloutState": state, "taskDefinition": arn} | counts | more
    )


@pytest.mark.parametrize(
    ("deployments", "expected"),
    [
        ([row("2"), row("1", "ACTIVE", "COMPLETED")], ("going", "1 of 2 tasks run")),
        ([row("2", failedTasks=3)], ("going", "1 of 2 tasks run, 3 failed")),
        ([row("2", state="COMPLETED")], ("completed", "")),
        ([row("2", state="FAILED", rolloutStateReason="breaker")], ("failed", "breaker")),
        (
            [row("1", state="COMPLETED", rolloutStateReason="rolling back")],
            ("gone", "ECS has dropped it: rolling back"),
        ),
        (
            [row("3"), row("2", "ACTIVE")],
            ("failed", "another deployment (shop:3) has taken its place"),
        ),
    ],
)
def test_verdict_is_of_our_deployment(deployments: list, expected: tuple[str, str]) -> None:
    assert verdict("2", {"deployments": deployments}) == expected


def test_verdict_of_a_task() -> None:
    task = {
        "taskArn": "arn:x/1",
        "containers": [{"name": "migrate", "exitCode": 0}, {"name": "side", "exitCode": 137}],
    }
    assert migration_verdict(task, "migrate") == ""
    assert "side exit code 137" in migration_verdict(task, "side")
    never = {"taskArn": "arn:x/1", "stopCode": "TaskFailedToStart", "containers": []}
    assert "TaskFailedToStart" in migration_verdict(never, "migrate")
    assert "migrate never ran (no image)" in why_stopped(
        {**never, "containers": [{"name": "migrate", "reason": "no image"}]}
    )


class Ecs:
    """ECS's API as ecs_release uses it; each deployment completes at once."""

    def __init__(self) -> None:
        self.definitions: list[dict] = []
        self.row: dict[str, Any] | None = None
        self.calls: list[str] = []
        self.state = "COMPLETED"

    def describe_services(self, **_: object) -> dict:
        return {"services": [copy.deepcopy(self.row)] if self.row else []}

    def describe_task_definition(self, taskDefinition: str) -> dict:
        number = int(taskDefinition.rpartition(":")[2])
        return {"taskDefinition": self.definitions[number - 1]}

    def list_task_definitions(self, **_: object) -> dict:
        arns = [row["taskDefinitionArn"] for row in reversed(self.definitions)]
        return {"taskDefinitionArns": arns[:10]}

    def register_task_definition(self, **given: Any) -> dict:
        self.calls.append("register")
        arn = f"arn:x:task-definition/shop:{len(self.definitions) + 1}"
        self.definitions.append({**answered(given), "taskDefinitionArn": arn})
        return {"taskDefinition": self.definitions[-1]}

    def create_service(self, serviceName: str, **given: Any) -> dict:
        self.row = {
            "status": "ACTIVE",
            "serviceArn": "arn:x:service/shop",
            "tags": [],
            "events": [],
        }
        return self.update_service(serviceName, **given)

    def update_service(self, service: str, **given: Any) -> dict:
        self.calls.append("deploy")
        self.row |= {key: value for key, value in given.items() if key != "cluster"}
        id_ = f"ecs-svc/{len(self.calls)}"
        counts = {"desiredCount": 1, "runningCount": 1}
        deployment = {"id": id_, "status": "PRIMARY", "rolloutState": self.state, **counts}
        self.row["deployments"] = [{**deployment, "taskDefinition": given["taskDefinition"]}]
        return {"service": copy.deepcopy(self.row)}

    def tag_resource(self, resourceArn: str, tags: list) -> None:
        mine = {row["key"]: row["value"] for row in self.row["tags"] + tags}
        self.row["tags"] = [{"key": key, "value": value} for key, value in mine.items()]

    def list_tasks(self, **_: object) -> dict:
        return {"taskArns": []}


@pytest.fixture
def ecs(monkeypatch: pytest.MonkeyPatch) -> Ecs:
    found = Ecs()
    monkeypatch.setattr(ecs_client, "client", lambda *_: found)
    monkeypatch.setattr(ecs_release, "POLL_SECONDS", 0)
    return found


def release(definition: dict | None, check: bool = False, **more: Any) -> dict[str, Any]:
    params = {
        **{"region": "eu-central-1", "cluster": "main", "service": "shop"},
        **{"settings": {}, "tasks": 1, "scaled": False, "rollback": definition is None},
        **{"timeout_seconds": 5, "secrets": [], "definition": definition, **more},
    }
    return ecs_release.release(SimpleNamespace(params=params, check_mode=check))


@pytest.mark.parametrize(
    "path",
    [path for path in leaves(DEFINITION) if path[-1] not in ("family", "cpu", "memory", "image")],
    ids=lambda path: ".".join(map(str, path)),
)
def test_each_field_makes_one_revision_and_one_deployment(path: tuple, ecs: Ecs) -> None:
    release(DEFINITION)
    assert ecs.calls == ["register", "deploy"]
    assert release(DEFINITION)["changed"] is False
    assert ecs.calls == ["register", "deploy"]
    other = changed(DEFINITION, path)
    if len(other["containerDefinitions"][0]["name"]) == len("pgbouncer"):
        assert release(other, check=True)["changed"] is True
    assert release(other)["changed"] is True
    assert release(other)["changed"] is False
    assert ecs.calls == ["register", "deploy"] * 2


def test_settings_of_the_service_alone_register_nothing(ecs: Ecs) -> None:
    release(DEFINITION)
    wanted = {"deploymentConfiguration": {"maximumPercent": 150}}
    result = release(DEFINITION, settings=wanted)
    assert result["changes"] == ["deploymentConfiguration.maximumPercent: nothing -> 150"]
    assert ecs.calls == ["register", "deploy", "deploy"]
    ecs.row["deploymentConfiguration"]["alarms"] = {"enable": False}  # ECS fills in more
    assert release(DEFINITION, settings=wanted)["changed"] is False


def test_autoscaling_keeps_its_number_of_tasks(ecs: Ecs) -> None:
    release(DEFINITION, tasks=2, scaled=True)
    ecs.row["desiredCount"] = 7
    assert release(DEFINITION, tasks=2, scaled=True)["changed"] is False
    assert release(DEFINITION, tasks=2)["changes"] == ["desiredCount: 7 -> 2"]


def test_rollback_goes_to_what_completed(ecs: Ecs) -> None:
    second = changed(DEFINITION, ("containerDefinitions", 1, "environment", 0, "value"))
    third = changed(second, ("containerDefinitions", 1, "environment", 0, "value"))
    release(DEFINITION)
    release(second)
    assert release(None)["task_definition"].endswith(":1")
    with pytest.raises(Refused, match="no deployment is known to have completed before shop:1"):
        release(None)
    release(second)
    ecs.state = "FAILED"
    with pytest.raises(Refused, match="of shop:3 failed"):
        release(third)
    ecs.state = "COMPLETED"
    assert release(None)["task_definition"].endswith(":2")
    # The revision that has failed is tried again, and not registered anew.
    release(third)
    assert len(ecs.definitions) == 3


def test_rollback_that_was_cut_off_goes_on(ecs: Ecs) -> None:
    """Revision 1 serves already, and nobody has noted that it completed."""
    release(DEFINITION)
    release(changed(DEFINITION, ("containerDefinitions", 1, "environment", 0, "value")))
    ecs.update_service("shop", taskDefinition="arn:x:task-definition/shop:1")
    assert release(None)["task_definition"].endswith(":1")
    assert ecs.calls == ["register", "deploy"] * 2 + ["deploy"]


def test_first_deployment_can_go_back_to_what_served_before(ecs: Ecs) -> None:
    """Terraform's own revision; after a service's very first deployment there is none."""
    arn = ecs.register_task_definition(**DEFINITION)["taskDefinition"]["taskDefinitionArn"]
    ecs.create_service("shop", taskDefinition=arn)
    release(changed(DEFINITION, ("containerDefinitions", 1, "environment", 0, "value")))
    assert release(None)["task_definition"].endswith(":1")


@pytest.mark.parametrize(
    ("serves", "completed", "before", "target"),
    [
        ("shop:3", "shop:3", "shop:2", "shop:2"),
        ("shop:2", "shop:3", "shop:2", "shop:2"),  # a rollback was cut off
        ("shop:4", "shop:3", "shop:2", "shop:3"),  # a deployment has failed, or goes on
        ("shop:2", "shop:2", "shop:2", ""),
        ("shop:1", "", "", ""),
    ],
)
def test_where_a_rollback_goes(serves: str, completed: str, before: str, target: str) -> None:
    assert rollback_target(serves, {COMPLETED: completed, BEFORE: before}) == target


def test_first_deployment_of_a_new_service_cannot_go_back(ecs: Ecs) -> None:
    release(DEFINITION)
    with pytest.raises(Refused, match="completed before shop:1"):
        release(None)


def test_deployment_that_ecs_does_not_know_yet(ecs: Ecs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its API is consistent eventually: the first answers may be those of before."""
    release(DEFINITION)
    stale, ask, left = copy.deepcopy(ecs.row), ecs.describe_services, [3]

    def describe(**given: object) -> dict:
        if len(ecs.calls) == 4 and left[0]:
            left[0] -= 1
            return {"services": [stale]}
        return ask(**given)

    monkeypatch.setattr(ecs, "describe_services", describe)
    other = changed(DEFINITION, ("containerDefinitions", 1, "environment", 0, "value"))
    assert release(other)["task_definition"].endswith(":2")
    assert left == [0]


def test_secrets_of_an_old_definition_are_not_shown() -> None:
    old = copy.deepcopy(DEFINITION)
    old["containerDefinitions"][1]["environment"] = [
        {"name": "DATABASE_URL", "value": "postgres://u:hunter2@db/x"},
        {"name": "OLD", "value": "hunter3"},
        {"name": "RATE", "value": "hunter4-hunter4"},
    ]
    lines = differences(old, DEFINITION, ["hunter4-hunter4"])
    assert lines == [
        "web.environment.DATABASE_URL: (not shown) -> nothing",
        "web.environment.OLD: (not shown) -> nothing",
        "web.environment.RATE: (not shown) -> 1",
    ]


def test_short_secret_is_looked_for_as_a_whole() -> None:
    """A password may be `web` or `shop`, which a definition has everywhere."""
    assert clear_text(DEFINITION, ["shop", "web", "ecs"]) == []
    other = changed(DEFINITION, ("containerDefinitions", 1, "environment", 0, "value"))
    assert clear_text(other, ["1x"]) == ["web.environment.RATE"]


def test_another_deployment_is_not_disturbed(ecs: Ecs) -> None:
    release(DEFINITION)
    ecs.row["deployments"][0]["rolloutState"] = "IN_PROGRESS"
    other = changed(DEFINITION, ("containerDefinitions", 1, "environment", 0, "value"))
    with pytest.raises(Refused, match="another deployment of shop goes on"):
        release(other)
    assert ecs.calls == ["register", "deploy"]


def test_revision_of_another_family_is_not_ours(ecs: Ecs) -> None:
    """The prefix shop also finds shop-api."""
    ecs.register_task_definition(**DEFINITION)
    ecs.definitions[0]["taskDefinitionArn"] = "arn:x:task-definition/shop-api:1"
    assert ecs_client.newest(ecs, "shop") is None


def test_version_of_a_secret_follows_from_its_values() -> None:
    first = ecs_secret.version_id("poolkit/shop/web", json.dumps({"A": "1"}), "seed")
    assert first == ecs_secret.version_id("poolkit/shop/web", json.dumps({"A": "1"}), "seed")
    others = {
        ecs_secret.version_id("poolkit/shop/web", json.dumps({"A": "2"}), "seed"),
        ecs_secret.version_id("poolkit/shop/web", json.dumps({"A": "1"}), "other"),
        ecs_secret.version_id("poolkit/shop/migrate", json.dumps({"A": "1"}), "seed"),
    }
    assert len(others | {first}) == 4
    assert len(first) == 36


GIVEN = {
    **{"misspelt": [], "region": "eu-central-1", "service": "shop", "tasks": 2, "tasks_max": 2},
    **{"base_image": "debian@sha256:" + "0" * 64, "registry": "1.dkr.ecr.eu-central-1.example/a"},
    **{"cpu": 512, "memory_mib": 1024, "timeout_seconds": 30, "strategy": "pgbouncer"},
    **{"processes": [], "state_directories": [], "resource_limits": [], "pgbouncer_processes": 1},
    **{"pgbouncer_exporter_enabled": False, "tls": "", "target_group_arns": []},
    **{"build_environment": [], "database_ca_bytes": 5000, "secrets": ["API_KEY"]},
    **{"listen_addr": "127.0.0.1", "plain": ["APP_VERSION"]},
}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, ""),
        ({"region": ""}, "set AWS_REGION"),
        ({"base_image": "debian:13-slim"}, "give an image with its digest"),
        ({"registry": "https://example.com"}, "give a host and a path"),
        ({"tasks": 0}, "give at least 1"),
        ({"tasks": 3}, "ecs_tasks is 3 and ecs_tasks_max 2"),
        ({"tasks": "two"}, "give a whole number"),
        ({"memory_mib": 512}, "give as ecs_memory_mib one of 1024, 2048, 3072, 4096"),
        ({"cpu": 300}, "give as ecs_cpu one of 256, 512"),
        ({"timeout_seconds": 116}, "give at most 115"),
        ({"strategy": "managed"}, "do not have yet"),
        ({"processes": ["worker"]}, "app_processes is set"),
        ({"state_directories": ["media"]}, "keep them in S3"),
        ({"pgbouncer_processes": 2}, "give more ecs_tasks"),
        ({"target_group_arns": ["shop"]}, "give the ARN"),
        ({"build_environment": ["A B"]}, "is no name of a variable"),
        ({"database_ca_bytes": 170000}, "REGION-bundle.pem"),
        ({"secrets": ["REPORTS_DATABASE_URL"]}, "poolkit makes this variable itself"),
        ({"listen_addr": "127.0.0.1,10.0.0.4"}, "others than its task would reach the pooler"),
        ({"secrets": ["APP_VERSION"]}, "poolkit makes this variable itself"),
    ],
)
def test_variables_that_are_refused(given: dict, words: str) -> None:
    errors = ecs_errors(GIVEN | given)
    assert len(errors) == (1 if words else 0), errors
    assert words in "".join(errors)


@pytest.mark.parametrize(
    ("tasks", "serial", "percent"),
    [(1, "1", 200), (2, "1", 150), (3, "1", 134), (10, "25%", 120), (4, "100%", 200)],
)
def test_maximum_percent_has_room_for_a_batch(tasks: int, serial: str, percent: int) -> None:
    assert ecs_maximum_percent(tasks, serial) == percent


SERVICE = {
    **{"app_name": "shop", "app_database_password": "p", "app_database_owner_password": "o"},
    **{"database_host": "db", "database_port": 5432, "database_admin_user": "admin"},
    **{"database_admin_password": "a", "scram_salt_seed": "s" * 16, "app_framework": "django"},
    "app_module": "shop.wsgi:application",
}


def test_tasks_are_hosts_in_the_budget() -> None:
    """Two tasks, and two that drain: each has a pool of 10 + 2 and a fallback of 8, no stand-in."""
    groups = {"ecs": ["shop_service"], "database_admin": ["admin"]}
    found = fleet({"shop_service": SERVICE, "admin": SERVICE}, groups)
    assert found["errors"] == []
    assert found["hosts"]["shop_service"]["poolers"] == [{"host": "127.0.0.1", "port": 6432}]
    budget = connection_budget(found, {})
    (line,) = budget["rows"]
    shown = {key: line[key] for key in ("poolers", "pooled", "rolling", "fallback", "limit")}
    expected = {"poolers": "4 x 1", "pooled": 48, "rolling": 0, "fallback": 32, "limit": 80}
    assert shown == expected
    wider = fleet({"shop_service": SERVICE | {"ecs_tasks_max": 5}, "admin": SERVICE}, groups)
    assert connection_budget(wider, {})["fits"] is False


def test_service_is_in_no_other_group() -> None:
    groups = {"ecs": ["s"], "applications": ["s"], "database_admin": ["s"]}
    assert "belongs into ecs alone" in fleet({"s": SERVICE}, groups)["contradiction"]


def test_service_without_pooler_has_none(ecs: Ecs) -> None:
    groups = {"ecs": ["s"], "database_admin": ["s"]}
    found = fleet({"s": SERVICE | {"app_connection_strategy": "direct", "app_workers": 2}}, groups)
    assert found["poolers"] == {}
    assert connection_budget(found, {})["rows"][0]["rolling"] == 0


def test_wrong_number_of_tasks_is_refused() -> None:
    groups = {"ecs": ["s"], "database_admin": ["s"]}
    assert "give a whole number" in fleet({"s": SERVICE | {"ecs_tasks": "x"}}, groups)["errors"][0]
