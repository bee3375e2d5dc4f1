"""What a role of moto's IAM may do: its inline and attached policies, as moto reads them."""

from __future__ import annotations

from moto.iam.access_control import IAMPolicy, PermissionResult
from moto.iam.models import iam_backends

from .api import ACCOUNT


def permits(role_arn: str, action: str, resource: str) -> bool:
    """Say whether the policies of a role allow an action on a resource and none denies it."""
    roles = iam_backends[ACCOUNT]["aws"].roles.values()
    role = next(role for role in roles if role.arn == role_arn)
    policies = [
        *(IAMPolicy(document) for document in role.policies.values()),
        *(IAMPolicy(policy) for policy in role.managed_policies.values()),
    ]
    results = {policy.is_action_permitted(action, resource) for policy in policies}
    return PermissionResult.PERMITTED in results and PermissionResult.DENIED not in results


def exists(role_arn: str) -> bool:
    return any(role.arn == role_arn for role in iam_backends[ACCOUNT]["aws"].roles.values())
