"""What the playbooks derive reaches the roles, and the inventory's own value goes before it."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import status
import yaml
from collection import COLLECTION

ROOT = Path(__file__).resolve().parents[2]

REGISTERED = ("__app_host", "__app_before")
"""What the plays before the last one of a playbook register on the hosts that take part."""

TASKS = ROOT / "ansible/playbooks/tasks"
DERIVING = ("derive", "budget")

INVENTORY = """
all:
  vars:
    ansible_connection: local
    app_database_password: p
    app_database_owner_password: o
    database_host: db1
    database_port: 5432
    database_max_connections: 150
    pgbouncer_databases: {shop: {pool_size: auto}}
  children:
    applications:
      hosts:
        web1: {app_name: shop, private_address: 192.0.2.1}
        web2: {app_name: shop, private_address: 192.0.2.2}
        web3: {app_name: blog, private_address: 192.0.2.3, app_poolers: [{host: balancer, port: 1}]}
    pgbouncer:
      hosts:
        pool1: {private_address: 192.0.2.11, pgbouncer_listen_port: 6433}
        pool2: {private_address: 192.0.2.12, pgbouncer_listen_addr: 192.0.2.99,
                pgbouncer_client_addresses: [192.0.2.0/24]}
        web2:
"""


@pytest.fixture
def role_sees(
    tmp_path: Path, ansible_playbook: Callable[..., CompletedProcess[str]]
) -> Callable[..., list[dict[str, list]]]:
    """Tell what a role sees."""

    def sees(
        playbook: str, role: str, *variables: str, inventory: str = INVENTORY, limit: str = "all"
    ) -> list[dict]:
        """Return variables as a role sees them on each host: its defaults, and the play's vars.

        One dict for each batch of hosts, in the order of the playbook's last play.
        """
        plays = yaml.safe_load((ROOT / f"ansible/playbooks/{playbook}.yml").read_text())
        while "hosts" not in plays[-1]:  # an import of another playbook has none
            plays.pop()
        play = plays[-1]
        # Where its tasks include a part of the role.
        play.setdefault("roles", [f"{COLLECTION}.{role}"])
        before = {
            "hosts": "all",
            "gather_facts": False,
            "tasks": [
                {"ansible.builtin.set_fact": {name: {} for name in REGISTERED}},
                *({"ansible.builtin.import_tasks": f"{TASKS}/{name}.yml"} for name in DERIVING),
            ],
        }
        (tmp_path / f"roles/{role}/tasks").mkdir(parents=True)
        for part in ("defaults", "vars", "files"):
            (tmp_path / f"roles/{role}/{part}").symlink_to(ROOT / f"roles/{role}/{part}")
        names = ", ".join(variables)
        task = {"ansible.builtin.debug": {"msg": f"{{{{ [{names}] }}}}"}}
        (tmp_path / f"roles/{role}/tasks/main.yml").write_text(yaml.safe_dump([task]))
        (tmp_path / "vars").symlink_to(ROOT / "ansible/playbooks/vars")
        keys = {"hosts", "serial", "vars", "vars_files", "roles"}
        short = {**{key: play[key] for key in keys & play.keys()}, "gather_facts": False}
        (tmp_path / "play.yml").write_text(yaml.safe_dump([before, short]))
        (tmp_path / "hosts.yml").write_text(inventory)
        run = ansible_playbook(
            *("-i", tmp_path / "hosts.yml", tmp_path / "play.yml", "--limit", limit),
            ANSIBLE_STDOUT_CALLBACK="ansible.posix.json",
            ANSIBLE_ROLES_PATH=f"{tmp_path / 'roles'}:{ROOT / 'roles'}",
        )
        assert run.returncode == 0, run.stdout + run.stderr
        return [
            {host: result["msg"] for host, result in batch["tasks"][0]["hosts"].items()}
            for batch in json.loads(run.stdout)["plays"][1:]
        ]

    return sees


def test_poolers_listen_where_their_clients_are(role_sees: Callable[..., list[dict]]) -> None:
    names = ("pgbouncer_listen_addr", "pgbouncer_client_addresses", "pooler_pool_sizes")
    seen = role_sees("pgbouncer", "pgbouncer", *names)
    # 90 % of 147 is 132. Fixed: blog's 2 pools of 10 + 2 and their 2 stand-ins, 48; 2 x 5
    # migrations, 5 others. That leaves 69 for shop's 3 pools and 3 stand-ins: 9 + 2 each.
    sizes = {"shop": {"pool_size": 9}}
    clients = ["192.0.2.1/32", "192.0.2.3/32"]
    # One after the other: pool1 and pool2 share their clients.
    assert seen == [
        {"pool1": ["127.0.0.1,192.0.2.11", clients, sizes]},
        {"pool2": ["192.0.2.99", ["192.0.2.0/24"], sizes]},
        {"web2": ["127.0.0.1", ["127.0.0.1/32"], sizes]},
    ]


def test_poolers_beside_applications_are_changed_at_once(
    role_sees: Callable[..., list[dict]],
) -> None:
    inventory = yaml.safe_load(INVENTORY)
    groups = inventory["all"]["children"]
    groups["pgbouncer"]["hosts"] = dict.fromkeys(groups["applications"]["hosts"])
    text = yaml.safe_dump(inventory)
    (batch,) = role_sees("pgbouncer", "pgbouncer", "inventory_hostname", inventory=text)
    assert sorted(batch) == ["web1", "web2", "web3"]


def test_limit_leaves_poolers_of_a_tier_one_after_the_other(
    role_sees: Callable[..., list[dict]],
) -> None:
    seen = role_sees("pgbouncer", "pgbouncer", "inventory_hostname", limit="pool1,pool2")
    assert [list(batch) for batch in seen] == [["pool1"], ["pool2"]]


POOLERS = {
    "web1": [{"host": "192.0.2.11", "port": 6433}, {"host": "192.0.2.12", "port": 6432}],
    "web2": [{"host": "127.0.0.1", "port": 6432}],
    "web3": [{"host": "balancer", "port": 1}],
}


def test_applications_get_their_poolers(role_sees: Callable[..., list[dict]]) -> None:
    (seen,) = role_sees("build", "app", "app_poolers", "pooler_query_wait_timeout")
    assert seen == {host: [poolers, 4] for host, poolers in POOLERS.items()}


def test_hosts_change_in_batches_of_each_application(role_sees: Callable[..., list[dict]]) -> None:
    seen = role_sees("rollback", "app", "app_poolers")
    assert [sorted(batch) for batch in seen] == [["web1", "web3"], ["web2"]]
    assert seen[0] | seen[1] == {host: [poolers] for host, poolers in POOLERS.items()}


def test_limit_makes_no_batch_larger(role_sees: Callable[..., list[dict]]) -> None:
    seen = role_sees("rollback", "app", "app_name", limit="web1,web2")
    assert [sorted(batch) for batch in seen] == [["web1"], ["web2"]]


def test_every_way_to_change_an_application_has_the_same_variables() -> None:
    """What the tests above see of two playbooks holds for the plays of the others."""

    def plays(name: str) -> list[dict]:
        text = (ROOT / f"ansible/playbooks/{name}.yml").read_text()
        return [play for play in yaml.safe_load(text) if "hosts" in play]

    before, serve, after = plays("app")
    first, back = plays("rollback")
    (migrate,) = plays("migrate")
    check, build = plays("build")
    for key in ("hosts", "serial"):
        assert serve[key] == back[key].replace("__app_before", "__app_host")
    for play in (check, build, before, serve, after, migrate, back):
        assert play["vars_files"] == ["vars/derived.yml"]
    # As long as nothing has changed, one host stops everything; then its application alone.
    assert [bool(play.get("any_errors_fatal")) for play in (check, first)] == [True, True]
    for play in (build, before, serve, after, back, migrate):
        assert not {"any_errors_fatal", "max_fail_percentage"} & play.keys()
        (task,) = play["tasks"]
        assert task["ansible.builtin.include_role"] == {
            "name": f"{COLLECTION}.app",
            "tasks_from": "attempt",
        }


def test_every_way_to_change_an_application_ends_with_the_outcome() -> None:
    for name in ("app", "rollback", "migrate", "build"):
        text = (ROOT / f"ansible/playbooks/{name}.yml").read_text()
        last = yaml.safe_load(text)[-1]
        assert last["ansible.builtin.import_playbook"] == "plays/outcome.yml"


def test_status_has_the_plays_that_the_script_reads() -> None:
    """scripts/status.py takes each of their hosts that does not report for a silent one."""
    plays = yaml.safe_load((ROOT / "ansible/playbooks/status.yml").read_text())
    assert {play["name"]: play.get("hosts") for play in plays[1:]} == {
        status.APPLICATIONS: "applications",
        status.POOLERS: "pgbouncer",
        status.BUDGET: "applications",
    }


def test_the_plan_comes_before_anything_changes() -> None:
    imports = [
        Path(play["ansible.builtin.import_playbook"]).stem
        for play in yaml.safe_load((ROOT / "ansible/playbooks/site.yml").read_text())
    ]
    assert imports[:2] == ["preflight", "plan"]


MANAGED = """
all:
  vars: {ansible_connection: local, app_connection_strategy: managed}
  children:
    applications:
      hosts:
        web1: {app_name: shop}
"""


@pytest.fixture
def play(
    tmp_path: Path, ansible_playbook: Callable[..., CompletedProcess[str]]
) -> Callable[..., CompletedProcess[str]]:
    """Run playbooks with an inventory, given as text."""

    def run(inventory: str, *arguments: str | Path, **environment: str) -> CompletedProcess[str]:
        (tmp_path / "hosts.yml").write_text(inventory)
        return ansible_playbook("-i", tmp_path / "hosts.yml", *arguments, **environment)

    return run


def test_databases_of_a_platform_leave_nothing_to_do(
    play: Callable[..., CompletedProcess[str]],
) -> None:
    """Also with hosts in database_admin: no package, no question, an empty budget."""
    books = [f"ansible/playbooks/{name}.yml" for name in ("plan", "postgres", "database")]
    alone = play(MANAGED, *books, "ansible/playbooks/pgbouncer.yml")
    assert alone.returncode == 0, alone.stdout + alone.stderr
    assert "changed=0" in alone.stdout
    assert "Read the server's limits" not in alone.stdout
    admin = MANAGED + "    database_admin:\n      hosts:\n        web1:\n"
    run = play(admin, *books, "--extra-vars", "ansible_become=false gather_facts=false")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "0  limits of the applications" in run.stdout
    assert "changed=0" in run.stdout
    assert "Install the client library" not in run.stdout


def test_poolers_are_checked_once_in_a_run(
    tmp_path: Path, play: Callable[..., CompletedProcess[str]]
) -> None:
    """By preflight.yml in site.yml, else by pgbouncer.yml itself."""
    role, notes = tmp_path / "roles/pgbouncer", tmp_path / "notes"
    (role / "tasks").mkdir(parents=True)
    (role / "tasks/main.yml").symlink_to(ROOT / "roles/pgbouncer/tasks/main.yml")
    for part in ("preflight", "install", "configure", "watchdog", "exporter"):
        note = {"ansible.builtin.raw": f"echo {part} >> {notes}"}
        host = {"ansible.builtin.set_fact": {"__pgbouncer_host": {}}}
        tasks = [note, host] if part == "preflight" else [note]
        (role / f"tasks/{part}.yml").write_text(yaml.safe_dump(tasks))
    inventory = MANAGED.replace("managed}", "managed, ansible_become: false, database_host: db1}")
    inventory += "    pgbouncer:\n      hosts:\n        web1:\n"
    book = "ansible/playbooks/pgbouncer.yml"
    run = play(inventory, book, book, ANSIBLE_ROLES_PATH=str(tmp_path / "roles"))
    assert run.returncode == 0, run.stdout + run.stderr
    found = notes.read_text().split()
    assert (found.count("preflight"), found.count("configure")) == (1, 2)


def test_preflight_asks_no_database_of_a_managed_application(
    tmp_path: Path, play: Callable[..., CompletedProcess[str]]
) -> None:
    plays = yaml.safe_load((ROOT / "ansible/playbooks/preflight.yml").read_text())
    book = tmp_path / "first.yml"
    book.write_text(yaml.safe_dump(plays[:1]))
    (tmp_path / "tasks").symlink_to(ROOT / "ansible/playbooks/tasks")
    run = play(MANAGED, book)
    assert run.returncode == 0, run.stdout + run.stderr
    poolers = MANAGED + "    pgbouncer:\n      hosts:\n        web1:\n"
    run = play(poolers, book)
    assert run.returncode != 0
    assert "nothing to serve: leave the group out" in " ".join(run.stdout.split())
    run = play(MANAGED.replace("managed", "native"), book)
    assert run.returncode != 0
    assert "no host in the group database_admin" in run.stdout


def test_pooler_of_an_application_that_goes_past_it_gets_nothing(
    role_sees: Callable[..., list[dict]],
) -> None:
    inventory = yaml.safe_load(INVENTORY)
    hosts = inventory["all"]["children"]["applications"]["hosts"]
    for facts in hosts.values():
        facts.update(app_connection_strategy="native", app_framework="flask", app_workers=1)
    del inventory["all"]["vars"]["pgbouncer_databases"]
    names = ("pgbouncer_client_addresses", "pooler_pool_sizes")
    text = yaml.safe_dump(inventory)
    seen = role_sees("pgbouncer", "pgbouncer", *names, inventory=text)
    assert seen[0]["pool1"] == [[], {}]
    assert seen[2]["web2"] == [["127.0.0.1/32"], {}]


def test_room_for_the_clients_reaches_the_file(role_sees: Callable[..., list[dict]]) -> None:
    """web1 and web3 use pool1: 201 workers of 5 each, twice, and 20 more; web2 has its own pooler.

    A process has a file for each of them, 2 for each connection of its pools (shop's 9 + 2, blog's
    10 + 2), and 100 more. The inventory's own number stands.
    """
    inventory = yaml.safe_load(INVENTORY)
    found = {"distribution": "debian 13", "version": "1.24.1"}
    facts = {"app_framework": "flask", "app_workers": 200, "__pgbouncer_host": found}
    inventory["all"]["vars"].update(facts)
    pools = inventory["all"]["children"]["pgbouncer"]["hosts"]
    pools["pool2"]["pgbouncer_settings"] = {"max_client_conn": 2100}
    names = [
        f"_pgbouncer_configuration.{name}" for name in ("settings.max_client_conn", "open_files")
    ]
    text = yaml.safe_dump(inventory)
    seen = role_sees("pgbouncer", "pgbouncer", *names, inventory=text)
    assert seen == [
        {"pool1": [2 * 201 * 5 + 20, 2030 + 2 * 23 + 100]},
        {"pool2": [2100, 2100 + 2 * 23 + 100]},
        {"web2": [201 * 5 + 20, 1025 + 2 * 11 + 100]},
    ]


def test_session_pool_reaches_the_pooler(role_sees: Callable[..., list[dict]]) -> None:
    inventory = yaml.safe_load(INVENTORY)
    hosts = inventory["all"]["children"]["applications"]["hosts"]
    for facts in hosts.values():
        facts.update(app_pool_mode="session", app_framework="flask", app_workers=1)
    text = yaml.safe_dump(inventory)
    seen = role_sees("pgbouncer", "pgbouncer", "pooler_pool_sizes", inventory=text)
    # web1's worker and stand-in with a pool of 5; the same for blog's web3.
    assert seen[0]["pool1"] == [{"shop": {"pool_size": 10}, "blog": {"pool_size": 10}}]
    assert seen[2]["web2"] == [{"shop": {"pool_size": 10}}]


FLEET = """
all:
  vars:
    ansible_connection: local
    ansible_become: false
    ansible_python_interpreter: PYTHON
    app_name: "x{{ inventory_hostname[:-1] }}"
    app_module: a
    app_source: s
    app_framework: flask
    app_connection_strategy: managed
    # What the stand-in of previous.yml registers.
    __app_before: {}
  children:
    applications:
      hosts: {HOSTS}
"""
PARTS = ("preflight", "build", "migrate", "serve", "previous", "rollback")
APP = ROOT / "ansible/playbooks/app.yml"


@pytest.fixture
def deploy(
    tmp_path: Path, play: Callable[..., CompletedProcess[str]]
) -> Callable[..., tuple[int, list[str], str]]:
    """Run a playbook with stand-ins for the parts of the role app.

    Each notes its name and host; `fails` and `loses` say on which hosts it fails or loses the
    connection, as {part: hosts}. The application of web1 is xweb. Return the exit code, the notes,
    and what the last task printed.
    """
    role, notes = tmp_path / "roles/app", tmp_path / "notes"
    (role / "tasks").mkdir(parents=True)
    for path in (ROOT / "roles/app").iterdir():
        if path.name not in ("tasks", "meta"):
            (role / path.name).symlink_to(path)
    for name in ("main", "attempt", "outcome", "stopped"):
        (role / f"tasks/{name}.yml").symlink_to(ROOT / f"roles/app/tasks/{name}.yml")
    lost = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1}

    def run(
        playbook: Path, hosts: str, *arguments: str, fails: dict | None = None, **more: dict
    ) -> tuple[int, list[str], str]:
        for part in PARTS:
            failing, losing = (
                f"inventory_hostname in {given.get(part, '').split()}"
                for given in (fails or {}, more.get("loses", {}))
            )
            tasks = [
                {
                    "name": f"Do {part}",
                    "ansible.builtin.raw": f"echo {part} {{{{ inventory_hostname }}}} >> {notes}"
                    f"{{{{ '; echo no such package >&2; exit 1' if {failing} else '' }}}}",
                },
            ]
            if part in more.get("loses", {}):
                tasks.insert(0, {"ansible.builtin.set_fact": lost, "when": losing})
            if part == "preflight":
                tasks.append({"ansible.builtin.set_fact": {"__app_host": {}}})
            (role / f"tasks/{part}.yml").write_text(yaml.safe_dump(tasks))
        notes.write_text("")
        names = ", ".join(f"{host}: {{}}" for host in hosts.split())
        done = play(
            FLEET.replace("PYTHON", sys.executable).replace("HOSTS", names),
            *(playbook, *arguments),
            ANSIBLE_ROLES_PATH=f"{tmp_path / 'roles'}:{ROOT / 'roles'}",
        )
        last = done.stdout.split("PLAY RECAP")[0].split("TASK [")[-1]
        return done.returncode, notes.read_text().splitlines(), " ".join(last.split())

    return run


def test_failure_stops_its_application_on_all_hosts_and_no_other(
    deploy: Callable[..., tuple],
) -> None:
    """Seven applications on two hosts each; in six something goes wrong, at another place each."""
    code, notes, last = deploy(
        *(
            APP,
            "build1 build2 migrate1 migrate2 one1 one2 two1 two2 gone1 gone2 late1 late2 ok1 ok2",
        ),
        fails={"build": "build2", "migrate": "migrate1", "serve": "one1 two2"},
        loses={"build": "gone2", "serve": "late1"},
    )
    assert code != 0
    assert {note for note in notes if note.endswith("ok1") or note.endswith("ok2")} == {
        *("preflight ok1", "preflight ok2", "build ok1", "build ok2"),
        *("migrate ok1", "serve ok1", "serve ok2"),
    }
    assert sorted(note for note in notes if note.startswith("migrate ")) == [
        f"migrate {host}1" for host in ("late", "migrate", "ok", "one", "two")
    ]
    assert sorted(note for note in notes if note.startswith("serve ")) == [
        *("serve ok1", "serve ok2", "serve one1", "serve two1", "serve two2"),
    ]
    for name, reason in {
        "build": "build2: Do build: non-zero return code: no such package",
        "migrate": "migrate1: Do migrate: non-zero return code: no such package",
        "one": "one1: Do serve: non-zero return code: no such package",
        "two": "two2: Do serve: non-zero return code: no such package",
        "gone": "gone2 does not answer any more, or failed before",
        "late": "late1 does not answer any more, or failed before",
    }.items():
        assert f"x{name} was stopped on all of its hosts: {reason}. What serves: on {name}" in last
    assert "on build1, build2 nothing serves. Correct it and run this again" in last
    assert "xok" not in last


@pytest.mark.parametrize(("fails", "loses"), [("b1", ""), ("", "b1")])
def test_preflight_of_one_host_stops_everything(
    deploy: Callable[..., tuple], fails: str, loses: str
) -> None:
    code, notes, _ = deploy(*(APP, "a1 b1"), fails={"preflight": fails}, loses={"preflight": loses})
    assert code != 0
    assert set(notes) <= {"preflight a1", "preflight b1"}


def test_hosts_are_checked_once_in_a_run(deploy: Callable[..., tuple]) -> None:
    """site.yml has checked them before it comes to the applications."""
    code, notes, _ = deploy(APP, "a1 a2", APP)
    assert code == 0
    assert [notes.count(f"preflight {host}") for host in ("a1", "a2")] == [1, 1]
    assert [notes.count(f"serve {host}") for host in ("a1", "a2")] == [2, 2]


@pytest.mark.parametrize(
    ("book", "part", "done"),
    [
        ("build", "build", {"build a1", "build a2", "build b1"}),
        ("migrate", "build", {"build a1", "build a2", "build b1", "migrate b1"}),
        ("rollback", "rollback", {"rollback a1", "rollback b1"}),
    ],
)
def test_a_layer_by_itself_ends_with_the_outcome(
    deploy: Callable[..., tuple], book: str, part: str, done: set[str]
) -> None:
    path = ROOT / f"ansible/playbooks/{book}.yml"
    code, notes, last = deploy(path, "a1 a2 b1", fails={part: "a1"})
    assert code != 0
    assert set(notes) - {
        f"{p} {h}" for p in ("preflight", "previous") for h in ("a1", "a2", "b1")
    } == (done)
    assert f"xa was stopped on all of its hosts: a1: Do {part}" in last


def test_role_by_its_name_deploys_its_hosts(deploy: Callable[..., tuple], tmp_path: Path) -> None:
    """In a playbook of one's own."""
    book = tmp_path / "own.yml"
    own = {"hosts": "applications", "gather_facts": False, "roles": [f"{COLLECTION}.app"]}
    book.write_text(yaml.safe_dump([own]))
    code, notes, last = deploy(
        book, "a1 a2 b1", "-e", "app_migrations=after", fails={"serve": "a2"}
    )
    assert code != 0
    assert notes.index("serve b1") < notes.index("migrate b1")
    assert "migrate a1" not in notes
    assert "xa was stopped on all of its hosts: a2: Do serve" in last
