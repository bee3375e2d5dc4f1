#!/usr/bin/python
"""Build a release's virtual environment as a user who can do nothing else."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: app_venv
short_description: Build a release's virtual environment as a user who can do nothing else
version_added: 0.1.0
author: The poolkit authors (@poolkit)
description:
  - A package without a wheel is built by code of its own, and may name others anywhere. So pip runs
    as an unprivileged user in the systemd unit NAME-build.service, which writes to the environment,
    to its own pip cache and to a private /tmp, and reads no file with secrets. When all its
    processes have ended the environment is handed over to root. Root runs nothing of it.
  - Releases with the same requirements share an environment. Two runs at once wait for each other.
  - A failure shows the line that matters, what to do, and the end of the output; the whole of it is
    in /var/log/poolkit/NAME-build.log, as is that of a success.
  - Check mode builds and links nothing.
options:
  name:
    description: The application; part of the unit's name.
    type: str
    required: true
  release:
    description: Directory of the release; gets the link .venv.
    type: path
    required: true
  venv:
    description: Directory of the virtual environment. The lock file is beside it.
    type: path
    required: true
  requirements:
    description: Requirements file, relative to the release.
    type: str
    required: true
  python:
    description: Interpreter, a name on the PATH or an absolute path.
    type: str
    required: true
  user:
    description: User who builds, and owns nothing else.
    type: str
    required: true
  environment_file:
    description:
      - Environment of pip in systemd's format, read by root. The user's cache is a directory in its
        PIP_CACHE_DIR, or in /var/cache/poolkit-pip.
    type: path
    required: true
  lock_timeout_seconds:
    description: How long to wait for another run.
    type: int
    default: 900
"""

EXAMPLES = r"""
- name: Build the virtual environment
  poolkit.poolkit.app_venv:
    name: shop
    release: /srv/shop/releases/0123456789ab
    venv: /srv/shop/venvs/py3.13-0123456789ab
    requirements: requirements.txt
    python: python3
    user: shop-build
    environment_file: /etc/poolkit/shop/pip.env
"""

RETURN = r"""
built:
  description: Whether the virtual environment was built, or would be in check mode.
  type: bool
  returned: success
linked:
  description: Whether the release got a link to it, or would in check mode.
  type: bool
  returned: success
"""

import os
import pwd
import re
import shutil
import subprocess
from pathlib import Path

from ..module_utils.build_unit import build_unit, end_left_over
from ..module_utils.command_output import keep, shortened, telling_line
from ..module_utils.locking import Locked, lock
from ..module_utils.ownership import hand_over
from ..module_utils.secret_values import hide, of_url, passwords, variables
from ..module_utils.unlogged_module import UnloggedModule
from ..module_utils.virtual_environment import COMPLETE, complete

CACHE = "/var/cache/poolkit-pip"

# -I: neither the working directory nor PYTHON* variables lead to other code.
# $1 is the interpreter, $2 the environment, what follows pip's options.
SCRIPT = (
    'set -e; python=$1; venv=$2; shift 2; "$python" -I -m venv "$venv"; '
    'exec "$venv/bin/python" -I -m pip install --disable-pip-version-check --no-input "$@"'
)

COMPILER = r"(?:gcc|g\+\+|cc|c\+\+|clang)"
NO_COMPILER = (
    r"Unknown compiler\(s\)|linker `\w+` not found|unable to execute '"
    r"|(?i:need a C compiler|no acceptable C compiler)"
)
TELLING = (
    r"fatal error: .*: No such file or directory",
    r"pg_config executable not found",
    rf"No such file or directory: '\S*{COMPILER}'|command '\S*{COMPILER}' failed",
    NO_COMPILER,
    r"No space left on device",
    r"THESE PACKAGES DO NOT MATCH THE HASHES|In --require-hashes mode",
    r"requires a different Python",
    r"ensurepip is not available",
    r"Could not fetch URL|Retrying \(Retry\(total=0|NewConnectionError|ProxyError",
    r"ERROR: No matching distribution",
    r"^\s*(\w+\.)*\w*(Error|Exception): ",
    r"ERROR: (?!Failed (building|to build)|Could not find|Exception:)",
    r"^\s*error: ",
    r"(?i)\berror\b",
)
"""Lines that say why an environment was not built, the most telling first."""

WITHOUT_WHEEL = "A package has no wheel for this interpreter and is built from source"
HINTS = (
    (
        r"fatal error: Python\.h",
        f"{WITHOUT_WHEEL}: install python3-dev on this host, or require a version with a wheel",
    ),
    (
        r"fatal error: .*: No such file or directory",
        f"{WITHOUT_WHEEL}, which needs this header: install the -dev package that has it on this "
        "host, or require a version with a wheel",
    ),
    (
        r"pg_config executable not found",
        f"{WITHOUT_WHEEL}: require psycopg2-binary or psycopg[binary] in its place, or install "
        "libpq-dev and a compiler on this host",
    ),
    (
        rf"No such file or directory: '\S*{COMPILER}'|command '\S*{COMPILER}' failed: No such"
        rf"|{NO_COMPILER}",
        f"{WITHOUT_WHEEL}, and this host has no compiler: install build-essential and python3-dev, "
        "or require a version with a wheel",
    ),
    (
        r"No space left on device",
        "Make room below /srv, /tmp or /var/cache of this host, then run this again",
    ),
    (
        r"THESE PACKAGES DO NOT MATCH THE HASHES",
        "The index has another file than the one that was locked: find out why, then lock again",
    ),
    (r"In --require-hashes mode", "Lock again, with the hashes of all packages or of none"),
    (
        r"requires a different Python|require a different python version",
        "Set app_python to an interpreter that the packages support, or lock for the one of this "
        "host",
    ),
    (
        r"ensurepip is not available",
        "The interpreter cannot make virtual environments: install its package python3.N-venv",
    ),
    (
        r"Could not fetch URL|Retrying \(Retry\(|NewConnectionError|ProxyError",
        "This host does not reach the package index: check PIP_INDEX_URL and https_proxy in "
        "app_pip_environment, app_ca_bundle, and the firewall",
    ),
    (
        r"No matching distribution|Could not find a version",
        "The index has no such version for this interpreter and platform: check app_python and "
        "PIP_INDEX_URL in app_pip_environment, or lock again",
    ),
    (
        r"was already loaded",
        "The build of another run goes on: wait for it to end, then run this again",
    ),
)
"""What to do about words of an output, the most telling first."""


def explanation(output: str, name: str) -> str:
    """Return why a build failed: the line that matters, what to do, the end of the output."""
    path = keep(output, name)
    line = telling_line(output, TELLING)
    hint = next((hint for words, hint in HINTS if re.search(words, output)), "")
    end = shortened(output).removeprefix("The output ends with:\n")
    parts = [f"{line}\n" if line else "", f"{hint}.\n" if hint else ""]
    return f"{''.join(parts)}The output ends with:\n{end}\nAll of it, for root on this host: {path}"


def build(given: dict, pip: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Build the environment as the user; return what the command said, and hand over a whole one.

    pip: the variables of its environment file.
    """
    venv, account = Path(given["venv"]), pwd.getpwnam(given["user"])
    cache = Path(pip.get("PIP_CACHE_DIR") or CACHE) / f"{account.pw_name}-{account.pw_uid}"
    cache.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    shutil.rmtree(venv, ignore_errors=True)
    for directory in (venv, cache):
        directory.mkdir(mode=0o700, exist_ok=directory == cache)
        os.chown(directory, account.pw_uid, account.pw_gid)
    venv.chmod(0o755)
    options = [f"--requirement={Path(given['release'], given['requirements'])}"]
    if not pip.get("PIP_NO_CACHE_DIR"):
        options.append(f"--cache-dir={cache}")
    words = ["/bin/sh", "-c", SCRIPT, "build", given["python"], str(venv), *options]
    end_left_over(given["name"])
    # It begins in the release, where relative paths of pip's environment lead.
    names = (given["name"], given["user"], given["release"], given["environment_file"])
    command = build_unit(*names, [venv, cache], words)
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    if done.returncode:
        shutil.rmtree(venv, ignore_errors=True)
        return done
    mark = venv / COMPLETE
    if os.path.lexists(mark):  # not ours: it must not count before the rest is root's
        mark.unlink()
    hand_over(venv)
    mark.touch(0o644, exist_ok=False)
    return done


def main() -> None:
    os.umask(0o022)
    module = UnloggedModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "release": {"type": "path", "required": True},
            "venv": {"type": "path", "required": True},
            "requirements": {"type": "str", "required": True},
            "python": {"type": "str", "required": True},
            "user": {"type": "str", "required": True},
            "environment_file": {"type": "path", "required": True},
            "lock_timeout_seconds": {"type": "int", "default": 900},
        },
        supports_check_mode=True,
    )
    given = module.params
    name, venv, link = given["name"], Path(given["venv"]), Path(given["release"], ".venv")
    linked = not link.is_symlink() or link.readlink() != venv
    if module.check_mode:
        built = not complete(venv)
        module.exit_json(changed=built or linked, built=built, linked=linked)
    try:
        with lock(venv.parent / ".lock", given["lock_timeout_seconds"]):
            built = not complete(venv)
            if built:
                text = Path(given["environment_file"]).read_text()
                done = build(given, variables(text))
                urls = re.findall(
                    r"\w+://\S+", Path(given["release"], given["requirements"]).read_text()
                )
                secrets = passwords(text).union(*map(of_url, urls))
                output = hide(done.stdout.strip(), secrets)
                if done.returncode:
                    module.fail_json(
                        msg=f"{name}: the virtual environment cannot be built: "
                        f"{explanation(output, f'{name}-build')}"
                    )
                keep(output, f"{name}-build")
            if linked:
                partial = link.with_name(f".venv.{os.getpid()}")
                partial.unlink(missing_ok=True)
                partial.symlink_to(venv)
                partial.replace(link)
    except Locked as error:
        module.fail_json(msg=f"{name}: {error}")
    except KeyError:
        module.fail_json(msg=f"{name}: there is no user {given['user']} on this host")
    except OSError as error:
        module.fail_json(msg=f"{name}: the virtual environment cannot be built: {error}")
    module.exit_json(changed=built or linked, built=built, linked=linked)


if __name__ == "__main__":
    main()
