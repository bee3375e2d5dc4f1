"""The whole transaction of pgbouncer_config on a host whose systemd and processes are simulated.

The scenario `transaction` runs it with real ones.
"""

import hashlib
import json
import os
import stat
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from plugins.module_utils import (
    pgbouncer_distribution,
    pgbouncer_files,
    pgbouncer_foreign,
    pgbouncer_pooler,
    pgbouncer_proof,
    pgbouncer_text,
    pgbouncer_transaction,
    pgbouncer_trial,
    text_files,
)
from plugins.module_utils.pgbouncer_transaction import Transaction
from plugins.module_utils.refused import Refused
from plugins.modules import pgbouncer_config

ROOT = Path(__file__).resolve().parents[2]
FOREIGN = "[databases]\nlegacy = host=db9 password=s3cr3t\nbook = host=db9\n[pgbouncer]\nx = 1\n"
FULL = OSError(28, "No space left on device")


class Failed(Exception):
    """What fail_json was called with."""


class Host:
    """/etc and the processes of one host; each process has what it loaded last."""

    def __init__(self, directory: Path) -> None:
        self.config = directory / "pgbouncer/pgbouncer.ini"
        self.units = directory / "systemd"
        self.units.mkdir()
        self.loaded: dict[int, pgbouncer_text.Sections] = {}
        self.shown: dict[str, str] = {}
        self.verdict = "FATAL nowhere to listen on"
        self.distribution_active = False
        self.refuse_reload = 0
        self.low_limit = False
        self.limits_raised: list[str] = []

    def files(self) -> dict[str, str]:
        """Return the text of every file of the configuration, hidden ones included."""
        found = [path for path in self.config.parent.rglob("*") if path.is_file()]
        return {str(path.relative_to(self.config.parent)): path.read_text() for path in found}

    def load(self, number: int) -> None:
        texts = {str(self.config): self.config.read_text()}
        path = self.config.parent / f"process-{number}.ini"
        self.loaded[number] = pgbouncer_text.parse_ini(path.read_text(), texts)

    def systemctl(self, *arguments: str, **_: object) -> subprocess.CompletedProcess[str]:
        code, output = 0, ""
        if arguments == ("is-active", "pgbouncer.service"):
            code = 0 if self.distribution_active else 3
        elif arguments[-1] == "pgbouncer.service":
            self.distribution_active = arguments[0] == "start"
        elif arguments[0] == "is-enabled":
            output = "enabled\n" * (len(arguments) - 1)
        elif arguments[0] == "list-units":
            output = "".join(f"pgbouncer@{number}.service x\n" for number in self.loaded)
        return subprocess.CompletedProcess(arguments, code, output, "")

    def process(self, number: int, *_: object) -> "Process":
        return Process(self, number)

    def config_files(self, **settings: str) -> dict:
        folder = self.config.parent
        values = {"auth_type": "hba", "auth_file": folder / "userlist.txt"}
        values |= {"auth_hba_file": folder / "pg_hba.conf", "pool_mode": "transaction", **settings}
        text = "[databases]\nshop = host='db1'\n[pgbouncer]\n"
        text += "".join(f"{name} = {value}\n" for name, value in values.items())
        return {"path": str(self.config), "content": text}

    def run(self, check: bool = False, config: dict | None = None, **parameters: object) -> dict:
        folder = self.config.parent
        parameters = {
            "config": config or self.config_files(),
            "files": [{"path": str(folder / "pg_hba.conf"), "content": "local all x peer\n"}],
            "secret_files": [{"path": str(folder / "userlist.txt"), "content": '"shop" "x"\n'}],
            "processes": 1,
            "user": "pgbouncer",
            "timeout_seconds": 0,
            "drain_seconds": 0,
            "take_over": False,
            **parameters,
        }

        def fail(**result: object) -> None:
            raise Failed(result)

        module = SimpleNamespace(
            params=parameters, check_mode=check, fail_json=fail, warn=lambda _: None
        )
        return Transaction(module).run()

    def failure(self, **parameters: object) -> dict:
        with pytest.raises(Failed) as caught:
            self.run(**parameters)
        return caught.value.args[0]


class Process:
    def __init__(self, host: Host, number: int) -> None:
        self.host, self.number, self.unit = host, number, f"pgbouncer@{number}.service"

    def running(self) -> bool:
        return self.number in self.host.loaded

    def control(self, verb: str) -> None:
        if verb == "stop":
            self.host.loaded.pop(self.number, None)
        else:
            self.host.load(self.number)

    def ask(self, *_: str) -> None:
        if self.host.refuse_reload:
            self.host.refuse_reload -= 1
            raise Refused("RELOAD was refused")
        self.host.load(self.number)

    def rows(self) -> pgbouncer_text.Rows:
        sections = self.host.loaded[self.number]
        values = dict(sections["pgbouncer"])
        if "tcp_keepidle" in values:
            values |= self.host.shown
        config = {
            name: {"value": value, "default": value, "changeable": "yes"}
            for name, value in values.items()
        }
        databases = {name: {"host": "db1", "force_user": ""} for name in sections["databases"]}
        return {"CONFIG": config, "DATABASES": databases, "USERS": {}}

    def misheard(self, *_: str) -> list[str]:
        return []

    def older_than(self, _: str) -> bool:
        return False

    def version(self) -> tuple[int, ...]:
        return (1, 18, 0)

    def has_open_files(self, wanted: int, change: bool = True) -> bool:
        if self.host.low_limit and change:
            self.host.limits_raised.append(self.unit)
        return change or not self.host.low_limit


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    """A host without PgBouncer; whoever runs the tests stands for root there."""
    host = Host(tmp_path)
    host.config.parent.mkdir(mode=0o755)
    user = SimpleNamespace(pw_uid=os.getuid(), pw_gid=0)

    def owner(path: str) -> tuple[int, int, int]:
        return 0, 0, stat.S_IMODE(Path(path).stat().st_mode)

    def trial(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, host.verdict, "")

    monkeypatch.setattr(pgbouncer_distribution, "UNITS", host.units)
    for module in (pgbouncer_distribution, pgbouncer_pooler, pgbouncer_transaction):
        monkeypatch.setattr(module, "systemctl", host.systemctl)
    monkeypatch.setattr(pgbouncer_transaction, "installed_version", lambda: (1, 18, 0))
    monkeypatch.setattr(pgbouncer_proof, "pgbouncer_path", lambda: "/usr/sbin/pgbouncer")
    monkeypatch.setattr(pgbouncer_pooler, "Process", host.process)
    monkeypatch.setattr(pgbouncer_files.Files, "owner", staticmethod(owner))
    monkeypatch.setattr(pgbouncer_files.pwd, "getpwnam", lambda _: user)
    monkeypatch.setattr(pgbouncer_files.os, "chown", lambda *_: None)
    monkeypatch.setattr(text_files.shutil, "chown", lambda *_: None)
    monkeypatch.setattr(pgbouncer_trial.subprocess, "run", trial)
    make = tempfile.mkdtemp
    monkeypatch.setattr(tempfile, "mkdtemp", lambda prefix, dir: make(dir=tmp_path))
    monkeypatch.setattr(pgbouncer_foreign, "package_checksums", dict)
    monkeypatch.setattr(pgbouncer_foreign, "PROC", tmp_path / "proc")
    return host


@pytest.fixture
def serving(host: Host) -> Host:
    assert host.run()["action"] == "start"
    return host


@pytest.fixture
def fill_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let the disk be full after so many more files."""

    def fill(files: int) -> None:
        left = [files]

        def fsync(_: int) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise FULL

        monkeypatch.setattr(text_files.os, "fsync", fsync)

    return fill


def test_second_run_changes_nothing(serving: Host) -> None:
    result = serving.run()
    assert (result["changed"], result["action"], result["kept_files"]) == (False, "none", "")
    assert set(serving.files()) == {
        *("pgbouncer.ini", "pg_hba.conf", "userlist.txt", "process-1.ini"),
    }


# A PgBouncer that somebody else configured.


@pytest.fixture
def foreign(host: Host) -> Host:
    host.config.write_text(FOREIGN)
    host.config.with_name("userlist.txt").write_text('"ops" "s3cr3t"\n')
    host.config.with_name("more.ini").write_text("x")
    (host.config.parent / "tls").mkdir()
    (host.config.parent / "tls/old.key").write_text("old key")
    (host.units / "pgbouncer.service").write_text("[Service]\n")
    host.distribution_active = True
    return host


def test_foreign_pooler_is_refused(foreign: Host) -> None:
    before = foreign.files()
    for check in (False, True):
        with pytest.raises(Refused) as caught:
            foreign.run(check=check)
        for words in (str(foreign.config), "userlist.txt", "book, legacy", "pgbouncer.service"):
            assert words in str(caught.value)
        assert "s3cr3t" not in str(caught.value)
    assert foreign.files() == before
    assert foreign.distribution_active


def test_foreign_pooler_is_taken_over_once(foreign: Host) -> None:
    foreign.config.parent.chmod(0o777)
    result = foreign.run(take_over=True)
    kept = foreign.config.parent / "before-poolkit"
    assert result["kept_files"] == str(kept)
    assert stat.S_IMODE(kept.stat().st_mode) == 0o700
    assert (kept / "pgbouncer.ini").read_text() == FOREIGN
    assert (kept / "userlist.txt").read_text() == '"ops" "s3cr3t"\n'
    assert (kept / "more.ini").exists()
    assert (kept / "tls/old.key").read_text() == "old key"
    assert (kept / "pgbouncer.service").read_text() == "[Service]\n"
    assert stat.S_IMODE(foreign.config.parent.stat().st_mode) == 0o755
    assert not foreign.distribution_active
    again = foreign.run()
    assert (again["changed"], again["kept_files"]) == (False, "")


def test_take_over_that_fails_hands_everything_back(foreign: Host) -> None:
    before = foreign.files()
    foreign.shown = {"auth_type": "any"}
    result = foreign.failure(take_over=True, config=foreign.config_files(tcp_keepidle="9"))
    assert result["restored"] is True
    assert "What the host had before is back and serves" in result["msg"]
    assert foreign.files() == before
    assert (foreign.units / "pgbouncer.service").read_text() == "[Service]\n"
    assert foreign.distribution_active


def test_left_over_process_file_does_not_make_a_host_ours(foreign: Host) -> None:
    """The failed take-over is handed back to the distribution, and starts no process of ours."""
    foreign.config.with_name("process-1.ini").write_text(f"%include {foreign.config}\n")
    with pytest.raises(Refused, match="did not configure"):
        foreign.run()
    before = foreign.files()
    foreign.shown = {"auth_type": "any"}
    foreign.failure(take_over=True, config=foreign.config_files(tcp_keepidle="9"))
    assert (foreign.files(), foreign.loaded) == (before, {})
    assert foreign.distribution_active


def test_lost_mask_is_put_back(serving: Host) -> None:
    """The words are those of the role's pgbouncer.ini."""
    words = f"; {pgbouncer_foreign.OWN_WORDS}\n"
    template = ROOT / "roles/pgbouncer/templates/etc/pgbouncer/pgbouncer.ini.j2"
    assert pgbouncer_foreign.OWN_WORDS in template.read_text()
    config = serving.config_files()
    config["content"] = words + config["content"]
    serving.run(config=config)
    mask = serving.units / "pgbouncer.service"
    mask.unlink()
    assert serving.run(config=config)["changed"] is True
    assert str(mask.readlink()) == "/dev/null"


def test_second_take_over_keeps_both(foreign: Host) -> None:
    foreign.run(take_over=True)
    (foreign.units / "pgbouncer.service").unlink()
    foreign.config.write_text("[databases]\nother = host=db8\n")
    foreign.run(take_over=True)
    folder = foreign.config.parent
    assert (folder / "before-poolkit/pgbouncer.ini").read_text() == FOREIGN
    assert "other" in (folder / "before-poolkit-2/pgbouncer.ini").read_text()


def test_files_as_the_package_brings_them_are_replaced(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.config.write_text("package\n")
    host.config.with_name("userlist.txt").write_text("")
    with pytest.raises(Refused):
        host.run()
    checksum = hashlib.md5(b"package\n", usedforsecurity=False).hexdigest()
    checksums = {str(host.config): checksum}
    monkeypatch.setattr(pgbouncer_foreign, "package_checksums", lambda: checksums)
    assert host.run()["action"] == "start"
    assert not (host.config.parent / "before-poolkit").exists()


def fake_process(proc: Path, number: int, unit: str, arguments: list[str], network: str) -> None:
    (proc / str(number) / "ns").mkdir(parents=True)
    (proc / f"{number}/comm").write_text("pgbouncer\n")
    (proc / f"{number}/cmdline").write_text("\0".join(["pgbouncer", *arguments, ""]))
    (proc / f"{number}/cgroup").write_text(f"0::/system.slice/{unit}\n")
    (proc / f"{number}/ns/net").symlink_to(network)


def test_pooler_under_another_unit_is_refused(host: Host) -> None:
    proc = pgbouncer_foreign.PROC
    (proc / "self/ns").mkdir(parents=True)
    (proc / "self/ns/net").symlink_to("net:[1]")
    fake_process(proc, 5, "pgbouncer.service", [str(host.config)], "net:[1]")
    fake_process(proc, 6, "docker-1.scope", ["/etc/container.ini"], "net:[2]")
    assert pgbouncer_foreign.foreign_pooler(host.config, host.units) == ""
    fake_process(proc, 7, "legacy.service", ["-q", "/opt/legacy.ini"], "net:[1]")
    with pytest.raises(Refused, match=r"runs as legacy.service with /opt/legacy.ini"):
        host.run()


# Who gets in.


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"auth_type": "any"}, "auth_type is 'any' and must be 'hba'"),
        ({"auth_file": "/tmp/x"}, "auth_file is '/tmp/x' and must be"),
        ({"auth_hba_file": "/tmp/x"}, "auth_hba_file is '/tmp/x' and must be"),
        ({"pool_mode": "transaction\nauth_type = any"}, "states pgbouncer.auth_type twice"),
        ({"pool_mode": "transaction\n[pgbouncer]\npool_mode = session"}, "pool_mode twice"),
    ],
    ids=["type", "users", "rules", "twice", "sections"],
)
def test_configuration_that_lets_others_in_is_never_written(
    serving: Host, setting: dict, words: str
) -> None:
    before = serving.files()
    with pytest.raises(Refused, match=words):
        serving.run(config=serving.config_files(**setting))
    assert serving.files() == before


@pytest.mark.parametrize("name", ["auth_type", "auth_file", "auth_hba_file"])
def test_process_that_lets_others_in_is_undone(serving: Host, name: str) -> None:
    """It says so itself; the files know nothing of it."""
    before = serving.files()
    serving.shown = {name: "any"}
    result = serving.failure(config=serving.config_files(tcp_keepidle="9"))
    assert f"{name} is 'any' and must be" in result["msg"]
    assert result["restored"] is True
    assert serving.files() == before


# A full disk.


@pytest.mark.parametrize("files", [0, 1, 2])
def test_full_disk_before_the_swap_changes_nothing(
    serving: Host, fill_disk: Callable[[int], None], files: int
) -> None:
    before = serving.files()
    fill_disk(files)
    change = {"files": [{"path": str(serving.config.with_name("pg_hba.conf")), "content": "x\n"}]}
    with pytest.raises(OSError, match=r"No space left on device: '.*'$") as caught:
        serving.run(config=serving.config_files(tcp_keepidle="9"), **change)
    assert str(caught.value).count("No space") == 1
    assert serving.files() == before


def test_full_disk_during_the_undo(
    serving: Host, fill_disk: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old texts wait as links, so that going back needs no space."""
    before = serving.files()
    serving.refuse_reload = 1
    swap = Transaction.swap

    def swap_then_fill(self: Transaction) -> None:
        swap(self)
        fill_disk(0)

    monkeypatch.setattr(Transaction, "swap", swap_then_fill)
    result = serving.failure(config=serving.config_files(tcp_keepidle="9"))
    assert result["restored"] is True, result
    assert result["msg"] == "RELOAD was refused. The old configuration is back and serves."
    assert serving.files() == before


def test_swap_that_breaks_half_way_is_undone(
    serving: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = serving.files()
    replace = Path.replace

    def once(self: Path, target: Path) -> Path:
        if Path(target).name == "pg_hba.conf":
            monkeypatch.setattr(Path, "replace", replace)
            raise OSError(5, "Input/output error", str(target))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", once)
    change = {"files": [{"path": str(serving.config.with_name("pg_hba.conf")), "content": "x\n"}]}
    result = serving.failure(config=serving.config_files(tcp_keepidle="9"), **change)
    assert "Input/output error" in result["msg"]
    assert result["restored"] is True
    assert serving.files() == before


def test_undo_that_fails_says_so_once(serving: Host) -> None:
    before = serving.files()
    serving.refuse_reload = 2
    result = serving.failure(config=serving.config_files(pool_mode="session"))
    assert result["msg"].count("RELOAD was refused") == 1
    # The process had never taken the new files, so the old ones serve although the undo failed.
    assert result["restored"] is True, result
    assert serving.files() == before


def test_process_that_is_gone_after_the_undo_is_told(
    serving: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    serving.refuse_reload = 9

    def gone(self: Process) -> None:
        raise Refused("it has no socket")

    def lost(self: Process, *_: str) -> None:
        monkeypatch.setattr(Process, "rows", gone)
        raise Refused("RELOAD was refused")

    monkeypatch.setattr(Process, "ask", lost)
    monkeypatch.setattr(Process, "control", lambda *_: (_ for _ in ()).throw(Refused("no start")))
    result = serving.failure(config=serving.config_files(tcp_keepidle="9"))
    assert result["restored"] is False
    assert "The old configuration does not serve again" in result["msg"]
    assert (serving.config.parent / ".poolkit-pending").exists()


# A run that was killed.


@pytest.fixture
def killed(serving: Host, monkeypatch: pytest.MonkeyPatch) -> Host:
    """The new files are in place, the process has them or not, and nobody undid it."""
    serving.config.parent.joinpath("tls").mkdir()
    serving.config.parent.joinpath("tls/server.crt").write_text("certificate")

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Transaction, "apply", die)
        with pytest.raises(KeyboardInterrupt):
            serving.run(config=serving.config_files(tcp_keepidle="9"))
    for name in (".userlist.txt.4711", "tls/.server.key.12", ".pgbouncer.ini.before"):
        serving.config.parent.joinpath(name).write_text("half")
    kept = json.loads(serving.config.parent.joinpath(".poolkit-pending").read_text())
    assert "tcp_keepidle" not in kept["files"][str(serving.config)]
    assert kept["files"][f"{serving.config.parent}/tls/server.crt"] == "certificate"
    return serving


def test_next_run_catches_up(killed: Host) -> None:
    result = killed.run(config=killed.config_files(tcp_keepidle="9"))
    assert (result["changed"], result["settings"]) == (True, ["pgbouncer.tcp_keepidle"])
    assert set(killed.files()) == {
        *("pgbouncer.ini", "pg_hba.conf", "userlist.txt", "process-1.ini"),
    }
    assert killed.loaded[1]["pgbouncer"]["tcp_keepidle"] == "9"


def test_next_run_that_fails_goes_back_to_before_the_killed_one(killed: Host) -> None:
    killed.refuse_reload = 1
    result = killed.failure(config=killed.config_files(tcp_keepidle="11"))
    assert result["restored"] is True, result
    files = killed.files()
    assert "tcp_keepidle" not in files["pgbouncer.ini"]
    assert files["tls/server.crt"] == "certificate"
    assert not [name for name in files if "/." in f"/{name}"]


def test_check_mode_names_every_process(serving: Host) -> None:
    """What it says is what the run does."""
    assert serving.run(processes=2)["action"] == "start"
    for processes, settings in ((2, {"server_lifetime": "60"}), (1, {"server_lifetime": "61"})):
        change = {"processes": processes, "config": serving.config_files(**settings)}
        said, done = serving.run(check=True, **change), serving.run(**change)
        actions = [
            [(each["process"], each["action"]) for each in result["processes"]]
            for result in (said, done)
        ]
        assert actions[0] == actions[1]
        assert said["action"] == done["action"]


def test_half_written_files_go_away_in_an_unchanged_run(serving: Host) -> None:
    serving.config.with_name(".userlist.txt.4711").write_text("half")
    serving.config.with_name(".other.4711").write_text("not ours")
    assert serving.run(check=True)["changed"] is False
    assert ".userlist.txt.4711" in serving.files()
    assert serving.run()["changed"] is False
    assert ".userlist.txt.4711" not in serving.files()
    assert ".other.4711" in serving.files()


# Before the candidate was tried, nothing is touched.


def test_limit_of_open_files_waits_for_the_trial(serving: Host) -> None:
    serving.low_limit = True
    serving.verdict = "ERROR broken"
    with pytest.raises(Refused, match="PgBouncer refuses"):
        serving.run()
    assert serving.limits_raised == []
    serving.verdict = "FATAL nowhere to listen on"
    assert serving.run()["changed"] is True
    assert serving.limits_raised


@pytest.mark.parametrize(("processes", "seconds"), [(0, 120), (1, 120), (4, 480)])
def test_lock_is_waited_for_as_long_as_the_processes_take(processes: int, seconds: int) -> None:
    assert pgbouncer_config.lock_seconds(processes, 60, 20) == seconds
