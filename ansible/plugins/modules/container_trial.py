#!/usr/bin/python
"""Run a command in an image, with an environment that nobody else reads, and take its verdict."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: container_trial
short_description: Run a command in an image, without a network, and take its verdict
version_added: 0.1.0
author: The poolkit authors (@poolkit)
description:
  - Runs a command in a container of its own, read-only, without a network and capabilities, and
    fails with what it says where it fails. It also runs in check mode, since it changes nothing.
  - The environment's values are on no command line.
  - Runs on the controller and needs Docker's client and an engine.
options:
  image:
    description: The image.
    type: str
    required: true
  platform:
    description: The image's platform, such as linux/amd64.
    type: str
    required: true
  command:
    description: The command.
    type: list
    elements: str
    required: true
  environment:
    description: Environment of the command.
    type: dict
    default: {}
"""

EXAMPLES = r"""
- name: Try the pooler's configuration
  poolkit.poolkit.container_trial:
    image: "{{ image }}"
    platform: linux/amd64
    command: [pgbouncer-start, --try]
    environment: {PGBOUNCER_INI: "{{ text }}"}
"""

RETURN = r"""
output:
  description: What the command has printed.
  type: str
  returned: success
"""

import os
import subprocess

from ..module_utils.command_output import shortened
from ..module_utils.unlogged_module import UnloggedModule

SECONDS = 60


def main() -> None:
    module = UnloggedModule(
        argument_spec={
            "image": {"type": "str", "required": True},
            "platform": {"type": "str", "required": True},
            "command": {"type": "list", "elements": "str", "required": True},
            "environment": {"type": "dict", "default": {}, "no_log": True},
        },
        supports_check_mode=True,
    )
    given = module.params
    values = {key: str(value) for key, value in given["environment"].items()}
    command = [
        *("docker", "run", "--rm", "--network=none", "--read-only", "--cap-drop=ALL"),
        f"--platform={given['platform']}",
        *(f"--env={name}" for name in values),
        given["image"],
        *given["command"],
    ]
    try:
        done = subprocess.run(
            command,
            env={**os.environ, **values},
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
    except FileNotFoundError:
        module.fail_json(msg="the controller has no docker: install its client and engine")
    except subprocess.TimeoutExpired:
        module.fail_json(msg=f"{given['image']} gave no verdict within {SECONDS} s")
    if done.returncode:
        module.fail_json(msg=shortened(done.stderr or done.stdout) or "no output")
    module.exit_json(changed=False, output=done.stdout.strip())


if __name__ == "__main__":
    main()
