"""Services of the local ECS: rolls, roll-backs and replacements, with real containers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from botocore.exceptions import ClientError

from .conftest import World

READY = {"command": ["CMD-SHELL", "test -e /tmp/ready"], "interval": 5, "timeout": 2, "retries": 2}
ROLLING = {
    "maximumPercent": 150,
    "minimumHealthyPercent": 100,
    "deploymentCircuitBreaker": {
        "enable": True,
        "rollback": True,
        "thresholdConfiguration": {"type": "COUNT", "value": 2},
    },
}


class Load:
    """Sends requests to a URL from two threads; counts versions and failures."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.seen: dict[str, int] = {}
        self.failed: list[str] = []
        self.end = threading.Event()
        self.threads = [threading.Thread(target=self.send) for _ in range(4)]

    def __enter__(self) -> Load:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end.set()
        for thread in self.threads:
            thread.join()

    def send(self) -> None:
        with httpx.Client(base_url=self.url, timeout=10) as client:
            while not self.end.is_set():
                try:
                    answer = client.get("/")
                    if answer.status_code == 200:
                        self.seen[answer.text] = self.seen.get(answer.text, 0) + 1
                    else:
                        self.failed.append(f"{answer.status_code} {answer.text}")
                except httpx.HTTPError as error:
                    self.failed.append(repr(error))
                time.sleep(0.02)


class Shop:
    """A service of two tasks behind a target group."""

    def __init__(
        self, world: World, make_service: Callable[..., Any], name: str, **more: Any
    ) -> None:
        self.world, self.name = world, name
        self.group = world.ecs.make_target_group(
            world.vpc, world.subnets, name, path="/health", deregistration_delay_seconds=20
        )
        balancer = {"targetGroupArn": self.group, "containerName": "web", "containerPort": 8000}
        self.first = self.register("one")
        make_service(
            name,
            self.first,
            **{"desiredCount": 2, "deploymentConfiguration": ROLLING} | more,
            loadBalancers=[balancer],
            healthCheckGracePeriodSeconds=40,
            tags=[{"key": "made-by", "value": "test"}],
        )

    def register(self, version: str, **more: Any) -> str:
        """Register the definition that serves a version, shortly after its start."""
        more.setdefault("environment", [{"name": "WARMUP", "value": "0.3"}])
        return self.world.register(
            self.world.container(
                "web", "serve", version, portMappings=[{"containerPort": 8000}], **more
            ),
            family=self.name,
        )

    def describe(self) -> dict[str, Any]:
        return self.world.api.describe_services(cluster="main", services=[self.name])["services"][0]

    def update(self, definition: str, **more: Any) -> str:
        """Update the service; return the id of its deployment."""
        answer = self.world.api.update_service(
            cluster="main", service=self.name, taskDefinition=definition, **more
        )
        return answer["service"]["deployments"][0]["id"]

    def deployment(self, id_: str) -> dict[str, Any] | None:
        return next((row for row in self.describe()["deployments"] if row["id"] == id_), None)

    def record(self) -> dict[str, Any]:
        """Return the newest service deployment."""
        listed = self.world.api.list_service_deployments(cluster="main", service=self.name)
        newest = listed["serviceDeployments"][0]["serviceDeploymentArn"]
        return self.world.api.describe_service_deployments(serviceDeploymentArns=[newest])[
            "serviceDeployments"
        ][0]

    def wait_stable(self) -> None:
        waiter = self.world.api.get_waiter("services_stable")
        waiter.wait(
            cluster="main", services=[self.name], WaiterConfig={"Delay": 1, "MaxAttempts": 60}
        )

    def wait_completed(self, id_: str) -> None:
        self.world.ecs.wait_for(
            lambda: (self.deployment(id_) or {}).get("rolloutState") == "COMPLETED", 40
        )

    def messages(self) -> str:
        return "\n".join(row["message"] for row in self.describe()["events"])


@pytest.fixture(scope="module")
def shop(world: World) -> Iterator[Shop]:
    shop = Shop(world, world.create_service, "shop")
    shop.wait_completed(shop.describe()["deployments"][0]["id"])
    yield shop
    world.api.delete_service(cluster="main", service="shop", force=True)
    world.ecs.wait_for(lambda: not world.ecs.tasks("shop"), 30)


def test_roll_without_a_lost_request(world: World, shop: Shop) -> None:
    before = world.ecs.tasks("shop")
    assert len(before) == 2
    most = set()
    with Load(world.ecs.balancer(shop.group)) as load:
        id_ = shop.update(shop.register("two"))
        while (shop.deployment(id_) or {})["rolloutState"] == "IN_PROGRESS":
            running = [task for task in world.ecs.tasks("shop") if not task.stopping]
            most.add(len(running))
            time.sleep(0.1)
        count = load.seen.get("two", 0)
        world.ecs.wait_for(lambda: load.seen["two"] > count + 30)
    assert load.failed == []
    assert load.seen["one"] > 10
    assert max(most) == 3, "150 % of 2"
    assert {task.stop_code for task in before} == {"ServiceSchedulerInitiated"}
    assert {task.containers[0].exit_code for task in before} == {0}
    described = shop.describe()
    assert (described["runningCount"], len(described["deployments"])) == (2, 1)
    assert described["deploymentConfiguration"] | ROLLING == described["deploymentConfiguration"]
    assert described["loadBalancers"][0]["targetGroupArn"] == shop.group
    assert "tags" not in described
    record = shop.record()
    assert record["status"] == "SUCCESSFUL"
    assert record["serviceDeploymentArn"] == described["currentServiceDeployment"]
    revision = record["targetServiceRevision"]["arn"]
    found = world.api.describe_service_revisions(serviceRevisionArns=[revision])
    assert found["serviceRevisions"][0]["taskDefinition"] == described["taskDefinition"]
    arn = described["serviceArn"]
    assert world.api.list_tags_for_resource(resourceArn=arn)["tags"][0]["key"] == "made-by"
    assert "has reached a steady state" in shop.messages()


def test_unchanged_update_makes_no_deployment(shop: Shop) -> None:
    primary = shop.describe()["deployments"][0]
    assert shop.update(primary["taskDefinition"], desiredCount=2) == primary["id"]
    assert shop.update(primary["taskDefinition"], forceNewDeployment=True) != primary["id"]
    shop.wait_stable()


def test_bad_release_is_rolled_back(world: World, shop: Shop) -> None:
    """The control: the service is stable, boto3's waiter says success, our deployment is gone."""
    good = shop.describe()["taskDefinition"]
    with Load(world.ecs.balancer(shop.group)) as load:
        id_ = shop.update(shop.register("bad"))
        seen = set()
        while row := shop.deployment(id_):
            seen.add((row["status"], row["rolloutState"]))
            time.sleep(0.1)
        shop.wait_stable()
    assert load.failed == []
    assert set(load.seen) == {"two"}
    assert {("PRIMARY", "IN_PROGRESS"), ("ACTIVE", "FAILED")} <= seen
    assert shop.describe()["taskDefinition"] == good
    record = shop.record()
    assert record["status"] == "ROLLBACK_SUCCESSFUL"
    assert record["deploymentCircuitBreaker"] == {
        "status": "TRIGGERED",
        "failureCount": 2,
        "threshold": 2,
    }
    assert "tasks failed to start" in record["statusReason"]
    assert "rolling back to deployment" in shop.messages()
    stopped = world.api.list_tasks(cluster="main", serviceName="shop", desiredStatus="STOPPED")
    tasks = world.api.describe_tasks(cluster="main", tasks=stopped["taskArns"])["tasks"]
    ours = [task for task in tasks if task["startedBy"] == id_]
    assert [task["stoppedReason"] for task in ours] == ["Task failed ELB health checks"] * 2


def test_deployment_that_is_stopped_goes_back(world: World, shop: Shop) -> None:
    good = shop.describe()["taskDefinition"]
    id_ = shop.update(shop.register("three"))
    arn = shop.record()["serviceDeploymentArn"]
    world.api.stop_service_deployment(serviceDeploymentArn=arn)
    world.ecs.wait_for(lambda: shop.record()["status"] == "ROLLBACK_SUCCESSFUL", 30)
    assert shop.describe()["taskDefinition"] == good
    assert shop.deployment(id_) is None
    with pytest.raises(ClientError, match="ConflictException"):
        world.api.stop_service_deployment(serviceDeploymentArn=arn)


def test_tasks_that_fail_are_replaced(world: World, shop: Shop) -> None:
    """One is killed, then one fails the target group's check; the service keeps two."""
    first, second = (task for task in world.ecs.tasks("shop") if not task.stopping)
    world.ecs.agent.api.kill(first.containers[0].id)
    world.ecs.wait_for(lambda: first.last_status == "STOPPED", 20)
    assert first.stop_code == "EssentialContainerExited"
    shop.wait_stable()
    world.ecs.agent.client.containers.get(second.containers[0].id).exec_run(["touch", "/tmp/bad"])
    world.ecs.wait_for(lambda: second.last_status == "STOPPED", 30)
    assert second.stopped_reason == "Task failed ELB health checks"
    shop.wait_stable()
    assert shop.describe()["deployments"][0]["rolloutState"] == "COMPLETED"


def test_deployment_that_another_replaces(world: World, shop: Shop) -> None:
    first = shop.update(shop.register("four"))
    superseded = shop.record()["serviceDeploymentArn"]
    second = shop.update(shop.register("five"))
    shop.wait_completed(second)
    assert shop.deployment(first) is None
    found = world.api.describe_service_deployments(serviceDeploymentArns=[superseded])
    assert found["serviceDeployments"][0]["status"] == "STOPPED"
    assert shop.record()["status"] == "SUCCESSFUL"


def test_unhealthy_task_is_replaced(world: World, make_service: Callable[..., Any]) -> None:
    """Without a balancer the checks of essential containers count, in no grace period."""
    check = {"command": ["CMD-SHELL", "test ! -e /tmp/bad"], "interval": 5, "retries": 1}
    definition = world.register(world.container("web", "wait", healthCheck=check), family="alone")
    made = make_service("alone", definition, desiredCount=1, healthCheckGracePeriodSeconds=20)
    assert made["healthCheckGracePeriodSeconds"] == 20
    world.ecs.wait_for(lambda: world.ecs.service("alone").primary.proven, 20)
    (task,) = world.ecs.tasks("alone")
    world.ecs.agent.client.containers.get(task.containers[0].id).exec_run(["touch", "/tmp/bad"])
    world.ecs.wait_for(lambda: task.last_status == "STOPPED", 20)
    assert task.stopped_reason == "Task failed container health checks"
    (other,) = world.ecs.tasks("alone")
    assert other.id != task.id


def test_service_that_never_starts(world: World, make_service: Callable[..., Any]) -> None:
    """Without a deployment that completed there is nothing to go back to."""
    definition = world.register(world.container("web", "exit", "1"), family="crash")
    made = make_service("crash", definition, desiredCount=1, deploymentConfiguration=ROLLING)
    id_ = made["deployments"][0]["id"]

    def deployment() -> dict[str, Any]:
        found = world.api.describe_services(cluster="main", services=["crash"])["services"][0]
        return next(row for row in found["deployments"] if row["id"] == id_)

    world.ecs.wait_for(lambda: deployment()["rolloutState"] == "FAILED", 20)
    assert deployment()["failedTasks"] == 2
    listed = world.api.list_service_deployments(cluster="main", service="crash")
    assert [row["status"] for row in listed["serviceDeployments"]] == ["ROLLBACK_FAILED"]


def test_crashes_after_running_may_not_count(
    world: World, make_service: Callable[..., Any]
) -> None:
    """containers-roadmap issue 1206: the breaker need not see a container that starts and exits."""
    world.ecs.operations.count_crashes = False
    try:
        definition = world.register(world.container("web", "exit", "1"), family="loop")
        make_service("loop", definition, desiredCount=1, deploymentConfiguration=ROLLING)
        world.ecs.wait_for(lambda: len(world.ecs.tasks("loop", stopped=True)) > 3, 30)
        found = world.api.describe_services(cluster="main", services=["loop"])["services"][0]
        assert found["deployments"][0]["rolloutState"] == "IN_PROGRESS"
        assert found["deployments"][0]["failedTasks"] == 0
    finally:
        world.ecs.operations.count_crashes = True


def test_refused_services(world: World, make_service: Callable[..., Any]) -> None:
    definition = world.register(
        world.container("web", "serve", "one", portMappings=[{"containerPort": 8000}])
    )
    instances = world.ecs.make_target_group(
        world.vpc, world.subnets, "instances", target_type="instance"
    )
    addresses = world.ecs.make_target_group(world.vpc, world.subnets, "addresses")
    wrong = [
        (instances, 8000, "incompatible with the awsvpc network mode"),
        (addresses, 8001, "did not have a container port"),
    ]
    for group, port, message in wrong:
        balancer = {"targetGroupArn": group, "containerName": "web", "containerPort": port}
        with pytest.raises(ClientError, match=message):
            make_service("none", definition, loadBalancers=[balancer], desiredCount=0)
    with pytest.raises(ClientError, match="do not fit"):
        make_service(
            "none",
            definition,
            deploymentConfiguration={"maximumPercent": 100, "minimumHealthyPercent": 100},
        )
    with pytest.raises(ClientError, match="ServiceNotFoundException"):
        world.api.update_service(cluster="main", service="none", desiredCount=1)
    assert world.api.describe_services(cluster="main", services=["none"])["failures"]
