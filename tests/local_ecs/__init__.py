"""A small local ECS for tests: moto's AWS, whose tasks run for real in the local Docker engine.

LocalEcs is what tests use. It is our reading of AWS's documentation, never AWS: each rule cites
its sentence. What it does not have: strategies other than ROLLING, alarms, capacity providers,
availability zones, security groups (every container on the network is reached), the task's memory
limit, DAEMON services, EFS, Service Connect, exec, and the time that Fargate takes to start a task.
"""

from .facade import LocalEcs

__all__ = ["LocalEcs"]
