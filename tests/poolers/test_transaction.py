"""A change of the configuration is applied and proved, or undone, under clients that notice errors.

The clients of `load` each connect once and run transactions all the time, so that an error or a
second connect would show.
"""

import json
from collections.abc import Iterator

import pytest
from conftest import Pooler
from fleet import ansible
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
            "pgbouncer_config",
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
    result = apply(
        pooler, before.replace("query_wait_timeout = 10", "max_packet_size = 9999999999")
    )
    assert result["failed"]
    assert "max_packet_size is" in result["msg"], result["msg"]
    assert result["restored"] is True
    assert read(pooler, CONFIG) == before
    assert pooler.settings()["query_wait_timeout"] == "10"


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


def test_interrupted_change_is_caught_up(pooler: Pooler) -> None:
    """A run that was killed after the swap leaves the old files in .poolkit-pending."""
    pending = "/etc/pgbouncer/.poolkit-pending"
    pooler.host.check_output(f"printf '{{}}' > {pending}; chmod 600 {pending}")
    code, output = pooler.configure()
    assert code == 0, output[-2000:]
    assert "changed=1" in output
    assert not pooler.host.file(pending).exists


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


def test_distributions_own_pooler_is_taken_over_and_handed_back(trixie: Pooler) -> None:
    """A host with Debian's pgbouncer.service: a first run that fails leaves it as it was."""
    trixie.host.check_output(
        "systemctl disable --now pgbouncer.target pgbouncer@1 && rm -f /etc/pgbouncer/process-* "
        "/etc/systemd/system/pgbouncer.service && systemctl daemon-reload && "
        "printf '[databases]\\n[pgbouncer]\\nlisten_addr=127.0.0.1\\n' "
        "> /etc/pgbouncer/pgbouncer.ini"
        " && chown postgres: /etc/pgbouncer/pgbouncer.ini && systemctl start pgbouncer"
    )
    code, output = trixie.configure(pgbouncer_listen_addr="203.0.113.9")
    assert code != 0, output[-2000:]
    assert trixie.host.service("pgbouncer").is_running
    assert trixie.host.file("/etc/pgbouncer/pgbouncer.ini").user == "postgres"
    code, output = trixie.configure()
    assert code == 0, output[-2000:]
    assert not trixie.host.service("pgbouncer").is_running
    with trixie.connect() as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
