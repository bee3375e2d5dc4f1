"""Makes our module_utils importable under the name that the modules use."""

from pathlib import Path

import ansible.module_utils

ansible.module_utils.__path__.append(
    str(Path(__file__).resolve().parents[2] / "ansible/plugins/module_utils")
)
