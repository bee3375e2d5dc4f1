"""Search a host for secrets, as root; test_secrets.py sends this there.

Standard input: {name: [form in hexadecimal, ...]}; argument: the service that may know them.
Prints {"found": {"NAME in PLACE": count}, "seen": {"files": n, "processes": n, "journal": bytes}}.
"""

import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

# Whoever may read these, no secret belongs there. In the rest it is files that everybody reads.
NOWHERE = ("/var/log/", "/tmp/", "/var/tmp/", "/run/", "/root/", "/home/", "/var/spool/")
READ = ("/etc", "/srv", "/run", "/var", "/tmp", "/usr/local", "/root", "/home", "/opt", "/dev/shm")
# The journal is read below, with every field. The others are large, and not of a deployment.
SKIPPED = (
    *("/var/log/journal", "/run/log/journal"),
    *("/var/lib/apt", "/var/cache/apt", "/var/cache/pip"),
)

given = json.load(sys.stdin)
forms = {bytes.fromhex(form): name for name, every in given.items() for form in every}
pattern = re.compile(b"|".join(map(re.escape, sorted(forms, key=len, reverse=True))))
# grep is quick with many words at once, Python exact: a line of each form is enough for grep.
words = b"\n".join({max(form.split(b"\n"), key=len) for form in forms})
found: dict = {}
seen = {"files": 0, "processes": 0, "journal": 0}


def look(place: str, content: bytes) -> None:
    for match in pattern.finditer(content):
        key = f"{forms[match.group()]} in {place}"
        found[key] = found.get(key, 0) + 1


def look_in_files(paths: list) -> None:
    seen["files"] += len(paths)
    command = ["grep", "-aFlZs", "--devices=skip", "--file=-", "--"]
    for first in range(0, len(paths), 2000):
        grep = subprocess.run(
            [*command, *paths[first : first + 2000]],
            input=words,
            stdout=subprocess.PIPE,
            env={**os.environ, "LC_ALL": "C"},
        )
        for path in filter(None, grep.stdout.split(b"\0")):
            name = os.fsdecode(path)
            look(name, Path(name).read_bytes())


def readable_files() -> list:
    paths = []
    for top in READ:
        for folder, folders, names in os.walk(top):
            if folder.startswith(SKIPPED):
                folders[:] = []
                continue
            for name in names:
                path = f"{folder}/{name}"
                try:
                    mode = os.lstat(path).st_mode
                except OSError:
                    continue
                if stat.S_ISREG(mode) and (mode & 0o004 or path.startswith(NOWHERE)):
                    paths.append(path)
    return paths


def look_in_journal() -> None:
    # In this format a field has its bytes as they are, also with line breaks.
    command = ["journalctl", "--all", "--output=export", "--no-pager"]
    content = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    seen["journal"] = len(content)
    look("the journal", content)


def look_in_processes(service: str) -> None:
    """Read the arguments of all, and the environment of all but the service's own."""
    for process in Path("/proc").glob("[0-9]*"):
        if int(process.name) == os.getpid():
            continue
        try:
            names = ("cmdline", "environ", "cgroup")
            texts = {name: (process / name).read_bytes() for name in names}
        except OSError:
            continue
        seen["processes"] += 1
        shown = texts["cmdline"].replace(b"\0", b" ").decode(errors="replace").strip()[:80]
        look(f"the arguments of {shown}", texts["cmdline"])
        if not re.search(rf"/{service}(-next)?\.service".encode(), texts["cgroup"]):
            look(f"the environment of {shown}", texts["environ"])


look_in_files(readable_files())
look_in_journal()
look_in_processes(sys.argv[1])
json.dump({"found": found, "seen": seen}, sys.stdout)
