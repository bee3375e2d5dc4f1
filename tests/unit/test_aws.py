"""What AWS has around an application, judged: target groups, load balancers, security groups."""

from __future__ import annotations

import pytest

from plugins.filter.aws import balancer_errors, security_group_errors

APP = {"target_types": ["instance"], "timeout_seconds": 30, "keepalive_seconds": 65}
GROUP = {
    "target_group_name": "shop",
    "target_type": "instance",
    "deregistration_delay_timeout_seconds": "30",
    "load_balancer_arns": ["arn:lb"],
}
BALANCER = {
    "load_balancer_arn": "arn:lb",
    "load_balancer_name": "front",
    "idle_timeout_timeout_seconds": "60",
}


def rule(**given: object) -> dict:
    """Return a rule of a security group, TCP to 5432 unless told otherwise."""
    return {"ip_protocol": "tcp", "from_port": 5432, "to_port": 5432, **given}


def judged(*rules: dict, wanted: tuple[str, ...] = ("sg-db",)) -> list[str]:
    groups = [{"group_id": "sg-db", "group_name": "database", "ip_permissions": list(rules)}]
    return security_group_errors(groups, wanted, 5432, ["sg-app", "10.0.0.0/16"])


@pytest.mark.parametrize(
    "given",
    [
        rule(user_id_group_pairs=[{"group_id": "sg-app"}]),
        rule(ip_ranges=[{"cidr_ip": "10.0.0.0/16"}]),
        rule(ip_ranges=[{"cidr_ip": "0.0.0.0/0"}], from_port=443, to_port=443),
        rule(ip_ranges=[{"cidr_ip": "0.0.0.0/0"}], ip_protocol="udp"),
        rule(ip_ranges=[{"cidr_ip": "0.0.0.0/0"}], ip_protocol="icmp", from_port=-1, to_port=-1),
    ],
)
def test_groups_that_let_nobody_else_in(given: dict) -> None:
    assert judged(given) == []


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (rule(ip_ranges=[{"cidr_ip": "0.0.0.0/0"}]), "whole world (0.0.0.0/0)"),
        (rule(ipv6_ranges=[{"cidr_ipv6": "::/0"}]), "whole world (::/0)"),
        (rule(ip_ranges=[{"cidr_ip": "0.0.0.0/0"}], from_port=5000, to_port=6000), "whole world"),
        (rule(ip_ranges=[{"cidr_ip": "0.0.0.0/0"}], from_port=-1, to_port=-1), "whole world"),
        ({"ip_protocol": "-1", "ip_ranges": [{"cidr_ip": "0.0.0.0/0"}]}, "whole world"),
        (rule(user_id_group_pairs=[{"group_id": "sg-other"}]), "lets sg-other reach port 5432"),
        (rule(ip_ranges=[{"cidr_ip": "10.1.0.0/16"}]), "lets 10.1.0.0/16 reach"),
        (rule(prefix_list_ids=[{"prefix_list_id": "pl-1"}]), "lets pl-1 reach"),
    ],
)
def test_groups_that_are_too_wide(given: dict, words: str) -> None:
    (message,) = judged(given)
    assert words in message
    assert "the security group sg-db (database)" in message


def test_group_that_is_not_there() -> None:
    (message,) = judged(wanted=("sg-away",))
    assert message == "database_security_groups: there is no security group sg-away here"


@pytest.mark.parametrize(
    ("group", "balancer", "words"),
    [
        ({}, {}, ""),
        ({}, {"idle_timeout_timeout_seconds": "64"}, ""),
        ({}, {"idle_timeout_timeout_seconds": "65"}, "Set app_keepalive_seconds to 70"),
        ({}, {"idle_timeout_timeout_seconds": None}, ""),  # a network load balancer
        ({}, {"load_balancer_arn": "other", "idle_timeout_timeout_seconds": "900"}, ""),
        ({"target_type": "ip"}, {}, "targets of type ip, and the application's are of type inst"),
        ({"deregistration_delay_timeout_seconds": "29"}, {}, "drains for 29 s, and a request may"),
        ({"health_check_path": "/readyz"}, {}, "ECS would replace every task for it"),
    ],
)
def test_what_a_balancer_must_be_like(group: dict, balancer: dict, words: str) -> None:
    app = APP | {"ready_path": "/readyz"}
    errors = balancer_errors([GROUP | group], [BALANCER | balancer], app)
    assert len(errors) == (1 if words else 0)
    assert words in "".join(errors)
