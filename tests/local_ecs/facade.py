"""LocalEcs: what tests use of this package."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import cached_property
from typing import Any

import boto3
from botocore.config import Config

from .agent import Agent
from .api import OUR_AGENT, REGION, Api, Call
from .balancer import Balancer
from .operations import Operations
from .registry import Registry
from .scheduler import Scheduler, Service
from .targets import Targets
from .task import Task

KEYS = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing"}


class LocalEcs:
    """A local ECS, as a context manager.

    network is the Docker network that tasks get an address on. time_scale multiplies the times
    whose minimum is long on AWS: healthCheck's interval and startPeriod, restartAttemptPeriod, the
    grace period, the target group's interval and deregistration delay, and the 40 seconds of a
    task without checks. Time-outs (stopTimeout, startTimeout, healthCheck's timeout) stay as given.
    count_crashes: whether a task that exits after RUNNING, never healthy, counts as failed.
    shortest_check_seconds: least time between health checks, whatever the scale: each costs Docker
    a tenth of a second.
    check_permissions: whether the execution role's policies must allow to read a task's secrets.
    """

    def __init__(
        self,
        network: str = "bridge",
        time_scale: float = 1.0,
        *,
        address: str = "127.0.0.1",
        count_crashes: bool = True,
        check_permissions: bool = False,
        shortest_check_seconds: float = 0.0,
    ) -> None:
        self.network, self.time_scale = network, time_scale
        self.address, self.count_crashes = address, count_crashes
        self.check_permissions = check_permissions
        self.shortest_check_seconds = shortest_check_seconds
        self.stack = contextlib.ExitStack()
        self.balancers: dict[str, Balancer] = {}

    def __enter__(self) -> LocalEcs:
        with contextlib.ExitStack() as stack:
            if threading.current_thread() is threading.main_thread():
                # A run that is ended by timeout(1) removes its containers, too.
                before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
                stack.callback(signal.signal, signal.SIGTERM, before)
            self.agent = Agent(
                self.network,
                self.time_scale,
                permissions=self.check_permissions,
                shortest_check_seconds=self.shortest_check_seconds,
            )
            stack.callback(self.agent.close)
            self.api = Api({}, self.address)
            self.targets = Targets(self.time_scale)
            stack.callback(self.targets.close)
            self.scheduler = Scheduler()
            self.operations = Operations(
                self.agent, self.scheduler, self.targets, count_crashes=self.count_crashes
            )
            stack.callback(self.end_tasks)
            stack.callback(self.scheduler.close)
            self.api.answers = self.operations.answers()
            stack.enter_context(self.api)
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        for balancer in self.balancers.values():
            balancer.close()
        self.stack.close()
        if self.scheduler.error:
            raise RuntimeError(f"the scheduler failed: {self.scheduler.error}")

    def end_tasks(self) -> None:
        """Kill what still runs, so that no task's thread is left."""
        left = [task for task in self.operations.tasks() if task.last_status != "STOPPED"]
        for task in left:
            task.stop("UserInitiated", "the local ECS was closed")
            task.before_stop = None
            for container in task.containers:
                if container.id:
                    with contextlib.suppress(Exception):
                        self.agent.api.kill(container.id)
        for task in left:
            task.thread.join(timeout=10)

    @property
    def endpoint(self) -> str:
        """For AWS_ENDPOINT_URL."""
        return self.api.endpoint

    @property
    def calls(self) -> list[Call]:
        """Every call to the API but those of client()'s own."""
        return self.api.calls

    @cached_property
    def environment(self) -> dict[str, str]:
        """Return what a program needs to reach this AWS."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_DEFAULT_REGION": REGION,
            **{key.upper(): value for key, value in KEYS.items()},
        }

    def client(self, service: str, *, recorded: bool = False) -> Any:
        """Return a boto3 client; its calls are recorded only where asked for."""
        config = None if recorded else Config(user_agent_extra=OUR_AGENT)
        return boto3.client(
            service, endpoint_url=self.endpoint, region_name=REGION, config=config, **KEYS
        )

    @cached_property
    def registry_service(self) -> Registry:
        return Registry(self.agent)

    @property
    def registry(self) -> str:
        """Return the registry's 127.0.0.1:PORT, started on first use."""
        return self.registry_service.address

    def push(self, image: str, name: str) -> str:
        """Push a local image; return 127.0.0.1:PORT/NAME@sha256:..."""
        return self.registry_service.push(image, name)

    def balancer(self, target_group: str) -> str:
        """Return the URL of a balancer over a target group's healthy targets."""
        if target_group not in self.balancers:
            self.balancers[target_group] = Balancer(
                lambda: [
                    (row.address, row.port)
                    for row in self.targets.rows(target_group)
                    if row.state == "healthy"
                ]
            )
        return self.balancers[target_group].url

    def service(self, name: str) -> Service:
        return next(row for row in self.scheduler.services if name in (row.name, row.arn))

    def tasks(self, service: str | None = None, *, stopped: bool = False) -> list[Task]:
        """Return tasks (of a service); task.by_name[NAME].id is a container's id for Docker."""
        found = self.service(service).tasks if service else self.operations.tasks()
        return [task for task in found if stopped or task.last_status != "STOPPED"]

    def task(self, arn: str) -> Task:
        return next(task for task in self.operations.tasks() if arn in (task.arn, task.id))

    def wait_for(self, condition: Callable[[], object], timeout_seconds: float = 60) -> Any:
        """Wait until condition() is true; return it."""
        deadline = time.monotonic() + timeout_seconds
        while not (found := condition()):
            if self.scheduler.error:
                raise RuntimeError(self.scheduler.error)
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within {timeout_seconds} s\n{self.story()}")
            time.sleep(0.1)
        return found

    def story(self) -> str:
        """Return what happened, for the message of a failed test."""
        lines = [
            f"{task.group} {task.id[:8]} {task.last_status} {task.stop_code} {task.stopped_reason} "
            + str(
                [
                    (row.name, row.state, row.health, row.exit_code, row.reason)
                    for row in task.containers
                ]
            )
            for task in self.operations.tasks()
        ]
        for service in self.scheduler.services:
            lines += [event["message"] for event in reversed(service.events)]
        return "\n".join(lines)

    def logs(self, group: str) -> dict[str, list[str]]:
        """Return the lines of each stream of a log group."""
        client = self.client("logs")
        streams = client.describe_log_streams(logGroupName=group)["logStreams"]
        return {
            row["logStreamName"]: [
                event["message"]
                for event in client.get_log_events(
                    logGroupName=group, logStreamName=row["logStreamName"], startFromHead=True
                )["events"]
            ]
            for row in streams
        }

    # What exists before a deployment: made as Terraform would.

    def make_cluster(self, name: str = "main") -> str:
        return self.client("ecs").create_cluster(clusterName=name)["cluster"]["clusterArn"]

    def make_vpc(self, cidr: str = "10.9.0.0/16") -> str:
        ec2 = self.client("ec2")
        vpc = ec2.create_vpc(CidrBlock=cidr)["Vpc"]["VpcId"]
        ec2.modify_vpc_attribute(VpcId=vpc, EnableDnsHostnames={"Value": True})
        return vpc

    def make_subnets(
        self, vpc: str, cidrs: tuple[str, ...] = ("10.9.1.0/24", "10.9.2.0/24")
    ) -> list[str]:
        ec2 = self.client("ec2")
        return [
            ec2.create_subnet(VpcId=vpc, CidrBlock=cidr, AvailabilityZone=f"{REGION}{zone}")[
                "Subnet"
            ]["SubnetId"]
            for cidr, zone in zip(cidrs, "abc", strict=False)
        ]

    def make_security_group(
        self, vpc: str, name: str, ingress: list[dict[str, Any]] | None = None
    ) -> str:
        """ingress is boto3's IpPermissions."""
        ec2 = self.client("ec2")
        made = ec2.create_security_group(GroupName=name, Description=name, VpcId=vpc)["GroupId"]
        if ingress:
            ec2.authorize_security_group_ingress(GroupId=made, IpPermissions=ingress)
        return made

    def make_target_group(
        self,
        vpc: str,
        subnets: list[str],
        name: str = "web",
        *,
        port: int = 8000,
        path: str = "/",
        matcher: str = "200",
        interval_seconds: int = 5,
        deregistration_delay_seconds: int = 5,
        target_type: str = "ip",
        **parameters: Any,
    ) -> str:
        """Make a target group behind the listener of a load balancer of the same name."""
        elb = self.client("elbv2")
        target = elb.create_target_group(
            **{"Name": name, "Protocol": "HTTP", "Port": port, "VpcId": vpc},
            TargetType=target_type,
            HealthCheckPath=path,
            HealthCheckIntervalSeconds=interval_seconds,
            HealthCheckTimeoutSeconds=2,
            HealthyThresholdCount=2,
            UnhealthyThresholdCount=2,
            Matcher={"HttpCode": matcher},
            **parameters,
        )["TargetGroups"][0]["TargetGroupArn"]
        delay = {
            "Key": "deregistration_delay.timeout_seconds",
            "Value": str(deregistration_delay_seconds),
        }
        elb.modify_target_group_attributes(TargetGroupArn=target, Attributes=[delay])
        balancer = elb.create_load_balancer(Name=name, Subnets=subnets)["LoadBalancers"][0]
        elb.create_listener(
            LoadBalancerArn=balancer["LoadBalancerArn"],
            **{"Protocol": "HTTP", "Port": 80},
            DefaultActions=[{"Type": "forward", "TargetGroupArn": target}],
        )
        return target

    def make_role(self, name: str, policy: dict[str, Any] | None = None) -> str:
        """Make a role that tasks may have, with an inline policy; return its ARN."""
        trust = {
            "Version": "2012-10-17",
            "Statement": [
                {
                    "Effect": "Allow",
                    "Principal": {"Service": "ecs-tasks.amazonaws.com"},
                    "Action": "sts:AssumeRole",
                }
            ],
        }
        iam = self.client("iam")
        made = iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps(trust))
        if policy:
            iam.put_role_policy(RoleName=name, PolicyName=name, PolicyDocument=json.dumps(policy))
        return made["Role"]["Arn"]

    def make_log_group(self, name: str) -> str:
        self.client("logs").create_log_group(logGroupName=name)
        return name

    def make_secret(self, name: str, value: str | dict[str, str]) -> str:
        """Make a secret, a dictionary as JSON; return its ARN."""
        text = value if isinstance(value, str) else json.dumps(value)
        return self.client("secretsmanager").create_secret(Name=name, SecretString=text)["ARN"]
