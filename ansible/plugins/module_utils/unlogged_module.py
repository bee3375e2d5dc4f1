"""A module whose arguments appear in no log of the host that it runs on."""

from __future__ import annotations

from typing import Any

from ansible.module_utils.basic import AnsibleModule


class UnloggedModule(AnsibleModule):
    """AnsibleModule that writes nothing to the journal or to syslog.

    AnsibleModule logs its arguments as text, in which it does not find a secret of several lines,
    and of options inside a list or a dict it knows only the secrets. `no_log=True` given to it does
    not help: each task sets that again. Results, diffs and messages are as ever.
    """

    def _log_invocation(self) -> None:
        """Log no call."""

    def log(self, msg: Any, log_args: Any = None) -> None:
        """Log nothing else either."""
