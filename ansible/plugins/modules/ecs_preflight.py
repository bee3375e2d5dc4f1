#!/usr/bin/python
"""See that everything is there which a service of ECS names, before anything changes."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: ecs_preflight
short_description: See that everything is there which a service of ECS names
version_added: 0.1.0
author: The poolkit authors (@poolkit)
extends_documentation_fragment: poolkit.poolkit.ecs
description:
  - Asks AWS for the cluster, roles, subnets, security groups, log group and secrets, and fails with
    a line for each that is missing. Changes nothing.
  - A key of a secret is looked for where the controller's role may read that secret.
options:
  roles:
    description: ARNs of IAM roles by the variables that name them.
    type: dict
    required: true
  subnets:
    description: Ids of subnets, ecs_subnets.
    type: list
    elements: str
    required: true
  security_groups:
    description: Ids of security groups, ecs_security_groups.
    type: list
    elements: str
    required: true
  log_group:
    description: Name of the log group, ecs_log_group.
    type: str
    required: true
  secrets:
    description: What a task definition's secrets name, by the names of the variables, ecs_secrets.
    type: dict
    default: {}
"""

EXAMPLES = r"""
- name: Look whether all is there
  poolkit.poolkit.ecs_preflight:
    region: eu-central-1
    cluster: main
    roles: {ecs_execution_role_arn: "arn:aws:iam::123456789012:role/shop-execution"}
    subnets: [subnet-1]
    security_groups: [sg-1]
    log_group: /ecs/shop
"""

RETURN = r"""
unchecked:
  description: Secrets whose keys the controller may not look for.
  type: list
  elements: str
  returned: success
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from ..module_utils import ecs_client
from ..module_utils.refused import Refused
from ..module_utils.unlogged_module import UnloggedModule

SECRET = re.compile(r"arn:[\w-]+:(secretsmanager|ssm):[\w-]+:\d+:(secret|parameter)[:/]\S+")


def missing(given: dict[str, Any]) -> Iterator[str]:
    """Yield a line for each thing that is not there."""
    region = given["region"]
    ecs, ec2 = ecs_client.client("ecs", region), ecs_client.client("ec2", region)
    clusters = ecs.describe_clusters(clusters=[given["cluster"]])["clusters"]
    if not any(row["status"] == "ACTIVE" for row in clusters):
        yield f"ecs_cluster: there is no active cluster {given['cluster']} in {region}"
    iam = ecs_client.client("iam", region)
    for variable, arn in given["roles"].items():
        try:
            found = iam.get_role(RoleName=arn.rpartition("/")[2])["Role"]["Arn"]
        except iam.exceptions.NoSuchEntityException:
            found = ""
        if found != arn:
            yield f"{variable}: there is no role {arn}"
    for variable, kind, key in (
        ("ecs_subnets", "subnets", "SubnetId"),
        ("ecs_security_groups", "security_groups", "GroupId"),
    ):
        wanted = given[kind]
        # A filter, and not the ids themselves: an unknown id would be an error without the others.
        name = "subnet-id" if kind == "subnets" else "group-id"
        answer = getattr(ec2, f"describe_{kind}")(Filters=[{"Name": name, "Values": wanted}])
        there = {row[key] for row in answer["Subnets" if kind == "subnets" else "SecurityGroups"]}
        if gone := [id_ for id_ in wanted if id_ not in there]:
            yield f"{variable}: there is no {', '.join(gone)} in {region}"
    logs = ecs_client.client("logs", region)
    groups = logs.describe_log_groups(logGroupNamePrefix=given["log_group"])["logGroups"]
    if given["log_group"] not in [row["logGroupName"] for row in groups]:
        yield f"ecs_log_group: there is no log group {given['log_group']} in {region}"


def secrets_missing(given: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Return (what is wrong with ecs_secrets, the names whose keys cannot be looked for)."""
    errors, unchecked = [], []
    for name, value in given["secrets"].items():
        found = SECRET.fullmatch(str(value))
        if not found:
            errors.append(
                f"ecs_secrets.{name} is {value!r}: give the ARN of a secret of Secrets Manager, "
                "such as arn:…:secret:shop-AbCdEf:key::, or of a parameter of Systems Manager"
            )
            continue
        if found[1] == "ssm":
            ssm = ecs_client.client("ssm", given["region"])
            try:
                if ssm.get_parameters(Names=[str(value)])["InvalidParameters"]:
                    errors.append(f"ecs_secrets.{name}: there is no parameter {value}")
            except ssm.exceptions.ClientError as error:
                if "AccessDenied" not in str(error):
                    raise
                unchecked.append(name)
            continue
        parts = str(value).split(":")
        arn, key = ":".join(parts[:7]), [*parts[7:], ""][0]
        manager = ecs_client.client("secretsmanager", given["region"])
        try:
            manager.describe_secret(SecretId=arn)
            if key:
                text = manager.get_secret_value(SecretId=arn)["SecretString"]
                if key not in json.loads(text):
                    errors.append(f"ecs_secrets.{name}: the secret {arn} has no key {key}")
        except manager.exceptions.ResourceNotFoundException:
            errors.append(f"ecs_secrets.{name}: there is no secret {arn}")
        except (KeyError, ValueError, TypeError):
            errors.append(f"ecs_secrets.{name}: the secret {arn} is no JSON object with keys")
        except manager.exceptions.ClientError as error:
            if "AccessDenied" not in str(error):
                raise
            unchecked.append(name)
    return errors, unchecked


def look(module: UnloggedModule) -> dict[str, Any]:
    with ecs_client.told():
        errors = list(missing(module.params))
        wrong, unchecked = secrets_missing(module.params)
    if errors + wrong:
        raise Refused("; ".join(errors + wrong) + ". Nothing was changed")
    return {"changed": False, "unchecked": unchecked}


def main() -> None:
    module = UnloggedModule(
        argument_spec={
            **ecs_client.ARGUMENTS,
            "roles": {"type": "dict", "required": True},
            "subnets": {"type": "list", "elements": "str", "required": True},
            "security_groups": {"type": "list", "elements": "str", "required": True},
            "log_group": {"type": "str", "required": True},
            "secrets": {"type": "dict", "default": {}, "no_log": False},  # names of secrets
        },
        supports_check_mode=True,
    )
    ecs_client.run(module, look)


if __name__ == "__main__":
    main()
