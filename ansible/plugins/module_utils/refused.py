"""The error of what is given up with a reason for people."""

from __future__ import annotations


class Refused(Exception):
    """Something cannot be used, or does not do what was asked of it; the text says why."""
