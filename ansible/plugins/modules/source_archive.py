#!/usr/bin/python
"""Pack an application's source into an archive named by its content."""

from __future__ import annotations

import fnmatch
import gzip
import hashlib
import io
import os
import re
import tarfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
---
module: source_archive
short_description: Pack an application's source into an archive named by its content
description:
  - Packs a directory of the controller into a reproducible gzip tar archive, whose name is a hash
    of its content. The same source gives the same archive, so an unchanged one is not copied.
  - Checks that the source is one that the app role can deploy, before anything has changed.
  - Writes only to the archive directory, so it runs in check mode as well.
options:
  source:
    description: Directory with the application's source.
    type: path
    required: true
  requirements:
    description: Name of the requirements file in it.
    type: str
    default: requirements.txt
  required_files:
    description: Further files that must exist in it.
    type: list
    elements: str
    default: []
  required_packages:
    description: Packages that the requirements file must list.
    type: list
    elements: str
    default: []
  exclude:
    description: Patterns of names (fnmatch) that are left out, at any depth.
    type: list
    elements: str
    default: []
  archive_directory:
    description: Directory for the archives, made where it is missing.
    type: path
    required: true
"""

EXAMPLES = r"""
- name: Pack the source
  source_archive:
    source: /home/me/shop
    required_files: [manage.py]
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
requirements_checksum:
  description: SHA-256 of the requirements file; releases with the same one share a venv.
  type: str
  returned: success
"""

MARKER = ".poolkit-release"
"""The last member of each archive: a release that has it was unpacked to its end."""


def listed_packages(requirements: str) -> set[str]:
    """Return the names of a requirements file, with - for each of `-_.` as PyPI compares them."""
    names = re.findall(
        r"^([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[|==|@|~=|>|<|;|$)", requirements, re.M
    )
    return {re.sub(r"[-_.]+", "-", name).lower() for name in names}


def source_error(
    source: Path, requirements: str, required_files: list[str], required_packages: list[str]
) -> str | None:
    """Return what is wrong with the source, naming the variable to change; None when it is fine."""
    if not source.is_dir():
        return f"app_source: there is no directory {source} on the controller"
    locked = source / requirements
    if not locked.is_file():
        return (
            f"app_source: {source} has no {requirements}: the app role installs an application's "
            "locked requirements (for example from `uv pip compile --generate-hashes` or "
            "`pip freeze`); app_requirements names another file"
        )
    text = locked.read_text()
    if other := re.search(
        r"^\s*(-r|-c|-e|--requirement|--constraint|--editable|\./).*", text, re.M
    ):
        return (
            f"app_source: {locked} refers to other files ({other.group().strip()!r}), which would "
            "not be part of its checksum: lock everything into one file"
        )
    missing = [name for name in required_packages if name not in listed_packages(text)]
    if missing:
        return (
            f"app_source: {locked} does not list {', '.join(missing)}, which poolkit runs: add it"
        )
    for name in required_files:
        if not (source / name).exists():
            return (
                f"app_source: {source} has no {name}, which its app_framework needs for "
                "migrations: check app_source and app_framework"
            )
    return None


def source_files(source: Path, exclude: list[str]) -> list[Path]:
    """Return the files to pack, relative to the source, sorted; no excluded name at any depth."""

    def kept(name: str) -> bool:
        return not any(fnmatch.fnmatch(name, pattern) for pattern in exclude)

    files: list[Path] = []
    for folder, folders, names in os.walk(source):
        folders[:] = sorted(name for name in folders if kept(name))
        linked = [name for name in folders if Path(folder, name).is_symlink()]
        if linked:
            raise OSError(
                f"{Path(folder, linked[0])} links to a directory: put the directory there"
            )
        files += (Path(folder, name).relative_to(source) for name in names if kept(name))
    return sorted(files)


def pack(source: Path, files: list[Path]) -> bytes:
    """Return a gzip tar archive with the files and the marker; equal content gives equal bytes.

    Owners, times and the umask of the controller are left out: only names, bytes and the
    executable bit count. A link to a file becomes the file, so a release does not reach outside
    itself.
    """
    buffer = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0) as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for folder in sorted({parent for name in files for parent in name.parents} - {Path()}):
            member = tarfile.TarInfo(str(folder))
            member.type, member.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(member)
        for name in [*files, Path(MARKER)]:
            path = source / name
            content = b"" if name == Path(MARKER) else path.read_bytes()
            member = tarfile.TarInfo(str(name))
            member.size = len(content)
            executable = name != Path(MARKER) and os.access(path, os.X_OK)
            member.mode = 0o755 if executable else 0o644
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "source": {"type": "path", "required": True},
            "requirements": {"type": "str", "default": "requirements.txt"},
            "required_files": {"type": "list", "elements": "str", "default": []},
            "required_packages": {"type": "list", "elements": "str", "default": []},
            "exclude": {"type": "list", "elements": "str", "default": []},
            "archive_directory": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    source = Path(module.params["source"])
    error = source_error(
        source,
        module.params["requirements"],
        module.params["required_files"],
        module.params["required_packages"],
    )
    if error:
        module.fail_json(msg=error)
    try:
        content = pack(source, source_files(source, module.params["exclude"]))
        directory = Path(module.params["archive_directory"])
        directory.mkdir(parents=True, exist_ok=True)
        release = hashlib.sha256(content).hexdigest()[:12]
        archive = directory / f"{release}.tar.gz"
        if not archive.exists():
            partial = archive.with_suffix(f".{os.getpid()}")
            partial.write_bytes(content)
            partial.replace(archive)
    except OSError as failure:
        module.fail_json(msg=f"app_source: {failure}")
    requirements = (source / module.params["requirements"]).read_bytes()
    module.exit_json(
        changed=False,
        archive=str(archive),
        release=release,
        requirements_checksum=hashlib.sha256(requirements).hexdigest(),
    )


if __name__ == "__main__":
    main()
