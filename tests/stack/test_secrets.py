"""No host keeps a secret where somebody else reads it: journals, logs, processes, open files."""

import base64
import json
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
from conftest import Application
from testinfra.host import Host

SEARCH = Path(__file__).with_name("search_for_secrets.py").read_text()


def forms(secret: str) -> list[str]:
    """Return how programs may have written a secret: raw, quoted, encoded; each in hexadecimal.

    Of one with several lines each long line counts as well.
    """
    texts = {secret, secret.strip()}
    texts |= {line for line in secret.splitlines() if len(line) > 16 and "-----" not in line}
    written: set[bytes] = set()
    for text in texts:
        raw = text.encode()
        # As the file that holds it writes it, and that as a program prints a file.
        in_files = {
            text,
            re.sub(r'(["\\`$])', r"\\\1", text),  # systemd
            text.replace("'", "'\\''"),  # sh
            text.replace("'", "'\"'\"'"),  # Python's shlex
            text.replace("'", "''"),  # SQL
            text.replace('"', '""'),  # pgbouncer's user list
            text.replace("\\", "\\\\").replace(":", "\\:"),  # pgpass
            text.replace("\\", "\\\\").replace('"', '\\"'),
            text.replace("\\", "\\\\").replace("'", "\\'"),  # libpq
            quote(text),
            quote(text, safe=""),
            quote_plus(text),
        }
        written |= {
            form.encode()
            for file in in_files
            for form in (
                file,
                file.replace("\n", "\\x0a"),  # systemd's own lists
                repr(file)[1:-1],
                repr(f"{file}'\"")[1:-4],  # beside both kinds of quotes
                json.dumps(file)[1:-1],
            )
        }
        # A file may have it in the middle of what it encodes: three offsets, without the edges.
        for offset in range(3):
            encoded = base64.b64encode(b"\0" * offset + raw)
            middle = encoded[(0, 2, 3)[offset] : len(encoded) // 4 * 4 - 4]
            if len(middle) >= 8:
                written |= {middle, base64.urlsafe_b64encode(base64.b64decode(encoded))[4:-4]}
    return sorted(form.hex() for form in written if len(form) >= 6)


def search(host: Host, services: str, secrets: dict[str, str]) -> dict:
    """Search a host in one pass; the secrets reach it over standard input."""
    # testinfra gives a command no input.
    name = host.backend.name
    done = subprocess.run(
        ["docker", "exec", "-i", name, "python3", "-c", SEARCH, services],
        input=json.dumps({key: forms(secret) for key, secret in secrets.items()}),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def hosts(applications: dict[str, Application], database: Host) -> dict[str, Host]:
    return {**{name: app.host for name, app in applications.items()}, "database": database}


def test_no_secret_lies_about(hosts: dict[str, Host], secrets: dict[str, str]) -> None:
    # With a verifier one can try passwords, and the pooler logs in with it.
    wanted = {**secrets, "verifier": "SCRAM-SHA-256$4096:"}
    with ThreadPoolExecutor() as threads:
        results = threads.map(lambda name: search(hosts[name], name, wanted), hosts)
    leaked = []
    for name, result in zip(hosts, results, strict=True):
        for kind, number in {"files": 500, "processes": 5, "journal": 10_000}.items():
            assert result["seen"][kind] >= number, f"{name}: {result['seen']}"
        leaked += [f"{name}: {place}, {count} times" for place, count in result["found"].items()]
    assert not leaked, "\n".join(leaked)


def test_the_search_finds_what_is_there(applications: dict[str, Application]) -> None:
    """A secret in each kind of place and notation, which the search above must not miss."""
    host = applications["flask"].host
    secret = 'canary of poolkit\'s "search"\nin two lines: \\ $ %'
    plain = "canary-without-quotes-0123456789"
    planted = {
        "/run/poolkit-canary": json.dumps({"a": [secret]}),
        "/tmp/poolkit-canary": f"postgresql://me:{quote(secret, safe='')}@db/shop",
        "/var/log/poolkit-canary": base64.b64encode(f"12{plain}4".encode()).decode(),
    }
    for path, text in planted.items():
        host.check_output("umask 077; printf %%s %s > %s", text, path)
    host.check_output("logger --journald <<END\nMESSAGE=%s\nCANARY=x%sx\nEND", "poolkit", plain)
    host.check_output("journalctl --sync")
    result = search(host, "flask", {"canary": secret, "plain canary": plain})
    host.check_output(f"rm {' '.join(planted)}; journalctl --rotate")
    assert set(result["found"]) >= {
        "canary in /run/poolkit-canary",
        "canary in /tmp/poolkit-canary",
        "plain canary in /var/log/poolkit-canary",
        "plain canary in the journal",
    }


def test_locks_are_roots_alone(application: Application) -> None:
    """Whoever can open one can hold up the next deployment."""
    name = application.name
    locks = (f"/etc/poolkit/{name}/.lock", f"/srv/{name}/venvs/.lock", "/run/poolkit-*.lock")
    modes = application.host.check_output(f"stat -c '%U %a' {' '.join(locks)}").splitlines()
    assert modes == ["root 600"] * 3
