"""An application's requirements: where they are, what they list, and when two sets are the same."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from .source_tree import SourceError, Tree

EXPORTED = "requirements.poolkit.txt"
"""Requirements that were exported from a uv.lock."""

UV_EXPORT = (
    *("export", "--frozen", "--no-dev", "--no-emit-project", "--no-header", "--no-annotate"),
    *("--format=requirements-txt", "--offline", "--no-cache", "--no-python-downloads", "--quiet"),
)

NEEDS = {
    "gunicorn": ("gunicorn", "packaging"),
    "uvicorn-worker": ("uvicorn-worker", "gunicorn", "packaging", "uvicorn", "click", "h11"),
    "psycopg-pool": ("psycopg-pool", "typing-extensions"),
}
"""What poolkit brings where an application's lock lacks it, with all that it needs itself."""

LOCK_FILES = {
    "uv.lock": "set app_requirements: uv.lock",
    "poetry.lock": "run `poetry export --output requirements.txt` in it (poetry-plugin-export)",
    "pdm.lock": "run `pdm export --prod --output requirements.txt` in it",
    "Pipfile.lock": "run `pipenv requirements --hash > requirements.txt` in it",
}
"""Lock file -> how to come to a requirements file from it."""


def listed_packages(requirements: str) -> set[str]:
    """Return the names of a requirements file, with - for each of `-_.` as PyPI compares them."""
    names = re.findall(
        r"^([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[|==|@|~=|>|<|;|$)", requirements, re.M
    )
    return {re.sub(r"[-_.]+", "-", name).lower() for name in names}


def completed(text: str, required: list[str], servers: str) -> tuple[str, list[str]]:
    """Return (the requirements with what the lock lacks and poolkit brings, the lines of that).

    required: packages that poolkit runs. servers: a locked requirements file of theirs. What the
    lock has stays as it is, with its version.
    """
    listed = listed_packages(normalised(text))
    wanted = {
        name for package in required if package not in listed for name in NEEDS.get(package, ())
    }
    entries = re.split(r"\n(?=\w)", servers.strip())
    added = [entry for entry in entries if (listed_packages(normalised(entry)) & wanted) - listed]
    lines = [entry.split()[0] for entry in added]
    if not re.search(r"--hash=|--require-hashes", text):  # one would make pip demand every one's
        added = lines
    return ("\n".join([text.rstrip("\n"), *added, ""]) if added else text), lines


def normalised(requirements: str) -> str:
    """Return the requirements without comments, blank lines and indentation.

    As in pip, a comment begins at the start of a line or after a blank: url#sha256=… has none.
    """
    lines = (" ".join(re.sub(r"(^|\s)#.*", "", n).split()) for n in requirements.splitlines())
    return "".join(f"{line}\n" for line in lines if line)


def without_local_projects(tree: Tree, text: str, folder: Path) -> tuple[str, list[str]]:
    """Return exported requirements without projects of the source itself, and where those are.

    A workspace's members and path dependencies come as `-e ./libs/x` or `./libs/x`, relative to the
    lock's folder. Their code is in the release and is imported from there; what they need is in the
    export as well.
    """
    lines, projects = [], []
    for line in text.splitlines():
        found = re.match(r"(?:-e\s+)?(?:file:)?(\.{1,2}(?:/\S*)?)(?:\s|$)", line)
        if not found:
            lines.append(line)
            continue
        path, top = (folder / found[1]).resolve(), tree.path.resolve()
        if not path.is_dir():
            raise SourceError(
                f"app_requirements: {tree.name} needs the file {found[1]}, which its hosts do not "
                "have: require it from an index"
            )
        if not path.is_relative_to(top):
            raise SourceError(
                f"app_source: {tree.name} needs {found[1]}, which is outside of it: deploy the "
                "directory that has both, with a shorter app_source_directory or none"
            )
        projects.append(str(path.relative_to(top)))
    return "".join(f"{line}\n" for line in lines), [name for name in projects if name != "."]


def exported(lock: Path, name: str, project: Path) -> str:
    """Return the requirements of a uv.lock, with hashes, without the project and its dev group.

    project: its directory, which may be a member of the lock's workspace.
    """
    if not (project / "pyproject.toml").is_file():
        raise SourceError(f"app_requirements: {name} needs its pyproject.toml beside it")
    # Ansible runs this with its own interpreter, and uv is installed beside it.
    places = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    uv = shutil.which("uv", path=places)
    if not uv:
        raise SourceError(
            f"app_requirements: {name} needs uv on the controller: install it (pip install uv)"
        )
    try:
        done = subprocess.run(
            [uv, *UV_EXPORT], cwd=project, capture_output=True, text=True, timeout=120
        )
    except subprocess.TimeoutExpired:
        raise SourceError(f"app_requirements: uv export of {name} took over 120 s") from None
    if done.returncode:
        said = " ".join(done.stderr.split())
        raise SourceError(f"app_requirements: uv export of {name} failed: {said}")
    return done.stdout


def missing_requirements(tree: Tree, requirements: str) -> str:
    """Return the error for a source without its requirements file, with the way to one."""
    if tree.name.endswith(".whl"):
        return (
            f"app_requirements: {tree.name} has no {requirements}: give the absolute path of a "
            "requirements file on the controller"
        )
    locks = [name for name in LOCK_FILES if (tree.path / name).is_file()]
    how = LOCK_FILES[locks[0]] if locks else "app_requirements names another file"
    return (
        f"app_source: {tree.name} has no {requirements}: the app role installs an application's "
        "locked requirements (for example from `uv pip compile --generate-hashes` or "
        f"`pip freeze`); {f'it has {locks[0]}: ' if locks else ''}{how}"
    )


def locked_requirements(tree: Tree, requirements: str) -> tuple[str, str, list[str]]:
    """Return the name that the requirements file has in the release, its text, and `projects`.

    projects: directories of the source that are packages of their own and are needed as well.
    """
    path = Path(requirements).expanduser()
    if path.is_absolute():
        if not path.is_file():
            raise SourceError(f"app_requirements: there is no file {path} on the controller")
        name, shown = "requirements.txt", str(path)
    else:
        name, shown = os.path.normpath(requirements), f"{tree.name}/{requirements}"
        path = tree.path / name
        if name.startswith(".."):
            raise SourceError(
                f"app_requirements: {requirements} leads out of app_source: give an absolute path"
            )
        if name == "uv.lock" and not path.is_file() and tree.root:
            path = next(
                (
                    folder / name
                    for folder in tree.path.parents
                    if (folder / name).is_file() and folder.is_relative_to(tree.root)
                ),
                path,
            )
        if not path.is_file():
            raise SourceError(missing_requirements(tree, requirements))
    if path.name == "uv.lock":
        # A member of a workspace has the lock of the whole above it.
        member = tree.root is not None and path.parent in tree.path.parents
        project = tree.path if member else path.parent
        return EXPORTED, *without_local_projects(tree, exported(path, shown, project), path.parent)
    if path.name in LOCK_FILES:
        raise SourceError(
            f"app_requirements: pip cannot read {shown}: {LOCK_FILES[path.name]}, and set "
            "app_requirements: requirements.txt"
        )
    try:
        return name, path.read_text(encoding="utf-8-sig"), []
    except UnicodeDecodeError:
        raise SourceError(
            f"app_requirements: {shown} is not UTF-8 text: save it as UTF-8"
        ) from None
