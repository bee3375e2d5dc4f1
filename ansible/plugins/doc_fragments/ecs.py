"""What the modules of ECS have in common, for their documentation."""

from __future__ import annotations


class ModuleDocFragment:
    """ecs: where a service is; ecs.region: AWS's region alone."""

    DOCUMENTATION = r"""
options:
  region:
    description: AWS's region.
    type: str
    required: true
  cluster:
    description: Name or ARN of the cluster.
    type: str
    required: true
notes:
  - Runs on the controller, with its own role or environment, and needs boto3.
"""

    REGION = r"""
options:
  region:
    description: AWS's region.
    type: str
    required: true
notes:
  - Runs on the controller, with its own role or environment, and needs boto3.
"""
