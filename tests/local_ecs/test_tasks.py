"""Tasks of the local ECS, in real containers."""

from __future__ import annotations

from typing import Any

import pytest
from botocore.exceptions import ClientError

from .conftest import World

READY = {"command": ["CMD-SHELL", "test -e /tmp/ready"], "interval": 5, "timeout": 2, "retries": 2}


def test_migration_ends_with_its_exit_code(world: World) -> None:
    definition = world.register(world.container("migrate", "exit", "3"), family="migrate")
    token = {"clientToken": "once", "startedBy": "a-release"}
    first = world.run_task(definition, **token)["tasks"][0]["taskArn"]
    again = world.run_task(definition, **token)["tasks"][0]["taskArn"]
    assert first == again
    with pytest.raises(ClientError, match="already in use"):
        world.run_task(definition, clientToken="once", startedBy="another")
    world.ecs.client("ecs").get_waiter("tasks_stopped").config.delay = 1
    task = world.wait(first)
    assert (task["stopCode"], task["desiredStatus"]) == ("EssentialContainerExited", "STOPPED")
    assert task["stoppedReason"] == "Essential container in task exited"
    assert [(row["name"], row["exitCode"]) for row in task["containers"]] == [("migrate", 3)]
    assert task["startedBy"] == "a-release"
    listed = world.api.list_tasks(cluster="main", family="migrate", desiredStatus="STOPPED")
    assert listed["taskArns"] == [first]
    assert world.api.list_tasks(cluster="main", family="migrate")["taskArns"] == []


def sidecar(world: World, needs: list[dict[str, str]]) -> str:
    """Run a task of a pooler and a web that stops slowly; stop it; return its ARN."""
    arn = world.run(
        world.container("pooler", "wait", essential=False, healthCheck=READY),
        world.container(
            "web", "wait", dependsOn=needs, environment=[{"name": "LINGER", "value": "1.5"}]
        ),
    )
    world.wait(arn, "RUNNING")
    world.ecs.wait_for(lambda: len(world.lines(arn)) == 2, 10)
    world.api.stop_task(cluster="main", task=arn, reason="test")
    assert world.wait(arn)["stopCode"] == "UserInitiated"
    return arn


def at(world: World, arn: str) -> dict[str, float]:
    return {f"{name} {word}": when for when, name, word in world.lines(arn)}


def test_depends_on_orders_start_and_stop(world: World) -> None:
    arn = sidecar(world, [{"containerName": "pooler", "condition": "HEALTHY"}])
    times = at(world, arn)
    assert times["pooler start"] < times["web start"]
    assert times["web term"] < times["web end"] < times["pooler term"]
    task = world.describe(arn)
    assert [row["exitCode"] for row in task["containers"]] == [0, 0]


def test_without_depends_on_the_pooler_goes_first(world: World) -> None:
    times = at(world, sidecar(world, []))
    assert times["pooler end"] < times["web end"]


def test_dependency_that_is_never_met(world: World) -> None:
    never = {"command": ["CMD", "false"], "interval": 5, "timeout": 2, "retries": 2}
    arn = world.run(
        world.container("pooler", "wait", essential=False, healthCheck=never, startTimeout=2),
        world.container(
            "web", "wait", dependsOn=[{"containerName": "pooler", "condition": "HEALTHY"}]
        ),
    )
    task = world.wait(arn)
    assert task["stopCode"] == "TaskFailedToStart"
    assert "exitCode" not in task["containers"][1]


def test_init_container(world: World) -> None:
    def task(code: str) -> dict[str, Any]:
        return world.wait(
            world.run(
                world.container("init", "exit", code, essential=False),
                world.container(
                    "web",
                    *("exit", "0"),
                    dependsOn=[{"containerName": "init", "condition": "SUCCESS"}],
                ),
            )
        )

    assert task("0")["stopCode"] == "EssentialContainerExited"
    assert task("1")["stopCode"] == "TaskFailedToStart"


def test_killed_by_its_stop_timeout(world: World) -> None:
    slow = [{"name": "LINGER", "value": "60"}]
    arn = world.run(world.container("web", "wait", stopTimeout=2, environment=slow))
    world.wait(arn, "RUNNING")
    world.ecs.wait_for(lambda: world.lines(arn), 10)
    world.api.stop_task(cluster="main", task=arn)
    assert world.wait(arn)["containers"][0]["exitCode"] == 137


def test_restart_policy(world: World) -> None:
    """The period of 120 s is 6 s here: a crash before that leaves the container away for good."""
    policy = {"enabled": True, "restartAttemptPeriod": 120, "ignoredExitCodes": [0]}
    arn = world.run(
        world.container("pooler", "wait", essential=False, restartPolicy=policy, healthCheck=READY),
        world.container("web", "wait"),
    )
    world.wait(arn, "RUNNING")
    pooler = world.ecs.task(arn).by_name["pooler"]
    world.ecs.wait_for(lambda: pooler.health == "HEALTHY", 10)
    assert world.describe(arn)["healthStatus"] == "UNKNOWN", "web is essential and has no check"
    begin = pooler.started
    world.ecs.wait_for(lambda: world.ecs.task(arn).age(pooler) > 6.2, 10)
    world.ecs.agent.api.kill(pooler.id)
    world.ecs.wait_for(lambda: pooler.restarts == 1, 10)
    assert pooler.started == begin
    world.ecs.wait_for(lambda: pooler.health == "HEALTHY", 10)
    world.ecs.agent.api.kill(pooler.id)
    world.ecs.wait_for(lambda: pooler.state == "STOPPED", 10)
    task = world.describe(arn)
    assert (task["lastStatus"], task["desiredStatus"]) == ("RUNNING", "RUNNING")
    assert (
        task["containers"][0] | {"lastStatus": "STOPPED", "exitCode": 137} == task["containers"][0]
    )
    world.ecs.agent.api.kill(world.ecs.task(arn).by_name["web"].id)
    assert world.wait(arn)["stopCode"] == "EssentialContainerExited"


def test_health_of_a_hung_container(world: World) -> None:
    """A check that hangs fails after its timeout; a task of RunTask goes on all the same."""
    check = {"command": ["CMD-SHELL", "test ! -e /run/actor/bad"], "interval": 5, "timeout": 2}
    arn = world.run(
        world.container(
            "web",
            "wait",
            healthCheck=check | {"retries": 1},
            readonlyRootFilesystem=True,
            mountPoints=[{"sourceVolume": "run", "containerPath": "/run/actor"}],
            environment=[{"name": "STATE", "value": "/run/actor"}],
            linuxParameters={"initProcessEnabled": True, "capabilities": {"drop": ["ALL"]}},
            ulimits=[{"name": "nofile", "softLimit": 1234, "hardLimit": 2345}],
            user="actor",
        ),
        volumes=[{"name": "run"}],
    )
    world.wait_health(arn, "HEALTHY")
    web = world.ecs.agent.client.containers.get(world.ecs.task(arn).by_name["web"].id)
    # Of process 1: Docker gives the processes of an exec the hard limit now and then.
    files = "awk '/^Max open files/ {print $4}' /proc/1/limits"
    limits = web.exec_run(["sh", "-c", f"{files}; id -un; cat /proc/1/comm; touch /x"]).output
    assert {"1234", "actor", "docker-init"} < set(limits.decode().splitlines())
    assert b"Read-only file system" in limits
    assert web.exec_run(["touch", "/run/actor/bad"]).exit_code == 0
    world.wait_health(arn, "UNHEALTHY")
    web.exec_run(["rm", "/run/actor/bad"])
    world.wait_health(arn, "HEALTHY")
    assert world.describe(arn)["lastStatus"] == "RUNNING"
    world.api.stop_task(cluster="main", task=arn)
    world.wait(arn)
    assert not world.ecs.agent.client.volumes.list(
        filters={"label": f"local-ecs={world.ecs.agent.run}"}
    )


def test_secrets(world: World) -> None:
    secret = world.ecs.make_secret("web", {"URL": "one", "KEY": "two"})
    world.ecs.client("ssm").put_parameter(Name="/web/p", Value="three", Type="SecureString")
    given = [
        {"name": "A", "valueFrom": f"{secret}:URL::"},
        {"name": "B", "valueFrom": f"{secret}:KEY:AWSCURRENT:"},
        {"name": "C", "valueFrom": secret},
        {"name": "D", "valueFrom": "/web/p"},
    ]
    arn = world.run(world.container("web", "print", *"ABCD", secrets=given))
    world.wait(arn)
    said = {line for _, _, line in world.lines(arn)}
    assert {"A=one", "B=two", "D=three"} < said
    assert any(line.startswith('C={"URL":') for line in said)
    for missing in (f"{secret}:NONE::", secret.replace("secret:web", "secret:web2")):
        task = world.wait(
            world.run(
                world.container("web", "print", secrets=[{"name": "A", "valueFrom": missing}])
            )
        )
        assert task["stopCode"] == "TaskFailedToStart"
        assert task["stoppedReason"].startswith("ResourceInitializationError")
        assert "one" not in task["stoppedReason"]


def test_secret_that_the_role_may_not_read(world: World) -> None:
    secret = world.ecs.make_secret("owner", "hidden")
    allowed = {
        "Version": "2012-10-17",
        "Statement": [
            {"Effect": "Allow", "Action": "secretsmanager:GetSecretValue", "Resource": secret}
        ],
    }
    reader = world.ecs.make_role("reader", allowed)
    container = world.container("web", "print", secrets=[{"name": "A", "valueFrom": secret}])
    world.ecs.agent.permissions = True
    try:
        task = world.wait(world.run(container, executionRoleArn=reader))
        assert task["containers"][0]["exitCode"] == 0
        task = world.wait(world.run(container))
        assert "AccessDeniedException" in task["stoppedReason"]
    finally:
        world.ecs.agent.permissions = False


def test_image_by_digest_and_image_that_is_not_there(world: World) -> None:
    reference = world.ecs.push("poolkit-base:trixie", "shop/web")
    container = world.container("web", "sh", "-c", "exit 4") | {"image": reference}
    task = world.wait(world.run(container))
    assert task["containers"][0]["exitCode"] == 4
    assert task["containers"][0]["imageDigest"] == reference.split("@")[1]
    absent = reference.split("@")[0] + "@sha256:" + "0" * 64
    task = world.wait(world.run(world.container("web", "exit", "0") | {"image": absent}))
    assert task["stoppedReason"].startswith("CannotPullContainerError")


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "unknown dependency": (
        {"dependsOn": [{"containerName": "no", "condition": "START"}]},
        "unknown container",
    ),
    "essential dependency": (
        {"dependsOn": [{"containerName": "other", "condition": "SUCCESS"}]},
        "essential container",
    ),
    "dependency without check": (
        {"dependsOn": [{"containerName": "other", "condition": "HEALTHY"}]},
        "no health check",
    ),
    "word of an enum": (
        {"dependsOn": [{"containerName": "other", "condition": "READY"}]},
        "should be one of",
    ),
    "stopTimeout": ({"stopTimeout": 121}, "between 2 and 120"),
    "interval": ({"healthCheck": {"command": ["CMD", "true"], "interval": 1}}, "between 5"),
    "check": ({"healthCheck": {"command": ["true"]}}, "CMD or CMD-SHELL"),
    "restart": (
        {"restartPolicy": {"enabled": True, "restartAttemptPeriod": 5}},
        "between 60 and 1800",
    ),
    "volume": ({"mountPoints": [{"sourceVolume": "no", "containerPath": "/x"}]}, "Unknown volume"),
}


@pytest.mark.parametrize("case", WRONG)
def test_refused_container(world: World, case: str) -> None:
    more, message = WRONG[case]
    with pytest.raises(ClientError, match=message):
        world.register(world.container("web", **more), world.container("other"))


def test_refused_definitions(world: World) -> None:
    for change, message in (
        ({"cpu": "256", "memory": "4096"}, "No Fargate configuration"),
        ({"networkMode": "bridge"}, "only supports network mode"),
    ):
        with pytest.raises(ClientError, match=message):
            world.register(world.container("web"), **change)
    with pytest.raises(ClientError, match="at least one essential"):
        world.register(world.container("web", essential=False))


def test_calls_are_recorded(world: World) -> None:
    world.ecs.calls.clear()
    world.ecs.client("ec2").describe_subnets()
    world.ecs.client("elbv2", recorded=True).describe_target_groups(PageSize=5)
    world.ecs.client("secretsmanager", recorded=True).list_secrets(MaxResults=5)
    world.api.list_tasks(cluster="main")
    assert [(call.action, call.parameters) for call in world.ecs.calls] == [
        ("elasticloadbalancing:DescribeTargetGroups", {"PageSize": 5}),
        ("secretsmanager:ListSecrets", {"MaxResults": 5}),
        ("ecs:ListTasks", {"cluster": "main"}),
    ]
