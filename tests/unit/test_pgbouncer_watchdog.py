"""Whom the watchdog kills, on processes of this machine; the scenario `console` has real ones."""

import contextlib
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pgbouncer_watchdog as watchdog
import pytest

SERVER = """
import os, socket, sys, time
path, does = sys.argv[1:]
listener = socket.socket(socket.AF_UNIX)
listener.bind(path + ".new")
listener.listen(1)
os.rename(path + ".new", path)
while does in ("answer", "close"):
    connection, _ = listener.accept()
    if does == "answer":
        connection.recv(8)
        connection.sendall(b"N")
    connection.close()
while does == "compute":
    pass
time.sleep(60)
"""
INTERVAL = 0.1


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Callable[[str], tuple[subprocess.Popen, Path]]]:
    """Start a process that listens and answers, closes, computes or hangs."""
    started = []

    def start(does: str) -> tuple[subprocess.Popen, Path]:
        path = tmp_path / ".s.PGSQL.6432"
        path.unlink(missing_ok=True)
        started.append(subprocess.Popen([sys.executable, "-c", SERVER, path, does]))
        end = time.monotonic() + 10
        while not path.exists() and time.monotonic() < end:
            time.sleep(0.01)
        return started[-1], path

    yield start
    for each in started:
        each.kill()
        each.wait()


def questions(one: watchdog.Watch, most: int) -> int:
    """Ask until there is a reason to kill; return how many questions that took, 0 for none."""
    for number in range(1, most + 1):
        started = time.monotonic()
        try:
            answered = one.ask()
        except watchdog.NotListening:
            one.forget()
        else:
            one.answered() if answered else one.look()
        if one.reason_to_kill(time.monotonic()):
            return number
        time.sleep(max(0.0, started + INTERVAL - time.monotonic()))
    return 0


@pytest.mark.parametrize("does", ["answer", "close"])
def test_a_process_that_answers_is_left_alone(process: Callable, does: str) -> None:
    """A connection that it closes is an answer: it drains, or is full."""
    child, path = process(does)
    one = watchdog.Watch(str(path), INTERVAL, 3)
    assert questions(one, 10) == 0
    assert one.pid == child.pid


def test_a_process_that_hangs_is_killed(process: Callable) -> None:
    """Also where nobody takes the connections any more, so that the next one is refused."""
    child, path = process("hang")
    crowd = []
    with pytest.raises(BlockingIOError), contextlib.ExitStack() as stack:
        one = watchdog.Watch(str(path), INTERVAL, 3)
        assert not one.ask()
        while len(crowd) < 10:
            crowd.append(stack.enter_context(socket.socket(socket.AF_UNIX)))
            crowd[-1].setblocking(False)
            crowd[-1].connect(str(path))
    assert questions(one, 10) == 3
    one.kill(time.monotonic())
    assert child.wait(5) == -signal.SIGKILL


def test_a_stopped_process_is_killed_though_it_answered_before(process: Callable) -> None:
    child, path = process("answer")
    one = watchdog.Watch(str(path), INTERVAL, 3)
    assert questions(one, 3) == 0
    child.send_signal(signal.SIGSTOP)
    assert questions(one, 10) == 3
    one.kill(time.monotonic())
    assert child.wait(5) == -signal.SIGKILL


def test_a_busy_process_has_ten_times_as_long(process: Callable) -> None:
    """A slow reload, a flood of logins; one that computes for ever is killed in the end."""
    _, path = process("compute")
    one = watchdog.Watch(str(path), INTERVAL, 3)
    assert questions(one, 29) == 0
    assert questions(one, 2) == 1
    assert "though it is busy" in one.reason_to_kill(time.monotonic())


def test_a_process_that_does_not_listen_is_left_alone(process: Callable, tmp_path: Path) -> None:
    """It starts, drains or has ended: systemd knows."""
    child, path = process("hang")
    one = watchdog.Watch(str(path), INTERVAL, 3)
    assert not one.ask()
    child.kill()
    child.wait()
    assert questions(one, 10) == 0
    path.unlink()
    assert questions(one, 10) == 0
    assert one.pid == 0


def test_a_second_kill_waits(process: Callable) -> None:
    """What a fresh process does not cure is not made better by a kill every three seconds."""
    _, path = process("hang")
    one = watchdog.Watch(str(path), INTERVAL, 3)
    assert questions(one, 10) == 3
    one.kill(time.monotonic())
    process("hang")
    assert questions(one, 10) == 0
    assert one.reason_to_kill(time.monotonic() + watchdog.PAUSE_SECONDS)


def test_wait_for_the_journal_is_told_from_others() -> None:
    """Linux's names, read on the hosts; the scenario `console` stops a journald."""
    assert "unix_wait_for_peer".startswith(watchdog.LOG_WAITS)
    assert not any(
        name.startswith(watchdog.LOG_WAITS) for name in ("do_signal_stop", "ep_poll", "0")
    )
    assert not watchdog.Watch("/nowhere", INTERVAL, 3).waits_for_its_log()


def test_state_that_waits_is_work() -> None:
    stat = "7 (a) b) {} 1 7 7 0 -1 4194560 1 0 0 0 30 12 0 0 20 0 1 0 5 1 1"
    assert watchdog.working(stat.format("S")) == (False, 42)
    assert watchdog.working(stat.format("T")) == (False, 42)
    assert watchdog.working(stat.format("D")) == (True, 42)
    assert watchdog.working(stat.format("R")) == (True, 42)  # waits for a processor


def test_every_kill_is_told_and_counted(
    process: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    child, path = process("hang")
    one = watchdog.Watch(str(path), INTERVAL, 2)
    threading.Thread(target=watchdog.watch, args=(1, one, tmp_path), daemon=True).start()
    assert child.wait(5) == -signal.SIGKILL
    end = time.monotonic() + 5
    while not (tmp_path / "1").exists() and time.monotonic() < end:
        time.sleep(0.01)
    assert (tmp_path / "1").read_text() == "1\n"
    watchdog.count(tmp_path / "1")
    assert (tmp_path / "1").read_text() == "2\n"
    printed = capsys.readouterr().err
    assert (
        f"killed process 1 (pid {child.pid}): no answer for 0.2 s, and it does nothing" in printed
    )
