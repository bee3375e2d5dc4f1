"""The collection's name, from galaxy.yml, for tests that use its full names."""

from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
GALAXY = yaml.safe_load((ROOT / "galaxy.yml").read_text())
COLLECTION = f"{GALAXY['namespace']}.{GALAXY['name']}"
FOLDER = Path("ansible_collections", GALAXY["namespace"], GALAXY["name"])
"""Its place below a path of collections."""
