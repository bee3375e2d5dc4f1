#!/usr/bin/python
"""Keep values in a secret of AWS Secrets Manager, each set of them as a version of its own."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: ecs_secret
short_description: Keep values in AWS Secrets Manager, each set of them as a version of its own
version_added: 0.1.0
author: The poolkit authors (@poolkit)
extends_documentation_fragment: poolkit.poolkit.ecs.region
description:
  - The secret is a JSON object. The id of its version follows from the values and a key, so the
    same values are the same version, and the id tells nothing about them.
  - A task definition names the version. So a changed value makes a new revision, and a rollback
    goes back to the values of its revision.
  - Check mode returns the same version id and writes nothing.
options:
  name:
    description: Name of the secret, which is made where it is missing.
    type: str
    required: true
  values:
    description: The values by their names.
    type: dict
    required: true
  key:
    description: What the version's id is made with, the installation's scram_salt_seed.
    type: str
    required: true
  kms_key_id:
    description: The KMS key of a secret that is made; "" for AWS's own.
    type: str
    default: ""
"""

EXAMPLES = r"""
- name: Keep the application's environment
  poolkit.poolkit.ecs_secret:
    region: eu-central-1
    name: poolkit/shop/web
    values: {DATABASE_URL: "{{ url }}"}
    key: "{{ scram_salt_seed }}"
"""

RETURN = r"""
arn:
  description: ARN of the secret; in check mode, where it is missing, its name.
  type: str
  returned: success
version_id:
  description: Id of the version that holds the values.
  type: str
  returned: success
value_from:
  description: What a task definition's secrets name, by the name of each value.
  type: dict
  returned: success
"""

import hashlib
import hmac
import json
import uuid
from typing import Any

from ..module_utils import ecs_client
from ..module_utils.refused import Refused
from ..module_utils.unlogged_module import UnloggedModule

LONGEST_BYTES = 65536
"""Secrets Manager's limit of a secret's value."""


def version_id(name: str, text: str, key: str) -> str:
    """Return the id of the version with this text: a UUID, as ClientRequestToken wants one."""
    digest = hmac.new(key.encode(), f"{name}\n{text}".encode(), hashlib.sha256).digest()
    return str(uuid.UUID(bytes=digest[:16]))


def make_current(manager: Any, arn: str, version: str) -> None:
    """Label a version as the current one, so that Secrets Manager keeps it."""
    stages = manager.describe_secret(SecretId=arn).get("VersionIdsToStages", {})
    current = next((id_ for id_, labels in stages.items() if "AWSCURRENT" in labels), None)
    if current != version:
        manager.update_secret_version_stage(
            SecretId=arn,
            VersionStage="AWSCURRENT",
            MoveToVersionId=version,
            **({"RemoveFromVersionId": current} if current else {}),
        )


def keep(module: UnloggedModule) -> dict[str, Any]:
    given = module.params
    name = given["name"]
    text = json.dumps({key: str(value) for key, value in given["values"].items()}, sort_keys=True)
    if len(text.encode()) > LONGEST_BYTES:
        raise Refused(
            f"the values of the secret {name} have {len(text.encode())} bytes, and Secrets Manager "
            f"takes {LONGEST_BYTES}: keep large ones elsewhere, and name them in ecs_secrets"
        )
    version = version_id(name, text, given["key"])
    with ecs_client.told():
        manager = ecs_client.client("secretsmanager", given["region"])
        try:
            found = manager.describe_secret(SecretId=name)
        except manager.exceptions.ResourceNotFoundException:
            found = {}
        arn, changed = found.get("ARN", name), version not in found.get("VersionIdsToStages", {})
        if changed and not module.check_mode:
            if found:
                # Does nothing where Secrets Manager still has this version from another time.
                manager.put_secret_value(
                    SecretId=arn, SecretString=text, ClientRequestToken=version
                )
                make_current(manager, arn, version)
            else:
                key = {"KmsKeyId": given["kms_key_id"]} if given["kms_key_id"] else {}
                arn = manager.create_secret(
                    Name=name, SecretString=text, ClientRequestToken=version, **key
                )["ARN"]
    return {
        "changed": changed,
        "arn": arn,
        "version_id": version,
        "value_from": {key: f"{arn}:{key}::{version}" for key in sorted(given["values"])},
    }


def main() -> None:
    module = UnloggedModule(
        argument_spec={
            "region": ecs_client.ARGUMENTS["region"],
            "name": {"type": "str", "required": True},
            "values": {"type": "dict", "required": True, "no_log": True},
            "key": {"type": "str", "required": True, "no_log": True},
            "kms_key_id": {"type": "str", "default": "", "no_log": False},
        },
        supports_check_mode=True,
    )
    ecs_client.run(module, keep)


if __name__ == "__main__":
    main()
