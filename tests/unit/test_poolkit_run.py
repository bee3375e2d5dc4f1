"""The program that runs a command as an application does: what it takes from the service."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

PATH = Path(__file__).resolve().parents[2] / "roles/app/files/poolkit-run"
UNIT = """[Unit]
Description=shop (django)
Requires=shop.socket

[Service]
Type=notify
User=shop
Group=shop
EnvironmentFile=/etc/poolkit/shop/app.env
ExecStart=/srv/shop/current/.venv/bin/gunicorn config.wsgi
# a comment
MemoryMax=1G
ProtectSystem=strict
SystemCallFilter=@system-service
SystemCallFilter=~@privileged

[Install]
WantedBy=multi-user.target
"""
GUNICORN = 'pythonpath = ",".join(str(release / name) for name in [".", "src"])\n'


@pytest.fixture(scope="module")
def program() -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("poolkit_run", str(PATH))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    sys.dont_write_bytecode, kept = True, sys.dont_write_bytecode
    loader.exec_module(module)
    sys.dont_write_bytecode = kept
    return module


def test_sandbox_and_limits_are_the_services(program: ModuleType) -> None:
    assert program.service_settings(UNIT) == [
        "MemoryMax=1G",
        "ProtectSystem=strict",
        "SystemCallFilter=@system-service",
        "SystemCallFilter=~@privileged",
    ]
    assert program.value(UNIT, "User") == "shop"


def test_python_path_is_the_services(program: ModuleType) -> None:
    assert program.python_path(GUNICORN, Path("/srv/shop/r")) == "/srv/shop/r:/srv/shop/r/src"


def test_the_roles_templates_are_read(program: ModuleType) -> None:
    """The program reads what the role writes."""
    templates = PATH.parents[1] / "templates/etc"
    settings = (templates / "poolkit/gunicorn.conf.py.j2").read_text()
    assert "str(release / name) for name in {{ _app_release.python_path | to_json }})" in settings
    unit = (templates / "systemd/system/app.service.j2").read_text()
    assert "\n[Service]\n" in unit
    assert "\nUser={{ app_user }}\n" in unit
