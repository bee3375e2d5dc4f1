#!/usr/bin/python
"""Run an application's own build steps in a release, and collect Django's static files."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: app_build
short_description: Run an application's own build steps in a release
version_added: 0.1.0
author: The poolkit authors (@poolkit)
description:
  - For a release that does not serve yet. The commands run one after the other, in the release, as
    the user who builds, who reads no file with secrets. Then the release is handed over to root.
  - Django's static files are collected where the settings have a STATIC_ROOT. That runs the
    application's own code with its environment, so it runs as the application's user, who may
    write to STATIC_ROOT alone. Files that earlier releases on the host have collected, and this one
    has not, are kept beside them, for pages that were loaded before the switch.
  - A failure shows the line that matters and the end of the output; the whole of it is in
    /var/log/poolkit/NAME-steps.log. The next run unpacks the source and begins again.
  - Check mode runs nothing.
options:
  name:
    description: The application; part of the unit's name.
    type: str
    required: true
  root:
    description: Directory of the application, with releases/.
    type: path
    required: true
  release:
    description: Directory of the release, with its .venv. Gets the file .poolkit-built.
    type: path
    required: true
  clean:
    description:
      - Build nothing, but empty the release where an earlier run was cut off while it unpacked or
        built it. Root unpacks nothing into files that the user who builds may still own.
    type: bool
    default: false
  commands:
    description: Commands, each for a shell of its own.
    type: list
    elements: str
    default: []
  build_user:
    description: User of the commands.
    type: str
    required: true
  build_environment_file:
    description: Environment of the commands in systemd's format, read by root.
    type: path
    required: true
  collectstatic:
    description: Whether static files are collected where Django's settings have a STATIC_ROOT.
    type: bool
    default: false
  user:
    description: The application's user.
    type: str
    required: true
  secret_environment:
    description: The application's environment, the text of a file in systemd's format.
    type: str
    default: ""
  state_directories:
    description: Directories that the application may write wherever it runs.
    type: list
    elements: path
    default: []
  python_path:
    description: Value of PYTHONPATH.
    type: str
    default: ""
  lock_timeout_seconds:
    description: How long to wait for another run on this host.
    type: int
    default: 900
"""

EXAMPLES = r"""
- name: Build the release
  poolkit.poolkit.app_build:
    name: shop
    root: /srv/shop
    release: /srv/shop/releases/0123456789ab
    commands: [npm ci, npm run build]
    build_user: shop-build
    build_environment_file: /etc/poolkit/shop/pip.env
    collectstatic: true
    user: shop
    secret_environment: "{{ lookup('ansible.builtin.template', 'app.env.j2') }}"
"""

RETURN = r"""
static_root:
  description: Directory of the collected files; empty where nothing was collected.
  type: str
  returned: success, not in check mode
static_files:
  description: How many files this release has collected.
  type: int
  returned: success, not in check mode
kept_static_files:
  description: How many files of earlier releases are beside them.
  type: int
  returned: success, not in check mode
"""

import contextlib
import json
import os
import pwd
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..module_utils.build_unit import build_unit, end_left_over
from ..module_utils.command_output import keep, shortened, telling_line
from ..module_utils.locking import Locked, lock
from ..module_utils.ownership import give_to, hand_over
from ..module_utils.refused import Refused
from ..module_utils.secret_values import hide, of_environment, passwords
from ..module_utils.static_files import keep_others
from ..module_utils.text_files import write
from ..module_utils.unlogged_module import UnloggedModule
from ..module_utils.virtual_environment import BUILT, MARKER, STATIC, built

TELLING = (
    r"^(\w+\.)*\w*(Error|Exception|ImproperlyConfigured)\b.*: ",
    r"npm (error|ERR!) (?!A complete log|code )",
    r": not found$|No such file or directory",
    r"(?i)\berror\b",
)
"""Lines that say why a step failed, the most telling first."""

ASK = (
    "from django.apps import apps; from django.conf import settings; "
    "used = apps.is_installed('django.contrib.staticfiles'); "
    "print('\\npoolkit: STATIC_ROOT', (used and settings.STATIC_ROOT) or '')"
)
"""Prints the directory for static files, and nothing where there is none."""


class Steps:
    """The steps of one release, each in the unit NAME-build.service."""

    def __init__(self, given: dict) -> None:
        self.given = given
        self.name: str = given["name"]
        self.release = Path(given["release"]).resolve()
        pip = Path(given["build_environment_file"]).read_text()
        self.secrets = of_environment(given["secret_environment"]) | passwords(pip)
        self.said: list[str] = []

    def run(
        self, what: str, words: list[str], user: str, environment: Path, writable: list[Path]
    ) -> str:
        """Run a step to its end and return what it printed; raise Refused where it fails."""
        # Behind env, after the environment's file, which may have a PATH.
        variables = {
            "PATH": f"{self.release}/.venv/bin:/usr/local/bin:/usr/bin:/bin",
            "PYTHONPATH": self.given["python_path"],
            "APP_VERSION": self.release.name,
            "HOME": "/tmp",  # noqa: S108 the unit's own
        }
        words = ["/usr/bin/env", *(f"{key}={value}" for key, value in variables.items()), *words]
        command = build_unit(self.name, user, self.release, environment, writable, words)
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        output = hide(done.stdout.strip(), self.secrets)
        self.said.append(f"# {what}\n{output}")
        path = keep("\n".join(self.said), f"{self.name}-steps")
        if done.returncode:
            line = telling_line(output, TELLING)
            raise Refused(
                f"{what} failed with exit code {done.returncode}: "
                f"{line + chr(10) if line else ''}{shortened(output)}\n"
                f"All of it, for root on this host: {path}"
            )
        return done.stdout

    def build(self) -> None:
        """Run the commands as the user who builds; afterwards everything is root's again."""
        if not self.given["commands"]:
            return
        user = self.given["build_user"]
        # Without its marker a release is unpacked anew: the commands may have changed its files.
        marker = self.release / MARKER
        text = marker.read_text()
        marker.unlink()
        give_to(self.release, pwd.getpwnam(user))
        environment = Path(self.given["build_environment_file"])
        try:
            for command in self.given["commands"]:
                words = ["/bin/sh", "-ec", command]
                what = f"app_build_commands: {command!r}"
                self.run(what, words, user, environment, [self.release])
        finally:
            for name in (BUILT, STATIC, MARKER):  # of a command: not ours
                remove(self.release / name)
            hand_over(self.release)
        write(marker, text, 0o644)

    def collect(self) -> dict:
        """Collect Django's static files; return what the module says of them."""
        nothing = {"static_root": "", "static_files": 0, "kept_static_files": 0}
        if not self.given["collectstatic"] or not (self.release / "manage.py").is_file():
            return nothing
        user, state = self.given["user"], [Path(path) for path in self.given["state_directories"]]
        with secret_file(self.given["secret_environment"]) as environment:
            manage = ["python", "manage.py"]
            asked = self.run(
                "The question for STATIC_ROOT",
                [*manage, "shell", "-c", ASK],
                *(user, environment, state),
            )
            found = re.findall(r"^poolkit: STATIC_ROOT (.+)$", asked, re.MULTILINE)
            if not found:
                return nothing
            root = Path(os.path.normpath(self.release / found[-1]))
            if self.release not in root.resolve().parents or root.resolve() != root:
                raise Refused(
                    f"STATIC_ROOT is {root}, outside of the release: a release that is refused "
                    "would have changed the files of the one that serves. Set it to a directory "
                    "of the source, such as BASE_DIR / 'staticfiles', or set "
                    "app_collectstatic_enabled to false and collect the files yourself"
                )
            root.mkdir(mode=0o755, parents=True, exist_ok=True)
            give_to(root, pwd.getpwnam(user))
            try:
                words = [*manage, "collectstatic", "--noinput"]
                self.run("collectstatic", words, user, environment, [root, *state])
            finally:
                hand_over(root)
        own = sorted(files_below(root))
        place = str(root.relative_to(self.release))
        write(self.release / STATIC, json.dumps({"root": place, "files": own}), 0o644)
        kept = keep_others(self.release)
        return {"static_root": str(root), "static_files": len(own), "kept_static_files": kept}


@contextlib.contextmanager
def secret_file(text: str) -> Iterator[Path]:
    """Yield a file with the text that only root reads, in memory, for as long as it is needed."""
    with tempfile.TemporaryDirectory(prefix="poolkit-", dir="/run") as folder:
        path = Path(folder, "environment")
        path.touch(0o600)
        path.write_text(text)
        yield path


def remove(path: Path) -> None:
    """Remove whatever is there, and nothing behind a link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()


def files_below(folder: Path) -> Iterator[str]:
    """Yield the files below a folder, relative to it; a link is none."""
    for place, _, names in os.walk(folder):
        for name in names:
            if not Path(place, name).is_symlink():
                yield os.path.relpath(Path(place, name), folder)


def drop_kept(release: Path) -> None:
    """Remove the links that a run which was cut off has made: their files are other releases'."""
    for name in list(files_below(release)):
        path = release / name
        if path.lstat().st_nlink > 1:
            path.unlink()


def clean(name: str, release: Path) -> bool:
    """Empty a release without its marker, and say whether there was anything; it cannot serve."""
    if (release / MARKER).exists() or not any(release.iterdir()):
        return False
    end_left_over(name)
    shutil.rmtree(release)
    release.mkdir(mode=0o755)
    return True


def discard(release: Path, root: Path) -> None:
    """Remove a release that cannot be built, so that the next run unpacks it anew.

    One that serves, from before there were build steps, stays.
    """
    links = (root / name for name in ("current", "next"))
    if release not in {link.resolve() for link in links if link.is_symlink()}:
        # Half a release must not be taken for a whole one.
        half = release.with_name(f".{release.name}")
        shutil.rmtree(half, ignore_errors=True)
        shutil.rmtree(release.rename(half), ignore_errors=True)


def main() -> None:
    os.umask(0o022)
    module = UnloggedModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "root": {"type": "path", "required": True},
            "release": {"type": "path", "required": True},
            "clean": {"type": "bool", "default": False},
            "commands": {"type": "list", "elements": "str", "default": []},
            "build_user": {"type": "str", "required": True},
            "build_environment_file": {"type": "path", "required": True},
            "collectstatic": {"type": "bool", "default": False},
            "user": {"type": "str", "required": True},
            "secret_environment": {"type": "str", "default": "", "no_log": True},
            "state_directories": {"type": "list", "elements": "path", "default": []},
            "python_path": {"type": "str", "default": ""},
            "lock_timeout_seconds": {"type": "int", "default": 900},
        },
        supports_check_mode=True,
    )
    given = module.params
    release = Path(given["release"])
    if module.check_mode or built(release):
        module.exit_json(changed=not built(release) and not given["clean"])
    secrets = of_environment(given["secret_environment"])
    try:
        for user in (given["build_user"], given["user"]):
            pwd.getpwnam(user)
        # app_venv's: the two use the same unit.
        with lock(Path(given["root"], "venvs/.lock"), given["lock_timeout_seconds"]):
            if built(release):  # by the run that had the lock
                module.exit_json(changed=False)
            if given["clean"]:
                module.exit_json(changed=clean(given["name"], release))
            end_left_over(given["name"])
            steps = Steps(given)
            drop_kept(steps.release)
            try:
                steps.build()
                result = steps.collect()
            except Refused:
                discard(release, Path(given["root"]))
                raise
            write(release / BUILT, "", 0o644)
    except KeyError:
        module.fail_json(msg=f"{given['name']}: there is no user {user} on this host")
    except (Refused, Locked, OSError) as error:
        module.fail_json(msg=f"{given['name']}: {hide(str(error), secrets)}")
    module.exit_json(changed=True, **result)


if __name__ == "__main__":
    main()
