"""Target groups of type ip: states initial, healthy, unhealthy, draining, by real HTTP checks.

The states and reasons are those of botocore's elbv2 model (TargetHealth): "initial", "healthy",
"unhealthy", "draining"; "Elb.InitialHealthChecking", "Target.FailedHealthChecks",
"Target.ResponseCodeMismatch", "Target.Timeout", "Target.DeregistrationInProgress".
"""

from __future__ import annotations

import http.client
import threading
from dataclasses import dataclass, field
from typing import Any

from moto.elbv2.models import FakeHealthStatus, FakeTargetGroup, elbv2_backends

from .api import ACCOUNT, REGION


@dataclass
class Target:
    """One address of a target group."""

    group: FakeTargetGroup
    address: str
    port: int
    state: str = "initial"
    reason: str | None = "Elb.InitialHealthChecking"
    gone: threading.Event = field(default_factory=threading.Event)

    def check(self) -> str | None:
        """Ask the target's health path; return why it failed, None where it did not."""
        port = self.group.health_check_port
        connection = http.client.HTTPConnection(
            self.address,
            self.port if port == "traffic-port" else int(port),
            timeout=float(self.group.health_check_timeout_seconds),
        )
        try:
            # As the balancer's checks: Host is the target's address and port.
            agent = {"User-Agent": "ELB-HealthChecker/2.0"}
            connection.request("GET", self.group.health_check_path or "/", headers=agent)
            status = connection.getresponse().status
        except TimeoutError:
            return "Target.Timeout"
        except (OSError, http.client.HTTPException):
            return "Target.FailedHealthChecks"
        finally:
            connection.close()
        return (
            None
            if matches(self.group.matcher["HttpCode"], status)
            else "Target.ResponseCodeMismatch"
        )

    def watch(self, scale: float) -> None:
        """Check until it is deregistered.

        One success makes a target healthy that was just registered; later HealthyThresholdCount
        and UnhealthyThresholdCount "consecutive health checks" are needed.
        """
        good = bad = 0
        while not self.gone.is_set():
            reason = self.check()
            good, bad = (0, bad + 1) if reason else (good + 1, 0)
            if self.state == "draining":
                return
            if not reason and (
                self.state == "initial" or good >= int(self.group.healthy_threshold_count)
            ):
                self.state, self.reason = "healthy", None
            if reason and bad >= int(self.group.unhealthy_threshold_count):
                self.state, self.reason = "unhealthy", reason
            self.gone.wait(float(self.group.health_check_interval_seconds) * scale)


def matches(codes: str, status: int) -> bool:
    """Matcher: '"200,202" or a range of values (for example, "200-299")'."""
    for part in codes.split(","):
        low, _, high = part.partition("-")
        if int(low) <= status <= int(high or low):
            return True
    return False


class Targets:
    """The targets of all target groups of type ip; puts itself into moto's elbv2."""

    def __init__(self, time_scale: float) -> None:
        self.scale = time_scale
        self.all: dict[tuple[str, str, int], Target] = {}
        self.backend = elbv2_backends[ACCOUNT][REGION]
        self.moto = {
            name: getattr(self.backend, name)
            for name in ("register_targets", "deregister_targets", "describe_target_health")
        }
        for name in self.moto:
            setattr(self.backend, name, getattr(self, name))

    def close(self) -> None:
        for target in self.all.values():
            target.gone.set()
        for name, method in self.moto.items():
            setattr(self.backend, name, method)

    def group(self, arn: str) -> FakeTargetGroup | None:
        return self.backend.target_groups.get(arn)

    def rows(self, arn: str) -> list[Target]:
        return [target for key, target in list(self.all.items()) if key[0] == arn]

    def get(self, arn: str, address: str, port: int) -> Target | None:
        return self.all.get((arn, address, port))

    def register(self, arn: str, address: str, port: int) -> None:
        found = self.get(arn, address, port)
        if found and found.state != "draining":
            return
        group = self.group(arn)
        assert group, f"no target group {arn}"
        target = self.all[(arn, address, port)] = Target(group, address, port)
        threading.Thread(target=target.watch, args=(self.scale,), daemon=True).start()

    def deregister(self, arn: str, address: str, port: int) -> float:
        """Let a target drain; return for how many seconds.

        "the amount of time ... to wait before changing the state of a deregistering target from
        draining to unused" (deregistration_delay.timeout_seconds).
        """
        target = self.get(arn, address, port)
        if target is None:
            return 0
        delay = self.delay(arn)
        if target.state != "draining":
            target.state, target.reason = "draining", "Target.DeregistrationInProgress"
            timer = threading.Timer(delay, self.forget, ((arn, address, port), target))
            timer.daemon = True
            timer.start()
        return delay

    def delay(self, arn: str) -> float:
        group = self.group(arn)
        assert group
        return float(group.attributes["deregistration_delay.timeout_seconds"]) * self.scale

    def forget(self, key: tuple[str, str, int], target: Target) -> None:
        target.gone.set()
        if self.all.get(key) is target:
            del self.all[key]

    # moto's elbv2 calls these three for its API.

    def register_targets(self, target_group_arn: str, instances: list[Any]) -> None:
        group = self.group(target_group_arn)
        if group is None or group.target_type != "ip":
            return self.moto["register_targets"](target_group_arn, instances)
        for row in instances:
            self.register(target_group_arn, row["Id"], int(row.get("Port") or group.port))
        return None

    def deregister_targets(self, target_group_arn: str, instances: list[Any]) -> None:
        group = self.group(target_group_arn)
        if group is None or group.target_type != "ip":
            return self.moto["deregister_targets"](target_group_arn, instances)
        for row in instances:
            self.deregister(target_group_arn, row["Id"], int(row.get("Port") or group.port))
        return None

    def describe_target_health(
        self, target_group_arn: str, targets: list[dict[str, Any]]
    ) -> list[FakeHealthStatus]:
        group = self.group(target_group_arn)
        if group is None or group.target_type != "ip":
            return self.moto["describe_target_health"](target_group_arn, targets)
        found = self.rows(target_group_arn)
        if targets:
            asked = {(row["Id"], int(row.get("Port") or group.port)) for row in targets}
            known = {(target.address, target.port): target for target in found}
            unused = ("unused", "Target.NotRegistered")
            return [
                status(
                    group,
                    *key,
                    *((known[key].state, known[key].reason) if key in known else unused),
                )
                for key in asked
            ]
        return [
            status(group, target.address, target.port, target.state, target.reason)
            for target in found
        ]


def status(
    group: FakeTargetGroup, address: str, port: int, state: str, reason: str | None
) -> FakeHealthStatus:
    return FakeHealthStatus(address, port, group.health_check_port, state, reason)
