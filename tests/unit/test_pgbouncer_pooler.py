"""How processes take a configuration: what is asked of which one, and in which order."""

from collections.abc import Callable
from pathlib import Path

import pytest

from plugins.module_utils import pgbouncer_pooler
from plugins.module_utils.pgbouncer_configuration import UNIT, Configuration
from plugins.module_utils.pgbouncer_pooler import Change, Pooler
from plugins.module_utils.refused import Refused

PARAMS = {"user": "pgbouncer", "timeout_seconds": 0, "drain_seconds": 7}


class Host:
    """What is done to its processes and files, in order; each process has what it loaded last."""

    def __init__(self, directory: Path) -> None:
        self.path = str(directory / "pgbouncer.ini")
        self.log: list[object] = []
        self.live: dict[int, Configuration] = {}
        self.on_disk = self.configuration("")
        self.version = (1, 24, 1)
        self.undrainable = False
        self.kept = ""

    def configuration(self, users: str, mode: str = "transaction", processes: int = 1, unit=""):
        text = f"[databases]\n[users]\n{users}[pgbouncer]\npool_mode = {mode}\n"
        files = {self.path: text, UNIT: unit}
        for number in range(1, processes + 1):
            own = str(Path(self.path).with_name(f"process-{number}.ini"))
            files[own] = f"%include {self.path}\n"
        return Configuration(self.path, files)

    def pooler(self, before: Configuration, after: Configuration) -> Pooler:
        self.on_disk = after
        return Pooler(Change(before, before, after), self, self.version, PARAMS)

    def apply(self, before: Configuration, after: Configuration) -> Pooler:
        pooler = self.pooler(before, after)
        pooler.apply(after, before)
        return pooler

    def write(self, contents: dict[str, str]) -> None:
        self.log.append({Path(path).name: text for path, text in contents.items()})
        self.on_disk = Configuration(self.path, {**self.on_disk.files, **contents})


class Process:
    def __init__(self, host: Host, number: int) -> None:
        self.host, self.number, self.unit = host, number, f"pgbouncer@{number}.service"

    def running(self) -> bool:
        return self.number in self.host.live

    def load(self) -> None:
        self.host.live[self.number] = self.host.on_disk

    def control(self, verb: str) -> None:
        self.host.log.append((self.number, verb))
        self.host.live.pop(self.number, None)
        if verb != "stop":
            self.load()

    def ask(self, *commands: str) -> None:
        self.host.log.append((self.number, *commands))
        self.load()

    def rows(self) -> dict:
        settings = {**self.host.live[self.number].settings(self.number)}
        values = {name: (value, value) for name, value in settings.items()}
        if self.host.kept and (self.number, "restart") not in self.host.log:
            values[self.host.kept] = ("old", "")
        columns = ("value", "default")
        config = {
            name: {**dict(zip(columns, pair, strict=True)), "changeable": "yes"}
            for name, pair in values.items()
        }
        return {"CONFIG": config, "DATABASES": {}, "USERS": {}}

    def version(self) -> tuple[int, ...]:
        return self.host.version

    def drain(self, seconds: int) -> None:
        self.host.log.append((self.number, "drain", seconds))
        if self.host.undrainable:
            raise Refused("it did not end")
        del self.host.live[self.number]

    def misheard(self, *_: str) -> list[str]:
        return []

    def older_than(self, _: str) -> bool:
        return False

    def has_open_files(self, wanted: int, change: bool = True) -> bool:
        return True


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    host = Host(tmp_path)
    monkeypatch.setattr(pgbouncer_pooler, "Process", lambda number, *_: Process(host, number))
    monkeypatch.setattr(pgbouncer_pooler, "running", lambda: sorted(host.live))
    monkeypatch.setattr(pgbouncer_pooler, "disabled", lambda _: [])
    monkeypatch.setattr(pgbouncer_pooler, "systemctl", lambda *_: None)
    monkeypatch.setattr(Configuration, "access_problems", lambda *_: [])
    return host


@pytest.fixture
def serving(host: Host) -> Callable[..., Configuration]:
    """Start processes with a configuration, and forget how."""

    def start(**given: object) -> Configuration:
        before = host.configuration(**given)
        host.apply(Configuration(host.path, {}), before)
        host.log.clear()
        return before

    return start


NEUTRAL = "[users]\ngone = max_user_connections=-1\n"


def test_user_that_is_gone_gets_a_neutral_line_first(
    host: Host, serving: Callable[..., Configuration]
) -> None:
    before = serving(users="gone = pool_mode=transaction\nshop = pool_mode=transaction\n")
    after = host.configuration("shop = pool_mode=transaction\n")
    pooler = host.apply(before, after)
    assert host.log == [
        {"pgbouncer.ini": NEUTRAL + after.text},
        (1, "RECONNECT", "RELOAD"),  # the user's mode is gone with its line
        {"pgbouncer.ini": after.text},
        (1, "RELOAD"),
    ]
    assert [done["action"] for done in pooler.done] == ["reload"]


def test_user_of_an_earlier_run_that_was_killed_is_neutral_as_well(
    host: Host, serving: Callable[..., Configuration]
) -> None:
    before = serving(users="")
    after = host.configuration("")
    killed = host.configuration("gone = max_user_connections=1\n")
    pooler = Pooler(Change(before, killed, after), host, host.version, PARAMS)
    pooler.apply(after, before)
    assert host.log[0] == {"pgbouncer.ini": NEUTRAL + after.text}


@pytest.mark.parametrize("mode", ["transaction", "session"])
def test_another_pool_mode_renews_the_connections_once(
    host: Host, serving: Callable[..., Configuration], mode: str
) -> None:
    before = serving(users="")
    host.apply(before, host.configuration("", mode))
    assert host.log == [(1, *(["RECONNECT"] if mode == "session" else []), "RELOAD")]


def test_what_a_reload_keeps_is_a_restart(
    host: Host, serving: Callable[..., Configuration]
) -> None:
    before = serving(users="")
    host.kept, host.version = "auth_user", (1, 22, 0)
    pooler = host.apply(before, before)
    assert host.log == [(1, "RELOAD"), (1, "restart")]
    assert (pooler.reasons, pooler.done[0]["action"]) == (["auth_user"], "restart")


def test_lone_process_has_a_stand_in(host: Host, serving: Callable[..., Configuration]) -> None:
    before = serving(users="")
    pooler = host.apply(before, host.configuration("", unit="[Service]\nType=notify\n"))
    (own,) = host.log[0].values()
    assert own.startswith(f"%include {host.path}\n")
    assert host.log[1:] == [
        (2, "start"),
        *((1, "drain", 7), (1, "start")),
        *((2, "drain", 7), (2, "stop")),
    ]
    assert pooler.reasons == ["pgbouncer@.service"]
    assert [done["process"] for done in pooler.done] == [1]
    assert sorted(host.live) == [1]


def test_several_take_each_others_clients(
    host: Host, serving: Callable[..., Configuration]
) -> None:
    before = serving(users="", processes=2)
    host.apply(before, host.configuration("", processes=2, unit="[Service]\nType=notify\n"))
    assert host.log == [(1, "drain", 7), (1, "start"), (2, "drain", 7), (2, "start")]


def test_process_that_does_not_drain_is_restarted(
    host: Host, serving: Callable[..., Configuration]
) -> None:
    before = serving(users="", processes=2)
    host.undrainable = True
    host.apply(before, host.configuration("", processes=2, unit="[Service]\nType=notify\n"))
    assert host.log[:2] == [(1, "drain", 7), (1, "restart")]


def test_older_version_is_restarted(host: Host, serving: Callable[..., Configuration]) -> None:
    host.version = (1, 22, 0)
    before = serving(users="")
    host.apply(before, host.configuration("", unit="[Service]\nType=notify\n"))
    assert host.log == [(1, "restart")]


def test_new_processes_come_first_and_old_ones_go_last(
    host: Host, serving: Callable[..., Configuration]
) -> None:
    before = serving(users="", processes=1)
    pooler = host.apply(before, host.configuration("", processes=2))
    assert host.log == [(2, "start"), (1, "RELOAD")]
    assert [done["process"] for done in pooler.done] == [2, 1]
    host.log.clear()
    host.apply(host.configuration("", processes=2), before)
    assert host.log == [(1, "RELOAD"), (2, "drain", 7), (2, "stop")]


def test_limit_of_files_and_comments_do_not_restart(host: Host) -> None:
    old = host.configuration("", unit="# old\n[Service]\nLimitNOFILE=1024\n")
    new = host.configuration("", unit="# new\n[Service]\nLimitNOFILE=2048\n")
    assert (old.open_files, new.open_files) == (1024, 2048)
    assert not Change(old, old, new).starts_differently()
    other = host.configuration("", unit="[Service]\nType=notify\n")
    assert Change(old, other, new).starts_differently()
    assert Change(other, old, new).starts_differently()


def test_needs_are_told_without_touching_anything(
    host: Host, serving: Callable[..., Configuration]
) -> None:
    before = serving(users="", processes=2)
    after = host.configuration("", "session", processes=1)
    pooler = host.pooler(before, after)
    needs = {need["process"]: need["action"] for need in pooler.needs(same_files=False)}
    assert needs == {2: "stop"}
    needs = {need["process"]: need["action"] for need in pooler.needs(same_files=True)}
    assert needs == {2: "stop", 1: "reload"}
    assert host.log == []
