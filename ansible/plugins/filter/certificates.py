"""A filter that tells when a certificate ends. It is pure."""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleFilterError

from ..module_utils.certificates import first_to_end
from ..module_utils.refused import Refused


def certificate_end(text: str) -> int:
    """Return when the first of the certificates of a PEM file ends, in seconds since 1970 (UTC).

    text: the file's.
    """
    try:
        return int(first_to_end(text).not_after.timestamp())
    except Refused as error:
        raise AnsibleFilterError(f"the file {error}") from error


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Any]:
        return {"certificate_end": certificate_end}
