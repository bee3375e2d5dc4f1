#!/usr/bin/python
"""Put directories and text files on a host, all in one go."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: host_files
short_description: Put directories and text files on a host, all in one go
version_added: 0.1.0
author: The poolkit authors (@poolkit)
description:
  - Makes directories and replaces files whose text, owner or mode differ. A task for
    each file would take as long again for each.
options:
  directories:
    description: Directories of root's (0755), with their parents.
    type: list
    elements: path
    default: []
  user:
    description: Owner of the user_directories.
    type: str
    default: root
  user_directories:
    description:
      - Directories of a user and its group (0750); their parents are root's. What is in them is
        left as it is.
    type: list
    elements: path
    default: []
  programs:
    description: Programs of root's that everybody may read (0755), as a list of {path, content}.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: Where the program goes.
        type: path
        required: true
      content:
        description: Its text.
        type: str
        required: true
  files:
    description:
      - Files without secrets, as a list of {path, content, owner}. Root's, which everybody may read
        (0644); with an owner its own and its group's (0640).
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: Where the file goes.
        type: path
        required: true
      content:
        description: Its text.
        type: str
        required: true
      owner:
        description: Its owner; root where left out.
        type: str
  secret_files:
    description:
      - Files that their owner alone may read (0600, 0400 for another owner than root), as a list of
        {path, content, owner}. Their content appears in no output.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: Where the file goes.
        type: path
        required: true
      content:
        description: Its text.
        type: str
        required: true
      owner:
        description: Its owner; root where left out.
        type: str
"""

EXAMPLES = r"""
- name: Put the files there
  poolkit.poolkit.host_files:
    files: [{path: /etc/poolkit/shop/pg_service.conf, content: "[shop]"}]
    secret_files: [{path: /etc/poolkit/shop/pgpass, content: "{{ secret }}", owner: shop}]
"""

RETURN = r"""
paths:
  description: What was made or replaced, or would be in check mode.
  type: list
  elements: str
  returned: success
"""

import os
import shutil
from pathlib import Path

from ..module_utils.text_files import difference, read, same_owner, write
from ..module_utils.unlogged_module import UnloggedModule


def main() -> None:
    os.umask(0o022)  # the mode of directories, whatever the host's own
    file = {"path": {"type": "path", "required": True}}
    plain = {**file, "content": {"type": "str", "required": True}, "owner": {"type": "str"}}
    secret = {
        **file,
        "content": {"type": "str", "required": True, "no_log": True},
        "owner": {"type": "str"},
    }
    module = UnloggedModule(
        argument_spec={
            "directories": {"type": "list", "elements": "path", "default": []},
            "user": {"type": "str", "default": "root"},
            "user_directories": {"type": "list", "elements": "path", "default": []},
            "programs": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {**file, "content": {"type": "str", "required": True}},
            },
            "files": {"type": "list", "elements": "dict", "default": [], "options": plain},
            "secret_files": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": secret,
                "no_log": False,
            },
        },
        supports_check_mode=True,
    )
    paths, shown = [], []
    for name in module.params["directories"]:
        if not Path(name).is_dir():
            paths.append(name)
            shown.append({"prepared": f"{name} is not there yet\n"})
            if not module.check_mode:
                Path(name).mkdir(mode=0o755, parents=True)
    owner = module.params["user"]
    for path in map(Path, module.params["user_directories"]):
        if path.is_dir() and same_owner(path, 0o750, owner):
            continue
        paths.append(str(path))
        shown.append({"prepared": f"{path} is not {owner}'s yet\n"})
        if not module.check_mode:
            path.mkdir(mode=0o755, parents=True, exist_ok=True)
            shutil.chown(path, owner, owner)
            path.chmod(0o750)
    wanted = [
        (file, 0o640 if file["owner"] else 0o644, file["owner"], False)
        for file in module.params["files"]
    ]
    wanted += [({**file, "owner": None}, 0o755, None, False) for file in module.params["programs"]]
    for file in module.params["secret_files"]:
        wanted.append((file, 0o400 if file["owner"] else 0o600, file["owner"], True))
    for file, mode, owner, hidden in wanted:
        path = Path(file["path"])
        if read(path) == file["content"] and same_owner(path, mode, owner):
            continue
        paths.append(str(path))
        shown.append({"prepared": difference(path, file["content"], hidden)})
        if not module.check_mode:
            write(path, file["content"], mode, owner)
    module.exit_json(changed=bool(paths), paths=paths, diff=shown)


if __name__ == "__main__":
    main()
