"""Releases: what is tried, switched, undone and cleaned up.

systemd is a stand-in that records the commands, so that every step can be made to fail; Molecule's
scenario `rollout` has the real one.
"""

from __future__ import annotations

import http.server
import json
import multiprocessing
import os
import pwd
import shutil
import socketserver
import subprocess
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.client import HTTPConnection
from pathlib import Path

import pytest

from plugins.module_utils import further_processes
from plugins.modules import app_release

# What does not need an application.

NOT_RESTORED = "The previous release could not be restored"


def test_previous_release_is_the_newest_that_served_before() -> None:
    present = {"a", "b", "c"}
    assert app_release.previous_release(["a", "b", "c"], "c", present) == "b"
    assert app_release.previous_release(["a", "c", "b"], "b", present) == "c"
    assert app_release.previous_release(["a", "gone", "c"], "c", present) == "a"
    assert app_release.previous_release(["a", "b"], "c", present) == "b"  # c was not noted
    assert app_release.previous_release(["c"], "c", present) is None
    assert app_release.previous_release([], None, present) is None
    assert app_release.previous_release(["a", "b withdrawn", "c"], "c", present) == "a"


@pytest.mark.parametrize(
    ("number", "kept"),
    [(1, ["b"]), (2, ["d", "b"]), (3, ["c", "d", "b"]), (9, ["a", "c", "d", "b"]), (0, ["b"])],
)
def test_releases_that_served_last_are_kept(number: int, kept: list[str]) -> None:
    """b served twice, and counts where it served last."""
    assert app_release.kept_releases(["a", "b", "c", "d", "b"], number) == kept


def test_link_is_never_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = tmp_path / "current"
    app_release.point(link, "releases/a")
    assert str(link.readlink()) == "releases/a"
    seen = []
    replace = Path.replace

    def watched(self: Path, target: Path) -> Path:
        seen.append(str(link.readlink()))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", watched)
    app_release.point(link, "releases/b")
    assert seen == ["releases/a"]
    assert str(link.readlink()) == "releases/b"
    app_release.point(link, None)
    app_release.point(link, None)
    assert list(tmp_path.iterdir()) == []


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = f"{self.path} {self.headers['Host']} {self.headers['Connection']}".encode()
        self.send_response(200 if self.path == "/readyz" else 503)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self) -> str:
        return "unix"

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def unix_server(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "http.sock"
    with socketserver.ThreadingUnixStreamServer(str(path), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield path
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("path", "status"), [("/readyz", 200), ("/other", 503)])
def test_asks_over_a_unix_socket(unix_server: Path, path: str, status: int) -> None:
    connection = app_release.UnixConnection(unix_server, 5)
    answer = app_release.ask(connection, path, {"Host": "shop.example.com"})
    assert answer == (status, f"{path} shop.example.com close")
    assert connection.sock is None


def test_a_unix_socket_that_nobody_listens_on(tmp_path: Path) -> None:
    connection = app_release.UnixConnection(tmp_path / "none", 5)
    with pytest.raises(FileNotFoundError):
        app_release.ask(connection, "/", {})
    assert connection.sock is None


def hold(path: Path, held: object, release: object) -> None:
    with app_release.lock(path, 0):
        held.set()
        release.wait(30)


def test_two_processes_take_turns(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    context = multiprocessing.get_context("fork")
    held, release = context.Event(), context.Event()
    other = context.Process(target=hold, args=(path, held, release))
    other.start()
    assert held.wait(30)
    with pytest.raises(app_release.Locked, match=r"did not end in 0 s \(.*lock is locked\)"):
        app_release.lock(path, 0).__enter__()
    threading.Timer(0.2, release.set).start()
    with app_release.lock(path, 30):
        assert release.is_set()
    other.join()


def test_secrets_are_hidden() -> None:
    text = (
        'ODD="back\\\\slash and \\"quote"\n'
        'DATABASE_URL="postgresql://shop:p%40ss-word@/shop?host=a,b"\n'
        'DEBUG="true"\n'
        'APP_NAME="long-name"\n'
        'KEY="quoted \\"\\$value\\" of\ntwo lines"\n'
    )
    secrets = app_release.of_environment(text)
    assert secrets == {
        "postgresql://shop:p%40ss-word@/shop?host=a,b",
        "p%40ss-word",
        "p@ss-word",
        'quoted "$value" of\ntwo lines',
        'quoted "$value" of',
        'back\\slash and "quote',
    }
    for form in (repr, json.dumps):
        said = app_release.hide(form({"ODD": 'back\\slash and "quote'}), secrets)
        assert "slash" not in said
    said = "FATAL p@ss-word in postgresql://shop:p%40ss-word@/shop?host=a,b of long-name is true"
    assert app_release.hide(said, secrets) == "FATAL ******** in ******** of long-name is true"


# An application, with systemd's stand-in.

UNITS = ("shop.service", "shop.socket", "shop-next.service")


class Systemd:
    """Units in a directory of their own; what a service runs is what its link says at its start."""

    def __init__(self, directory: Path) -> None:
        self.units, self.run, self.root = (directory / name for name in ("units", "run", "srv"))
        self.calls: list[str] = []
        self.started: dict[str, float] = {}  # active units
        self.enabled: set[str] = set()
        self.runs: dict[str, str] = {}
        self.fails: dict[str, str | Exception] = {}  # a call, or "unit release" for an answer
        self.paths: dict[str, str] = {}  # a release's only health path

    def systemctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        call = " ".join(arguments)
        self.calls.append(call)
        failure = self.fails.get(call)
        if isinstance(failure, Exception):
            raise failure
        units = [name for name in arguments if name in UNITS]
        known = [name for name in units if (self.units / name).exists()]
        if failure or (units and not known):
            return subprocess.CompletedProcess(arguments, 1, "", failure or "no such unit")
        for unit in known:
            if arguments[0] in ("restart", "start"):
                self.start(unit)
            elif arguments[0] == "stop" or "--now" in arguments:
                self.started.pop(unit, None)
            if arguments[0] == "enable":
                self.enabled.add(unit)
            elif arguments[0] == "disable":
                self.enabled.discard(unit)
        return subprocess.CompletedProcess(arguments, 0, "", "")

    def start(self, unit: str) -> None:
        self.started[unit] = datetime.now(tz=UTC).timestamp()
        link = self.root / ("next" if unit == "shop-next.service" else "current")
        if unit != "shop.socket":
            self.runs[unit] = link.readlink().name
            (self.run / unit.removesuffix(".service")).mkdir(parents=True, exist_ok=True)
            (self.run / unit.removesuffix(".service") / "ready").touch()
        if unit == "shop.service":
            self.started.setdefault("shop.socket", self.started[unit])

    def properties(self, unit: str, names: str) -> dict[str, str]:
        moment = datetime.fromtimestamp(self.started.get(unit, 0), tz=UTC)
        path = self.units / unit
        every = {
            "ActiveState": "active" if unit in self.started else "inactive",
            "ActiveEnterTimestamp": moment.strftime("%a %Y-%m-%d %H:%M:%S.%f UTC"),
            "UnitFileState": "enabled" if unit in self.enabled else "disabled",
            "FragmentPath": str(path) if path.exists() else "",
        }
        return {name: every[name] for name in names.split(",")}

    def ask(self, connection: HTTPConnection, path: str, headers: dict) -> tuple[int, str]:
        """Answer as the service; where a stand-in has its socket as well, as that one."""
        unit = "shop-next.service"
        alone = isinstance(connection, app_release.UnixConnection)
        stands_in = (self.run / "systemd/system/shop-next.service.d/stand-in.conf").exists()
        if unit not in self.started or alone == stands_in:
            unit = "shop.service"
        if unit not in self.started:
            raise ConnectionRefusedError("refused")
        if path != self.paths.get(self.runs[unit], path):
            return 404, "no such path"
        if f"{unit} {self.runs[unit]}" in self.fails:
            return 503, self.fails[f"{unit} {self.runs[unit]}"]
        return 200, json.dumps({"release": self.runs[unit], "path": path, **headers})


class Host:
    """A host with the release r1, and shop as the role gives it to the module."""

    def __init__(self, directory: Path, run_module: Callable[..., dict]) -> None:
        self.systemd = Systemd(directory)
        self.directory, self.run_module = directory, run_module
        self.root, self.config = directory / "srv", directory / "etc"
        for path in (self.root / "venvs", self.config, self.systemd.units):
            path.mkdir(parents=True)
        self.build("r1")

    def build(self, name: str, venv: str | None = None) -> None:
        directory = self.root / "venvs" / (venv or f"venv-{name}")
        directory.mkdir(exist_ok=True)
        (self.root / "releases" / name).mkdir(parents=True)
        (self.root / "releases" / name / ".venv").symlink_to(directory)

    def deploy(self, release: str, version: str | None = None, **parameters: object) -> dict:
        """Run the module; the files hold the version, by default the release's name."""
        version = version or release
        arguments = {
            "name": "shop",
            "root": str(self.root),
            "config_directory": str(self.config),
            "release": release,
            "address": {"host": "127.0.0.1", "port": 8000},
            "health_timeout_seconds": 1,
            "files": [
                {"path": str(self.systemd.units / "shop.socket"), "content": "ListenStream=8000\n"},
                *(
                    {"path": str(self.systemd.units / name), "content": f"# {version}\n"}
                    for name in ("shop.service", "shop-next.service")
                ),
                {"path": str(self.config / "gunicorn.conf.py"), "content": f"# {version}\n"},
            ],
            "secret_files": [
                {"path": str(self.config / "app.env"), "content": f'SECRET="secret of {version}"\n'}
            ],
            **parameters,
        }
        self.systemd.calls.clear()
        return self.run_module(app_release, **arguments)

    def rollback(self, **parameters: object) -> dict:
        return self.deploy("previous", files=[], secret_files=[], **parameters)

    def age(self) -> None:
        """Make everything an hour older, so that what is written now is newer without doubt."""
        for path in self.directory.rglob("*"):
            moment = os.lstat(path).st_mtime - 3600
            os.utime(path, (moment, moment), follow_symlinks=False)
        self.systemd.started = {unit: t - 3600 for unit, t in self.systemd.started.items()}

    def snapshot(self) -> dict[str, tuple[str, int]]:
        """Return text and mode of the configuration's files and links, and the history."""
        found = {}
        for path in self.directory.rglob("*"):
            name = str(path.relative_to(self.directory))
            if name.startswith(("run/", "srv/releases/")) or path.name == ".lock":
                continue
            if path.is_symlink():
                found[name] = (str(path.readlink()), 0)
            elif path.is_file():
                found[name] = (path.read_text(), path.stat().st_mode & 0o7777)
        return found

    def serves(self) -> tuple[str, str, str]:
        """Return the release of the link and of the process, and the version of the files."""
        link = (self.root / "current").readlink().name
        return link, self.systemd.runs["shop.service"], self.config.joinpath("app.env").read_text()

    def assert_no_trial(self) -> None:
        assert "shop-next.service" not in self.systemd.started
        assert not (self.config / "next").exists()
        assert not (self.config / ".undo.json").exists()
        assert not (self.root / "next").is_symlink()
        assert not list(self.systemd.run.glob("systemd/system/*/*.conf"))
        assert not list(self.directory.rglob(".*.[0-9]*"))


@pytest.fixture
def host(tmp_path: Path, run_module: Callable[..., dict], monkeypatch: pytest.MonkeyPatch) -> Host:
    host = Host(tmp_path, run_module)
    monkeypatch.setattr(app_release, "systemctl", host.systemd.systemctl)
    monkeypatch.setattr(app_release, "properties", host.systemd.properties)
    monkeypatch.setattr(app_release, "ask", host.systemd.ask)
    monkeypatch.setattr(app_release, "log_end", lambda unit, **_: f"the log of {unit}")
    monkeypatch.setattr(app_release, "RUN", tmp_path / "run")
    monkeypatch.setattr(app_release, "RETRY_SECONDS", 0.01)
    # The tests need not be root's.
    monkeypatch.setattr(
        app_release, "same_owner", lambda path, mode, _: path.stat().st_mode & 0o7777 == mode
    )
    return host


@pytest.fixture
def serving(host: Host) -> Host:
    """The host, with r1 serving for an hour, and r2 built."""
    assert host.deploy("r1")["changed"] is True
    host.build("r2")
    host.age()
    return host


def test_first_deployment(host: Host) -> None:
    done = host.deploy("r1")
    assert host.serves() == ("r1", "r1", 'SECRET="secret of r1"\n')
    assert (done["release"], done["previous"]) == ("r1", None)
    assert "no release serves" in done["reasons"]
    body = json.loads(done["body"])
    assert body == {"release": "r1", "path": "/readyz", "Host": "127.0.0.1:8000"}
    assert set(done["seconds"]) == {"trial", "switch", "total"}
    assert host.systemd.enabled == {"shop.service", "shop.socket"}
    assert (host.config / "app.env").stat().st_mode & 0o7777 == 0o600
    assert (host.config / "gunicorn.conf.py").stat().st_mode & 0o7777 == 0o644
    assert (host.root / "history").read_text() == "r1\n"
    assert "secret of r1" not in json.dumps(done)
    host.assert_no_trial()


def test_second_run_changes_nothing(serving: Host) -> None:
    before = serving.snapshot()
    done = serving.deploy("r1")
    assert (done["changed"], done["reasons"], done["diff"]) == (False, [], [])
    assert serving.systemd.calls == []
    assert serving.snapshot() == before


def test_unused_file_goes_without_a_restart(serving: Host) -> None:
    path = serving.config / "docker.env"
    path.write_text("SECRET=old\n")
    unused = [str(path), str(serving.config / "never-there")]
    done = serving.deploy("r1", check=True, absent=unused)
    assert (done["changed"], path.exists()) == (True, True)
    assert done["diff"] == [{"prepared": f"{path} is no longer wanted\n"}]
    done = serving.deploy("r1", absent=unused)
    assert (done["changed"], done["reasons"], path.exists()) == (True, [], False)
    assert serving.systemd.calls == []
    assert serving.deploy("r1", absent=unused)["changed"] is False


def test_refused_release_leaves_the_files_that_the_old_one_uses(serving: Host) -> None:
    path = serving.config / "pgpass"
    path.write_text("old")
    serving.systemd.fails["shop-next.service r2"] = "no database"
    done = serving.deploy("r2", absent=[str(path)], health_timeout_seconds=1)
    assert (done["failed"], path.exists()) == (True, True)


def test_second_run_finds_a_service_that_is_no_longer_ready(serving: Host) -> None:
    before = serving.snapshot()
    serving.systemd.fails["shop.service r1"] = "database away"
    done = serving.deploy("r1", health_timeout_seconds=1)
    assert done["failed"] is True
    assert done["msg"].startswith("shop: /readyz did not answer 200 within 1 s: ")
    assert "database away" in done["msg"]
    assert serving.systemd.calls == []
    assert serving.snapshot() == before


def test_next_release_is_tried_before_the_switch(serving: Host) -> None:
    done = serving.deploy("r2")
    assert serving.serves() == ("r2", "r2", 'SECRET="secret of r2"\n')
    assert (done["release"], done["previous"]) == ("r2", "r1")
    calls = [call for call in serving.systemd.calls if call != "daemon-reload"]
    assert calls == [
        "restart shop-next.service",  # the trial
        "restart shop-next.service",  # the stand-in
        "enable --quiet shop.socket shop.service",
        "restart shop.service",
        "stop shop-next.service",
        "reset-failed shop-next.service",
    ]
    assert (serving.root / "history").read_text() == "r1\nr2\n"
    serving.assert_no_trial()


def test_trial_has_its_own_authority(serving: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Named in a URL and in the service file; the authority of a refused release is not kept."""
    config, stage = serving.config, serving.config / "next"

    def files(version: str) -> dict[str, list]:
        url = f"postgresql://u@h/d?sslmode=verify-full&sslrootcert={config}/database_ca.crt"
        public = {
            "pg_service.conf": f"[shop]\nsslrootcert={config}/database_ca.crt\n",
            "database_ca.crt": f"{version}\n",
        }
        return {
            "secret_files": [{"path": f"{config}/app.env", "content": f'DATABASE_URL="{url}"\n'}],
            "files": [{"path": f"{config}/{n}", "content": t} for n, t in public.items()],
        }

    serving.deploy("r1", **files("one"))
    serving.build("r2")
    serving.age()
    before, seen = serving.snapshot(), []
    ask = serving.systemd.ask

    def watched(*arguments: object) -> tuple[int, str]:
        if stage.exists():
            names = ("app.env", "pg_service.conf", "database_ca.crt")
            seen.append([(stage / name).read_text() for name in names])
        return ask(*arguments)

    monkeypatch.setattr(app_release, "ask", watched)
    serving.systemd.fails["shop-next.service r2"] = "boom"
    serving.deploy("r2", health_timeout_seconds=1, **files("two"))
    environment, services, authority = seen[0]
    assert environment.endswith(f'&sslrootcert={stage}/database_ca.crt"\n')
    assert services == f"[shop]\nsslrootcert={stage}/database_ca.crt\n"
    assert authority == "two\n"
    assert serving.snapshot() == before
    assert (config / "database_ca.crt").read_text() == "one\n"


def test_trial_has_its_own_password_file(serving: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused release does not change what the old one reads, and is tried with its own."""
    live, staged = serving.config / "pgpass", serving.config / "next/pgpass"
    user = pwd.getpwuid(os.geteuid()).pw_name

    def files(version: str) -> dict[str, list]:
        secrets = {"app.env": f'PGPASSFILE="{live}"\n', "pgpass": f"*:*:*:*:{version}\n"}
        texts = [{"path": str(serving.config / n), "content": t} for n, t in secrets.items()]
        texts[1]["owner"] = user
        return {"secret_files": texts}

    serving.deploy("r1", **files("one"))
    serving.build("r2")
    serving.age()
    before, seen = serving.snapshot(), []
    ask = serving.systemd.ask

    def watched(*arguments: object) -> tuple[int, str]:
        if staged.exists():
            environment = (serving.config / "next/app.env").read_text()
            seen.append((environment, staged.read_text(), staged.stat().st_mode & 0o7777))
        return ask(*arguments)

    monkeypatch.setattr(app_release, "ask", watched)
    serving.systemd.fails["shop-next.service r2"] = "boom"
    serving.deploy("r2", health_timeout_seconds=1, **files("two"))
    assert set(seen) == {(f'PGPASSFILE="{staged}"\n', "*:*:*:*:two\n", 0o400)}
    assert serving.snapshot() == before
    serving.systemd.fails.clear()
    serving.deploy("r2", **files("two"))
    assert (live.read_text(), live.stat().st_mode & 0o7777) == ("*:*:*:*:two\n", 0o400)


def test_trial_and_stand_in_use_the_new_files(
    serving: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    ask = serving.systemd.ask

    def watched(connection: HTTPConnection, *rest: object) -> tuple[int, str]:
        if isinstance(connection, app_release.UnixConnection):
            for name in ("app.env", "gunicorn.conf.py"):
                path = serving.config / "next" / name
                seen.append((name, path.read_text(), path.stat().st_mode & 0o7777))
            seen.append((str(connection.path.relative_to(serving.directory)), serving.serves()[0]))
        return ask(connection, *rest)

    monkeypatch.setattr(app_release, "ask", watched)
    serving.deploy("r2")
    assert seen == [
        ("app.env", 'SECRET="secret of r2"\n', 0o600),
        ("gunicorn.conf.py", "# r2\n", 0o644),
        ("run/shop-next/http.sock", "r1"),
    ]


def test_empty_file_is_tried_as_empty(serving: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not as the one that is there."""
    written = []
    write = app_release.write

    def watched(path: Path, text: str, *attributes: object) -> None:
        written.append((path.relative_to(serving.directory), text))
        write(path, text, *attributes)

    monkeypatch.setattr(app_release, "write", watched)
    serving.deploy("r2", files=[{"path": f"{serving.config}/gunicorn.conf.py", "content": ""}])
    assert (Path("etc/next/gunicorn.conf.py"), "") in written


def test_failed_trial_leaves_everything_alone(serving: Host) -> None:
    before, runs = serving.snapshot(), serving.systemd.started["shop.service"]
    serving.systemd.fails["shop-next.service r2"] = "boom"
    done = serving.deploy("r2")
    assert done["failed"] is True
    assert done["msg"].startswith(
        "shop: the release r2 was tried out and refused; r1 goes on serving. The trial: /readyz "
        "did not answer 200 within 1 s: status 503, boom. The log of shop-next.service ends with: "
    )
    assert serving.snapshot() == before
    assert serving.systemd.started["shop.service"] == runs
    serving.assert_no_trial()
    # A rollback's trial uses the unit of the trial that belongs to the files on the host.
    assert (serving.systemd.units / "shop-next.service").read_text() == "# r1\n"
    del serving.systemd.fails["shop-next.service r2"]
    assert serving.deploy("r1")["reasons"] == []


def test_old_release_that_is_no_longer_ready_does_not_go_on_serving(
    serving: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For instance because the layer before has changed the password that it has."""
    monkeypatch.setattr(app_release, "STILL_SECONDS", 0.1)
    serving.systemd.fails["shop-next.service r2"] = "boom"
    serving.systemd.fails["shop.service r1"] = "password 'secret of r1' refused"
    message = serving.deploy("r2")["msg"]
    assert (
        "refused; r1 RUNS BUT IS NOT READY (/readyz: status 503, password '********' refused). Its "
        "requests may fail until something is done, for instance because the database password"
    ) in message
    assert "goes on serving" not in message
    asked = serving.deploy("current")
    assert asked["release"] == "r1"
    assert asked["changed"] is False
    assert asked["serving"].startswith("r1 RUNS BUT IS NOT READY (/readyz: status 503, password '*")


def test_old_release_whose_password_was_changed_is_named(
    serving: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pool still answers, from connections that were made before."""
    answers = []

    def log_in(way: dict, query: str, environment: dict) -> tuple[bool, str]:
        answers.append((way, environment["PGPASSFILE"]))
        return len(answers) > 1, "FATAL: SASL authentication failed"

    monkeypatch.setattr(app_release, "log_in", log_in)
    for name in ("pg_service.conf", "pgpass"):
        (serving.config / name).touch()
    asked = serving.deploy("current")["serving"]
    assert asked == (
        "r1 goes on serving, BUT GETS NO NEW CONNECTION to its database: "
        "FATAL: SASL authentication failed"
    )
    assert serving.deploy("current")["serving"] == "r1 goes on serving"
    assert answers[0] == ({"service": "shop"}, str(serving.config / "pgpass"))


def test_old_release_is_asked_on_its_own_path(serving: Host) -> None:
    """And not on the one of the release that is refused."""
    serving.systemd.paths = {"r1": "/readyz", "r2": "/healthz"}
    serving.systemd.fails["shop-next.service r2"] = "boom"
    assert "; r1 goes on serving. " in serving.deploy("r2", health_path="/healthz")["msg"]
    assert serving.deploy("current", health_path="/healthz")["serving"] == "r1 goes on serving"


def test_what_serves_is_asked_without_changing_anything(serving: Host) -> None:
    before = serving.snapshot()
    with app_release.lock(serving.config / ".lock", 0):
        for check in (True, False):
            assert serving.deploy("current", check=check)["serving"] == "r1 goes on serving"
    assert (serving.systemd.calls, serving.snapshot()) == ([], before)
    del serving.systemd.started["shop.service"]
    assert serving.deploy("current")["serving"] == "nothing serves"


def test_host_without_the_application_serves_nothing(host: Host) -> None:
    shutil.rmtree(host.config)
    asked = host.deploy("current")
    assert (asked["release"], asked["serving"]) == (None, "nothing serves")


@pytest.mark.parametrize(
    "call", ["restart shop-next.service", "daemon-reload", "stop shop-next.service"]
)
@pytest.mark.parametrize("failure", ["failed", OSError(28, "No space left on device")])
def test_trial_that_breaks_leaves_everything_alone(
    serving: Host, call: str, failure: str | Exception
) -> None:
    before = serving.snapshot()
    serving.systemd.fails = {call: failure, "shop-next.service r2": "boom"}
    done = serving.deploy("r2")
    assert "the release r2 was tried out and refused; r1 goes on serving" in done["msg"]
    text = str(failure) if call != "stop shop-next.service" else "boom"
    assert text in done["msg"]
    serving.systemd.fails.clear()
    serving.deploy("r1")
    assert serving.snapshot() == before
    serving.assert_no_trial()


def test_failed_live_check_puts_files_and_link_back(serving: Host) -> None:
    before = serving.snapshot()
    serving.systemd.fails["shop.service r2"] = "boom"
    done = serving.deploy("r2")
    assert done["failed"] is True
    assert done["msg"].startswith("shop: the release r2 failed: /readyz did not answer 200")
    assert done["msg"].endswith("The release r1 serves again.")
    assert serving.snapshot() == before
    assert serving.serves() == ("r1", "r1", 'SECRET="secret of r1"\n')
    serving.assert_no_trial()


def test_stand_in_is_not_asked_for_the_old_release(serving: Host) -> None:
    """The new service does not start, and the old one is no longer ready either."""
    serving.systemd.fails = {"shop.service r1": "database away", "shop.service r2": "boom"}
    (serving.systemd.run / "shop").mkdir(exist_ok=True)
    start = serving.systemd.start

    def broken(unit: str) -> None:
        start(unit)
        if serving.systemd.runs.get("shop.service") == "r2":
            serving.systemd.started.pop("shop.service", None)
            (serving.systemd.run / "shop/ready").unlink()

    serving.systemd.start = broken
    done = serving.deploy("r2")
    assert f"{NOT_RESTORED}: /readyz did not answer 200" in done["msg"]
    assert "database away" in done["msg"]
    assert serving.serves()[:2] == ("r1", "r1")
    serving.assert_no_trial()


@pytest.mark.parametrize(
    "call",
    [
        "restart shop.service",
        "enable --quiet shop.socket shop.service",
        "restart shop-next.service",
    ],
)
def test_switch_that_breaks_is_undone(
    serving: Host, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever fails after the trial, an error of the operating system as well."""
    before = serving.snapshot()
    swap = app_release.Application.swap

    def failing(self: app_release.Application, release: str) -> None:
        swap(self, release)
        serving.systemd.fails[call] = OSError(28, "No space left on device")

    def recover(self: app_release.Application) -> str | None:
        serving.systemd.fails.clear()
        return undo(self)

    undo = app_release.Application.undo
    monkeypatch.setattr(app_release.Application, "swap", failing)
    monkeypatch.setattr(app_release.Application, "undo", recover)
    done = serving.deploy("r2")
    assert "the release r2 failed: OSError: [Errno 28] No space left on device" in done["msg"]
    assert done["msg"].endswith("The release r1 serves again.")
    assert serving.snapshot() == before
    serving.assert_no_trial()


def test_disk_that_is_full_during_the_swap(serving: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some files are written, one cannot be: what was written is put back."""
    before = serving.snapshot()
    write = app_release.write

    def full(path: Path, text: str, *attributes: object) -> None:
        if path == serving.config / "app.env" and "r2" in text:
            raise OSError(28, "No space left on device", str(path))
        write(path, text, *attributes)

    monkeypatch.setattr(app_release, "write", full)
    done = serving.deploy("r2")
    assert "No space left on device" in done["msg"]
    assert done["msg"].endswith("The release r1 serves again.")
    assert serving.snapshot() == before


def test_going_back_that_fails_is_said(serving: Host) -> None:
    serving.systemd.fails = {"restart shop.service": "no"}
    done = serving.deploy("r2")
    assert "systemctl restart shop.service failed: no." in done["msg"]
    assert f"{NOT_RESTORED}: systemctl restart shop.service failed: no." in done["msg"]
    assert serving.serves()[0] == "r1"
    serving.assert_no_trial()
    serving.systemd.fails.clear()
    assert serving.deploy("r2")["changed"] is True
    assert serving.serves() == ("r2", "r2", 'SECRET="secret of r2"\n')


def test_going_back_that_cannot_write_is_caught_up(
    serving: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = serving.snapshot()
    serving.systemd.fails["shop.service r2"] = "boom"

    def read_only(_: app_release.Application) -> None:
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(app_release.Application, "undo", read_only)
        done = serving.deploy("r2")
    assert f"{NOT_RESTORED}: OSError: [Errno 30] Read-only file system" in done["msg"]
    assert "shop-next.service" not in serving.systemd.started
    serving.age()
    serving.deploy("r1")
    assert serving.snapshot() == before
    assert serving.serves()[:2] == ("r1", "r1")


def test_failed_first_deployment_leaves_nothing_enabled(host: Host) -> None:
    before = host.snapshot()
    host.systemd.fails["shop.service r1"] = "boom"
    done = host.deploy("r1")
    assert done["msg"].endswith("No release served before: the service is stopped.")
    assert host.systemd.enabled == set()
    assert host.systemd.started == {}
    assert host.snapshot() == before
    host.assert_no_trial()


def test_failed_first_trial_leaves_nothing(host: Host) -> None:
    before = host.snapshot()
    host.systemd.fails["shop-next.service r1"] = "boom"
    assert "refused; nothing serves. " in host.deploy("r1")["msg"]
    assert host.systemd.enabled == set()
    assert host.systemd.started == {}
    assert host.snapshot() == before


class Killed(BaseException):
    """The process ends here, with nothing cleaned up."""


def interrupt(host: Host, monkeypatch: pytest.MonkeyPatch, step: str, release: str) -> None:
    """Deploy a release, and end before a step of the module."""
    with monkeypatch.context() as patch:

        def killed(*_: object) -> None:
            raise Killed

        patch.setattr(app_release.Application, step, killed)
        with pytest.raises(Killed):
            host.deploy(release)
    host.age()


STEPS = ["try_out", "swap", "stand_in_for_the_service", "restart", "forget_trial"]


@pytest.mark.parametrize("step", STEPS)
def test_interrupted_run_is_undone_by_the_next(
    serving: Host, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    before = serving.snapshot()
    interrupt(serving, monkeypatch, step, "r2")
    done = serving.deploy("r1")
    assert done["changed"] is True
    assert done["reasons"][0] == "an earlier run was interrupted"
    assert serving.snapshot() == before
    assert serving.serves() == ("r1", "r1", 'SECRET="secret of r1"\n')
    serving.assert_no_trial()
    assert serving.deploy("r1")["changed"] is False


def test_interrupted_run_is_undone_before_a_release_that_fails(
    serving: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = serving.snapshot()
    interrupt(serving, monkeypatch, "restart", "r2")
    serving.systemd.fails["shop-next.service r2"] = "boom"
    assert "r1 goes on serving" in serving.deploy("r2")["msg"]
    assert serving.snapshot() == before


def test_interrupted_run_does_not_leave_its_process(
    serving: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had restarted the service; r2 is then refused, and r1 must be what goes on serving."""
    interrupt(serving, monkeypatch, "forget_trial", "r2")
    assert serving.systemd.runs["shop.service"] == "r2"
    serving.systemd.fails["shop-next.service r2"] = "boom"
    assert "r1 goes on serving" in serving.deploy("r2", health_timeout_seconds=1)["msg"]
    assert serving.serves() == ("r1", "r1", 'SECRET="secret of r1"\n')
    serving.assert_no_trial()


def test_rollback_undoes_an_interrupted_run_with_the_modes(
    serving: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gunicorn.conf.py has to stay readable for the service's user."""
    serving.deploy("r2")
    serving.age()
    serving.build("r3")
    before = serving.snapshot()
    interrupt(serving, monkeypatch, "restart", "r3")
    done = serving.rollback()
    assert (done["release"], done["previous"]) == ("r1", "r2")
    after = serving.snapshot()
    for name in ("units/shop.service", "etc/gunicorn.conf.py", "etc/app.env"):
        assert after[name] == before[name]


def test_interrupted_first_deployment_leaves_nothing_enabled(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(host, monkeypatch, "wait_for_worker", "r1")
    assert host.systemd.enabled
    host.build("r2")
    host.systemd.fails["shop-next.service r2"] = "boom"
    host.deploy("r2")
    assert host.systemd.enabled == set()
    assert host.systemd.started == {}


@pytest.mark.parametrize(
    ("answer", "log", "advice"),
    [
        ("boom", "unsupported startup parameter: connect_timeout", "DATABASE_URL: plain_url"),
        ("boom", "unsupported startup parameter: search_path", "declare it in app_database_sett"),
        ("boom", "ValueError: invalid literal for int() with base 10: '6432,5432'", "it is a list"),
        ("boom", "pydantic: Input should be a valid URL, empty host", "DATABASE_URL: plain_url"),
        ("boom", "OSError: [Errno 30] Read-only file system: '/x'", "app_state_directories"),
        ("boom", "Invalid HTTP_HOST header: '127.0.0.1:8000'", "app_health_headers"),
        ("boom", "all is well", ""),
    ],
)
def test_refused_trial_says_what_to_do(
    serving: Host, monkeypatch: pytest.MonkeyPatch, answer: str, log: str, advice: str
) -> None:
    monkeypatch.setattr(app_release, "log_end", lambda unit, **_: log)
    serving.systemd.fails["shop-next.service r2"] = answer
    message = serving.deploy("r2")["msg"]
    before = message.partition(f"The log of shop-next.service ends with: {log}")[0]
    assert advice in before
    known = [hint for hint in app_release.HINTS.values() if hint in before]
    assert len(set(known)) == (1 if advice else 0)


def test_failed_release_brings_a_removed_worker_back(
    serving: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """r2 has no worker any more: its unit goes with the switch, and returns with r1."""
    monkeypatch.setattr(further_processes, "UNITS", serving.systemd.units)
    monkeypatch.setattr(further_processes, "systemctl", serving.systemd.systemctl)
    monkeypatch.setattr(further_processes, "properties", serving.systemd.properties)
    worker = serving.systemd.units / "shop.worker.service"
    worker.write_text("[Unit]\nX-Poolkit=shop\n")
    before = serving.snapshot()
    serving.systemd.fails["shop.service r2"] = "boom"
    monkeypatch.setattr(further_processes.Processes, "start", lambda _: None)
    assert "The release r1 serves again." in serving.deploy("r2")["msg"]
    assert serving.snapshot() == before


def test_check_mode_changes_nothing(serving: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(serving, monkeypatch, "restart", "r2")
    (serving.config / ".lock").unlink()
    before = {path: os.lstat(path).st_mtime_ns for path in serving.directory.rglob("*")}
    done = serving.deploy("r2", check=True)
    assert done["changed"] is True
    assert done["reasons"][0] == "an earlier run was interrupted"
    after = {path: os.lstat(path).st_mtime_ns for path in serving.directory.rglob("*")}
    assert after == before
    assert serving.systemd.calls == []


def test_check_mode_shows_what_differs(serving: Host) -> None:
    done = serving.deploy("r9", check=True)
    assert done["changed"] is True
    assert f"{serving.config}/gunicorn.conf.py differs" in done["reasons"]
    diff = "".join(entry["prepared"] for entry in done["diff"])
    assert "-# r1\n+# r9\n" in diff
    assert f"{serving.config}/app.env differs (its content is secret)" in diff
    assert "secret of" not in json.dumps(done)
    assert serving.serves()[0] == "r1"


def test_check_mode_shows_drift_that_is_no_text(serving: Host) -> None:
    (serving.config / "gunicorn.conf.py").chmod(0o600)
    serving.systemd.started.pop("shop.service", None)
    diff = "".join(entry["prepared"] for entry in serving.deploy("r1", check=True)["diff"])
    assert diff.splitlines()[:2] == [
        f"shop: {serving.config}/gunicorn.conf.py differs",
        "shop: shop.service is not active",
    ]


def test_host_without_the_application(host: Host) -> None:
    shutil.rmtree(host.config)
    done = host.deploy("r1", check=True)
    assert done["reasons"][0] == "first deployment"
    assert f"{host.config}/gunicorn.conf.py differs" in done["reasons"]
    diff = "".join(entry["prepared"] for entry in done["diff"])
    assert "+# r1\n" in diff
    assert f"{host.config}/app.env differs (its content is secret)" in diff
    assert "deploy the application first" in host.rollback()["msg"]
    assert not host.config.exists()


def test_trial_of_a_rollback_keeps_the_modes(
    serving: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    serving.deploy("r2")
    modes = {}
    point = app_release.point

    def watched(link: Path, target: str | None) -> None:
        if link.name == "next":
            for path in (serving.config / "next").iterdir():
                modes[path.name] = path.stat().st_mode & 0o7777
        point(link, target)

    monkeypatch.setattr(app_release, "point", watched)
    serving.rollback()
    assert modes == {"app.env": 0o600, "gunicorn.conf.py": 0o644}


def test_rollback_and_back(serving: Host) -> None:
    serving.deploy("r2")
    serving.age()
    done = serving.rollback()
    assert (done["release"], done["previous"]) == ("r1", "r2")
    # The release alone changes.
    assert serving.serves() == ("r1", "r1", 'SECRET="secret of r2"\n')
    assert (serving.root / "history").read_text() == "r2 withdrawn\nr1\n"
    serving.age()
    assert "no release but r1 has served" in serving.rollback()["msg"]
    assert serving.deploy("r2")["release"] == "r2"
    assert (serving.root / "history").read_text() == "r1\nr2\n"


def test_rollback_twice_goes_further_back(serving: Host) -> None:
    serving.build("r3")
    for name in ("r2", "r3"):
        serving.deploy(name)
        serving.age()
    assert serving.rollback()["release"] == "r2"
    serving.age()
    done = serving.deploy("r1", files=[], secret_files=[], rollback=True)  # as the playbook does
    assert (done["release"], done["releases"]) == ("r1", ["r1", "r2", "r3"])
    history = (serving.root / "history").read_text()
    assert history == "r3 withdrawn\nr2 withdrawn\nr1\n"


def test_old_release_is_asked_as_it_was_before(serving: Host) -> None:
    """The new release has another health path; the old one does not know that."""
    serving.systemd.paths = {"r1": "/readyz", "r2": "/healthz"}
    serving.systemd.fails["shop.service r2"] = "boom"
    done = serving.deploy("r2", health_path="/healthz", health_timeout_seconds=1)
    assert done["msg"].endswith("The release r1 serves again.")
    serving.systemd.fails.clear()
    assert serving.deploy("r2", health_path="/healthz")["release"] == "r2"
    serving.age()
    done = serving.rollback(health_path="/healthz", health_timeout_seconds=1)
    assert done["release"] == "r1"
    assert (serving.config / ".health.json").stat().st_mode & 0o7777 == 0o600


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ('{"path": "direct"}', "direct"),
        ('{"status": "ok"}', None),
        ('{"path": "direct", "rest": "' + "x" * 5000 + '"}', "direct"),
        ("{{ no JSON", None),
        ("[1]", None),
        ("", None),
    ],
)
def test_path_in_the_answer(body: str, path: str | None) -> None:
    assert app_release.answered_path(body) == path


def test_nothing_to_go_back_to(serving: Host) -> None:
    assert "no release but r1 has served on this host" in serving.rollback()["msg"]


def test_release_that_is_not_on_the_host(serving: Host) -> None:
    assert f"there is no release r9 in {serving.root}/releases" in serving.deploy("r9")["msg"]


def test_changed_socket_is_made_anew(serving: Host) -> None:
    (serving.systemd.units / "shop.socket").write_text("ListenStream=9000\n")
    serving.age()
    serving.deploy("r2")
    assert "stop shop.socket shop.service" in serving.systemd.calls
    assert serving.systemd.calls.count("restart shop-next.service") == 1  # no stand-in


def test_socket_of_an_interrupted_run_is_made_anew(
    serving: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old file is back, and systemd listens as the new one said."""
    old = (serving.systemd.units / "shop.socket").read_text()
    with monkeypatch.context() as patch:
        patch.setattr(
            app_release.Application, "forget_trial", lambda _: (_ for _ in ()).throw(Killed)
        )
        files = [
            {"path": str(serving.systemd.units / "shop.socket"), "content": "ListenStream=1\n"}
        ]
        with pytest.raises(Killed):
            serving.deploy("r2", files=files)
    assert "start shop.socket" in serving.systemd.calls
    serving.age()
    serving.deploy("r1")
    assert (serving.systemd.units / "shop.socket").read_text() == old
    assert "start shop.socket" in serving.systemd.calls


def test_socket_that_nobody_listens_on_is_started_first(serving: Host) -> None:
    """A stand-in would have nothing to take requests from."""
    del serving.systemd.started["shop.socket"]
    serving.deploy("r2")
    assert "start shop.socket" in serving.systemd.calls
    assert serving.systemd.calls.count("restart shop-next.service") == 1


@pytest.mark.parametrize("name", ["etc/app.env", "units/shop.service", "srv/releases/r1/.venv"])
def test_file_that_is_newer_than_the_process_is_a_reason(serving: Host, name: str) -> None:
    path = serving.directory / name
    later = serving.systemd.started["shop.service"] + 60
    os.utime(path, (later, later), follow_symlinks=False)
    done = serving.deploy("r1")
    assert done["reasons"] == [f"{path} is newer than the process"]
    assert serving.systemd.runs["shop.service"] == "r1"


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda host: host.systemd.started.pop("shop.service"), "shop.service is not active"),
        (lambda host: host.systemd.started.pop("shop.socket"), "shop.socket is not active"),
        (lambda host: host.systemd.enabled.discard("shop.socket"), "shop.socket is not enabled"),
        (
            lambda host: host.systemd.started.update({"shop-next.service": 1}),
            "shop-next.service was left running",
        ),
        (lambda host: (host.config / "app.env").chmod(0o644), "/app.env differs"),
    ],
)
def test_what_is_put_right(serving: Host, spoil: Callable[[Host], object], reason: str) -> None:
    before = serving.snapshot()
    spoil(serving)
    done = serving.deploy("r1")
    assert any(found.endswith(reason) for found in done["reasons"])
    assert serving.snapshot() == before
    assert {"shop.service", "shop.socket"} == set(serving.systemd.started)
    assert serving.systemd.enabled == {"shop.service", "shop.socket"}


def test_old_releases_go_and_their_environments(serving: Host) -> None:
    """r2 was built and never served; r3 and r4 share an environment."""
    serving.build("r3", venv="shared")
    serving.build("r4", venv="shared")
    for name in ("r2", "r4"):  # built long ago
        os.utime(serving.root / "releases" / name, (0, 0))
    serving.deploy("r3", releases_kept=2)
    assert sorted(path.name for path in (serving.root / "releases").iterdir()) == ["r1", "r3"]
    assert sorted(path.name for path in (serving.root / "venvs").glob("[!.]*")) == [
        "shared",
        "venv-r1",
    ]
    serving.build("r4", venv="shared")
    serving.deploy("r4", releases_kept=1)
    assert [path.name for path in (serving.root / "releases").iterdir()] == ["r4"]
    assert [path.name for path in (serving.root / "venvs").glob("[!.]*")] == ["shared"]
    assert (serving.root / "history").read_text() == "r4\n"


def test_environment_that_is_being_built_stays(serving: Host) -> None:
    (serving.root / "venvs/half").mkdir()
    with app_release.lock(serving.root / "venvs/.lock", 0):
        serving.deploy("r2")
        assert (serving.root / "venvs/half").is_dir()
    serving.deploy("r1")
    assert not (serving.root / "venvs/half").exists()


def test_release_whose_run_ended_before_the_note_is_kept(
    serving: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(serving, monkeypatch, "clean", "r2")
    assert (serving.root / "history").read_text() == "r1\n"
    serving.build("r3")
    serving.deploy("r3")
    assert (serving.root / "history").read_text() == "r1\nr2\nr3\n"
    assert (serving.root / "releases/r2").is_dir()


def test_log_is_quoted_without_secrets(serving: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    log = "KeyError in {'SECRET': 'secret of r2', 'OLD': 'secret of r1'}"
    monkeypatch.setattr(app_release, "log_end", lambda unit, **_: log)
    serving.systemd.fails["shop-next.service r2"] = "body with secret of r2"
    done = serving.deploy("r2")
    assert "'SECRET': '********', 'OLD': '********'" in done["msg"]
    assert "secret of" not in done["msg"]


def test_long_line_of_a_log_is_cut(serving: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """After secrets are hidden: half of one would not be found."""
    log = f"first\n{'x' * 1990} secret of r2 {'y' * 100_000}"
    monkeypatch.setattr(app_release, "log_end", lambda unit, **_: log)
    serving.systemd.fails["shop-next.service r2"] = "no"
    done = serving.deploy("r2")
    assert "secret" not in done["msg"]
    assert done["msg"].endswith("characters more)")
    assert len(done["msg"]) < 5000


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, {"Host": "127.0.0.1:8000"}),
        ({"Host": "shop.example.com"}, {"Host": "shop.example.com"}),
        ({"host": "a", "X-Number": 1}, {"host": "a", "X-Number": "1"}),
    ],
)
def test_health_headers(host: Host, headers: dict, expected: dict) -> None:
    body = json.loads(host.deploy("r1", health_headers=headers)["body"])
    assert {k: v for k, v in body.items() if k not in ("release", "path")} == expected


def test_umask_of_the_host_does_not_matter(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    ask = host.systemd.ask

    def watched(*arguments: object) -> tuple[int, str]:
        if (host.config / "next").exists():
            seen.append((host.config / "next").stat().st_mode & 0o7777)
        return ask(*arguments)

    monkeypatch.setattr(app_release, "ask", watched)
    before = os.umask(0o077)
    try:
        host.deploy("r1")
    finally:
        os.umask(before)
    assert seen == [0o755]
