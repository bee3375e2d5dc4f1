#!/usr/bin/python
"""Tell what in an application's source does not go with transaction pooling."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: source_audit
short_description: Tell what in an application's source does not go with transaction pooling
version_added: 0.1.0
author: The poolkit authors (@poolkit)
description:
  - Reads the files of a directory of the controller, as scripts/audit.py does. Nothing is run or
    changed.
options:
  source:
    description: The application's directory.
    type: path
    required: true
"""

EXAMPLES = r"""
- name: Read the source
  poolkit.poolkit.source_audit: {source: ../shop}
  delegate_to: localhost
"""

RETURN = r"""
findings:
  description: A line for each place that needs a session.
  type: list
  elements: str
  returned: success
checks:
  description: A line for each place that is right in the case that the line names.
  type: list
  elements: str
  returned: success
unread:
  description: A line for each file that could not be read.
  type: list
  elements: str
  returned: success
custom_settings:
  description: Names of settings with a dot that the source sets for a session.
  type: list
  elements: str
  returned: success
"""

from pathlib import Path

from ..module_utils.audited_files import audit
from ..module_utils.session_audit import BREAKS
from ..module_utils.unlogged_module import UnloggedModule


def main() -> None:
    module = UnloggedModule(
        argument_spec={"source": {"type": "path", "required": True}}, supports_check_mode=True
    )
    found, unread, custom = audit(Path(module.params["source"]))
    module.exit_json(
        changed=False,
        findings=[str(finding) for finding in found if finding.level == BREAKS],
        checks=[str(finding) for finding in found if finding.level != BREAKS],
        unread=unread,
        custom_settings=sorted(custom),
    )


if __name__ == "__main__":
    main()
