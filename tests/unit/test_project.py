"""The project's own files agree with each other."""

import importlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

import jinja2
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
ROLES = sorted(path.name for path in (ROOT / "roles").iterdir())
TEMPLATES = sorted(
    p for top in ("roles", "ansible") for p in (ROOT / top).glob("**/templates/**/*.j2")
)


@pytest.mark.parametrize("role", ROLES)
def test_a_boolean_may_come_as_text(role: str) -> None:
    """-e gives "false", which is true where nothing converts it."""
    specs = yaml.safe_load((ROOT / f"roles/{role}/meta/argument_specs.yml").read_text())
    options = specs["argument_specs"]["main"]["options"]
    names = "|".join(name for name, option in options.items() if option["type"] == "bool")
    for folder in ("tasks", "vars", "templates") if names else ():
        for path in (
            path for path in (ROOT / f"roles/{role}/{folder}").rglob("*") if path.is_file()
        ):
            text = path.read_text()
            code = re.findall(r"{{.*?}}|{%.*?%}|(?:when|that): [^\n]*", text, re.DOTALL)
            for expression in (re.sub(r"'[^']*'", "''", part) for part in code):
                bare = re.search(rf"\b({names})\b(?! \| bool)", expression)
                assert not bare, f"{path}: {bare and bare.group()} without | bool"


@pytest.mark.parametrize("role", ROLES)
def test_every_default_has_a_spec_of_its_type(role: str) -> None:
    defaults = yaml.safe_load((ROOT / f"roles/{role}/defaults/main.yml").read_text())
    specs = yaml.safe_load((ROOT / f"roles/{role}/meta/argument_specs.yml").read_text())
    options = specs["argument_specs"]["main"]["options"]
    assert set(defaults) <= set(options)
    shared = {"scram_salt_seed", "private_address"} if role == "database" else set()
    assert shared <= set(options)
    assert all(name.startswith(f"{role}_") for name in set(options) - shared)
    for name, option in options.items():
        assert option.get("description"), name
        assert option.get("type"), name
        if "default" in option and not str(defaults[name]).startswith("{{"):
            assert option["default"] == defaults[name], name


def test_roles_agree_on_the_defaults_of_the_database() -> None:
    """A role does not see the defaults of another one."""
    own = yaml.safe_load((ROOT / "roles/database/defaults/main.yml").read_text())
    found = re.compile(r"\b(database_\w+) \| default\(('[^']*'|\w+)\)")
    paths = [*ROOT.glob("roles/*/defaults/main.yml"), *ROOT.glob("roles/*/vars/main.yml")]
    pairs = [pair for path in paths for pair in found.findall(path.read_text())]
    assert len(pairs) >= 4
    for name, value in pairs:
        assert yaml.safe_load(value) == own[name], name


@pytest.mark.parametrize("role", [role for role in ROLES if role != "database"])
def test_preflight_checks_the_same_variables(role: str) -> None:
    """The fleet's own checks are those of the role database."""
    specs = yaml.safe_load((ROOT / f"roles/{role}/meta/argument_specs.yml").read_text())
    entries = specs["argument_specs"]
    assert entries["preflight"] == entries["main"]


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_template_parses(template: Path) -> None:
    jinja2.Environment(extensions=["jinja2.ext.do"]).parse(template.read_text())


def test_templates_were_found() -> None:
    assert len(TEMPLATES) >= 9


SECRET_TEMPLATES = ("pgpass.j2", "app.env.j2", "pip.env.j2", "userlist.txt.j2")


def tasks_of(value: object) -> Iterator[dict]:
    """Yield the tasks in a parsed tasks file or playbook, those in plays and blocks as well."""
    for item in value if isinstance(value, list) else []:
        inner = [item[key] for key in ("tasks", "pre_tasks", "post_tasks", "block") if key in item]
        if not inner:
            yield item
        for tasks in inner:
            yield from tasks_of(tasks)


def carries_secrets(value: object) -> bool:
    return any(name in str(value) for name in SECRET_TEMPLATES)


def refers(text: object, name: str) -> bool:
    return re.search(rf"\b{re.escape(name)}\b", str(text)) is not None


def leaks(task: dict) -> list[str]:
    """Return the keys of a task through which a template with secrets reaches an output.

    `secret_files` of our modules is the one way: its content is no_log there. A variable of the
    task carries on what it renders.
    """
    if task.get("no_log") is True:
        return []
    variables = task.get("vars", {})
    secret = {name for name, value in variables.items() if carries_secrets(value)}
    while more := {
        name
        for name, value in variables.items()
        if name not in secret and any(refers(value, other) for other in secret)
    }:
        secret |= more
    return [
        f"{key}.{option}" if option else key
        for key, value in task.items()
        if key != "vars"
        for option, text in (value.items() if isinstance(value, dict) else [("", value)])
        if option not in ("secret_files", "secret_environment")
        and (carries_secrets(text) or any(refers(text, name) for name in secret))
    ]


def test_tasks_that_carry_secrets_are_silent() -> None:
    """A diff, a loop's label or a result would print them otherwise."""
    rendered = set()
    for path in sorted(
        [*ROOT.glob("roles/*/tasks/*.yml"), *ROOT.glob("ansible/playbooks/**/*.yml")]
    ):
        for task in tasks_of(yaml.safe_load(path.read_text())):
            assert leaks(task) == [], f"{path}: {task.get('name')}"
            rendered |= {name for name in SECRET_TEMPLATES if name in str(task)}
    assert rendered == set(SECRET_TEMPLATES)


def test_a_template_that_reads_a_password_is_known() -> None:
    for template in TEMPLATES:
        if re.search(r"\{[{%][^%}]*(password|verifier)", template.read_text()):
            assert template.name in SECRET_TEMPLATES, template


@pytest.mark.parametrize("module", ["app_release", "host_files", "pgbouncer_config"])
def test_secret_files_are_no_log(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the test above lets secrets pass."""
    specs = []
    loaded = importlib.import_module(f"plugins.modules.{module}")

    class Stop(Exception):
        pass

    def stop(argument_spec: dict, **_: object) -> None:
        specs.append(argument_spec)
        raise Stop

    monkeypatch.setattr(loaded, "UnloggedModule", stop)
    with pytest.raises(Stop):
        loaded.main()
    assert specs[0]["secret_files"]["options"]["content"]["no_log"] is True


@pytest.mark.parametrize(
    ("task", "keys"),
    [
        (
            {"host_files": {"files": "{{ lookup('template', 'etc/app.env.j2') }}"}},
            ["host_files.files"],
        ),
        ({"host_files": {"secret_files": "{{ lookup('template', 'etc/app.env.j2') }}"}}, []),
        ({"ansible.builtin.template": {"src": "etc/pgpass.j2"}}, ["ansible.builtin.template.src"]),
        ({"ansible.builtin.template": {"src": "etc/pgpass.j2"}, "no_log": True}, []),
        (
            {
                "host_files": {"secret_files": "{{ b }}", "files": "{{ b }}"},
                "loop": "{{ a }}",
                "vars": {"a": "app.env.j2", "b": "{{ a + [] }}", "c": "{{ d }}"},
            },
            ["host_files.files", "loop"],
        ),
    ],
)
def test_leaks(task: dict, keys: list[str]) -> None:
    assert leaks(task) == keys


def test_example_inventory_asks_for_its_secrets(
    ansible_playbook: Callable[..., CompletedProcess[str]],
) -> None:
    """inventories/production as it stands is refused for the secrets that are to be filled in."""
    run = ansible_playbook("-i", "inventories/production", "ansible/playbooks/preflight.yml")
    assert run.returncode != 0
    assert "database_admin_password is missing" in run.stdout
    assert "scram_salt_seed is missing" in run.stdout
