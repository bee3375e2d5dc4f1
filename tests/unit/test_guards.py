"""What must stop a deployment stops it, on every way in: on this machine, which is not changed."""

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import certifi
import pytest
import yaml
from test_project import tasks_of

ROOT = Path(__file__).resolve().parents[2]
PLAYBOOKS = ROOT / "ansible/playbooks"

INVENTORY = {
    "vars": {
        "ansible_connection": "local",
        "ansible_become": False,
        "ansible_python_interpreter": sys.executable,
        "app_source": str(ROOT / "examples/flask"),
        "app_framework": "flask",
        "app_module": "app:create_app()",
        "app_database_password": "p",
        "app_database_owner_password": "o",
        "app_connection_strategy": "native",
        "app_workers": 1,
        "database_host": "127.0.0.1",
        "database_port": 1,
        "database_admin_user": "admin",
        "database_admin_password": "a",
        "scram_salt_seed": "0123456789abcdef",
    },
    "children": {
        "applications": {
            "hosts": {
                # The first host of its application, and the administrator's.
                "web1": {"app_name": "shop", "private_address": "192.0.2.1"},
                "web2": {"app_name": "shop", "private_address": "192.0.2.2"},
                "web3": {"app_name": "blog", "private_address": "192.0.2.3"},
            }
        },
        "database_admin": {"hosts": {"web1": None}},
    },
}


@pytest.fixture
def play(
    tmp_path: Path, ansible_playbook: Callable[..., CompletedProcess[str]]
) -> Callable[..., tuple[int, str]]:
    """Run playbooks, in check mode as a rule; return the exit code and the output on one line."""

    def run(
        *arguments: str | Path,
        hosts: dict[str, dict] | None = None,
        groups: dict[str, list[str]] | None = None,
        check: bool = True,
        **environment: str,
    ) -> tuple[int, str]:
        """hosts: variables of a host beside INVENTORY's; groups: further groups."""
        inventory = copy.deepcopy(INVENTORY)
        for name, variables in (hosts or {}).items():
            every = inventory["children"]["applications"]["hosts"]
            every.setdefault(name, {}).update(variables)
        for name, members in (groups or {}).items():
            inventory["children"][name] = {"hosts": dict.fromkeys(members)}
        path = tmp_path / "hosts.yml"
        path.write_text(yaml.safe_dump({"all": inventory}))
        done = ansible_playbook(*["--check"] * check, "-i", path, *arguments, **environment)
        return done.returncode, " ".join((done.stdout + done.stderr).split())

    return run


@pytest.mark.parametrize(
    ("host", "variable", "groups", "meant"),
    [
        ("web1", "app_framwork", {}, "app_framework"),
        ("web2", "pgbouncer_listen_prot", {"pgbouncer": ["web1", "web2"]}, "pgbouncer_listen_port"),
        ("web1", "postgres_prot", {"postgres": ["web1", "web2"]}, "postgres_port"),
    ],
)
def test_one_host_that_is_refused_stops_every_host(
    play: Callable[..., tuple[int, str]],
    host: str,
    variable: str,
    groups: dict[str, list[str]],
    meant: str,
) -> None:
    """Whatever strategy the user's configuration has."""
    code, output = play(
        "site.yml", hosts={host: {variable: 1}}, groups=groups, ANSIBLE_STRATEGY="free"
    )
    assert code != 0
    assert f"{host}: unknown variable {variable} (did you mean {meant}?)" in output, output[-3000:]
    assert "HostVarsVars" not in output
    assert "PLAY [Plan" not in output


PREFLIGHT = """
- hosts: applications
  gather_facts: false
  tasks:
    - ansible.builtin.include_role: {name: app, tasks_from: preflight}
"""


def test_first_reason_to_refuse_an_application_is_said(
    tmp_path: Path, play: Callable[..., tuple[int, str]]
) -> None:
    """Each host has one reason more than the next; the checks after it count on the ones before."""
    host = {"app_python": "/opt/no/python3"}
    contradiction = {**host, "app_workers": 0}
    pooler = {**contradiction, "app_connection_strategy": "pgbouncer", "app_port": 6432}
    form = {**pooler, "app_health_path": "readyz"}
    facts = {
        "web1": ({**form, "app_framwork": 1}, "unknown variable app_framwork (did you mean"),
        "web2": (form, "app_health_path is 'readyz': give a path that begins with /"),
        "web3": (pooler, "app_port and the pooler's port are both 6432: set another app_port"),
        "web4": (contradiction, "app_workers is 0: give a number or auto"),
        "web5": (host, "there is no /opt/no/python3 on this host: install it, or set app_python"),
    }
    source = {"app_framework": "flask", "app_module": "app:create_app()"}
    source["app_source"] = str(ROOT / "examples/flask")
    hosts = {
        name: {**source, "app_name": name, "private_address": "192.0.2.9", **more}
        for name, (more, _) in facts.items()
    }
    (tmp_path / "preflight.yml").write_text(PREFLIGHT)
    _, output = play(tmp_path / "preflight.yml", hosts=hosts, HOME=str(tmp_path))
    for name, (_, words) in facts.items():
        assert f"failed: {name}: {words}" in output, output[-5000:]


def test_one_host_that_is_out_of_reach_stops_every_host(
    tmp_path: Path, play: Callable[..., tuple[int, str]]
) -> None:
    ssh = tmp_path / "ssh"
    ssh.write_text("#!/bin/sh\nexit 255\n")
    ssh.chmod(0o755)
    gone = {"ansible_connection": "ssh", "ansible_ssh_executable": str(ssh)}
    code, output = play("site.yml", hosts={"web2": gone})
    assert code != 0
    assert "unreachable=1" in output
    assert "PLAY [Plan" not in output
    # Where the administrator's host takes no part, the checks of the server do without it.
    verified = ("-e", f"database_sslmode=verify-full database_ca_file={certifi.where()}")
    code, output = play(PLAYBOOKS / "plan.yml", "--limit", "web2", *verified, hosts={"web1": gone})
    assert code == 0, output[-3000:]
    assert "available (assumed" in output


OVER = "database_reserved_for_others=90"


@pytest.mark.parametrize(
    ("book", "variable", "words"),
    [
        ("pgbouncer", OVER, "Lower, the largest first: database_reserved_for_others (90)"),
        ("app", OVER, "Lower, the largest first: database_reserved_for_others (90)"),
        ("../../site", OVER, "Lower, the largest first: database_reserved_for_others (90)"),
    ],
)
def test_limit_and_a_layers_playbook_alone_pass_no_guard(
    play: Callable[..., tuple[int, str]], book: str, variable: str, words: str
) -> None:
    """The host that takes part is neither its group's first nor the administrator's."""
    code, output = play(PLAYBOOKS / f"{book}.yml", "--limit", "web3", "-e", variable)
    assert code != 0
    assert words in output, output[-3000:]
    assert "PLAY [Deploy" not in output
    assert "PLAY [Build" not in output


def test_every_layer_begins_with_the_guard() -> None:
    """Those that open connections; app.yml and migrate.yml begin with build.yml."""

    def first(name: str) -> str:
        return yaml.safe_load((PLAYBOOKS / f"{name}.yml").read_text())[0].get(
            "ansible.builtin.import_playbook", ""
        )

    assert [first(name) for name in ("pgbouncer", "build")] == ["guard.yml", "guard.yml"]
    assert [first(name) for name in ("app", "migrate")] == ["build.yml", "build.yml"]


def test_no_task_has_a_tag() -> None:
    """--tags would run some of the tasks without the guards before them."""
    files = [ROOT / "site.yml", *PLAYBOOKS.glob("**/*.yml"), *ROOT.glob("roles/*/tasks/*.yml")]
    for path in files:
        content = yaml.safe_load(path.read_text())
        for item in [*content, *tasks_of(content)]:
            assert "tags" not in item, path


def test_every_play_waits_for_all_its_hosts() -> None:
    """Hosts read what others of the play have registered, and any_errors_fatal needs it too.

    But where queries are held, no pooler waits for another.
    """
    plays = [
        (path, play)
        for path in PLAYBOOKS.glob("*.yml")
        for play in yaml.safe_load(path.read_text())
        if "hosts" in play
    ]
    assert len(plays) > 15
    for path, item in plays:
        pinned = item["name"] == "Lead the poolers to the new server"
        strategy = "host_pinned" if pinned else "linear"
        assert item.get("strategy") == strategy, f"{path}: {item['name']}"


def test_one_host_makes_the_roles() -> None:
    for name in ("database", "public_tables"):
        _, first, *_ = yaml.safe_load((PLAYBOOKS / f"{name}.yml").read_text())
        assert first["hosts"] == "database_admin[0]"


MODULE = """#!/usr/bin/python
# WANT_JSON
import json, sys
query = json.load(open(sys.argv[1])).get("query")
print(json.dumps({roles} if isinstance(query, str) else {reply}))
"""


@pytest.fixture
def server(tmp_path: Path) -> Callable[..., dict[str, str]]:
    """Let the collection community.postgresql be one whose server says what the test says."""

    def says(roles: list[dict], databases: list[dict], connections: int) -> dict[str, str]:
        """Return the environment of such a run. Everything but a query says that it was called."""
        folder = tmp_path / "ansible_collections/community/postgresql"
        (folder / "plugins/modules").mkdir(parents=True, exist_ok=True)
        (folder / "meta").mkdir(exist_ok=True)
        names = ("query", "user", "db")
        group = {"action_groups": {"all": [f"postgresql_{name}" for name in names]}}
        (folder / "meta/runtime.yml").write_text(yaml.safe_dump(group))
        settings = {"max_connections": connections, "superuser_reserved_connections": 3}
        rows = [{"name": name, "setting": str(value)} for name, value in settings.items()]
        answer = {"query_all_results": [roles, databases, rows], "query_result": rows}
        for name in names:
            reply = answer if name == "query" else {"failed": True, "msg": f"CALLED {name}"}
            (folder / f"plugins/modules/postgresql_{name}.py").write_text(
                MODULE.format(reply=reply, roles={"query_result": roles})
            )
        return {"ANSIBLE_COLLECTIONS_PATH": str(tmp_path)}

    return says


@pytest.fixture
def database_book(tmp_path: Path) -> Path:
    """database.yml without its tasks that change this machine, which check mode asks about too."""
    plays = yaml.safe_load((PLAYBOOKS / "database.yml").read_text())
    for name in ("tasks", "plays", "vars"):
        (tmp_path / name).symlink_to(PLAYBOOKS / name)
    role = ROOT / "roles/database"
    (tmp_path / "roles/database/tasks").mkdir(parents=True)
    for path in (*role.iterdir(), *role.glob("tasks/*")):
        copy = tmp_path / "roles/database" / path.relative_to(role)
        if path.name == "client.yml":
            copy.write_text("[{ansible.builtin.debug: , register: __database_library}]")
        elif path.name != "tasks":
            copy.symlink_to(path)
            assert path.is_dir() or "ansible.builtin.apt" not in path.read_text()
    path = tmp_path / "database.yml"
    path.write_text(yaml.safe_dump(plays))
    return path


def role(name: str, **changes: object) -> dict:
    return {
        **{"rolname": name, "fingerprint": None, "usable": True},
        **{"rolsuper": False, "rolreplication": False, "rolcreaterole": False, **changes},
    }


ADMIN = role("admin", rolcreaterole=True)
TAKEN = "PostgreSQL at 127.0.0.1:1 has shop_owner already, with a password that poolkit has not set"


def test_the_server_is_asked_again_before_roles_are_made(
    play: Callable[..., tuple[int, str]], server: Callable[..., dict[str, str]], database_book: Path
) -> None:
    """The first deployment's plan had an assumption, since nothing could ask yet."""
    code, output = play(database_book, **server([ADMIN], [], 30))
    assert code != 0
    assert "than the 27 that PostgreSQL takes" in output, output[-3000:]
    assert "CALLED" not in output


def test_the_server_is_asked_once_where_the_plan_had_its_answer(
    play: Callable[..., tuple[int, str]], server: Callable[..., dict[str, str]]
) -> None:
    """And again where it had none: every host's numbers were an assumption then."""
    books = (PLAYBOOKS / "plan.yml", PLAYBOOKS / "guard.yml")
    code, output = play(*books, **server([ADMIN], [], 200))
    assert code == 0, output[-3000:]
    assert output.count("Read the server's limits]") == 1
    code, output = play(*books)  # nothing listens on port 1
    assert code == 0, output[-3000:]
    assert output.count("Read the server's limits]") == 2


def test_only_the_plan_lets_a_guard_be_left_out() -> None:
    """database.yml asks on one host: the poolers would keep what the plan has assumed."""
    files = [path for path in PLAYBOOKS.glob("**/*.yml") if "__server_checked:" in path.read_text()]
    assert [path.name for path in files] == ["plan.yml"]


@pytest.mark.parametrize(
    ("book", "roles", "databases", "words"),
    [
        ("plan", [], [{"datname": "shop", "owner": "someone"}], "to someone, not to shop_owner"),
        ("pgbouncer", [role("shop_owner")], [], TAKEN),
        ("app", [role("shop", rolsuper=True)], [], "exists and is a superuser"),
        ("database", [role("shop_owner")], [], TAKEN),
    ],
)
def test_what_the_server_knows_is_refused(
    play: Callable[..., tuple[int, str]],
    server: Callable[..., dict[str, str]],
    database_book: Path,
    book: str,
    roles: list[dict],
    databases: list[dict],
    words: str,
) -> None:
    path = database_book if book == "database" else PLAYBOOKS / f"{book}.yml"
    environment = server([ADMIN, *roles], databases, 200)
    code, output = play(path, groups={"pgbouncer": ["web1"]}, **environment)
    assert code != 0
    assert words in output, output[-3000:]
    assert "CALLED" not in output


def test_a_password_is_changed_where_it_was_asked_for(
    play: Callable[..., tuple[int, str]], server: Callable[..., dict[str, str]], database_book: Path
) -> None:
    environment = server([ADMIN, role("shop_owner")], [], 200)
    change = ("-e", "database_password_change=true")
    _, output = play(database_book, *change, check=False, **environment)
    assert "CALLED user" in output, output[-3000:]


def test_only_the_database_playbook_changes_passwords() -> None:
    """Poolers and applications that had a password first would only be refused with it."""
    (guard,) = yaml.safe_load((PLAYBOOKS / "guard.yml").read_text())
    assert guard["vars"]["passwords_set"] is False


def test_generated_passwords_have_nothing_to_quote() -> None:
    """A newcomer pastes one into a URL or a shell."""
    found = 0
    for path in ROOT.glob("inventories/**/*.yml"):
        for line in path.read_text().splitlines():
            if "lookup('ansible.builtin.password'" in line:
                assert "chars=['ascii_letters', 'digits']" in line, f"{path}: {line}"
                found += 1
    assert found == 5


@pytest.fixture
def docker(tmp_path: Path) -> dict[str, str]:
    """Let the collection community.docker be one that starts no host, and says which ports."""
    folder = tmp_path / "ansible_collections/community/docker/plugins/modules"
    folder.mkdir(parents=True)
    for name, failed in (("network", False), ("container", True)):
        (folder / f"docker_{name}.py").write_text(
            "#!/usr/bin/python\n# WANT_JSON\nimport json, sys\n"
            "asked = json.load(open(sys.argv[1]))\n"
            f"print(json.dumps(dict(failed={failed}, msg=str(asked.get('published_ports')))))\n"
        )
    return {"ANSIBLE_COLLECTIONS_PATH": str(tmp_path)}


def test_docker_hosts_publish_the_applications_port(
    play: Callable[..., tuple[int, str]], docker: dict[str, str]
) -> None:
    """And where that fails, the message names the inventory in use."""
    facts = {
        **{"docker_network": "n", "docker_subnet_prefix": "192.0.2"},
        **{"docker_published_port": 8101, "app_port": 9000, "ansible_host": "c"},
    }
    hosts = {name: {**facts, "app_bind_address": "0.0.0.0"} for name in ("web1", "web2", "web3")}
    book = (PLAYBOOKS / "docker_up.yml", "-e", "docker_image=none")
    code, output = play(*book, hosts=hosts, **docker)
    assert code != 0
    assert "127.0.0.1:8101:9000" in output, output[-3000:]
    assert "hosts.yml, in its group_vars/all.yml" in output
    assert "inventories/local" not in output
    hosts["web2"]["app_bind_address"] = "127.0.0.1"
    code, output = play(*book, hosts=hosts, **docker)
    assert code != 0
    assert "web2: docker_published_port leads to the container's own address" in output
