"""Filters that judge what AWS has around an application: its load balancer, the database's groups.

Their input is what amazon.aws.ec2_security_group_info, community.aws.elb_target_group_info and
amazon.aws.elb_application_lb_info return. Every function is pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

WORLD = ("0.0.0.0/0", "::/0")


def _covers(permission: Mapping[str, Any], port: int) -> bool:
    """Say whether a rule of a security group lets TCP to a port. Without ports, it has them all."""
    if str(permission["ip_protocol"]) not in ("tcp", "6", "-1"):
        return False
    first, last = permission.get("from_port"), permission.get("to_port")
    return first in (None, -1) or last is None or first <= port <= last


def _sources(permission: Mapping[str, Any]) -> list[str]:
    """Return whom a rule lets in: networks, security groups, prefix lists."""
    parts = (
        ("ip_ranges", "cidr_ip"),
        ("ipv6_ranges", "cidr_ipv6"),
        ("user_id_group_pairs", "group_id"),
        ("prefix_list_ids", "prefix_list_id"),
    )
    return [row[key] for part, key in parts for row in permission.get(part) or []]


def security_group_errors(
    groups: Iterable[Mapping[str, Any]], wanted: Iterable[str], port: int, allowed: Iterable[str]
) -> list[str]:
    """Return what is wrong with the security groups of a database: one message for each.

    wanted: database_security_groups. port: the database's. allowed: the sources that may reach it,
    ids of security groups and prefix lists, and networks. The world never may.
    """
    groups = {group["group_id"]: group for group in groups}
    allowed, port, errors = set(allowed), int(port), []
    for name in wanted:
        if name not in groups:
            errors.append(f"database_security_groups: there is no security group {name} here")
            continue
        found = [
            source
            for permission in groups[name]["ip_permissions"]
            if _covers(permission, port)
            for source in _sources(permission)
        ]
        where = f"the security group {name} ({groups[name].get('group_name')})"
        if world := [source for source in found if source in WORLD]:
            errors.append(
                f"{where} lets the whole world ({', '.join(world)}) reach port {port} of the "
                "database: remove that rule"
            )
        if more := sorted(set(found) - allowed - set(WORLD)):
            errors.append(
                f"{where} lets {', '.join(more)} reach port {port} of the database: remove the "
                "rule, or name the source in database_security_group_sources"
            )
    return errors


def balancer_errors(
    groups: Iterable[Mapping[str, Any]],
    balancers: Iterable[Mapping[str, Any]],
    app: Mapping[str, Any],
) -> list[str]:
    """Return what is wrong with the target groups of an application, and with their balancers.

    app: target_types (those that its targets can be of), timeout_seconds, keepalive_seconds, and
    for ECS, which replaces a task that fails its target group's check, ready_path: the one that
    fails with the database.
    """
    errors = []
    limit, keepalive = int(app["timeout_seconds"]), int(app["keepalive_seconds"])
    groups = list(groups)
    for group in groups:
        name, kind = group["target_group_name"], group.get("target_type")
        if kind not in app["target_types"]:
            errors.append(
                f"the target group {name} has targets of type {kind}, and the application's are "
                f"of type {' or '.join(app['target_types'])}: make another one"
            )
        if app.get("ready_path") and app["ready_path"] == group.get("health_check_path"):
            errors.append(
                f"the target group {name} asks {group['health_check_path']}, which fails while the "
                "database is away, and ECS would replace every task for it: let it ask a path that "
                "needs no database, such as /healthz"
            )
        delay = int(group.get("deregistration_delay_timeout_seconds") or 0)
        if delay < limit:
            errors.append(
                f"the target group {name} drains for {delay} s, and a request may take {limit} s "
                "(app_timeout_seconds): raise its deregistration_delay.timeout_seconds to that"
            )
    used = {arn for group in groups for arn in group.get("load_balancer_arns") or []}
    for balancer in balancers:
        idle = balancer.get("idle_timeout_timeout_seconds")
        if balancer["load_balancer_arn"] in used and idle and keepalive <= int(idle):
            errors.append(
                f"the load balancer {balancer['load_balancer_name']} keeps idle connections for "
                f"{idle} s, and the application closes them after {keepalive} s: a request on one "
                f"that closes gets 502. Set app_keepalive_seconds to {int(idle) + 5}, or more"
            )
    return errors


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Any]:
        return {
            "balancer_errors": balancer_errors,
            "security_group_errors": security_group_errors,
        }
