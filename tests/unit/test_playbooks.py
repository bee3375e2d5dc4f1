"""What the playbooks derive reaches the roles, and the inventory's own value goes before it."""

import json
import os
import subprocess
import sys
from pathlib import Path

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


def role_sees(
    tmp_path: Path, playbook: str, role: str, *variables: str, inventory: str = INVENTORY
) -> list[dict[str, list]]:
    """Return variables as a role sees them on each host: its defaults, and the play's vars.

    One dict for each batch of hosts, in the order of the play.
    """
    (play,) = yaml.safe_load((ROOT / f"ansible/playbooks/{playbook}.yml").read_text())
    (tmp_path / f"roles/{role}/tasks").mkdir(parents=True)
    (tmp_path / f"roles/{role}/defaults").symlink_to(ROOT / f"roles/{role}/defaults")
    names = ", ".join(variables)
    task = {"ansible.builtin.debug": {"msg": f"{{{{ [{names}] }}}}"}}
    (tmp_path / f"roles/{role}/tasks/main.yml").write_text(yaml.safe_dump([task]))
    keys = {"hosts", "serial", "vars", "roles"}
    short = {**{key: play[key] for key in keys & play.keys()}, "gather_facts": False}
    (tmp_path / "play.yml").write_text(yaml.safe_dump([short]))
    (tmp_path / "hosts.yml").write_text(inventory)
    programs = Path(sys.executable).parent
    run = subprocess.run(
        ["ansible-playbook", "-i", tmp_path / "hosts.yml", tmp_path / "play.yml"],
        cwd=ROOT,
        env={
            **os.environ,
            "PATH": f"{programs}:{os.environ['PATH']}",
            "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
            "ANSIBLE_ROLES_PATH": str(tmp_path / "roles"),
        },
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return [
        {host: result["msg"] for host, result in batch["tasks"][0]["hosts"].items()}
        for batch in json.loads(run.stdout)["plays"]
    ]


def test_poolers_listen_where_their_clients_are(tmp_path: Path) -> None:
    names = ("pgbouncer_listen_addr", "pgbouncer_client_addresses", "pooler_pool_sizes")
    seen = role_sees(tmp_path, "pgbouncer", "pgbouncer", *names)
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


def test_poolers_beside_applications_are_changed_at_once(tmp_path: Path) -> None:
    inventory = yaml.safe_load(INVENTORY)
    groups = inventory["all"]["children"]
    groups["pgbouncer"]["hosts"] = dict.fromkeys(groups["applications"]["hosts"])
    text = yaml.safe_dump(inventory)
    (batch,) = role_sees(tmp_path, "pgbouncer", "pgbouncer", "inventory_hostname", inventory=text)
    assert sorted(batch) == ["web1", "web2", "web3"]


def test_applications_get_their_poolers(tmp_path: Path) -> None:
    pool1, pool2 = {"host": "192.0.2.11", "port": 6433}, {"host": "192.0.2.12", "port": 6432}
    assert role_sees(tmp_path, "app", "app", "app_poolers") == [
        {
            "web1": [[pool1, pool2]],
            "web2": [[{"host": "127.0.0.1", "port": 6432}]],
            "web3": [[{"host": "balancer", "port": 1}]],
        }
    ]


def test_the_plan_comes_before_anything_changes() -> None:
    imports = [
        Path(play["ansible.builtin.import_playbook"]).stem
        for play in yaml.safe_load((ROOT / "site.yml").read_text())
    ]
    assert imports[:2] == ["preflight", "plan"]
