"""The unit NAME-build.service: what builds an application on its host runs in it, one at a time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from .service_state import properties, systemctl

SANDBOX = (
    "UMask=0022",
    "ProtectSystem=strict",
    "ProtectHome=yes",
    "PrivateTmp=yes",
    "ProtectProc=invisible",
    "NoNewPrivileges=yes",
    "RestrictSUIDSGID=yes",
    "CapabilityBoundingSet=",
)


def end_left_over(name: str) -> None:
    """End the unit of a run that was cut off; the caller's lock shows that no other run goes on.

    A service of that name is no unit of systemd-run, which then refuses it.
    """
    unit = f"{name}-build.service"
    if properties(unit, "Transient").get("Transient") == "yes":
        systemctl("stop", unit)


def build_unit(
    name: str,
    user: str,
    directory: Path | str,
    environment_file: Path | str,
    writable: Iterable[Path],
    command: Sequence[str],
) -> list[str]:
    """Return the command that runs another one in a directory as the user, and waits.

    When it returns, systemd has ended every process of the unit.
    """
    lines = (
        f"User={user}",
        f"EnvironmentFile={environment_file}",
        f"WorkingDirectory={directory}",
        *SANDBOX,
        *(f"ReadWritePaths=-{path}" for path in writable),
    )
    return [
        *("systemd-run", "--quiet", "--pipe", "--wait", "--collect", f"--unit={name}-build"),
        *(f"--property={line}" for line in lines),
        "--setenv=HOME=/tmp",
        # systemd puts variables of its own in the place of a single $.
        *(word.replace("$", "$$") for word in command),
    ]
