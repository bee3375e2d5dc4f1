"""The CI files that a team copies: they are valid, and what their steps name is there."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
SCHEMAS = {"github": "vendor.github-workflows", "gitlab": "vendor.gitlab-ci"}


def template(name: str) -> dict:
    return yaml.load((ROOT / f"templates/ci/{name}.yml").read_text(), yaml.BaseLoader)


def jobs(name: str) -> dict[str, dict]:
    found = template(name)
    return found["jobs"] if name == "github" else {k: v for k, v in found.items() if "script" in v}


def scripts(name: str) -> Iterator[tuple[str, str]]:
    """Yield (job, text) of every shell script of a template."""
    for job, content in jobs(name).items():
        if name == "github":
            yield from ((job, step["run"]) for step in content["steps"] if "run" in step)
        else:
            inherited = template(name)[".poolkit"]["before_script"]
            for part in (inherited, content["script"], content.get("after_script", [])):
                yield from ((job, line) for line in part)


def missing(text: str) -> list[str]:
    """Return the files and the targets of make that a script names, and that are not there."""
    files = re.findall(r"(?<![\w/$.-])(?:poolkit/)?((?:[\w.-]+/)*[\w-]+\.(?:yml|py|sh))\b", text)
    targets = re.findall(r"\bmake (\w+)", text)
    known = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    scenarios = re.findall(r"SCENARIO=(\w+)", text)
    return [
        *(file for file in files if not (ROOT / file).is_file()),
        *(target for target in targets if target not in known),
        *(name for name in scenarios if not (ROOT / "molecule" / name).is_dir()),
    ]


@pytest.mark.parametrize("name", SCHEMAS)
def test_template_fits_its_schema(name: str) -> None:
    path = ROOT / f"templates/ci/{name}.yml"
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", SCHEMAS[name], path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", SCHEMAS)
def test_schema_refuses_what_is_wrong(name: str, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yml"
    text = (ROOT / f"templates/ci/{name}.yml").read_text()
    wrong.write_text(text.replace("runs-on", "runs_on").replace("script:", "scripts:"))
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", SCHEMAS[name], wrong]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Schema validation errors" in done.stdout


@pytest.mark.parametrize("name", SCHEMAS)
def test_what_the_steps_name_is_there(name: str) -> None:
    found = list(scripts(name))
    assert len(found) >= 12
    assert [(job, missing(text)) for job, text in found if missing(text)] == []
    whole = " ".join(text for _, text in found)
    for part in ("scripts/audit.py", "preflight.yml", "site.yml --check --diff", "docker_up.yml"):
        assert part in whole


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("python poolkit/scripts/audit.py project", []),
        ("python scripts/audits.py", ["scripts/audits.py"]),
        ("ansible-playbook -i a ansible/playbooks/plans.yml", ["ansible/playbooks/plans.yml"]),
        ("make venvs", ["venvs"]),
        ("make test SCENARIO=nothing", ["nothing"]),
    ],
)
def test_what_is_missing_is_found(text: str, expected: list[str]) -> None:
    assert missing(text) == expected


@pytest.mark.parametrize("name", SCHEMAS)
def test_bash_parses_every_script(name: str) -> None:
    for job, text in scripts(name):
        done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True)
        assert done.returncode == 0, (job, text, done.stderr)
        assert "${{" not in text, "a value of an expression would become a part of the script"


@pytest.mark.parametrize("name", SCHEMAS)
def test_secrets_stay_in_files_of_their_user(name: str) -> None:
    """They are printed into files alone, after umask, in one job, and removed at its end."""
    users = {job for job, text in scripts(name) if "VAULT_PASSWORD" in text}
    assert users == {"plan"}
    (text,) = (text for _, text in scripts(name) if '"$VAULT_PASSWORD"' in text)
    assert text.index("umask 077") < text.index('"$VAULT_PASSWORD"')
    for line in text.splitlines():
        if re.search(r"\$(VAULT_PASSWORD|SSH_PRIVATE_KEY)", line):
            assert re.fullmatch(r"printf '%s\\n' \"\$\w+\" > \"\$\w+/[\w./]+\"", line.strip())
    plan = jobs(name)["plan"]
    if name == "github":
        assert plan["if"] == "github.ref == 'refs/heads/main'"
        assert plan["steps"][-1]["if"] == "always()"
        assert "rm -rf" in plan["steps"][-1]["run"]
        secret = [step for step in plan["steps"] if "secrets." in str(step)]
        assert len(secret) == 1
    else:
        assert "rm -rf" in plan["after_script"][-1]


def test_actions_have_a_version() -> None:
    used = [
        step["uses"] for job in jobs("github").values() for step in job["steps"] if "uses" in step
    ]
    assert len(used) >= 6
    assert all(re.fullmatch(r"actions/[\w-]+@v\d+", action) for action in used)
