"""A package without a wheel brings code of its own, which gets no more than it needs."""

import io
import json
import subprocess
import tarfile

from conftest import Application
from controller import ansible

PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "canary"
version = "1"
"""

# Tries what it should not be able to, leaves what it should not, and tells what came of it.
BACKEND = r"""
import glob, json, os, pwd, subprocess, zipfile

VENV = "/srv/flask/venvs/canary"

def allowed(action, *arguments):
    try:
        action(*arguments)
        return True
    except OSError:
        return False

def build_wheel(directory, *_):
    said = {
        "user": pwd.getpwuid(os.getuid()).pw_name,
        "groups": os.getgroups(),
        "reads": [
            path
            for path in glob.glob("/etc/poolkit/flask/*") + glob.glob("/etc/pgbouncer/*")
            + ["/etc/shadow", "/proc/1/environ", "/var/log/poolkit"]
            if ("pgpass" in path or ".env" in path or "poolkit/flask" not in path)
            and allowed(open, path)
        ],
        "writes": [
            path
            for path in ("/etc", "/srv/flask", "/srv/flask/venvs", "/usr/local/bin", "/var/lib")
            if allowed(open, path + "/canary", "w")
        ],
    }
    for name in ("left.pth", "setuid", ".complete"):
        open(f"{VENV}/{name}", "w").write("import os")
        os.chmod(f"{VENV}/{name}", 0o666)
    said["setuid"] = allowed(os.chmod, f"{VENV}/setuid", 0o4777)
    subprocess.Popen(["sleep", "300"], start_new_session=True, stdout=subprocess.DEVNULL,
                     stderr=subprocess.DEVNULL)
    name = "canary-1-py3-none-any.whl"
    info = "Metadata-Version: 2.1\nName: canary\nVersion: 1\n"
    tags = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(f"{directory}/{name}", "w") as wheel:
        wheel.writestr("canary.json", json.dumps(said))
        wheel.writestr("canary-1.dist-info/METADATA", info)
        wheel.writestr("canary-1.dist-info/WHEEL", tags)
        wheel.writestr("canary-1.dist-info/RECORD", "")
    return name
"""
FOLDER = "/srv/flask/canary"


def sdist() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, text in {"pyproject.toml": PYPROJECT, "backend.py": BACKEND}.items():
            member = tarfile.TarInfo(f"canary-1/{name}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    return buffer.getvalue()


def test_build_code_has_no_rights(applications: dict[str, Application]) -> None:
    host = applications["flask"].host
    try:
        host.check_output(f"mkdir -m 755 {FOLDER}")
        subprocess.run(
            ["docker", "exec", "-i", host.backend.name, "tee", f"{FOLDER}/canary-1.tar.gz"],
            input=sdist(),
            stdout=subprocess.DEVNULL,
            check=True,
        )
        host.check_output(
            f"echo canary @ file://{FOLDER}/canary-1.tar.gz > {FOLDER}/requirements.txt"
        )
        arguments = {
            "name": "canary",
            "release": FOLDER,
            "venv": "/srv/flask/venvs/canary",
            "requirements": "requirements.txt",
            "python": "python3",
            "user": "flask-build",
            "environment_file": "/etc/poolkit/flask/pip.env",
        }
        run = ansible(
            "ansible", "flask1", "-m", "poolkit.poolkit.app_venv", "-a", json.dumps(arguments)
        )
        assert run.returncode == 0, run.stdout + run.stderr
        said = json.loads(host.check_output("cat /srv/flask/venvs/canary/lib/*/*/canary.json"))
        group = int(host.check_output("id -g flask-build"))
        assert said == {
            "user": "flask-build",
            "groups": [group],
            "reads": [],
            "writes": [],
            "setuid": False,
        }
        # Root has all of it, and none of the processes is left.
        of_others = "-not -user root -o -not -group root -o -perm /6000 -o -not -type l -perm /022"
        assert host.check_output(f"find /srv/flask/venvs/canary {of_others}") == ""
        assert host.run("pgrep --uid flask-build").stdout == ""
    finally:
        host.run(f"rm -rf {FOLDER} /srv/flask/venvs/canary /var/log/poolkit/canary-build.log")
