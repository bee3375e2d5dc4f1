"""templates/nginx.conf and templates/Caddyfile: their time-outs fit those of docs/timeouts.md."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DEFAULTS = yaml.safe_load((ROOT / "roles/app/defaults/main.yml").read_text())


@pytest.mark.parametrize(
    ("file", "answer", "idle"),
    [
        ("nginx.conf", r"proxy_read_timeout (\d+)s", r"keepalive_timeout (\d+)s"),
        ("Caddyfile", r"response_header_timeout (\d+)s", r"\tkeepalive (\d+)s"),
    ],
)
def test_relations_of_the_time_outs(file: str, answer: str, idle: str) -> None:
    text = (ROOT / "templates" / file).read_text()
    (seconds,) = re.findall(answer, text)
    assert int(seconds) > DEFAULTS["app_timeout_seconds"]
    (seconds,) = re.findall(idle, text)
    assert int(seconds) < DEFAULTS["app_keepalive_seconds"]
    assert f"app_timeout_seconds ({DEFAULTS['app_timeout_seconds']})" in text
    assert f"app_keepalive_seconds, {DEFAULTS['app_keepalive_seconds']}" in text
