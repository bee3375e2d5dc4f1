"""A change of the configuration is applied and proved, or undone, under clients that notice errors.

The clients of `load` each connect once and run transactions all the time, so that an error or a
second connect would show.
"""

import json
from collections.abc import Iterator

import pytest
from conftest import Pooler
from controller import ansible
from load import Load

CONFIG = "/etc/pgbouncer/pgbouncer.ini"
HBA = "/etc/pgbouncer/pg_hba.conf"


@pytest.fixture
def load(pooler: Pooler) -> Iterator[Load]:
    """50 clients; at the end none has had an error, and none has connected twice."""
    with Load(pooler.connect, clients=50) as clients:
        yield clients
    assert clients.errors == []
    assert clients.counts["connects"] == 50
    assert clients.counts["transactions"] > 500


@pytest.fixture
def kept(pooler: Pooler) -> Iterator[Pooler]:
    """A pooler whose files and processes are the same at the end."""
    before = pooler.state()
    yield pooler
    assert pooler.state() == before


def apply(pooler: Pooler, config: str, **files: str) -> dict:
    """Call the module with a candidate that the role would not render; return its result."""
    candidate = {
        "config": {"path": CONFIG, "content": config},
        "files": [{"path": HBA, "content": files.get("hba", read(pooler, HBA))}],
    }
    # The user list stays as it is: the module is given the same content, through a file.
    userlist = read(pooler, "/etc/pgbouncer/userlist.txt")
    candidate["secret_files"] = [{"path": "/etc/pgbouncer/userlist.txt", "content": userlist}]
    run = ansible(
        *(
            "ansible",
            pooler.name,
            "--become",
            "-m",
            "poolkit.poolkit.pgbouncer_config",
            "-a",
            json.dumps(candidate),
        ),
        ANSIBLE_STDOUT_CALLBACK="ansible.posix.json",
        ANSIBLE_LOAD_CALLBACK_PLUGINS="1",
    )
    return json.loads(run.stdout)["plays"][0]["tasks"][0]["hosts"][pooler.name]


def read(pooler: Pooler, path: str) -> str:
    return pooler.host.check_output(f"cat {path}; echo x").removesuffix("x")


def pool_size(pooler: Pooler) -> str:
    return next(r["pool_size"] for r in pooler.console("SHOW DATABASES") if r["name"] == "shop")


def started(pooler: Pooler) -> str:
    return pooler.host.check_output("systemctl show -P ExecMainStartTimestampMonotonic pgbouncer@1")


def test_pool_size_changes_without_an_error(restored: Pooler, load: Load) -> None:
    """7, 9, 7: applied by reload and read back."""
    start = started(restored)
    for size in (7, 9, 7):
        code, output = restored.configure(pgbouncer_databases={"shop": {"pool_size": size}})
        assert code == 0, output[-2000:]
        assert "action: reload" in output
        assert pool_size(restored) == str(size)
    assert started(restored) == start


def test_check_mode_tells_and_changes_nothing(kept: Pooler) -> None:
    variables = {"pgbouncer_settings": {"listen_backlog": 99, "tcp_keepidle": 9}}
    run = ansible(
        *("ansible-playbook", "ansible/playbooks/pgbouncer.yml", "--check", "--diff", "-v"),
        *("--limit", kept.name, "-e", json.dumps(variables)),
    )
    assert run.returncode == 0, run.stdout[-2000:]
    assert "action: restart" in run.stdout
    assert "+listen_backlog = 99" in run.stdout
    assert "SCRAM-SHA-256" not in run.stdout


def test_candidate_that_the_binary_refuses(kept: Pooler, load: Load) -> None:
    result = apply(kept, read(kept, CONFIG) + "pool_mod = session\n")
    assert result["failed"]
    assert "PgBouncer refuses the new configuration" in result["msg"]
    assert "pool_mod" in result["msg"]
    assert "Nothing was changed" in result["msg"]


def test_rule_that_the_binary_would_skip(kept: Pooler, load: Load) -> None:
    """A lost `reject` would fail open."""
    hba = "host shop shop 10.0.0.300/8 reject\n" + read(kept, HBA)
    result = apply(kept, read(kept, CONFIG), hba=hba)
    assert "PgBouncer refuses the new configuration" in result["msg"]
    assert "hba" in result["msg"]


def test_reload_that_is_rejected_half_way(pooler: Pooler, load: Load) -> None:
    """The trial sees /tmp; the service has one of its own, and stops reading at this line."""
    before, start = read(pooler, CONFIG), started(pooler)
    config = before.replace("max_client_conn", "%include /tmp/extra.ini\nmax_client_conn")
    pooler.host.check_output("echo 'tcp_keepidle = 77' > /tmp/extra.ini; chmod 644 /tmp/extra.ini")
    result = apply(pooler, config)
    pooler.host.check_output("rm /tmp/extra.ini")
    assert result["failed"]
    assert result["restored"] is True, result["msg"]
    assert read(pooler, CONFIG) == before
    assert started(pooler) == start
    live = pooler.settings()
    assert (live["pool_mode"], live["max_client_conn"]) == ("transaction", "500")


def test_process_that_shows_another_value(pooler: Pooler, load: Load) -> None:
    """A number beyond 32 bits becomes another one in silence; the role refuses it earlier."""
    before = read(pooler, CONFIG)
    result = apply(pooler, before.replace("query_wait_timeout = 4", "max_packet_size = 9999999999"))
    assert result["failed"]
    assert "max_packet_size is" in result["msg"], result["msg"]
    assert result["restored"] is True
    assert read(pooler, CONFIG) == before
    assert pooler.settings()["query_wait_timeout"] == "4"


def test_port_that_another_program_has(trixie: Pooler) -> None:
    """The stand-in cannot listen, so the process that serves is never touched."""
    start, before = started(trixie), read(trixie, CONFIG)
    trixie.host.check_output(
        "systemd-run --unit=taken --property=Type=exec python3 -c "
        "'import socket, time; s = socket.create_server((\"127.0.0.1\", 6444)); time.sleep(60)'"
    )
    try:
        with Load(trixie.connect, clients=50) as load:
            code, output = trixie.configure(pgbouncer_listen_port=6444)
            assert code != 0
            assert "port 6444 is in use by taken.service" in output
            result = apply(trixie, before.replace("listen_port = 6432", "listen_port = 6444"))
            assert result["failed"]
            assert result["restored"] is True, result["msg"]
    finally:
        trixie.host.check_output("systemctl stop taken")
    assert load.errors == []
    assert (started(trixie), read(trixie, CONFIG)) == (start, before)
    units = trixie.host.check_output("systemctl list-units --plain --no-legend 'pgbouncer@*'")
    assert len(units.splitlines()) == 1


def test_address_that_the_host_does_not_have(pooler: Pooler) -> None:
    before = read(pooler, CONFIG)
    code, output = pooler.configure(pgbouncer_listen_addr="203.0.113.9")
    assert code != 0
    assert "restored: true" in output, output[-2000:]
    assert read(pooler, CONFIG) == before
    with pooler.connect() as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_port_changes_by_restart(restored: Pooler) -> None:
    code, output = restored.configure(pgbouncer_listen_port=6433)
    assert code == 0, output[-2000:]
    assert "action: restart" in output
    assert "restart_reason: - listen_port" in output
    with restored.connect(port=6433) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_removed_setting_goes_back_to_its_default(pooler: Pooler) -> None:
    """One that only a restart makes the process forget."""
    code, output = pooler.configure(pgbouncer_settings={"tcp_keepidle": 90, "listen_backlog": 64})
    assert code == 0, output[-2000:]
    code, output = pooler.configure()
    assert code == 0, output[-2000:]
    assert "restart_reason: - listen_backlog" in output
    live = pooler.settings()
    assert (live["tcp_keepidle"], live["listen_backlog"]) == ("0", "128")


def test_removed_user_loses_its_limits(trixie: Pooler) -> None:
    """A reload alone would keep them until the next restart; 1.18 does not show them."""

    def limit() -> str:
        rows = trixie.console("SHOW USERS")
        return next(row["max_user_connections"] for row in rows if row["name"] == "shop")

    unset, start = limit(), started(trixie)
    assert trixie.configure(pgbouncer_users={"shop": {"max_user_connections": 3}})[0] == 0
    assert limit() == "3"
    assert trixie.configure()[0] == 0
    assert limit() == unset
    assert started(trixie) == start


def test_drift_of_the_process_is_caught_up(pooler: Pooler) -> None:
    """The files are right and the process is not, as after a reload that failed."""
    pooler.host.check_output(f"cp -p {CONFIG} /run/kept.ini && sed -i 's/= 10$/= 11/' {CONFIG}")
    pooler.host.check_output("systemctl reload pgbouncer@1")
    pooler.host.check_output(f"mv /run/kept.ini {CONFIG}")
    code, output = pooler.configure()
    assert code == 0, output[-2000:]
    assert "action: reload" in output
    again, output = pooler.configure()
    assert again == 0
    assert "action: none" in output


def test_interrupted_change_is_undone_or_caught_up(trixie: Pooler) -> None:
    """A run that was killed after the swap leaves the old files in .poolkit-pending.

    One that fails then goes back to them, and not to what the killed run had written.
    """
    before, pending = read(trixie, CONFIG), "/etc/pgbouncer/.poolkit-pending"
    kept = {"files": {}, "owners": {}, "distribution": {"unit": None, "active": False}}
    names = trixie.host.check_output(
        "find /etc/pgbouncer /etc/systemd/system/pgbouncer@.service "
        "/etc/systemd/system/pgbouncer.target /usr/local/lib/pgbouncer_addresses.py -type f"
    ).splitlines()
    kept["files"] = {name: read(trixie, name) for name in names}

    def kill() -> None:
        trixie.host.check_output("umask 077; printf %s %s > %s", "%s", json.dumps(kept), pending)
        trixie.host.check_output(
            f"sed -i 's/^max_client_conn = .*/max_client_conn = 77/' {CONFIG}; "
            f"touch /etc/pgbouncer/.userlist.txt.4711; systemctl reload pgbouncer@1"
        )

    kill()
    code, output = trixie.configure(pgbouncer_listen_addr="203.0.113.9")
    assert code != 0
    assert "restored: true" in output, output[-2000:]
    assert read(trixie, CONFIG) == before
    assert trixie.settings()["max_client_conn"] == "500"
    kill()
    code, output = trixie.configure()
    assert code == 0, output[-2000:]
    assert "changed=1" in output
    assert read(trixie, CONFIG) == before
    assert trixie.settings()["max_client_conn"] == "500"
    hidden = trixie.host.check_output(
        "find /etc/pgbouncer /etc/systemd/system -name '.[!.]*' -type f"
    )
    assert hidden == ""


def test_address_that_comes_after_the_start_is_waited_for(trixie: Pooler) -> None:
    """As at a boot: the unit is not up without it, and needs nobody once it is there."""
    late = "198.51.100.7"
    trixie.host.check_output(
        f"cp -p {CONFIG} /run/kept.ini && sed -i 's/^listen_addr = .*/&, {late}/' {CONFIG}"
    )
    try:
        assert trixie.host.run("systemctl restart pgbouncer@1").rc != 0
        assert trixie.host.check_output("systemctl show -P ActiveState pgbouncer@1") == "activating"
        log = trixie.host.check_output("journalctl -u pgbouncer@1 -n 20 -o cat")
        assert f"cannot listen on {late}, port 6432: Cannot assign requested address" in log
        trixie.host.check_output(f"ip address add {late}/32 dev lo")
        trixie.host.check_output(
            "timeout 4 sh -c 'until systemctl -q is-active pgbouncer@1; do sleep 0.1; done'"
        )
        sockets = trixie.host.check_output("ss -Hltn 'sport = :6432'")
        assert f"{late}:6432" in sockets
    finally:
        trixie.host.check_output(f"mv /run/kept.ini {CONFIG}")
        trixie.host.run(f"ip address del {late}/32 dev lo")
        trixie.host.check_output("systemctl restart pgbouncer@1")


def test_replaced_binary_is_taken_by_the_next_run(trixie: Pooler) -> None:
    """A package upgrade restarts nothing; the role replaces the process, and cuts nobody off."""
    start = started(trixie)
    trixie.host.check_output("cd /usr/sbin && cp -p pgbouncer new && mv new pgbouncer")
    with Load(trixie.connect, clients=20, lifetime_seconds=1) as load:
        code, output = trixie.configure()
    assert code == 0, output[-2000:]
    assert "the installed PgBouncer is newer than the process" in output
    assert load.errors == []
    assert started(trixie) != start


def test_foreign_pooler_is_refused_taken_over_and_handed_back(trixie: Pooler) -> None:
    """A host with a configuration of its own: a first run that fails leaves it as it was."""
    folder = "/etc/pgbouncer"
    trixie.host.check_output(
        f"systemctl disable --now pgbouncer.target pgbouncer@1 && rm -rf {folder}/process-* "
        f"{folder}/before-poolkit* /etc/systemd/system/pgbouncer.service && "
        "systemctl daemon-reload && printf '[databases]\\nlegacy = host=db9 password=s3cr3t\\n"
        f"[pgbouncer]\\nlisten_addr=127.0.0.1\\n' > {CONFIG} && "
        f"chown postgres: {CONFIG} {folder} && systemctl start pgbouncer"
    )
    code, output = trixie.configure()
    assert code != 0
    for words in (f"{CONFIG}", "its databases are legacy", "-e pgbouncer_take_over=true"):
        assert words in output, output[-2000:]
    assert "s3cr3t" not in output
    for variables in ({}, {"pgbouncer_take_over": True, "pgbouncer_listen_addr": "203.0.113.9"}):
        if variables:
            code, output = trixie.configure(**variables)
            assert code != 0, output[-2000:]
            assert "What the host had before is back and serves" in output
        assert trixie.host.service("pgbouncer").is_running
        assert trixie.host.file(CONFIG).user == trixie.host.file(folder).user == "postgres"
        assert not trixie.host.file(f"{folder}/before-poolkit").exists
    code, output = trixie.configure(pgbouncer_take_over=True)
    assert code == 0, output[-2000:]
    assert not trixie.host.service("pgbouncer").is_running
    kept = trixie.host.file(f"{folder}/before-poolkit")
    assert (kept.user, kept.mode) == ("root", 0o700)
    assert (
        "legacy = host=db9"
        in trixie.host.file(f"{folder}/before-poolkit/pgbouncer.ini").content_string
    )
    assert trixie.host.file(folder).user == "root"
    with trixie.connect() as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    code, output = trixie.configure()
    assert code == 0, output[-2000:]
    assert "action: none" in output
