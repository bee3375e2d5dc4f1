"""What docs/ec2.md and docs/ecs.md tell, and the inventories to copy, with a stand-in for AWS."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
import yaml
from local_ecs.api import REGION, Api

from plugins.plugin_utils.role_defaults import known_variables, options

ROOT = Path(__file__).resolve().parents[2]
KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}


@pytest.fixture(scope="module")
def api() -> Iterator[Api]:
    with Api({}) as api:
        yield api


@pytest.fixture(scope="module")
def secrets(api: Api) -> dict[str, dict[str, str]]:
    """Run the page's program as it stands; return the secrets that it has made."""
    page = (ROOT / "docs/ec2.md").read_text()
    (program,) = re.findall(r"python3 - <<'EOF'\n(.*?)\n *EOF\n", page, re.DOTALL)
    environment = {
        **{**os.environ, **KEYS, "AWS_ENDPOINT_URL": api.endpoint, "AWS_REGION": REGION},
        **{"AWS_DEFAULT_REGION": REGION, "ADMIN_PASSWORD": "hush"},
    }
    text = re.sub("^ {3}", "", program, flags=re.MULTILINE)
    subprocess.run([sys.executable, "-c", text], env=environment, check=True)
    names = {key.lower(): value for key, value in KEYS.items()}
    client = boto3.client("secretsmanager", endpoint_url=api.endpoint, region_name=REGION, **names)
    return {
        row["Name"]: json.loads(client.get_secret_value(SecretId=row["ARN"])["SecretString"])
        for row in client.list_secrets()["SecretList"]
    }


def given(inventory: str) -> dict[str, object]:
    """Return the variables of an inventory to copy, templates as they are."""
    found: dict[str, object] = {}
    for path in sorted((ROOT / "inventories" / inventory / "group_vars").rglob("*.yml")):
        found |= yaml.safe_load(path.read_text())
    return found


@pytest.mark.parametrize("inventory", ["ec2", "ecs"])
def test_secrets_of_the_page_are_those_that_the_inventory_reads(
    inventory: str, secrets: dict[str, dict[str, str]]
) -> None:
    texts = " ".join(str(value) for value in given(inventory).values())
    for variable, secret in (
        ("__installation", "poolkit/installation"),
        ("__secrets", "poolkit/shop"),
    ):
        read = set(re.findall(rf"\b{variable}\.(\w+)", texts))
        assert read == set(secrets[secret])
    assert secrets["poolkit/installation"]["admin_password"] == "hush"


@pytest.mark.parametrize("inventory", ["ec2", "ecs"])
def test_inventory_has_variables_that_exist(inventory: str) -> None:
    names = {name for name in given(inventory) if not name.startswith(("__", "ansible_"))}
    assert names - known_variables() == set()


def test_example_of_a_service_has_all_that_is_required() -> None:
    required = {name for name, option in options("ecs").items() if option.get("required")}
    assert required - set(given("ecs")) == set()


@pytest.mark.parametrize("page", ["ec2", "ecs"])
def test_playbooks_and_files_of_the_page_exist(page: str) -> None:
    text = (ROOT / f"docs/{page}.md").read_text()
    named = set(re.findall(r"ansible/playbooks/\w+\.yml", text))
    named |= {f"templates/iam/{name}" for name in re.findall(r"`(\w+\.json)`", text)}
    assert len(named) > 1
    assert [name for name in named if not (ROOT / name).is_file()] == []
