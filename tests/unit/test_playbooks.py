"""What the playbooks derive reaches the roles, and the inventory's own value goes before it."""

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]

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
        *others, play = yaml.safe_load((ROOT / f"ansible/playbooks/{playbook}.yml").read_text())
        play.setdefault("roles", [role])  # where its tasks include a part of the role
        others = [
            {
                "hosts": other["hosts"],
                "gather_facts": False,
                "tasks": [{"ansible.builtin.set_fact": {"__app_host": {}, "__app_before": {}}}],
            }
            for other in others
        ]
        (tmp_path / f"roles/{role}/tasks").mkdir(parents=True)
        (tmp_path / f"roles/{role}/defaults").symlink_to(ROOT / f"roles/{role}/defaults")
        names = ", ".join(variables)
        task = {"ansible.builtin.debug": {"msg": f"{{{{ [{names}] }}}}"}}
        (tmp_path / f"roles/{role}/tasks/main.yml").write_text(yaml.safe_dump([task]))
        keys = {"hosts", "serial", "vars", "roles"}
        short = {**{key: play[key] for key in keys & play.keys()}, "gather_facts": False}
        (tmp_path / "play.yml").write_text(yaml.safe_dump([*others, short]))
        (tmp_path / "hosts.yml").write_text(inventory)
        run = ansible_playbook(
            *("-i", tmp_path / "hosts.yml", tmp_path / "play.yml", "--limit", limit),
            ANSIBLE_STDOUT_CALLBACK="ansible.posix.json",
            ANSIBLE_ROLES_PATH=str(tmp_path / "roles"),
        )
        assert run.returncode == 0, run.stdout + run.stderr
        return [
            {host: result["msg"] for host, result in batch["tasks"][0]["hosts"].items()}
            for batch in json.loads(run.stdout)["plays"][len(others) :]
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


POOLERS = {
    "web1": [{"host": "192.0.2.11", "port": 6433}, {"host": "192.0.2.12", "port": 6432}],
    "web2": [{"host": "127.0.0.1", "port": 6432}],
    "web3": [{"host": "balancer", "port": 1}],
}


def test_applications_get_their_poolers(role_sees: Callable[..., list[dict]]) -> None:
    (seen,) = role_sees("build", "app", "app_poolers", "pooler_query_wait_timeout")
    assert seen == {host: [poolers, 10] for host, poolers in POOLERS.items()}


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
    _, back = plays("rollback")
    (migrate,) = plays("migrate")
    for key in ("hosts", "serial"):
        assert serve[key] == back[key].replace("__app_before", "__app_host")
    for play in (before, serve, after, migrate):
        assert play["vars"] == back["vars"]
    assert serve["max_fail_percentage"] == back["max_fail_percentage"] == 0


def test_the_plan_comes_before_anything_changes() -> None:
    imports = [
        Path(play["ansible.builtin.import_playbook"]).stem
        for play in yaml.safe_load((ROOT / "site.yml").read_text())
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

    def run(inventory: str, *arguments: str | Path) -> CompletedProcess[str]:
        (tmp_path / "hosts.yml").write_text(inventory)
        return ansible_playbook("-i", tmp_path / "hosts.yml", *arguments)

    return run


def test_databases_of_a_platform_leave_nothing_to_do(
    play: Callable[..., CompletedProcess[str]],
) -> None:
    """Also with hosts in database_admin: no package, no question, an empty budget."""
    books = [f"ansible/playbooks/{name}.yml" for name in ("plan", "postgres", "database")]
    alone = play(MANAGED, *books, "ansible/playbooks/pgbouncer.yml")
    assert alone.returncode == 0, alone.stdout + alone.stderr
    assert "changed=" not in alone.stdout
    admin = MANAGED + "    database_admin:\n      hosts:\n        web1:\n"
    run = play(admin, *books, "--extra-vars", "ansible_become=false gather_facts=false")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "0  limits of the applications" in run.stdout
    assert "changed=0" in run.stdout
    assert "Install the client library" not in run.stdout


def test_preflight_asks_no_database_of_a_managed_application(
    tmp_path: Path, play: Callable[..., CompletedProcess[str]]
) -> None:
    plays = yaml.safe_load((ROOT / "ansible/playbooks/preflight.yml").read_text())
    book = tmp_path / "first.yml"
    book.write_text(yaml.safe_dump(plays[:1]))
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
