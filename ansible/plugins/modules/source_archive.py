#!/usr/bin/python
"""Pack an application's source into an archive named by its content."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: source_archive
short_description: Pack an application's source into an archive named by its content
version_added: 0.1.0
author: The poolkit authors (@poolkit)
description:
  - Packs the source into a reproducible gzip tar archive, whose name is a hash of its content. The
    same source gives the same archive, so an unchanged one is not copied.
  - The source is a directory, a git repository, a wheel or an sdist. A repository is kept as a bare
    mirror in git/ beside the archive directory; nothing is checked out and no hook runs. Submodules
    and files in Git LFS are not fetched.
  - Checks that the source is one that the app role can deploy, before anything has changed.
  - Writes only to the archive directory and the mirrors, so it runs in check mode as well. Archives
    that were not used for 30 days are removed.
options:
  source:
    description:
      - A directory, a git URL (scheme://... or user@host:path), a wheel (*.whl) or an sdist
        (*.tar.gz); a path is one of the controller.
      - A password in an https URL is given to git in its environment and appears in no result.
        A credential helper or a deploy key of the operator's own git serves as well.
    type: str
    required: true
  revision:
    description:
      - Branch, tag or commit; empty is the repository's default branch. A full commit id that the
        mirror has needs no network.
      - With it, a local directory is read as a git repository.
    type: str
    default: ""
  directory:
    description: Directory of the source that holds the application, relative to it.
    type: str
    default: ""
  requirements:
    description:
      - Name of the requirements file in the source; an absolute path on the controller, which a
        wheel needs, and which is packed as requirements.txt; or uv.lock beside a pyproject.toml,
        which `uv export` turns into requirements.poolkit.txt.
    type: str
    default: requirements.txt
  required_files:
    description:
      - Further files that must exist in it. Where one of several is enough, they are separated by
        C(|); C(file#table) is a TOML file with this table.
    type: list
    elements: str
    default: []
  required_packages:
    description: Packages that the requirements file must list.
    type: list
    elements: str
    default: []
  servers:
    description:
      - A locked requirements file; what it has of the required packages is added where the
        application's own does not list them.
    type: str
    default: ""
  exclude:
    description: Patterns of names (fnmatch) that are left out, at any depth.
    type: list
    elements: str
    default: []
  python:
    description: The interpreter that the release is for; part of what its name is made of.
    type: str
    default: python3
  build:
    description: What else the release is made by, such as commands; part of its name as well.
    type: list
    elements: str
    default: []
  archive_directory:
    description: Directory for the archives, made where it is missing.
    type: path
    required: true
"""

EXAMPLES = r"""
- name: Pack a directory
  poolkit.poolkit.source_archive:
    source: /home/me/shop
    required_files: [manage.py]
    archive_directory: ~/.cache/poolkit/archives
  delegate_to: localhost

- name: Pack a tag of a repository
  poolkit.poolkit.source_archive:
    source: git@git.example.com:team/shop.git
    revision: v1.4.0
    requirements: uv.lock
    archive_directory: ~/.cache/poolkit/archives
  delegate_to: localhost
"""

RETURN = r"""
archive:
  description: Path of the archive on the controller.
  type: str
  returned: success
release:
  description: Name of the release, 12 hexadecimal digits of the content's SHA-256.
  type: str
  returned: success
requirements:
  description: Name of the requirements file in the release.
  type: str
  returned: success
requirements_checksum:
  description:
    - SHA-256 of the requirements without comments and blank lines; releases with the same one
      share a venv.
  type: str
  returned: success
requires_python:
  description: C(requires-python) of its pyproject.toml; empty without one.
  type: str
  returned: success
migrations:
  description: Folder of the migrations, where it is deeper in the source than usual; else empty.
  type: str
  returned: success
brought:
  description: What the application's lock lacks and was added, such as C(gunicorn==27.0.1).
  type: list
  elements: str
  returned: success
python_path:
  description: Directories of the release that go on PYTHONPATH, relative to it.
  type: list
  elements: str
  returned: success
  sample: [".", "src"]
revision:
  description: Commit id of a source from git, else empty.
  type: str
  returned: success
"""

import contextlib
import fnmatch
import gzip
import hashlib
import io
import os
import re
import tarfile
import time
import tomllib
from dataclasses import replace
from pathlib import Path

from ..module_utils.source_requirements import (
    completed,
    listed_packages,
    locked_requirements,
    normalised,
)
from ..module_utils.source_tree import (
    SourceError,
    Tree,
    credentials,
    source_tree,
    without_credentials,
)
from ..module_utils.unlogged_module import UnloggedModule
from ..module_utils.virtual_environment import BUILT, MARKER, STATIC

LOCAL = re.compile(
    r"-r|-c|-e|-f|--requirement|--constraint|--editable|--find-links"
    r"|.*@\s*file:|file:|(?!-|\S*://)(\S*/|\S+\.(whl|zip|tar\.gz)(\s|$))"
)
"""A line of a requirements file that names a file or directory of the controller."""

PINNED = re.compile(r"^-|==|@|://")
"""An option, a version, or an address in a line of a requirements file."""


def source_error(
    tree: Tree, requirements: str, required_files: list[str], required_packages: list[str]
) -> str | None:
    """Return what is wrong with the source, naming the variable to change; None when it is fine.

    requirements: the normalised lines of the requirements file.
    """
    lines = without_credentials(requirements).splitlines()
    if other := next(filter(LOCAL.match, lines), None):
        return (
            f"app_source: the requirements of {tree.name} refer to other files "
            f"({other!r}), which would not be part of their checksum: lock "
            "everything into one file"
        )
    if loose := next((line for line in lines if not PINNED.search(line.partition(";")[0])), None):
        return (
            f"app_source: the requirements of {tree.name} are not locked ({loose!r}), so that "
            "hosts might get different versions: lock them, for example with `uv pip compile` or "
            "`pip freeze`"
        )
    missing = [name for name in required_packages if name not in listed_packages(requirements)]
    if missing:
        return (
            f"app_source: the requirements of {tree.name} do not list {', '.join(missing)}, which "
            f"poolkit runs: add the line {missing[0]} to requirements.in and lock it again, or run "
            f"`uv add {' '.join(missing)}`"
        )
    for names in required_files:
        if not any(has_file(tree.path, name) for name in names.split("|")):
            shown = " and no ".join(
                f"{file} with [{table}]" if table else file
                for file, _, table in (name.partition("#") for name in names.split("|"))
            )
            return (
                f"app_source: {tree.name} has no {shown}, which its app_framework needs for "
                "migrations: check app_source and app_framework, or give app_migration_command "
                "(app_migrations: skip for an application without migrations)"
            )
    return None


def has_file(folder: Path, name: str) -> bool:
    """Say whether a file is there; name: of `file#table`, whether a TOML file has this table."""
    file, _, table = name.partition("#")
    path = folder / file
    if "*" in file:
        return any(folder.glob(file))
    if not table or not path.is_file():
        return path.exists()
    try:
        found = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        return False
    for key in table.split("."):
        found = found.get(key) if isinstance(found, dict) else None
    return isinstance(found, dict)


def migrations_folder(folder: Path, required_files: list[str]) -> str:
    """Return the folder of migrations that is not where its framework looks; "" for none.

    required_files: as of the module; a pattern stands for places where it may be as well.
    """
    for names in required_files:
        first, *others = names.split("|")
        patterns = [name for name in others if "*" in name]
        if not has_file(folder, first):
            found = (path for pattern in patterns for path in sorted(folder.glob(pattern)))
            return next((str(path.relative_to(folder).parent) for path in found), "")
    return ""


def required_python(folder: Path) -> str:
    """Return requires-python of the source's pyproject.toml; "" for none."""
    try:
        project = tomllib.loads((folder / "pyproject.toml").read_text()).get("project", {})
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError):
        return ""
    return str(project.get("requires-python", ""))


def python_path(tree: Tree, projects: list[str]) -> list[str]:
    """Return the directories that hold the source's packages, relative to it.

    projects: further ones in the source, of which it says that it needs them.
    """
    src = (tree.path / "src").is_dir() and (tree.path / "pyproject.toml").is_file()
    found = [".", "src"] if src else ["."]
    for name in projects:
        inner = f"{name}/src"
        found.append(inner if (tree.path / inner).is_dir() else name)
    return list(dict.fromkeys(found))


def source_files(tree: Tree, exclude: list[str]) -> list[Path]:
    """Return the files to pack, relative to the source, sorted; no excluded name at any depth."""

    def kept(name: str) -> bool:
        return not any(fnmatch.fnmatch(name, pattern) for pattern in exclude)

    files: list[Path] = []
    for folder, folders, names in os.walk(tree.path):
        place = Path(folder).relative_to(tree.path)
        folders[:] = sorted(name for name in folders if kept(name))
        linked = [name for name in folders if Path(folder, name).is_symlink()]
        if linked:
            raise SourceError(
                f"app_source: {tree.name}: {place / linked[0]} links to a directory: put the "
                "directory there"
            )
        files += (place / name for name in names if kept(name))
    return sorted(files)


def pack(source: Path, files: list[Path], added: dict[str, str]) -> bytes:
    """Return a gzip tar archive with the files and the marker; equal content gives equal bytes.

    added: name -> text of files that the archive has in any case, in place of the source's own.
    Owners, times and the umask of the controller are left out: only names, bytes and the
    executable bit count. A link to a file becomes the file, so a release does not reach outside
    itself.
    """
    given = {Path(name): text.encode() for name, text in added.items()}
    reserved = {Path(MARKER), Path(BUILT), Path(STATIC)}
    names = [*sorted({*files, *given} - reserved), Path(MARKER)]
    buffer = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0) as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for folder in sorted({parent for name in names for parent in name.parents} - {Path()}):
            member = tarfile.TarInfo(str(folder))
            member.type, member.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(member)
        for name in names:
            path = source / name
            own = name not in given and name != Path(MARKER)
            content = path.read_bytes() if own else given.get(name, b"")
            member = tarfile.TarInfo(str(name))
            member.size = len(content)
            # Its own mode: on a file system without execution os.access() says no.
            member.mode = 0o755 if own and path.stat().st_mode & 0o100 else 0o644
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


UNUSED_SECONDS = 30 * 86400
"""Age at which an archive that no deployment has used since goes."""


def stored(content: bytes, directory: Path) -> tuple[Path, str]:
    """Write the archive where it is missing; return its path and the release that it holds."""
    directory.mkdir(parents=True, exist_ok=True)
    # Of the tar archive: another controller's zlib may compress it in another way.
    release = hashlib.sha256(gzip.decompress(content)).hexdigest()[:12]
    archive = directory / f"{release}.tar.gz"
    if archive.exists():
        archive.touch()
    else:
        partial = archive.with_suffix(f".{os.getpid()}")
        partial.write_bytes(content)
        partial.replace(archive)
    for other in directory.iterdir():
        # Another deployment may remove it first.
        with contextlib.suppress(FileNotFoundError):
            if time.time() - other.stat().st_mtime > UNUSED_SECONDS:
                other.unlink()
    return archive, release


def part(tree: Tree, directory: str) -> Tree:
    """Return the part of a source that holds the application."""
    if not directory:
        return tree
    path = (tree.path / directory).resolve()
    if tree.path.resolve() not in path.parents or not path.is_dir():
        raise SourceError(
            f"app_source_directory: {tree.name} has no directory {directory!r}: give a path in the "
            "source, such as backend"
        )
    return replace(tree, path=path, name=f"{tree.name}, {directory}", root=tree.path.resolve())


def released(tree: Tree, parameters: dict) -> dict[str, object]:
    """Check and pack the tree; return the module's result."""
    name, text, projects = locked_requirements(tree, parameters["requirements"])
    needed, packages = parameters["required_files"], parameters["required_packages"]
    text, brought = completed(text, packages, parameters["servers"])
    requirements = normalised(text)
    if error := source_error(tree, requirements, needed, packages):
        raise SourceError(error)
    directory = Path(parameters["archive_directory"])
    try:
        files = source_files(tree, parameters["exclude"])
        made_by = "\n".join([parameters["python"], *parameters["build"]])
        added = {name: text, MARKER: made_by}
        archive, release = stored(pack(tree.path, files, added), directory)
    except OSError as failure:
        said = str(failure).replace(str(tree.path), tree.name)
        raise SourceError(f"app_source: {said}") from None
    return {
        "archive": str(archive),
        "release": release,
        "requirements": name,
        "requirements_checksum": hashlib.sha256(requirements.encode()).hexdigest(),
        "python_path": python_path(tree, projects),
        "requires_python": required_python(tree.path),
        "brought": brought,
        "migrations": migrations_folder(tree.path, needed),
        "revision": tree.revision,
    }


def main() -> None:
    module = UnloggedModule(
        argument_spec={
            "source": {"type": "str", "required": True},
            "revision": {"type": "str", "default": ""},
            "directory": {"type": "str", "default": ""},
            "requirements": {"type": "str", "default": "requirements.txt"},
            "required_files": {"type": "list", "elements": "str", "default": []},
            "required_packages": {"type": "list", "elements": "str", "default": []},
            "servers": {"type": "str", "default": ""},
            "exclude": {"type": "list", "elements": "str", "default": []},
            "python": {"type": "str", "default": "python3"},
            "build": {"type": "list", "elements": "str", "default": []},
            "archive_directory": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    source, revision = module.params["source"], module.params["revision"]
    # Ansible prints the parameters with a result.
    module.params["source"] = "an unreadable URL"
    try:
        credentials(source)
        module.params["source"] = without_credentials(source)
        cache = Path(module.params["archive_directory"]).parent / "git"
        with source_tree(source, revision, cache) as tree:
            result = released(part(tree, module.params["directory"]), module.params)
    except SourceError as failure:
        module.fail_json(msg=str(failure))
    except OSError as failure:
        module.fail_json(msg=f"app_source: {failure}")
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
