"""Quoting for SQL."""

from __future__ import annotations

from ansible.errors import AnsibleFilterError


def quote_ident(value: str) -> str:
    """Quote an SQL identifier."""
    if not value or "\0" in value:
        raise AnsibleFilterError("an SQL identifier cannot be empty and cannot hold NUL")
    return '"' + value.replace('"', '""') + '"'
