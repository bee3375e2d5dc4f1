"""The collection: what is built of the checkout, and what works where it is installed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import filter_docs
import namespace
import pytest
import yaml
from collection import COLLECTION, FOLDER, GALAXY, ROOT
from packaging.specifiers import SpecifierSet
from test_project import tasks_of

PLUGINS = ROOT / "ansible/plugins"
ROLES = sorted(path.name for path in (ROOT / "roles").iterdir())
MODULES = sorted(path.stem for path in (PLUGINS / "modules").glob("*.py"))
LOOKUPS = sorted(path.stem for path in (PLUGINS / "lookup").glob("*.py"))
FILTERS = sorted(path.stem for path in filter_docs.render())

SECRET = "this word is in no archive"
PLANTED = (
    ".cache/archives/x",
    ".venv/x",
    "ansible/plugins/modules/__pycache__/x.txt",
    "inventories/local/.secrets/password",
    "inventories/mine/group_vars/all/vault.yml",
    "molecule/.secrets/key",
    "molecule/default/x.yml",
    "roles/app/tasks/x.retry",
    "tests/x",
)

Run = Callable[..., subprocess.CompletedProcess[str]]


def run(folder: Path, *command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run one of Ansible's programs as a user does who has nothing of this project's settings."""
    (folder / "ansible.cfg").touch()
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("ANSIBLE_") and name != "PYTHONDONTWRITEBYTECODE"
    }
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        command,
        cwd=folder,
        env={**kept, "PATH": path, "ANSIBLE_NOCOLOR": "1", **environment},
        capture_output=True,
        text=True,
    )


def checkout(folder: Path) -> Path:
    """Copy the project without what git ignores."""
    left_out = (".git", ".venv", ".cache", ".secrets", "__pycache__", ".*_cache", ".hypothesis")
    return shutil.copytree(
        ROOT, folder, symlinks=True, ignore=shutil.ignore_patterns(*left_out, ".ansible")
    )


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the collection from a checkout in which people have worked."""
    folder = tmp_path_factory.mktemp("build")
    source = checkout(folder / "checkout")
    for name in PLANTED:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(SECRET)
    done = run(folder, "ansible-galaxy", "collection", "build", source, "--output-path", folder)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = folder.glob("*.tar.gz")
    return found


@pytest.fixture(scope="module")
def collections(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install it into an empty folder."""
    folder = tmp_path_factory.mktemp("installed")
    # What it depends on comes with the package `ansible`.
    options = ("--offline", "--no-deps", "--collections-path", folder)
    done = run(folder, "ansible-galaxy", "collection", "install", archive, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (folder / FOLDER / "MANIFEST.json").exists()
    return folder


@pytest.fixture
def user(tmp_path: Path, collections: Path) -> Run:
    """Run a program in a user's own directory, with the collection installed."""

    def own(*command: str | Path) -> subprocess.CompletedProcess[str]:
        return run(tmp_path, *command, ANSIBLE_COLLECTIONS_PATH=str(collections))

    return own


def test_archive_holds_what_a_controller_needs(archive: Path) -> None:
    with tarfile.open(archive) as tar:
        members = {member.name: member for member in tar.getmembers()}
        texts = [tar.extractfile(m).read() for m in members.values() if m.isfile()]
    tops = {name.split("/")[0] for name in members}
    assert tops == {
        *("CHANGELOG.md", "FILES.json", "LICENSE", "MANIFEST.json", "README.md"),
        *("ansible", "docs", "meta", "playbooks", "plugins", "roles", "templates"),
    }
    assert {"ansible/playbooks/site.yml", "docs/variables.md"} <= members.keys()
    assert members["plugins"].linkname == "ansible/plugins"
    assert members["playbooks"].linkname == "ansible/playbooks"
    for role in ROLES:
        assert f"roles/{role}/meta/argument_specs.yml" in members
    # Docker hosts need this project's image and inventory.
    left_out = re.compile(r"docker_|__pycache__|\.retry$|\.pyc$|/\.")
    assert not [name for name in members if left_out.search(name)]
    assert not [text for text in texts if SECRET.encode() in text]


PLAY = """
- hosts: localhost
  connection: local
  gather_facts: false
  vars:
    ansible_python_interpreter: PYTHON
    database_host: db1
    database_port: 5432
    scram_salt_seed: 0123456789abcdef
    pgbouncer_listen_prot: 1
  tasks:
    - COLLECTION.host_files:
        files: [{path: "{{ playbook_dir }}/written", content: "by a module"}]
    - ansible.builtin.assert:
        that:
          - "'u' | COLLECTION.pg_uri('p/w', 'shop', [['db1', 5432]]) == 'postgresql://u:p%2Fw@db1:5432/shop'"
          - "query('COLLECTION.pem_errors', {'a_file': '/nonexistent'}) | length == 1"
    - block:
        - ansible.builtin.include_role: {name: COLLECTION.pgbouncer, tasks_from: preflight}
      rescue:
        - ansible.builtin.debug: {msg: "The role said: {{ ansible_failed_result.msg }}"}
"""


def test_own_playbook_uses_a_role_a_module_a_filter_and_a_lookup(user: Run, tmp_path: Path) -> None:
    text = PLAY.replace("COLLECTION", COLLECTION).replace("PYTHON", sys.executable)
    (tmp_path / "own.yml").write_text(text)
    done = user("ansible-playbook", "own.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "written").read_text() == "by a module"
    output = " ".join(done.stdout.split())
    assert "The role said: localhost: unknown variable pgbouncer_listen_prot" in output


INVENTORY = """
all:
  vars:
    ansible_connection: local
    ansible_become: false
    ansible_python_interpreter: PYTHON
    app_connection_strategy: native
    app_name: shop
    app_module: app:create_app()
    app_source: /nonexistent
    app_framework: flask
    app_workers: 1
    app_database_password: p
    app_database_owner_password: o
    private_address: 192.0.2.1
    database_host: 127.0.0.1
    database_port: 1
    database_admin_user: admin
    database_admin_password: a
    scram_salt_seed: 0123456789abcdef
  children:
    database_admin:
      hosts: {web1: }
    applications:
      hosts: {web1: {app_framwork: flask}}
"""


@pytest.mark.parametrize("own", [False, True], ids=["by its name", "imported"])
def test_playbook_runs_from_the_installed_collection(user: Run, tmp_path: Path, own: bool) -> None:
    """As far as the checks before anything changes, which read the roles' specs and defaults."""
    (tmp_path / "hosts.yml").write_text(INVENTORY.replace("PYTHON", sys.executable))
    book = f"{COLLECTION}.site"
    if own:
        (tmp_path / "mine.yml").write_text(f"- ansible.builtin.import_playbook: {book}\n")
        book = "mine.yml"
    done = user("ansible-playbook", "-i", "hosts.yml", book)
    assert done.returncode != 0
    output = " ".join((done.stdout + done.stderr).split())
    assert "web1: unknown variable app_framwork (did you mean app_framework?)" in output, output


@pytest.mark.parametrize(
    ("kind", "names"),
    [("module", MODULES), ("filter", FILTERS), ("lookup", LOOKUPS), ("role", ROLES)],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_ansible_doc_answers(user: Run, kind: str, names: list[str]) -> None:
    full = [f"{COLLECTION}.{name}" for name in names]
    done = user("ansible-doc", "--json", "--type", kind, *full)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert sorted(found) == sorted(full)
    for name, page in found.items():
        # A role has a page for each entry point.
        documents = page["entry_points"].values() if kind == "role" else [page["doc"]]
        for document in documents:
            assert document["short_description"], name
            assert kind == "role" or (document["author"] and document["version_added"]), name
    assert names


def test_documentation_of_the_filters_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    there = {path: path.read_text() for path in filter_docs.FOLDER.glob("*.yml")}
    assert there == filter_docs.render(), "run `make docs`"


def test_versions_agree() -> None:
    project = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert GALAXY["version"] == project[1]
    runtime = yaml.safe_load((ROOT / "meta/runtime.yml").read_text())
    for role in ROLES:
        meta = yaml.safe_load((ROOT / f"roles/{role}/meta/main.yml").read_text())["galaxy_info"]
        assert runtime["requires_ansible"] == f">={meta['min_ansible_version']}.0"


def test_what_it_depends_on_is_declared_and_there() -> None:
    """In the versions that requirements.lock brings."""
    import ansible_collections

    used = set()
    for path in [*ROOT.glob("roles/**/*.yml"), *ROOT.glob("ansible/playbooks/**/*.yml")]:
        if not path.name.startswith("docker_"):
            modules = re.findall(r"^ *(?:- )?(\w+\.\w+)\.\w+:", path.read_text(), re.MULTILINE)
            used |= set(modules) - {COLLECTION, "ansible.builtin"}
    assert used == GALAXY["dependencies"].keys()
    for name, versions in GALAXY["dependencies"].items():
        (manifest,) = [
            found
            for folder in ansible_collections.__path__
            if (found := Path(folder, *name.split("."), "MANIFEST.json")).exists()
        ]
        version = json.loads(manifest.read_text())["collection_info"]["version"]
        assert SpecifierSet(versions).contains(version), name


def jinja_files() -> Iterator[tuple[Path, str]]:
    """Yield what holds Jinja expressions, without comments."""
    for top in ("ansible/playbooks", "inventories", "molecule", "roles"):
        for path in (ROOT / top).rglob("*"):
            if path.suffix in (".yml", ".j2") and path.is_file():
                yield path, re.sub(r"^\s*#.*$", "", path.read_text(), flags=re.MULTILINE)


def test_every_full_name_is_the_collections() -> None:
    """A short one would be found in the checkout or in a playbook of the collection, or nowhere."""
    prefix = r"(?:(\w+\.\w+)\.)?"
    filters, lookups = "|".join(FILTERS), "|".join(LOOKUPS)
    plugins = [
        rf"(?<!\|)\|\s*{prefix}({filters})\b(?![.\w'\"=])",
        rf"\bmap\(\s*['\"]{prefix}({filters})['\"]",
        rf"\b(?:query|lookup|q)\(\s*['\"]{prefix}({lookups})['\"]",
    ]
    found = set()
    for path, text in jinja_files():
        for pattern in plugins:
            for full, name in re.findall(pattern, text):
                assert full == COLLECTION, f"{path}: {name}"
                found.add(name)
    assert found & set(FILTERS)
    assert found & set(LOOKUPS)


def test_every_task_names_modules_and_roles_in_full() -> None:
    found = set()
    for top in ("ansible/playbooks", "molecule", "roles"):
        for path in (ROOT / top).rglob("*.yml"):
            content = yaml.safe_load(path.read_text())
            plays = content if isinstance(content, list) else []
            roles = [role for play in plays for role in play.get("roles", [])]
            names = [role if isinstance(role, str) else role.get("role") for role in roles]
            for task in tasks_of(content):
                names += [key for key in task if key.split(".")[-1] in MODULES]
                names += [
                    task[key]["name"]
                    for key in ("ansible.builtin.include_role", "ansible.builtin.import_role")
                    if key in task
                ]
            for name in names:
                assert name.rpartition(".")[0] == COLLECTION, f"{path}: {name}"
            found |= {name.split(".")[-1] for name in names}
    assert set(ROLES) <= found
    assert found & set(MODULES)


def test_texts_name_modules_in_full() -> None:
    """Commands in messages and on pages; what a page copies, a reader runs."""
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
    for path, text in [*((page, page.read_text()) for page in pages), *jinja_files()]:
        for name in re.findall(rf"\s-m ((?:\w+\.)*(?:{'|'.join(MODULES)}))\b", text):
            assert name.rpartition(".")[0] == COLLECTION, f"{path}: {name}"


def test_checkout_is_its_own_collection() -> None:
    """By links to its parts: one to the whole would have no end for programs that follow links."""
    links = {path.name: path for path in (ROOT / ".collections" / FOLDER).iterdir()}
    assert links.keys() == {"galaxy.yml", "meta", "playbooks", "plugins", "roles"}
    for name, link in links.items():
        assert link.is_symlink()
        assert link.resolve() == (ROOT / name).resolve()


def test_namespace_is_changed_in_one_place(tmp_path: Path) -> None:
    """Nothing has the old name afterwards, and everything is found under the new one."""
    copy = checkout(tmp_path / "checkout")
    done = run(tmp_path, sys.executable, copy / "scripts/namespace.py", "acme.pooling")
    assert done.returncode == 0, done.stderr
    old = re.compile(rf"(?<![\w.]){COLLECTION}\b|{FOLDER}\b")
    texts = list(namespace.texts(copy))
    assert len(texts) > 250
    for path, text in texts:
        assert not old.search(text), path
    assert [str(path.relative_to(copy)) for path in copy.glob(".collections/*/*/*")] == [
        ".collections/ansible_collections/acme/pooling"
    ]
    check = run(tmp_path, sys.executable, copy / "scripts/filter_docs.py", "--check")
    assert check.returncode == 0, check.stderr
    text = PLAY.replace("COLLECTION", "acme.pooling").replace("PYTHON", sys.executable)
    (copy / "own.yml").write_text(text)
    books = ("site.yml", "own.yml")
    config = {"ANSIBLE_CONFIG": str(copy / "ansible.cfg")}
    syntax = run(copy, "ansible-playbook", "--syntax-check", *books, **config)
    assert syntax.returncode == 0, syntax.stderr
    played = run(copy, "ansible-playbook", "own.yml", **config)
    assert played.returncode == 0, played.stdout + played.stderr
    assert "unknown variable pgbouncer_listen_prot" in " ".join(played.stdout.split())


@pytest.mark.parametrize("name", ["Acme", "acme.1", "ac-me", "."])
def test_a_name_that_ansible_does_not_take_is_refused(name: str) -> None:
    before = (ROOT / "galaxy.yml").read_text()
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/namespace.py", name], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "use a-z, 0-9 and _" in done.stderr
    assert (ROOT / "galaxy.yml").read_text() == before
