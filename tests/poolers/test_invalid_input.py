"""Bad variables are refused with a message that names them, and nothing changes on the host.

The whole role runs once for each line of the table, on both hosts, in one playbook.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Pooler
from controller import ROOT, ansible

SHOP = {"type": "host", "database": "shop", "user": "shop", "address": "10.0.0.0/8"}
LOCAL = {"type": "local", "database": "shop", "user": "shop"}


def setting(**values: object) -> dict:
    return {"pgbouncer_settings": values}


def database(**values: object) -> dict:
    return {"pgbouncer_databases": {"shop": values}}


def user(**values: object) -> dict:
    return {"pgbouncer_users": {"shop": values}}


def rule(base: dict, **values: object) -> dict:
    return {"pgbouncer_hba_rules": [{**base, **values}]}


CASES = [
    # A name that PgBouncer or poolkit does not know.
    ({"pgbouncer_listen_prot": 1}, r"unknown variable pgbouncer_listen_prot \(did you mean"),
    (setting(defalt_pool_size=5), "did you mean default_pool_size"),
    (setting(idle_in_transaction_session_timeout=5), "use idle_transaction_timeout"),
    (setting(statement_timeout=5), "it is PostgreSQL's: use query_timeout"),
    (setting(max_connections=5), "use max_client_conn"),
    (setting(pool_size=5), "use default_pool_size"),
    (database(idle_transaction_timeout=5), "use it in pgbouncer_settings or pgbouncer_users"),
    (database(default_pool_size=5), "use pool_size"),
    (database(max_client_conn=5), "use max_db_client_connections"),
    (database(password="x"), "passes each client's own SCRAM keys through"),
    (user(password="x"), "passwords belong to the user list"),
    (user(max_db_connections=5), "use max_user_connections"),
    # A type, a unit or a choice that PgBouncer would not read as meant.
    (setting(query_wait_timeout="30s"), "is '30s': PgBouncer reads seconds without a unit"),
    (setting(query_wait_timeout=-1), "is -1: PgBouncer reads seconds"),
    (setting(stats_period=1.5), "whole seconds without a unit"),
    (setting(log_connections="yes"), "is 'yes': PgBouncer reads 0 or 1"),
    (setting(log_connections=True), "is True: PgBouncer reads 0 or 1"),
    (setting(default_pool_size="abc"), "is 'abc': PgBouncer reads a whole number"),
    (setting(max_client_conn=99999999999), "the largest number is 2147483647"),
    (setting(pool_mode="query"), "use one of session, transaction, statement"),
    (setting(unix_socket_mode=777), "an octal number in quotes"),
    (setting(server_check_query=["a"]), "PgBouncer reads one string here"),
    (setting(job_name=5), "give it as text, in quotes"),
    (database(pool_size="abc"), r"pgbouncer_databases\['shop'\].pool_size is 'abc'"),
    (user(pool_mode="sessions"), "use one of session, transaction, statement"),
    # What would break the file.
    (setting(admin_users="ops ; oncall"), "a comment at the end of a line"),
    (setting(server_check_query="select 1\n[users]"), "has a line break"),
    (setting(server_check_query=" select 1"), "a blank at its start or end"),
    ({"pgbouncer_databases": {"my shop": {"host": "x"}}}, "use the characters A-Z"),
    ({"pgbouncer_databases": {"a]\n[users": {"host": "x"}}}, "use the characters A-Z"),
    ({"pgbouncer_databases": {"pgbouncer": {"host": "x"}}}, "not the name pgbouncer"),
    ({"pgbouncer_users": {'a"b': {}}}, "use the characters A-Z"),
    # What the installed version cannot do.
    (setting(transaction_timeout=5), "needs PgBouncer 1.25.0, the host has 1"),
    (setting(login_notify_message="x"), "needs PgBouncer 1.26.0, the host has 1"),
    # Names that belong to nobody.
    ({"pgbouncer_databases": {"shp": {"pool_size": 5}}}, "no application of this pooler has this"),
    ({"pgbouncer_users": {"shp": {"pool_mode": "session"}}}, r"this user \(it has shop\)"),
    # What the role itself sets.
    (setting(listen_port=5), "the role sets it: use pgbouncer_listen_port"),
    (setting(auth_type="trust"), "the role sets it: use pgbouncer_tcp_auth_method"),
    (setting(logfile="/tmp/x"), "the journal holds the log"),
    (setting(unix_socket_dir="/tmp"), "process N has its socket in /run/pgbouncer/N"),
    # Access rules.
    (rule(SHOP, method="trust"), "trust lets anyone in"),
    (rule(SHOP, method="peer"), "the method 'peer' does not go with host"),
    (rule(SHOP, method="scram"), "use one of scram-sha-256, md5, reject"),
    (rule(SHOP, method="reject", address="10.0.0.300"), "is no network in CIDR notation"),
    (rule(SHOP, method="reject", address=""), "host needs an address"),
    (rule(SHOP, method="reject", type="hst"), "value of type must be one of"),
    (rule(LOCAL, method="reject", address="10.0.0.0/8"), "local takes no address"),
    (rule(LOCAL, method="reject", user="a\nb"), "give a name, names, or all"),
    # Relations.
    ({"pgbouncer_processes": 0}, "at least one"),
    ({"pgbouncer_processes": 40}, "less than pgbouncer_processes|needs PgBouncer 1.19.0"),
    ({"pgbouncer_listen_addr": "0.0.0.0"}, "set pgbouncer_listen_on_all_addresses: true"),
    ({"pgbouncer_listen_addr": "0"}, "is read as 0.0.0.0: write it so"),
    ({"pgbouncer_listen_addr": "127.0.0.1\nauth_type = any"}, "no IP address and no host name"),
    ({"pgbouncer_exporter_listen_addr": ""}, "pgbouncer_exporter_listen_addr holds ''"),
    ({"pgbouncer_listen_port": "6432\n"}, r"pgbouncer_listen_port is '6432\\n'"),
    (database(connect_query=""), r"pgbouncer_databases\['shop'\].connect_query is empty"),
    ({"pgbouncer_client_addresses": ["300.1.1.1/32"]}, "'300.1.1.1/32' is no network"),
    ({"pgbouncer_tcp_auth_method": "cert"}, "needs pgbouncer_tls_client_ca_file"),
    ({"pgbouncer_tcp_auth_method": "password"}, "value of pgbouncer_tcp_auth_method must be one"),
    ({"pgbouncer_tls_certificate_file": "/etc/hosts"}, "give both"),
    ({"pgbouncer_auth_query_enabled": True}, "pgbouncer_auth_query_password is missing"),
    (setting(server_tls_sslmode="verify-full"), "needs database_ca_file"),
    ({"database_ca_file": "/nonexistent"}, "database_ca_file is /nonexistent: there is no such"),
    ({"pgbouncer_tls_client_ca_file": "/etc/hosts"}, "/etc/hosts: it holds no certificate in PEM"),
    ({"pgbouncer_tls_key_file": "/etc/hosts"}, "/etc/hosts: it holds no private key in PEM format"),
    ({"pgbouncer_scram_salt_seed": "short"}, "must have at least 16 characters"),
    # What only the host can tell.
    (setting(client_tls_sslmode="require"), "PgBouncer refuses the new configuration"),
    (setting(server_tls_key_file="/nonexistent"), "there is no file /nonexistent"),
    ({"pgbouncer_listen_port": 5999}, "port 5999 is in use by taken.service"),
]


@pytest.fixture(scope="module")
def answers(
    poolers: dict[str, Pooler], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[tuple[str, int], str]]:
    """Return what the role said, by host and number of the case; compare the hosts' states."""
    tasks = []
    for number, (variables, _) in enumerate(CASES):
        role = {"name": "pgbouncer"}
        run = [
            {"ansible.builtin.include_role": role, "vars": variables},
            {"name": f"case {number}", "ansible.builtin.debug": {"msg": "ACCEPTED"}},
        ]
        report = {"name": f"case {number}"}
        report["ansible.builtin.debug"] = {"msg": "{{ ansible_failed_result.msg }}"}
        tasks.append({"block": run, "rescue": [report]})
    play = {"hosts": "pgbouncer", "become": True, "gather_facts": False, "tasks": tasks}
    derive = ROOT / "ansible/playbooks/tasks/derive.yml"
    play["pre_tasks"] = [{"ansible.builtin.import_tasks": str(derive)}]
    served = "{{ __fleet | poolkit.poolkit.pooler_applications(inventory_hostname, hostvars) }}"
    play["vars"] = {"pgbouncer_applications": served}
    path = tmp_path_factory.mktemp("cases") / "cases.yml"
    Path(path).write_text(json.dumps([play]))
    for pooler in poolers.values():
        pooler.host.check_output(
            "systemd-run --unit=taken --property=Type=exec python3 -c 'import socket, time; "
            's = socket.create_server(("127.0.0.1", 5999)); time.sleep(900)\''
        )
    before = {name: pooler.state() for name, pooler in poolers.items()}
    run = ansible(
        *("ansible-playbook", str(path)),
        ANSIBLE_STDOUT_CALLBACK="ansible.posix.json",
        ANSIBLE_LOAD_CALLBACK_PLUGINS="1",
        ANSIBLE_ROLES_PATH=str(ROOT / "roles"),
    )
    after = {name: pooler.state() for name, pooler in poolers.items()}
    for pooler in poolers.values():
        pooler.host.check_output("systemctl stop taken")
    assert after == before
    found = {}
    for task in json.loads(run.stdout)["plays"][0]["tasks"]:
        if match := re.fullmatch(r"case (\d+)", task["task"]["name"]):
            for host, result in task["hosts"].items():
                found[host, int(match.group(1))] = str(result["msg"])
    yield found


@pytest.mark.parametrize(
    "number", range(len(CASES)), ids=lambda n: f"{n}-{next(iter(CASES[n][0]))}"
)
@pytest.mark.parametrize("host", ["trixie1", "bookworm1"])
def test_it_is_refused(answers: dict, host: str, number: int) -> None:
    _, words = CASES[number]
    assert re.search(words, answers[host, number]), answers[host, number]
    assert (
        host in answers[host, number]
        or "argument" in answers[host, number].lower()
        or (
            "Nothing was changed" in answers[host, number]
            or "scram_salt_seed" in answers[host, number]
        )
    )
