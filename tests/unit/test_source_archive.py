"""The archive of an application's source: reproducible, complete, and refused with a reason."""

import gzip
import io
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from plugins.module_utils import source_requirements
from plugins.module_utils.source_tree import SourceError, Tree
from plugins.modules import source_archive

ROOT = Path(__file__).resolve().parents[2]
UV_PROJECT = ROOT / "tests/unit/files/uv"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    root = tmp_path / "shop"
    (root / "shop").mkdir(parents=True)
    (root / ".git").mkdir()
    (root / "requirements.txt").write_text("gunicorn==27.0.1\n")
    (root / "manage.py").write_text("#!/usr/bin/env python3\n")
    (root / "manage.py").chmod(0o755)
    (root / "shop/__init__.py").write_text("")
    (root / ".git/config").write_text("private")
    (root / "shop/x.pyc").write_text("compiled")
    return root


def tree(root: Path) -> Tree:
    return Tree(root, "the shop")


def packed(root: Path, **added: str) -> bytes:
    files = source_archive.source_files(tree(root), [".git", "*.pyc"])
    return source_archive.pack(root, files, added)


def contents(archive: str) -> dict[str, bytes]:
    with tarfile.open(archive) as opened:
        return {m.name: opened.extractfile(m).read() for m in opened if m.isfile()}


def test_archive_holds_the_source_and_ends_with_the_marker(source: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(packed(source))) as archive:
        members = archive.getmembers()
    assert [(m.name, m.mode) for m in members] == [
        ("shop", 0o755),
        ("manage.py", 0o755),
        ("requirements.txt", 0o644),
        ("shop/__init__.py", 0o644),
        (source_archive.MARKER, 0o644),
    ]


def test_equal_source_gives_equal_bytes(source: Path) -> None:
    before = packed(source)
    os.utime(source / "manage.py", (1, 1))
    (source / "requirements.txt").chmod(0o600)
    (source / ".git/config").write_text("changed")
    assert packed(source) == before
    (source / "shop/__init__.py").write_text("VERSION = 2\n")
    assert packed(source) != before


def test_added_file_takes_the_place_of_the_sources_own(source: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(packed(source, **{"requirements.txt": "x"}))) as archive:
        assert archive.getnames().count("requirements.txt") == 1
        assert archive.extractfile("requirements.txt").read() == b"x"


def test_module_packs_a_directory(
    source: Path, pack_source: Callable[..., dict], tmp_path: Path
) -> None:
    done = pack_source(
        source=str(source),
        exclude=[".git", "*.pyc"],
        required_packages=["gunicorn"],
        required_files=["manage.py"],
    )
    archive = tmp_path / f"cache/archives/{done['release']}.tar.gz"
    assert done["archive"] == str(archive)
    assert len(done["release"]) == 12
    assert archive.read_bytes() == packed(source, **{".poolkit-release": "python3"})
    assert done["requirements"] == "requirements.txt"
    assert done["python_path"] == ["."]
    assert done["revision"] == ""
    assert done["changed"] is False


def test_another_interpreter_is_another_release(
    source: Path, pack_source: Callable[..., dict]
) -> None:
    """It has a virtual environment of its own, which a release that serves must not get."""
    names = {pack_source(source=str(source), python=name)["release"] for name in ("a", "b", "b")}
    assert len(names) == 2


def test_compression_does_not_name_the_release(tmp_path: Path, source: Path) -> None:
    content = packed(source)
    other = gzip.compress(gzip.decompress(content), compresslevel=1)
    assert other != content
    names = {source_archive.stored(text, tmp_path / "archives")[1] for text in (content, other)}
    assert len(names) == 1


def test_required_files_are_demanded_only_when_listed(
    source: Path, pack_source: Callable[..., dict]
) -> None:
    (source / "manage.py").unlink()
    assert "release" in pack_source(source=str(source))
    error = pack_source(source=str(source), required_files=["manage.py"])["msg"]
    assert f"{source} has no manage.py" in error


ALEMBIC = "alembic.ini|pyproject.toml#tool.alembic"


@pytest.mark.parametrize(
    ("files", "enough"),
    [
        ({"alembic.ini": ""}, True),
        ({"pyproject.toml": "[tool.alembic]\nscript_location = 'm'\n"}, True),
        ({"pyproject.toml": "[tool.alembic.x]\n"}, True),
        ({"pyproject.toml": "[tool.other]\n"}, False),
        ({"pyproject.toml": "tool = 1\n"}, False),
        ({"pyproject.toml": "[[[\n"}, False),
        ({}, False),
    ],
)
def test_one_of_several_files_is_enough(source: Path, files: dict, enough: bool) -> None:
    for name, text in files.items():
        (source / name).write_text(text)
    error = source_archive.source_error(tree(source), "gunicorn==1\n", [ALEMBIC], [])
    assert (error is None) is enough
    if not enough:
        assert "the shop has no alembic.ini and no pyproject.toml with [tool.alembic]" in error
        assert "or give app_migration_command" in error


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["pyproject.toml", "src/shop/x.py"], [".", "src"]),
        (["src/shop/x.py"], ["."]),
        (["pyproject.toml"], ["."]),
    ],
)
def test_python_path(tmp_path: Path, files: list[str], expected: list[str]) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert source_archive.python_path(tree(tmp_path), []) == expected


def test_good_source_is_accepted(source: Path) -> None:
    packages = ["gunicorn", "uvicorn-worker"]
    text = (
        "--index-url https://pypi.example.com/simple\n"
        "gunicorn==27.0.1 ; python_version > '3.9' \\\n--hash=sha256:ab/cd\n"
        "Uvicorn_Worker[x] == 0.4\n"
        "a @ https://example.com/a-1.whl\ngit+https://example.com/b.git@4f2\n"
        "https://example.com/c-1.tar.gz#sha256=ab\nd @ git+ssh://git@example.com/d.git\n"
    )
    assert source_archive.source_error(tree(source), text, ["manage.py"], packages) is None


@pytest.mark.parametrize(
    ("requirements", "files", "words"),
    [
        ("gunicorn==1", ["alembic.ini"], "the shop has no alembic.ini"),
        ("gunicorn-other==1", [], "do not list gunicorn"),
        ("gunicorn==1\n-r base.txt", [], "refer to other files ('-r base.txt')"),
        ("gunicorn==1\n./lib", [], "refer to other files ('./lib')"),
        ("gunicorn==1\n../lib", [], "refer to other files ('../lib')"),
        ("gunicorn==1\nx @ file:///x", [], "refer to other files ('x @ file:///x')"),
        ("gunicorn==1\nfile:vendor/x.whl", [], "refer to other files ('file:vendor/x.whl')"),
        ("gunicorn==1\nvendor/x-1.whl", [], "refer to other files ('vendor/x-1.whl')"),
        ("gunicorn==1\nx-1.tar.gz", [], "refer to other files ('x-1.tar.gz')"),
        ("--find-links vendor\ngunicorn==1", [], "refer to other files ('--find-links vendor')"),
        ("--find-links https://me:s3cret@a/x\ngunicorn==1", [], "('--find-links https://a/x')"),
        ("gunicorn==1\ndjango", [], "are not locked ('django')"),
        ("gunicorn>=27", [], "are not locked ('gunicorn>=27')"),
        ("gunicorn==1\nx>1 ; python_version == '3.9'", [], "are not locked"),
    ],
)
def test_unusable_source_is_refused(
    source: Path, requirements: str, files: list[str], words: str
) -> None:
    error = source_archive.source_error(tree(source), requirements, files, ["gunicorn"])
    assert error
    assert words in error
    assert error.startswith("app_source: ")


SERVERS = (ROOT / "roles/app/files/server/requirements.txt").read_text()


@pytest.mark.parametrize(
    ("lock", "required", "brought"),
    [
        ("django==5.2\n", ["gunicorn"], {"gunicorn"}),
        ("gunicorn==23.0.0\n", ["gunicorn"], set()),
        ("Gunicorn[gthread] == 23.0.0\n", ["gunicorn"], set()),
        # What the lock has of the dependencies stays as it is.
        (
            "fastapi==1\nuvicorn==0.30\nclick==8.0\n",
            ["fastapi", "gunicorn", "uvicorn-worker"],
            {"gunicorn", "uvicorn-worker", "h11"},
        ),
        ("gunicorn==23\n", ["psycopg-pool"], {"psycopg-pool", "typing-extensions"}),
        ("gunicorn==23\n", ["django", "alembic"], set()),  # theirs to lock
    ],
)
def test_what_a_lock_lacks_is_brought(lock: str, required: list[str], brought: set[str]) -> None:
    text, lines = source_requirements.completed(lock, required, SERVERS)
    assert {line.partition("==")[0] for line in lines} == brought
    before, after = (
        source_requirements.listed_packages(source_requirements.normalised(each))
        for each in (lock, text)
    )
    assert after == before | brought
    assert text.startswith(lock.rstrip("\n"))
    # One hash in the file, and pip would demand one of every package.
    assert "--hash=" not in text
    # Once more adds nothing.
    assert source_requirements.completed(text, required, SERVERS) == (text, [])


def test_what_is_brought_to_a_lock_with_hashes_has_its_own() -> None:
    lock = "django==5.2 \\\n    --hash=sha256:ab\n"
    text, lines = source_requirements.completed(lock, ["gunicorn"], SERVERS)
    assert len(lines) == 1
    assert text.count("--hash=sha256:") >= 3  # a wheel's and an sdist's


def test_what_poolkit_brings_needs_nothing_else() -> None:
    """The file is made by `make lock`; a new dependency has to be in NEEDS."""
    locked = source_requirements.listed_packages(source_requirements.normalised(SERVERS))
    assert locked == {
        name for names in source_requirements.NEEDS.values() for name in names if name in locked
    }


def test_release_has_what_was_brought(source: Path, pack_source: Callable[..., dict]) -> None:
    (source / "requirements.txt").write_text("django==5.2")
    (source / "pyproject.toml").write_text('[project]\nrequires-python = ">=3.12"\n')
    asked = {"source": str(source), "required_packages": ["django", "gunicorn"]}
    assert (
        "do not list gunicorn, which poolkit runs: add the line gunicorn"
        in (pack_source(**asked)["msg"])
    )
    done = pack_source(**asked, servers=SERVERS)
    assert [line.partition("==")[0] for line in done["brought"]] == ["gunicorn"]
    assert done["requires_python"] == ">=3.12"
    held = contents(done["archive"])["requirements.txt"].decode()
    assert held.startswith("django==5.2\ngunicorn==")


@pytest.mark.parametrize("folder", ["migrations", "shop/migrations", "src/shop/migrations"])
def test_flasks_migrations_may_be_deeper(source: Path, folder: str) -> None:
    vars_file = yaml.safe_load((ROOT / "roles/app/vars/main.yml").read_text())
    (names,) = vars_file["_app_frameworks"]["flask"]["files"]
    assert "has no migrations/env.py" in str(
        source_archive.source_error(tree(source), "gunicorn==1", [names], [])
    )
    (source / folder).mkdir(parents=True)
    (source / folder / "env.py").touch()
    assert source_archive.source_error(tree(source), "gunicorn==1", [names], []) is None
    deeper = folder if folder != "migrations" else ""
    assert source_archive.migrations_folder(source, [names]) == deeper


def test_missing_directory_is_refused(pack_source: Callable[..., dict], tmp_path: Path) -> None:
    error = pack_source(source=f"{tmp_path}/nowhere")["msg"]
    assert error == f"app_source: there is no directory {tmp_path}/nowhere on the controller"


def test_linked_directory_is_refused(source: Path) -> None:
    (source / "linked").symlink_to(source / "shop")
    with pytest.raises(SourceError, match="the shop: linked links to a directory"):
        packed(source)


def test_dangling_link_is_refused_with_its_name(
    source: Path, pack_source: Callable[..., dict]
) -> None:
    (source / "settings.py").symlink_to("/nonexistent/settings.py")
    error = pack_source(source=str(source))["msg"]
    assert error.startswith("app_source: ")
    assert f"{source}/settings.py" in error


# Requirements.


def test_comments_and_blank_lines_do_not_count() -> None:
    plain = "a==1 \\\n--hash=sha256:0\nb @ https://x/b.zip#sha256=1\n"
    text = "# made by x\n\na==1 \\\n    --hash=sha256:0  # why\n    # via b\nb @ https://x/b.zip#sha256=1"
    assert source_requirements.normalised(text) == plain
    assert source_requirements.normalised(plain) == plain
    assert source_requirements.normalised(text.replace("==1", "==2")) != plain


def test_a_changed_comment_keeps_the_environment(
    source: Path, pack_source: Callable[..., dict]
) -> None:
    before = pack_source(source=str(source))
    (source / "requirements.txt").write_text("# new\ngunicorn==27.0.1\n")
    after = pack_source(source=str(source))
    assert after["requirements_checksum"] == before["requirements_checksum"]
    assert after["release"] != before["release"]
    (source / "requirements.txt").write_text("gunicorn==27.0.2\n")
    assert (
        pack_source(source=str(source))["requirements_checksum"] != before["requirements_checksum"]
    )


def test_requirements_of_the_controller(
    source: Path, pack_source: Callable[..., dict], tmp_path: Path
) -> None:
    (tmp_path / "own.txt").write_text("gunicorn==1\n")
    done = pack_source(source=str(source), requirements=f"{tmp_path}/own.txt")
    assert done["requirements"] == "requirements.txt"
    assert contents(done["archive"])["requirements.txt"] == b"gunicorn==1\n"


def test_paths_begin_at_home(
    source: Path,
    pack_source: Callable[..., dict],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "own.txt").write_text("gunicorn==1\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    done = pack_source(source="~/shop", requirements="~/own.txt")
    assert contents(done["archive"])["requirements.txt"] == b"gunicorn==1\n"


def test_unused_archives_go(source: Path, pack_source: Callable[..., dict]) -> None:
    used = Path(pack_source(source=str(source))["archive"])
    young, old = used.with_name("young.tar.gz"), used.with_name("old.tar.gz")
    for path, days in ((used, 31), (young, 29), (old, 31)):
        path.touch()
        moment = path.stat().st_mtime - days * 86400
        os.utime(path, (moment, moment))
    assert pack_source(source=str(source))["archive"] == str(used)
    assert sorted(used.parent.iterdir()) == sorted([used, young])


def test_excluded_requirements_are_in_the_archive(
    source: Path, pack_source: Callable[..., dict]
) -> None:
    (source / "locked").mkdir()
    (source / "requirements.txt").rename(source / "locked/all.txt")
    done = pack_source(source=str(source), requirements="./locked/all.txt", exclude=["*.txt"])
    assert done["requirements"] == "locked/all.txt"
    assert contents(done["archive"])["locked/all.txt"] == b"gunicorn==27.0.1\n"


@pytest.mark.parametrize(
    ("requirements", "words"),
    [
        ("missing.txt", "app_source: the shop has no missing.txt"),
        ("/nonexistent/x.txt", "app_requirements: there is no file /nonexistent/x.txt"),
        ("../shop/requirements.txt", "app_requirements: ../shop/requirements.txt leads out of"),
        ("utf16.txt", "the shop/utf16.txt is not UTF-8 text"),
        ("uv.lock", "the shop/uv.lock needs its pyproject.toml"),
        ("poetry.lock", "pip cannot read the shop/poetry.lock: run `poetry export"),
    ],
)
def test_unusable_requirements_are_refused(source: Path, requirements: str, words: str) -> None:
    (source / "utf16.txt").write_text("gunicorn==1\n", encoding="utf-16")
    (source / "uv.lock").touch()
    (source / "poetry.lock").touch()
    with pytest.raises(SourceError) as refused:
        source_requirements.locked_requirements(tree(source), requirements)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("lock", "command"),
    [
        ("uv.lock", "set app_requirements: uv.lock"),
        ("poetry.lock", "`poetry export --output requirements.txt`"),
        ("pdm.lock", "`pdm export --prod --output requirements.txt`"),
        ("Pipfile.lock", "`pipenv requirements --hash > requirements.txt`"),
    ],
)
def test_error_names_the_command_for_the_lock_file(tmp_path: Path, lock: str, command: str) -> None:
    (tmp_path / lock).touch()
    with pytest.raises(SourceError) as refused:
        source_requirements.locked_requirements(tree(tmp_path), "requirements.txt")
    assert f"it has {lock}: " in str(refused.value)
    assert command in str(refused.value)


def test_uv_lock_is_exported(pack_source: Callable[..., dict], tmp_path: Path) -> None:
    project = tmp_path / "shop"
    shutil.copytree(UV_PROJECT, project)
    (project / "src/shop").mkdir(parents=True)
    before = sorted(project.rglob("*"))
    done = pack_source(source=str(project), requirements="uv.lock", required_packages=["gunicorn"])
    assert done["requirements"] == "requirements.poolkit.txt"
    text = contents(done["archive"])["requirements.poolkit.txt"].decode()
    assert text.startswith("gunicorn==27.0.1 \\\n    --hash=sha256:378b26b9a38a")
    assert text.count("--hash") == 2
    assert "iniconfig" not in text  # the group dev
    assert "shop" not in text  # the project itself
    assert done["python_path"] == [".", "src"]
    assert sorted(project.rglob("*")) == before


def test_broken_uv_lock_is_refused(pack_source: Callable[..., dict], tmp_path: Path) -> None:
    project = tmp_path / "shop"
    shutil.copytree(UV_PROJECT, project)
    (project / "uv.lock").write_text("version = nothing\n")
    error = pack_source(source=str(project), requirements="uv.lock")["msg"]
    assert error.startswith(f"app_requirements: uv export of {project}/uv.lock failed: ")


def test_missing_uv_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    with pytest.raises(SourceError, match="needs uv on the controller"):
        source_requirements.locked_requirements(tree(UV_PROJECT), "uv.lock")


def test_what_is_left_out_by_default(source: Path, pack_source: Callable[..., dict]) -> None:
    """No secrets for another place, and nothing that a tool leaves there: it would be a release."""
    defaults = yaml.safe_load((ROOT / "roles/app/defaults/main.yml").read_text())
    before = pack_source(source=str(source), exclude=defaults["app_source_exclude"])
    for name in (
        *(".env", ".env.production", "shop/.env.local", ".coverage", ".coverage.host.1"),
        *("db.sqlite3", "shop/__pycache__/a.pyc", ".DS_Store"),
        *(f"{tool}/state" for tool in (".ruff_cache", ".mypy_cache", ".tox", ".nox")),
        *(f"{tool}/state" for tool in (".hypothesis", ".pytest_cache", ".idea", ".vscode")),
    ):
        path = source / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("PASSWORD=1")
    after = pack_source(source=str(source), exclude=defaults["app_source_exclude"])
    assert contents(after["archive"]).keys() == contents(before["archive"]).keys()
    assert after["release"] == before["release"]


def test_part_of_a_source(source: Path, pack_source: Callable[..., dict]) -> None:
    part = source / "backend"
    part.mkdir()
    (part / "requirements.txt").write_text("gunicorn==27.0.1\n")
    (part / "app.py").touch()
    done = pack_source(source=str(source), directory="backend")
    assert set(contents(done["archive"])) == {"app.py", "requirements.txt", ".poolkit-release"}
    for name in ("front", "..", "backend/../..", "/etc", "manage.py"):
        error = pack_source(source=str(source), directory=name)["msg"]
        assert error.startswith("app_source_directory: "), error
        assert repr(name) in error


def test_build_commands_are_part_of_the_name(
    source: Path, pack_source: Callable[..., dict]
) -> None:
    """And a source cannot say itself that it was built."""
    plain = pack_source(source=str(source))["release"]
    (source / ".poolkit-built").touch()
    (source / ".poolkit-static").write_text('{"root": "..", "files": []}')
    done = pack_source(source=str(source))
    assert done["release"] == plain
    assert not {".poolkit-built", ".poolkit-static"} & set(contents(done["archive"]))
    one = pack_source(source=str(source), build=["npm ci"])["release"]
    other = pack_source(source=str(source), build=["npm ci", "npm run build"])["release"]
    assert len({plain, one, other}) == 3


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A repository whose member backend needs the members common and plain; uv makes its lock."""
    root = tmp_path / "mono"
    root.mkdir()
    (root / "pyproject.toml").write_text('[tool.uv.workspace]\nmembers = ["backend", "libs/*"]\n')
    members = {"backend": ["common", "plain"], "libs/common": [], "libs/plain": []}
    for place, names in members.items():
        (root / place).mkdir(parents=True)
        sources = "".join(f"{name} = {{workspace = true}}\n" for name in names)
        name = place.rpartition("/")[2]
        (root / place / "pyproject.toml").write_text(
            f'[project]\nname = "{name}"\nversion = "1"\nrequires-python = ">=3.11"\n'
            f"dependencies = {names}\n[tool.uv.sources]\n{sources}"
        )
    (root / "libs/common/src/common").mkdir(parents=True)
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    command = [uv, "lock", "--offline", "--quiet", "--no-python-downloads"]
    subprocess.run(command, cwd=root, check=True)
    return root


def test_members_of_a_workspace_are_imported_from_the_release(workspace: Path) -> None:
    name, text, projects = source_requirements.locked_requirements(tree(workspace), "uv.lock")
    assert (name, text) == ("requirements.poolkit.txt", "")
    assert projects == ["libs/common", "libs/plain"]
    path = source_archive.python_path(tree(workspace), projects)
    assert path == [".", "libs/common/src", "libs/plain"]


def test_lock_of_the_workspace_serves_its_member(workspace: Path) -> None:
    """A member that needs another one outside of the part is refused."""
    part = source_archive.part(tree(workspace), "backend")
    with pytest.raises(SourceError, match=r"needs \./libs/common, which is outside of it"):
        source_requirements.locked_requirements(part, "uv.lock")
    part = source_archive.part(tree(workspace), "libs/plain")
    assert source_requirements.locked_requirements(part, "uv.lock")[2] == []
    (workspace / "libs/plain/pyproject.toml").unlink()
    with pytest.raises(SourceError, match=r"needs its pyproject\.toml beside it"):
        source_requirements.locked_requirements(part, "uv.lock")


def test_projects_of_an_export(workspace: Path) -> None:
    locked = "gunicorn==1 \\\n    --hash=x\n"
    lines = f"-e ./backend\n./libs/plain ; python_full_version >= '3.11'\n{locked}"
    found = source_requirements.without_local_projects(tree(workspace), lines, workspace)
    assert found == (locked, ["backend", "libs/plain"])
    (workspace / "x.whl").touch()
    with pytest.raises(SourceError, match=r"needs the file \./x\.whl"):
        source_requirements.without_local_projects(tree(workspace), "./x.whl \\\n", workspace)
