"""What the role's templates become for each strategy, kind of application and user."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable
from configparser import ConfigParser
from itertools import product
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import yaml
from test_quoting import read_docker, read_systemd

from plugins.module_utils.secret_values import of_environment

ROOT = Path(__file__).resolve().parents[2]

STRATEGIES = ("pgbouncer", "pgbouncer_nopool", "native", "managed", "direct")
KINDS = {
    "wsgi": {"app_framework": "django", "app_module": "config.wsgi:application"},
    "asgi": {"app_framework": "django", "app_module": "config.asgi:application"},
    "fastapi": {"app_framework": "fastapi", "app_module": "app.main:app"},
    "flask": {"app_framework": "flask", "app_module": "app:create_app()"},
}

COMMON = {
    "ansible_connection": "local",
    "app_name": "shop",
    "app_port": 8000,
    "app_workers": 3,
    "app_database_password": "p@ss:w/rd",
    "app_database_owner_password": "own%er",
    "app_environment": {"KEY": 'a "quoted" $value', "DATABASE_POOL_SIZE_OF_MINE": "1"},
    "app_environment_names": {
        **{"DB_HOST": "host", "DB_PORT": "port", "DB_PASSWORD": "password"},
        **{"DB_TLS": "sslmode", "DB_CA": "sslrootcert", "DB_PLAIN": "plain_url"},
    },
    "database_host": "db1",
    "database_port": 5432,
    "database_sslmode": "require",
    "__app_packed": {
        "release": "abc123",
        "python_path": [".", "src"],
        "migrations": "src/shop/migrations",  # Flask-Migrate's; the examples have theirs at the top
    },
}
MANAGED = {
    "app_database_url": "postgresql://u:pooled@pool.example.com:6543/shop",
    "app_database_direct_url": "postgresql://u:direct@db.example.com:5432/shop",
    "app_environment_names": {},
}

FILES = {
    "app.env": ("etc/poolkit/app.env.j2", {"__app_format": "systemd", "__app_as_owner": False}),
    "docker.env": ("etc/poolkit/app.env.j2", {"__app_format": "docker", "__app_as_owner": False}),
    "direct.env": (
        "etc/poolkit/app.env.j2",
        {"__app_format": "systemd", "__app_as_owner": False, "__app_direct": True},
    ),
    "migrate.env": ("etc/poolkit/app.env.j2", {"__app_format": "systemd", "__app_as_owner": True}),
    "pg_service.conf": ("etc/poolkit/pg_service.conf.j2", {"__app_as_owner": False}),
    "migrate.pg_service.conf": ("etc/poolkit/pg_service.conf.j2", {"__app_as_owner": True}),
    "gunicorn.conf.py": ("etc/poolkit/gunicorn.conf.py.j2", {}),
    "shop.service": ("etc/systemd/system/app.service.j2", {"__app_next": False}),
    "shop-next.service": ("etc/systemd/system/app.service.j2", {"__app_next": True}),
    "shop.worker.service": (
        "etc/systemd/system/process.service.j2",
        {"__app_process": {"key": "worker", "value": {"command": "celery -A 'c' worker %h $X"}}},
    ),
    "shop.tidy.service": (
        "etc/systemd/system/process.service.j2",
        {
            "__app_process": {
                "key": "tidy",
                "value": {"command": "manage.py clearsessions", "schedule": "daily"},
            }
        },
    ),
    "shop.tidy.timer": (
        "etc/systemd/system/process.timer.j2",
        {"__app_process": {"key": "tidy", "value": {"command": "x", "schedule": "daily"}}},
    ),
    "shop.socket": ("etc/systemd/system/app.socket.j2", {}),
}

COMMANDS = ("pending", "upgrade")
"""Of the frameworks in roles/app/vars."""

Rendered = dict[str, dict[str, str]]


@pytest.fixture(scope="module")
def rendered(
    tmp_path_factory: pytest.TempPathFactory, ansible_playbook: Callable[..., CompletedProcess[str]]
) -> Rendered:
    """Render every file on a host for each strategy and kind, in one run of the role's own."""
    directory = tmp_path_factory.mktemp("templates")
    role = directory / "roles/app"
    (role / "tasks").mkdir(parents=True)
    for name in ("defaults", "vars", "templates"):
        (role / name).symlink_to(ROOT / f"roles/app/{name}")
    texts = {
        name: f"{{{{ lookup('ansible.builtin.template', '{path}', template_vars={variables}) }}}}"
        for name, (path, variables) in FILES.items()
    }
    texts |= {f"{kind}.json": f"{{{{ _app_framework.{kind} | to_json }}}}" for kind in COMMANDS}
    task = {"name": "Render", "ansible.builtin.debug": {"msg": texts}}
    (role / "tasks/main.yml").write_text(yaml.safe_dump([task]))
    hosts = {
        f"{strategy}-{kind}": {
            **KINDS[kind],
            "app_connection_strategy": strategy,
            **(MANAGED if strategy == "managed" else {}),
        }
        for strategy, kind in product(STRATEGIES, KINDS)
    }
    hosts["auto"] = {**KINDS["wsgi"], "app_workers": "auto", "app_threads": 7}
    hosts["auto-asgi"] = {**KINDS["fastapi"], "app_workers": "auto", "app_timeout_seconds": 12}
    hosts["state"] = {**KINDS["wsgi"], "app_state_directories": ["media", "cache"]}
    further = {"reports": {}, "replica": {"host": "db2", "port": 5433}}
    hosts["further"] = {**KINDS["wsgi"], "app_databases": further}
    hosts["limits"] = {**KINDS["wsgi"], "app_resource_limits": {"TasksMax": 9, "MemoryMax": "1G"}}
    verified = {**KINDS["wsgi"], "database_sslmode": "verify-full", "database_ca_file": "/ca.pem"}
    hosts["verified"] = verified
    socket = {"app_poolers": [{"host": "/run/pgbouncer/1", "port": 6432}]}
    hosts["verified-socket"] = {**verified, **socket}
    hosts["verified-native"] = {**verified, "app_connection_strategy": "native"}
    hosts["verified-asyncpg"] = {**verified, "app_database_url_scheme": "postgresql+asyncpg"}
    inventory = {"all": {"vars": COMMON, "hosts": hosts}}
    (directory / "hosts.yml").write_text(yaml.safe_dump(inventory))
    play = {"hosts": "all", "gather_facts": False, "roles": ["app"]}
    (directory / "play.yml").write_text(yaml.safe_dump([play]))
    run = ansible_playbook(
        *("-i", directory / "hosts.yml", directory / "play.yml"),
        ANSIBLE_STDOUT_CALLBACK="ansible.posix.json",
        ANSIBLE_ROLES_PATH=str(directory / "roles"),
    )
    assert run.returncode == 0, run.stdout + run.stderr
    results = json.loads(run.stdout)["plays"][0]["tasks"][0]["hosts"]
    return {host: result["msg"] for host, result in results.items()}


POOLED = (
    "postgresql://shop:p%40ss%3Aw%2Frd@/shop?host=127.0.0.1,db1&port=6432,5432"
    "&connect_timeout=2&application_name=shop"
)
DIRECT = (
    "postgresql://shop:p%40ss%3Aw%2Frd@db1:5432/shop?connect_timeout=2&application_name=shop"
    "&sslmode=require"
)
OWNER = DIRECT.replace("shop:p%40ss%3Aw%2Frd", "shop_owner:own%25er")

# Strategy and kind: DATABASE_URL, then DATABASE_POOL_SIZE, DATABASE_CONNECTION_MAX_AGE_SECONDS and
# DATABASE_TRANSACTION_POOLING. Django's synchronous workers keep a connection for each thread.
EXPECTED = {
    ("pgbouncer", "wsgi"): (POOLED, "0", "60", "1"),
    ("pgbouncer", "asgi"): (POOLED, "5", "60", "1"),
    ("pgbouncer", "fastapi"): (POOLED, "5", "60", "1"),
    ("pgbouncer", "flask"): (POOLED, "5", "60", "1"),
    **{("pgbouncer_nopool", kind): (POOLED, "0", "0", "1") for kind in KINDS},
    **{("native", kind): (DIRECT, "5", "3600", "0") for kind in KINDS},
    ("managed", "wsgi"): (MANAGED["app_database_url"], "0", "60", "1"),
    ("managed", "asgi"): (MANAGED["app_database_url"], "5", "60", "1"),
    ("managed", "fastapi"): (MANAGED["app_database_url"], "5", "60", "1"),
    ("managed", "flask"): (MANAGED["app_database_url"], "5", "60", "1"),
    **{("direct", kind): (DIRECT, "0", "0", "0") for kind in KINDS},
}


def test_further_databases_have_their_own_variables(rendered: Rendered) -> None:
    files = rendered["further"]
    found = read_systemd(files["app.env"])
    assert found["DATABASE_URL"] == POOLED
    login = "shop_reports:p%40ss%3Aw%2Frd"
    named = POOLED.replace("shop:p%40ss%3Aw%2Frd", login).replace("/shop?", "/shop_reports?")
    assert found["REPORTS_DATABASE_URL"] == named
    direct = DIRECT.replace("shop:p%40ss%3Aw%2Frd", login).replace("/shop?", "/shop_reports?")
    assert found["REPORTS_DATABASE_DIRECT_URL"] == direct
    assert found["REPLICA_DATABASE_URL"] == POOLED.replace("/shop?", "/shop_replica?").replace(
        "host=127.0.0.1,db1&port=6432,5432", "host=127.0.0.1&port=6432"
    ).replace("@/shop_replica?host=127.0.0.1&port=6432&", "@127.0.0.1:6432/shop_replica?")
    there = DIRECT.replace("db1:5432", "db2:5433")
    assert found["REPLICA_DATABASE_DIRECT_URL"] == there
    past = read_systemd(files["direct.env"])
    assert (past["REPORTS_DATABASE_URL"], past["REPLICA_DATABASE_URL"]) == (direct, there)
    migrates = read_systemd(files["migrate.env"])
    owner = direct.replace(login, "shop_reports_owner:own%25er")
    assert (migrates["REPORTS_DATABASE_URL"], migrates["REPLICA_DATABASE_URL"]) == (owner, there)
    services = ConfigParser(interpolation=None)
    services.read_string(files["migrate.pg_service.conf"])
    assert services["shop.reports_owner"]["user"] == "shop_reports_owner"
    assert services["shop.replica"]["dbname"] == "shop_replica"
    assert services["shop.replica_direct"]["dbname"] == "shop"
    assert "shop.replica_owner" not in services


def commands(files: dict[str, object]) -> list[list[str]]:
    """Return the commands of migrations; Ansible may have read the JSON already."""
    found = [files[f"{kind}.json"] for kind in COMMANDS]
    return [json.loads(text) if isinstance(text, str) else text for text in found]


def test_django_migrates_each_database_that_poolkit_makes(rendered: Rendered) -> None:
    plan = "python manage.py showmigrations --plan"
    assert commands(rendered["pgbouncer-wsgi"]) == [
        plan.split(),
        ["python", "manage.py", "migrate", "--noinput"],
    ]
    pending, upgrade = commands(rendered["further"])
    assert pending[:2] == upgrade[:2] == ["sh", "-ec"]
    migrate = "python manage.py migrate --noinput"
    assert upgrade[2].strip() == f"{migrate}; {migrate} --database reports"
    first, second, edit = pending[2].strip().split("; ")
    assert (first, second) == (plan, f"{plan} --database reports > /tmp/plan")
    # Each name tells its database, and what is applied already does not match.
    edited = subprocess.run(
        ["sh", "-c", edit.replace("/tmp/plan", "-")],
        input="[ ]  items.0001_initial\n[X]  auth.0001_initial\n",
        capture_output=True,
        text=True,
    )
    assert edited.stdout == "[ ]  reports:items.0001_initial\n[X]  reports:auth.0001_initial\n"


def test_flask_migrates_from_where_its_migrations_are(rendered: Rendered) -> None:
    pending, upgrade = commands(rendered["pgbouncer-flask"])
    folder = ["--directory", "src/shop/migrations"]
    assert upgrade == ["flask", "--app", "app:create_app()", "db", "upgrade", *folder, "heads"]
    for command in ("current", "heads"):
        assert f" db {command} {' '.join(folder)} > /tmp/{command};" in pending[2]


def test_every_strategy_is_in_the_table() -> None:
    specs = yaml.safe_load((ROOT / "roles/app/meta/argument_specs.yml").read_text())
    options = specs["argument_specs"]["main"]["options"]
    assert set(options["app_connection_strategy"]["choices"]) == set(STRATEGIES)
    assert set(EXPECTED) == set(product(STRATEGIES, KINDS))


@pytest.mark.parametrize(("strategy", "kind"), EXPECTED)
def test_environment_of_the_application(rendered: Rendered, strategy: str, kind: str) -> None:
    url, size, age, pooling = EXPECTED[strategy, kind]
    managed = strategy == "managed"
    expected = {
        "APP_NAME": "shop",
        "DATABASE_URL": url,
        "DATABASE_DIRECT_URL": MANAGED["app_database_direct_url"] if managed else DIRECT,
        "DATABASE_POOL_SIZE": size,
        "DATABASE_CONNECTION_MAX_AGE_SECONDS": age,
        "DATABASE_TRANSACTION_POOLING": pooling,
        **COMMON["app_environment"],
    }
    if not managed:
        pooled = strategy.startswith("pgbouncer")
        expected |= {
            "DB_HOST": "127.0.0.1,db1" if pooled else "db1",
            "DB_PORT": "6432,5432" if pooled else "5432",
            "DB_PASSWORD": "p@ss:w/rd",
            "DB_TLS": "prefer" if pooled else "require",
            "DB_CA": "",
            "DB_PLAIN": "postgresql://shop:p%40ss%3Aw%2Frd@"
            f"{'127.0.0.1:6432' if pooled else 'db1:5432'}/shop",
        }
    files = rendered[f"{strategy}-{kind}"]
    assert read_docker(files["docker.env"]) == {**expected, "APP_VERSION": "abc123"}
    if not managed:
        expected["PGSERVICEFILE"] = "/etc/poolkit/shop/pg_service.conf"
        expected["PGPASSFILE"] = "/etc/poolkit/shop/pgpass"
    # APP_VERSION is gunicorn.conf.py's.
    assert read_systemd(files["app.env"]) == expected
    # Past the pooler as the same role: nothing in it names the pooler.
    past = {**expected, "DATABASE_URL": expected["DATABASE_DIRECT_URL"]}
    past["DATABASE_TRANSACTION_POOLING"] = "0"
    if not managed:
        past |= {"DB_HOST": "db1", "DB_PORT": "5432", "DB_TLS": "require"}
        past["DB_PLAIN"] = past["DB_PLAIN"].replace("127.0.0.1:6432", "db1:5432")
    assert read_systemd(files["direct.env"]) == past


@pytest.mark.parametrize(("strategy", "kind"), EXPECTED)
def test_environment_of_the_migrations(rendered: Rendered, strategy: str, kind: str) -> None:
    """Directly to PostgreSQL as the owner, with a new connection each time."""
    managed = strategy == "managed"
    url = MANAGED["app_database_direct_url"] if managed else OWNER
    expected = {
        "APP_NAME": "shop",
        "APP_VERSION": "abc123",
        "DATABASE_URL": url,
        "DATABASE_DIRECT_URL": url,
        "DATABASE_POOL_SIZE": "0",
        "DATABASE_CONNECTION_MAX_AGE_SECONDS": "0",
        "DATABASE_TRANSACTION_POOLING": "0",
        **COMMON["app_environment"],
    }
    if not managed:
        expected |= {
            "DB_HOST": "db1",
            "DB_PORT": "5432",
            "DB_PASSWORD": "own%er",
            "DB_TLS": "require",
            "DB_CA": "",
            "DB_PLAIN": "postgresql://shop_owner:own%25er@db1:5432/shop",
            "PGSERVICEFILE": "/etc/poolkit/shop/migrate.pg_service.conf",
            "PGPASSFILE": "/etc/poolkit/shop/migrate.pgpass",
        }
    assert read_systemd(rendered[f"{strategy}-{kind}"]["migrate.env"]) == expected


CA = "/etc/poolkit/shop/database_ca.crt"
OWNER_CA = "/etc/poolkit/shop/migrate.database_ca.crt"


def verifies(url: str, authority: str) -> bool:
    return url.endswith(f"&sslmode=verify-full&sslrootcert={authority}")


@pytest.mark.parametrize("host", ["verified", "verified-native", "verified-socket"])
def test_direct_ways_verify_postgresql(rendered: Rendered, host: str) -> None:
    """A pooled URL only with the pooler's socket: its parameters are for the pooler as well."""
    found = read_systemd(rendered[host]["app.env"])
    assert verifies(found["DATABASE_DIRECT_URL"], CA)
    whole = host != "verified"
    assert verifies(found["DATABASE_URL"], CA) == whole
    parts = ("verify-full", CA) if whole else ("prefer", "")
    assert (found["DB_TLS"], found["DB_CA"]) == parts
    assert "PGSSLROOTCERT" not in found  # libpq would demand it of a pooler as well
    found = read_systemd(rendered[host]["migrate.env"])
    assert verifies(found["DATABASE_DIRECT_URL"], OWNER_CA)
    assert verifies(found["DATABASE_URL"], OWNER_CA)


def test_socket_of_the_stand_in_comes_second(rendered: Rendered) -> None:
    """It is there while a lone process is replaced."""
    url = read_systemd(rendered["verified-socket"]["app.env"])["DATABASE_URL"]
    assert "?host=/run/pgbouncer/1,/run/pgbouncer/2,db1&port=6432,6432,5432&" in url


def test_asyncpg_gets_the_authority_from_the_environment(rendered: Rendered) -> None:
    for name, authority in (("app.env", CA), ("migrate.env", OWNER_CA)):
        found = read_systemd(rendered["verified-asyncpg"][name])
        assert found["DATABASE_DIRECT_URL"].endswith("@db1:5432/shop?ssl=verify-full")
        assert found["PGSSLROOTCERT"] == authority


@pytest.mark.parametrize(
    ("host", "verified"),
    [
        ("verified", ["shop_direct", "shop_owner"]),
        ("verified-native", ["shop", "shop_direct"]),
        ("verified-socket", ["shop", "shop_direct"]),
    ],
)
def test_service_files_verify_postgresql(
    rendered: Rendered, host: str, verified: list[str]
) -> None:
    for name, authority in (("pg_service.conf", CA), ("migrate.pg_service.conf", OWNER_CA)):
        services = ConfigParser()
        services.read_string(rendered[host][name])
        for service in verified:
            assert services[service]["sslmode"] == "verify-full"
            assert services[service]["sslrootcert"] == authority
    services.read_string(rendered["native-wsgi"]["pg_service.conf"])
    assert services["shop"]["sslmode"] == "require", "as DATABASE_URL"
    services.clear()
    services.read_string(rendered["pgbouncer-wsgi"]["pg_service.conf"])
    assert "sslmode" not in services["shop"]
    assert "sslrootcert" not in services["shop_direct"]


def test_messages_know_the_secrets_of_the_environment(rendered: Rendered) -> None:
    secrets = of_environment(rendered["pgbouncer-wsgi"]["app.env"])
    assert {POOLED, DIRECT, "p@ss:w/rd", "p%40ss%3Aw%2Frd", 'a "quoted" $value'} <= secrets
    assert not {"shop", "abc123", "60"} & secrets


def settings_of(text: str, since_24: str = "    _DEFER = object()\n") -> dict[str, object]:
    """Run gunicorn's settings with stand-ins of its own parts; return the names that they set."""
    names: dict[str, object] = {}
    stand_ins = (
        "class Server: pass\nclass UvicornWorker: pass\n"
        "class gthread:\n"
        "    class TConn:\n"
        "        def wait_for_data(self, timeout): return timeout\n"
        f"    class ThreadWorker: pass\n{since_24}"
    )
    text = re.sub(r"^from (uvicorn|gunicorn).*\n", "", text, flags=re.MULTILINE)
    exec(compile(stand_ins + text, "gunicorn.conf.py", "exec"), names)
    return names


@pytest.mark.parametrize("kind", KINDS)
def test_gunicorn(
    rendered: Rendered, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "abc123").mkdir()
    monkeypatch.chdir(tmp_path / "abc123")
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    text = rendered[f"pgbouncer-{kind}"]["gunicorn.conf.py"]
    found = settings_of(text)
    assert found["workers"] == 3
    assert (found["timeout"], found["graceful_timeout"], found["keepalive"]) == (30, 30, 5)
    assert found["raw_env"] == ["APP_VERSION=abc123"]
    assert "bind" not in found
    found["post_worker_init"](None)
    assert (tmp_path / "ready").exists()
    if kind in ("asgi", "fastapi"):
        assert found["worker_class"].__name__ == "DrainingWorker"
        assert "threads" not in found
        assert text.count("\nfrom uvicorn") == 2
    else:
        assert (found["worker_class"].__name__, found["threads"]) == ("PromptWorker", 4)
        # gunicorn before 25 has nothing to mend, and not what it would be mended with.
        older = settings_of(text, "")["worker_class"]
        assert older.__name__ == "ThreadWorker"
        assert "uvicorn" not in text
        # A thread waits for no client that has sent nothing; without keep-alive, as before.
        connection = found["gthread"].TConn()
        assert connection.wait_for_data(5) == 0
        found["keepalive"] = 0
        assert connection.wait_for_data(5) == 5


def test_workers_follow_the_cores(rendered: Rendered, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 5})
    found = settings_of(rendered["auto"]["gunicorn.conf.py"])
    assert (found["workers"], found["threads"]) == (7, 7)
    found = settings_of(rendered["auto-asgi"]["gunicorn.conf.py"])
    assert (found["workers"], found["timeout"], found["graceful_timeout"]) == (7, 12, 12)


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line and not line.startswith("#")]


@pytest.mark.parametrize("host", ["pgbouncer-wsgi", "pgbouncer-flask", "limits"])
def test_trial_runs_as_the_service_does(rendered: Rendered, host: str) -> None:
    """But for its release, files and socket, and what keeps a service running."""
    service, trial = (lines(rendered[host][name]) for name in ("shop.service", "shop-next.service"))
    module = "'app:create_app()'" if host.endswith("flask") else "config.wsgi:application"
    framework = "flask" if host.endswith("flask") else "django"
    assert [line for line in service if line not in trial] == [
        f"Description=shop ({framework})",
        "After=network-online.target pgbouncer.target",
        "Wants=network-online.target",
        "Requires=shop.socket",
        "StartLimitIntervalSec=0",
        "WorkingDirectory=/srv/shop/current",
        "EnvironmentFile=/etc/poolkit/shop/app.env",
        "ExecStart=/srv/shop/current/.venv/bin/gunicorn --config "
        f"/etc/poolkit/shop/gunicorn.conf.py {module}",
        "Restart=always",
        "RestartSec=1",
        "[Install]",
        "WantedBy=multi-user.target",
    ]
    assert [line for line in trial if line not in service] == [
        f"Description=shop ({framework}), a release that is tried out",
        "WorkingDirectory=/srv/shop/next",
        "EnvironmentFile=/etc/poolkit/shop/next/app.env",
        "LogRateLimitIntervalSec=0",
        "ExecStart=/srv/shop/next/.venv/bin/gunicorn --config /etc/poolkit/shop/next/"
        f"gunicorn.conf.py --workers 1 --bind unix:/run/%N/http.sock {module}",
        "SystemCallFilter=@chown",
    ]
    for text in (service, trial):
        assert {"User=shop", "TimeoutStopSec=35", "TimeoutStartSec=35"} <= set(text)
        assert ("MemoryMax=1G" in text, "TasksMax=9" in text) == (host == "limits",) * 2


def test_state_directories(rendered: Rendered) -> None:
    """The service writes there and nowhere else; a proxy in its group reads what it writes."""
    for name in ("shop.service", "shop-next.service"):
        unit = lines(rendered["state"][name])
        writable = [line for line in unit if line.startswith("ReadWritePaths")]
        assert writable == [
            "ReadWritePaths=/srv/shop/state/media",
            "ReadWritePaths=/srv/shop/state/cache",
        ]
        assert "UMask=0027" in unit
        assert "UMask=0077" in lines(rendered["limits"][name])
    assert read_systemd(rendered["state"]["app.env"])["APP_STATE_DIRECTORY"] == "/srv/shop/state"


def test_further_processes_run_as_the_service_does(rendered: Rendered) -> None:
    """With its user, environment, sandbox and limits, from the release that serves."""
    service, worker, tidy = (
        lines(rendered["limits"][f"shop{name}.service"]) for name in ("", ".worker", ".tidy")
    )
    begin = "NoNewPrivileges=yes"
    end = "SystemCallErrorNumber=EPERM"
    sandbox = service[service.index(begin) : service.index(end) + 1]
    for unit in (worker, tidy):
        assert unit[unit.index(begin) : unit.index(end) + 1] == sandbox
        assert {
            *("User=shop", "EnvironmentFile=/etc/poolkit/shop/app.env", "MemoryMax=1G"),
            *("WorkingDirectory=/srv/shop/current", "X-Poolkit=shop"),
        } <= set(unit)
    (start,) = (line for line in worker if line.startswith("ExecStart="))
    # Below the release itself, and after the environment's file.
    assert '"$$r/.venv/bin:' in start
    assert 'PYTHONPATH="$$r/.:$$r/src"; exec celery -A ' in start
    assert start.endswith("\\'c\\' worker %%h $$X'")
    assert any(line.endswith("; exec python manage.py clearsessions'") for line in tidy)
    assert {"Type=exec", "Restart=always", "KillSignal=SIGTERM", "TimeoutStopSec=60"} <= set(worker)
    assert "Type=oneshot" in tidy
    assert not {"Restart=always", "WantedBy=multi-user.target"} & set(tidy)
    assert {"OnCalendar=daily", "WantedBy=timers.target"} <= set(
        lines(rendered["limits"]["shop.tidy.timer"])
    )


def test_units_are_what_the_deployment_reads(rendered: Rendered) -> None:
    """app_release asks on this socket; preflight knows the unit by its description."""
    files = rendered["pgbouncer-wsgi"]
    assert "RuntimeDirectory=%N" in files["shop.service"]
    assert "ListenStream=127.0.0.1:8000" in files["shop.socket"]
    assert "\nDescription=shop (" in files["shop.service"]
    for text in (files["shop.service"], files["shop-next.service"], files["shop.socket"]):
        assert "p@ss" not in text
