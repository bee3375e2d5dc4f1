"""The images of a task, run as Fargate runs them: read-only, without capabilities, fresh volumes.

Needs a Docker engine and the image poolkit-base:trixie, which scripts/host_image.sh makes; another
base goes in POOLKIT_IMAGE_BASE.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import jinja2
import pytest

from plugins.module_utils import migration
from plugins.module_utils.source_tree import source_tree
from plugins.modules import source_archive

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ROOT / "roles/ecs/files/images"
UTILS = ROOT / "ansible/plugins/module_utils"
COPIED = ("migration", "command_output", "refused", "secret_values", "text_files")
"""What of module_utils app-migrate needs."""

NETWORK = "poolkit-images"
SERVER = "poolkit-images-postgresql"
LABEL = "poolkit-images"
BASE = os.environ.get("POOLKIT_IMAGE_BASE", "poolkit-base:trixie")
CERTIFICATES = [
    *(os.environ.get(name, "") for name in ("PIP_CERT", "SSL_CERT_FILE")),
    "/etc/ssl/certs/ca-certificates.crt",
]

POSTGRESQL = """
FROM {base}
RUN apt-get update -q && DEBIAN_FRONTEND=noninteractive \\
    apt-get install -y -q --no-install-recommends postgresql && apt-get clean
RUN cd /etc/postgresql/*/main && \\
    echo 'host all all 0.0.0.0/0 scram-sha-256' >> pg_hba.conf && \\
    echo "listen_addresses = '*'" >> postgresql.conf
USER postgres
STOPSIGNAL SIGINT
CMD exec pg_ctlcluster --foreground "$(ls /etc/postgresql)" main start
"""

OWNER_PASSWORD, USER_PASSWORD = "owner's-Hush-1", "user-Hush-2"
OWNER_IN_A_URL = "owner%27s-Hush-1"

INI = f"""\
[databases]
shop = host={SERVER} port=5432 dbname=shop

[users]

[pgbouncer]
auth_file = /etc/pgbouncer/userlist.txt
auth_hba_file = /etc/pgbouncer/pg_hba.conf
auth_type = hba
listen_addr = 127.0.0.1
listen_port = 6432
pool_mode = transaction
query_wait_timeout = 4
server_connect_timeout = 3
server_login_retry = 1
server_tls_ca_file = /etc/pgbouncer/tls/database_ca.crt
server_tls_sslmode = verify-ca
"""
HBA = "host shop shop,shop_owner 127.0.0.1/32 scram-sha-256\n"

HARDENED = (
    *("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
    *("--label", LABEL),
)


def docker(*words: str, check: bool = True, **more: object) -> subprocess.CompletedProcess[str]:
    """Run docker; with check a failure shows what it said."""
    limit = 600 if words[0] == "build" else 60
    done = subprocess.run(["docker", *words], capture_output=True, text=True, timeout=limit, **more)
    assert not check or done.returncode == 0, (
        f"docker {' '.join(words)}\n{done.stdout}{done.stderr}"
    )
    return done


def build(context: Path, tag: str, **arguments: str) -> subprocess.CompletedProcess[str]:
    words = [word for item in arguments.items() for word in ("--build-arg", "=".join(item))]
    return docker("build", "--tag", tag, *words, str(context), check=False)


def given(variables: dict[str, str]) -> list[str]:
    """Return docker's words for environment variables, whose values it reads from its own."""
    return [word for name in variables for word in ("--env", name)]


@dataclass
class Container:
    """One that runs in the background, or has run."""

    name: str

    def execute(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return docker("exec", self.name, *words, check=check)

    def state(self) -> dict:
        return json.loads(docker("inspect", "--format", "{{json .State}}", self.name).stdout)

    def log(self) -> str:
        done = docker("logs", self.name)
        return done.stdout + done.stderr

    def environ(self) -> str:
        """Return what the first process has in its environment, as its own user sees it."""
        return self.execute("cat", "/proc/1/environ").stdout.replace("\0", "\n")

    def stop(self, seconds: int = 20) -> float:
        """Stop it and return the seconds that it took."""
        begin = time.monotonic()
        docker("stop", "--time", str(seconds), self.name)
        return time.monotonic() - begin


Start = Callable[..., Container]


@pytest.fixture(scope="session")
def network() -> Iterator[str]:
    docker("network", "create", NETWORK, check=False)
    yield NETWORK
    left = docker("ps", "--all", "--quiet", "--filter", f"label={LABEL}").stdout.split()
    if left:
        docker("rm", "--force", "--volumes", *left)
    docker("network", "rm", NETWORK)


@pytest.fixture(scope="session")
def start_any(network: str) -> Iterator[Start]:
    """Start a container with environment variables; it and its volumes go at the session's end."""
    names: list[str] = []

    def run(
        image: str,
        *command: str,
        beside: Container | None = None,
        environment: dict[str, str] | None = None,
        options: tuple[str, ...] = HARDENED,
        wait: bool = False,
    ) -> Container:
        """Start it, or with wait run it to its end; beside: in the network of this one."""
        name = f"poolkit-images-{len(names)}-{os.getpid()}"
        names.append(name)
        variables = environment or {}
        where = f"container:{beside.name}" if beside else network
        words = ["--name", name, "--network", where, *options, *given(variables)]
        docker("create", *words, image, *command, env={**os.environ, **variables})
        docker("start", *(["--attach"] if wait else []), name, check=False)
        return Container(name)

    yield run
    if names:
        docker("rm", "--force", "--volumes", *names, check=False)


@pytest.fixture
def start(start_any: Start) -> Iterator[Start]:
    """Start containers that go with the test."""
    made: list[Container] = []

    def run(*words: str, **more: object) -> Container:
        made.append(start_any(*words, **more))
        return made[-1]

    yield run
    if made:
        docker("rm", "--force", "--volumes", *(one.name for one in made))


class Server(Container):
    """PostgreSQL with the database shop."""

    def sql(self, text: str, database: str = "shop") -> str:
        words = ["psql", "--no-psqlrc", "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", database]
        return self.execute(*words, "-c", text).stdout.strip()

    def wait(self) -> None:
        until(lambda: self.execute("pg_isready", check=False).returncode == 0)

    def owner_url(self, host: str = SERVER, port: int = 5432) -> str:
        more = "?sslmode=verify-ca&sslrootcert=/run/app/database_ca.crt" if port == 5432 else ""
        return f"postgresql://shop_owner:{OWNER_IN_A_URL}@{host}:{port}/shop{more}"


def until(true: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.1)


@pytest.fixture(scope="session")
def server(network: str, tmp_path_factory: pytest.TempPathFactory) -> Server:
    assert docker("image", "inspect", BASE, check=False).returncode == 0, (
        f"there is no image {BASE}: make it with scripts/host_image.sh, or name another in "
        "POOLKIT_IMAGE_BASE"
    )
    folder = tmp_path_factory.mktemp("postgresql")
    (folder / "Dockerfile").write_text(POSTGRESQL.format(base=BASE))
    done = build(folder, SERVER)
    assert done.returncode == 0, done.stdout + done.stderr
    docker("rm", "--force", "--volumes", SERVER, check=False)
    words = ["--detach", "--name", SERVER, "--network", network, "--label", LABEL]
    docker("run", *words, SERVER)
    server = Server(SERVER)
    server.wait()
    quoted = OWNER_PASSWORD.replace("'", "''")
    server.sql(f"CREATE ROLE shop_owner LOGIN PASSWORD '{quoted}'", "postgres")
    server.sql(f"CREATE ROLE shop LOGIN PASSWORD '{USER_PASSWORD}'", "postgres")
    server.sql("CREATE DATABASE shop OWNER shop_owner", "postgres")
    server.sql(
        "ALTER DEFAULT PRIVILEGES FOR ROLE shop_owner "
        "GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO shop"
    )
    return server


@pytest.fixture(scope="session")
def authority(server: Server) -> str:
    """The server's own certificate, which Debian signs with itself."""
    return server.execute("cat", "/etc/ssl/certs/ssl-cert-snakeoil.pem").stdout


# The pooler.


@pytest.fixture(scope="session")
def pooler_image() -> str:
    done = build(IMAGES / "pgbouncer", "poolkit-images-pgbouncer", BASE=BASE)
    assert done.returncode == 0, done.stdout + done.stderr
    return "poolkit-images-pgbouncer"


@pytest.fixture(scope="session")
def pooler_environment(server: Server, authority: str) -> dict[str, str]:
    rows = server.sql(
        'SELECT format(\'"%s" "%s"\', rolname, rolpassword) FROM pg_authid '
        "WHERE rolname ~ '^shop'"
    )
    return {
        "PGBOUNCER_INI": INI,
        "PGBOUNCER_HBA": HBA,
        "PGBOUNCER_USERLIST": rows,
        "PGBOUNCER_DATABASE_CA": authority,
    }


def check(container: Container) -> int:
    return container.execute("pgbouncer-check", check=False).returncode


@pytest.fixture(scope="session")
def pooler(start_any: Start, pooler_image: str, pooler_environment: dict[str, str]) -> Container:
    """One that runs throughout, beside which the application's containers run."""
    container = start_any(pooler_image, environment=pooler_environment)
    until(lambda: check(container) == 0)
    return container


def test_pooler_keeps_nothing_in_its_environment(pooler: Container) -> None:
    """It is the first process, and the files are for its user alone."""
    assert pooler.execute("cat", "/proc/1/comm").stdout == "pgbouncer\n"
    assert [line.partition("=")[0] for line in pooler.environ().split()] == ["PATH"]
    modes = pooler.execute("find", "/etc/pgbouncer", "-type", "f", "-printf", "%f %m %U\n").stdout
    assert sorted(modes.splitlines()) == [
        *("database_ca.crt 600 10101", "pg_hba.conf 600 10101", "pgbouncer.ini 600 10101"),
        *("process-1.ini 600 10101", "userlist.txt 600 10101"),
    ]
    assert "unix:/run/pgbouncer/1/.s.PGSQL.6432" in pooler.log()
    assert pooler.execute("touch", "/x", check=False).returncode != 0


@pytest.mark.parametrize("name", ["PGBOUNCER_INI", "PGBOUNCER_HBA", "PGBOUNCER_USERLIST"])
def test_missing_variable_is_named(
    start: Start, pooler_image: str, pooler_environment: dict[str, str], name: str
) -> None:
    less = {key: value for key, value in pooler_environment.items() if key != name}
    container = start(pooler_image, environment=less, wait=True)
    assert f"{name} is missing: give the content of /etc/pgbouncer/" in container.log()
    assert container.state()["ExitCode"] == 1


def attempt(start: Start, image: str, environment: dict[str, str]) -> tuple[int, str]:
    container = start(image, "pgbouncer-start", "--try", environment=environment, wait=True)
    return container.state()["ExitCode"], container.log()


def test_good_configuration_is_accepted(
    start: Start, pooler_image: str, pooler_environment: dict[str, str]
) -> None:
    """Also with peers, which the role's template has, and with a database that is not there."""
    peers = "[peers]\n1 = host=/run/pgbouncer/1 port=6432\n\n[pgbouncer]\n"
    ini = INI.replace("[pgbouncer]\n", peers).replace(SERVER, "192.0.2.1")
    code, said = attempt(start, pooler_image, {**pooler_environment, "PGBOUNCER_INI": ini})
    assert (code, said) == (0, "PgBouncer loads this configuration\n")


@pytest.mark.parametrize(
    ("name", "old", "new", "words"),
    [
        ("INI", "pool_mode", "pool_moode", "unknown parameter: pgbouncer/pool_moode"),
        ("INI", "transaction", "sometimes", 'invalid value "sometimes" for parameter pool_mode'),
        ("INI", "port=5432", "port=x password=hush-hush", "invalid port: x"),
        ("INI", "auth_type = hba", "auth_type = trust", "must set auth_type once, to hba"),
        ("INI", "userlist.txt", "users.txt", "must set auth_file once, to /etc/pgbouncer/userl"),
        ("INI", "database_ca", "other_ca", "other_ca.crt, which is not there"),
        ("INI", "[users]", "[pgbouncer]", "has two sections [pgbouncer]"),
        ("INI", "[users]", "", ""),
        ("HBA", "scram-sha-256", "scram", "could not parse hba config line 1"),
        ("HBA", "127.0.0.1/32", "127.0.0.1/99", "could not parse hba config line 1"),
        ("USERLIST", '"', "'", "broken auth file"),
        ("DATABASE_CA", "BEGIN", "BEGGIN", "database_ca.crt holds no certificate"),
    ],
)
def test_bad_configuration_is_refused(
    start: Start,
    pooler_image: str,
    pooler_environment: dict[str, str],
    name: str,
    old: str,
    new: str,
    words: str,
) -> None:
    """The one without words is good: what the others differ by decides."""
    name = f"PGBOUNCER_{name}"
    changed = {**pooler_environment, name: pooler_environment[name].replace(old, new)}
    code, said = attempt(start, pooler_image, changed)
    assert code == (1 if words else 0), said
    assert words in said
    assert "hush-hush" not in said


def test_pooler_stops_at_once_without_clients(
    start: Start, pooler_image: str, pooler_environment: dict[str, str]
) -> None:
    """And starts again with the volumes that it has, also after it was killed."""
    container = start(pooler_image, environment=pooler_environment)
    until(lambda: check(container) == 0)
    assert container.stop() < 2
    assert container.state()["ExitCode"] == 0
    docker("start", container.name)
    until(lambda: check(container) == 0)
    docker("kill", container.name)
    docker("start", container.name)
    until(lambda: check(container) == 0)


def test_check_asks_the_pooler_alone(
    start: Start, pooler_image: str, pooler_environment: dict[str, str]
) -> None:
    """With a database that is away it is well; where it hangs it is not."""
    ini = INI.replace(SERVER, "192.0.2.1")
    container = start(pooler_image, environment={**pooler_environment, "PGBOUNCER_INI": ini})
    until(lambda: check(container) == 0)
    assert container.execute("pgbouncer-check", "6433", check=False).returncode == 1
    container.execute("kill", "-STOP", "1", check=False)  # the kernel spares the first process
    docker("kill", "--signal", "STOP", container.name)
    begin = time.monotonic()
    assert check(container) == 1
    assert 1.5 < time.monotonic() - begin < 4
    docker("kill", "--signal", "CONT", container.name)
    assert check(container) == 0


# The application.


@dataclass(frozen=True)
class Application:
    image: str
    release: str
    context: Path
    arguments: dict[str, str]


@pytest.fixture(scope="session")
def application(tmp_path_factory: pytest.TempPathFactory) -> Application:
    """The image of examples/django, which gets static files and a build command here."""
    source = tmp_path_factory.mktemp("source") / "django"
    shutil.copytree(ROOT / "examples/django", source, ignore=shutil.ignore_patterns("__pycache__"))
    with (source / "config/settings.py").open("a") as settings:
        settings.write(
            'INSTALLED_APPS += ["django.contrib.staticfiles"]\nSTATIC_URL = "/static/"\n'
            'STATIC_ROOT = "staticfiles"\n'
        )
    (source / "items/static").mkdir()
    (source / "items/static/items.css").write_text("body {}\n")
    context = tmp_path_factory.mktemp("application")
    with source_tree(str(source), "", context / "git") as tree:
        packed = source_archive.released(
            tree,
            {
                "requirements": "requirements.txt",
                "required_files": ["manage.py"],
                "required_packages": ["django", "gunicorn"],
                "servers": str(ROOT / "roles/app/files/server/requirements.txt"),
                "exclude": ["__pycache__"],
                "python": "python3",
                "build": [],
                "archive_directory": str(context / "archives"),
            },
        )
    Path(packed["archive"]).rename(context / "source.tar.gz")
    shutil.rmtree(context / "archives")
    for file in (IMAGES / "app").iterdir():
        shutil.copy(file, context)
    for name in COPIED:
        shutil.copy(UTILS / f"{name}.py", context)
    bundle = next((path for path in CERTIFICATES if path and Path(path).is_file()), "")
    if bundle:
        shutil.copy(bundle, context / "ca-bundle.crt")
    (context / "build.env").write_text('APP_SECRET_KEY="only \\$for the build"\n')
    (context / "pip.env").write_text('PIP_RETRIES="2"\n')
    (context / "build.sh").write_text(
        'make --version > built.txt; echo "$PIP_RETRIES" >> built.txt\n'
    )
    arguments = {
        "BASE": BASE,
        "RELEASE": packed["release"],
        "REQUIREMENTS": packed["requirements"],
        "PYTHONPATH_DIRS": ":".join(packed["python_path"]),
        "BUILD_PACKAGES": "make",
        "COLLECTSTATIC": "yes",
    }
    image = "poolkit-images-app"
    done = build(context, image, **arguments)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return Application(image, packed["release"], context, arguments)


@pytest.fixture(scope="session")
def gunicorn_conf() -> str:
    """The role's template, with the filters that it needs of Ansible."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ROOT / "roles/app/templates"), trim_blocks=True
    )
    environment.filters |= {"to_json": json.dumps, "comment": lambda text: f"# {text}"}
    return environment.get_template("etc/poolkit/gunicorn.conf.py.j2").render(
        ansible_managed="a test",
        app_name="shop",
        app_workers=2,
        app_threads=4,
        app_timeout_seconds=10,
        app_keepalive_seconds=5,
        _app_asgi=False,
        _app_release={"python_path": ["."]},
    )


@pytest.fixture(scope="session")
def app_environment(gunicorn_conf: str, authority: str) -> dict[str, str]:
    return {
        "GUNICORN_CONF": gunicorn_conf,
        "DATABASE_CA": authority,
        "APP_SECRET_KEY": "key-of-the-application",
        "APP_HEALTH_HEADERS": '{"Host": "localhost"}',
        "DATABASE_URL": f"postgresql://shop:{USER_PASSWORD}@127.0.0.1:6432/shop?connect_timeout=2",
    }


SERVE = ("app-start", "serve", "config.wsgi", "--bind", "0.0.0.0:8000")
GET = (
    "import sys, urllib.request; "
    "print(urllib.request.urlopen(sys.argv[1], timeout=8).read().decode())"
)


def app_check(container: Container, *more: str) -> subprocess.CompletedProcess[str]:
    return container.execute("app-check", "8000", "/readyz", *more, check=False)


def test_application_serves_through_the_pooler(
    start: Start,
    application: Application,
    pooler: Container,
    app_environment: dict[str, str],
) -> None:
    """A query passes through SCRAM and both certificates; the task's secrets are its own."""
    container = start(application.image, *SERVE, beside=pooler, environment=app_environment)
    until(lambda: app_check(container).returncode == 0)
    answer = json.loads(
        container.execute("python", "-c", GET, "http://127.0.0.1:8000/readyz").stdout
    )
    assert (answer["path"], answer["version"]) == ("pooler", application.release)
    assert "gunicorn" in container.execute("cat", "/proc/1/cmdline").stdout
    names = {line.partition("=")[0] for line in container.environ().splitlines()}
    assert not {"GUNICORN_CONF", "DATABASE_CA"} & names
    assert {"RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR", "APP_VERSION", "PYTHONPATH"} <= names
    assert container.execute("ls", "-l", "/run/app/database_ca.crt").stdout.startswith("-rw-------")
    assert container.execute("touch", "x", check=False).returncode != 0
    assert container.execute("id", "-u").stdout == "10102\n"
    assert container.stop() < 5
    assert container.state()["ExitCode"] == 0


def test_contents_of_the_image(start: Start, application: Application) -> None:
    release = f"/srv/app/{application.release}"
    container = start(application.image, "sleep", "60")

    def read(name: str) -> str:
        return container.execute("cat", f"{release}/{name}").stdout

    assert container.execute("pwd").stdout == f"{release}\n"
    assert container.execute("realpath", ".venv").stdout == "/srv/app/venv\n"
    installed = json.loads(read("pip-inspect.json"))["installed"]
    assert {"django", "gunicorn", "psycopg"} <= {
        package["metadata"]["name"].lower() for package in installed
    }
    assert "python3-psycopg2\t" in container.execute("cat", "/srv/app/packages.txt").stdout
    assert read("staticfiles/items.css") == "body {}\n"
    assert read("built.txt").startswith("GNU Make")
    assert read("built.txt").endswith("\n2\n")
    for program in ("gcc", "cc", "make"):
        assert container.execute("which", program, check=False).returncode == 1
    others = ["!", "-uid", "0", "-o", "!", "-gid", "0", "-o", "-perm", "/6022", "!", "-type", "l"]
    assert container.execute("find", "/srv/app", *others).stdout == ""
    left = container.execute("find", "/root/.cache", "/tmp", "/context", "-type", "f", check=False)
    assert left.stdout == ""


def test_one_off_command_has_the_applications_environment(
    start: Start, application: Application, app_environment: dict[str, str]
) -> None:
    script = 'command -v python; echo "$APP_VERSION $PYTHONPATH ${DATABASE_CA-none}"; exit 7'
    words = ("app-start", "run", "sh", "-c", script)
    container = start(application.image, *words, environment=app_environment, wait=True)
    release = f"/srv/app/{application.release}"
    assert container.log() == (
        f"{release}/.venv/bin/python\n{application.release} {release}/. none\n"
    )
    assert container.state()["ExitCode"] == 7


def test_ready_once_and_alive_afterwards(
    start: Start,
    application: Application,
    pooler: Container,
    server: Server,
    app_environment: dict[str, str],
) -> None:
    server.stop()
    try:
        container = start(application.image, *SERVE, beside=pooler, environment=app_environment)
        until(lambda: "Listening at" in container.log())
        done = app_check(container, "8")
        assert done.returncode == 1
        assert done.stderr == "app-check: not ready yet: /readyz answered 503\n"
    finally:
        docker("start", server.name)
        server.wait()
    until(lambda: app_check(container).returncode == 0)
    server.stop()
    try:
        assert app_check(container, "8").returncode == 0
        docker("kill", "--signal", "STOP", container.name)
        container.execute("/usr/bin/python3", "-c", STOP_ALL)
        assert app_check(container, "1").stderr == "app-check: no answer within 1 s\n"
        docker("restart", "--time", "0", container.name)
        until(lambda: "not ready yet" in app_check(container, "8").stderr)
    finally:
        docker("start", server.name)
        server.wait()


# Workers as well: each answers by itself while the first process stands.
STOP_ALL = """
import os, pathlib, signal
for folder in pathlib.Path("/proc").glob("[0-9]*"):
    if folder.name != str(os.getpid()) and b"gunicorn" in (folder / "cmdline").read_bytes():
        os.kill(int(folder.name), signal.SIGSTOP)
"""


# Migrations.


class Migrator:
    """Runs app-migrate in a container of its own."""

    def __init__(self, start: Start, application: Application, server: Server, authority: str):
        self.start, self.application, self.server = start, application, server
        self.environment = {
            "DATABASE_CA": authority,
            "DATABASE_URL": server.owner_url(),
            "APP_SECRET_KEY": "key-of-the-application",
        }
        self.wanted = {
            "pending": ["python", "manage.py", "showmigrations", "--plan"],
            "pending_pattern": r"^\[ \]\s+(\S+)",
            "upgrade": ["python", "manage.py", "migrate", "--noinput"],
        }

    def begin(
        self,
        *,
        url: str = "",
        beside: Container | None = None,
        wait: bool = False,
        **wanted: object,
    ) -> Container:
        environment = {**self.environment, "MIGRATION": json.dumps({**self.wanted, **wanted})}
        if url:
            environment["DATABASE_URL"] = url
        words = ("app-start", "run", "app-migrate")
        more = {"environment": environment, "beside": beside, "wait": wait}
        return self.start(self.application.image, *words, **more)

    def run(self, **more: object) -> tuple[int, str, str]:
        """Return the exit code, the output and its last line; no password is there."""
        container = self.begin(wait=True, **more)
        log = container.log()
        for secret in (OWNER_PASSWORD, OWNER_IN_A_URL, "key-of-the-application"):
            assert secret not in log
        return container.state()["ExitCode"], log, log.splitlines()[-1]


@pytest.fixture
def migrator(start: Start, application: Application, server: Server, authority: str) -> Migrator:
    return Migrator(start, application, server, authority)


def test_migrations_run_once(migrator: Migrator, server: Server) -> None:
    """`after` runs each time: nobody knows whether an earlier run came to it."""
    server.sql("DROP SCHEMA public CASCADE; CREATE SCHEMA public AUTHORIZATION shop_owner")
    hooks = {name: ["sh", "-c", f"echo {name} $PGOPTIONS"] for name in ("before", "after")}
    code, log, last = migrator.run(**hooks)
    assert code == 0, log
    assert last.startswith("app-migrate: migrated: items.0001_initial, items.0002_created_at_index")
    assert last.endswith("; `after` has run")
    assert log.index("before -c client_connection_check_interval=5s") < log.index("Applying items")
    assert log.index("Applying items") < log.index("after -c client_connection")
    assert "[ ]" not in log
    code, log, last = migrator.run(**hooks)
    assert (code, last) == (0, "app-migrate: nothing to migrate; `after` has run")
    assert "before -c" not in log
    assert "after -c" in log
    assert migrator.run() == (0, log.splitlines()[0] + "\n" + NOTHING, NOTHING.strip())


NOTHING = "app-migrate: nothing to migrate\n"


def test_pooler_is_refused_for_migrations(migrator: Migrator, pooler: Container) -> None:
    url = migrator.server.owner_url("127.0.0.1", 6432)
    code, _, last = migrator.run(url=url, beside=pooler)
    assert code == 1
    assert last.startswith("app-migrate: failed: the connection for migrations goes through a pool")


def test_other_deployments_migrations_are_waited_for(migrator: Migrator, server: Server) -> None:
    """The lock is the host's as well."""
    hold = f"SELECT pg_advisory_lock({migration.lock_key('shop')}), pg_sleep(60)"
    docker("exec", "--detach", server.name, "psql", "-d", "shop", "-c", hold)
    locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted"
    until(lambda: server.sql(locks) == "1")
    try:
        code, _, last = migrator.run(wait_seconds=1)
    finally:
        server.sql("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'")
    assert code == 1
    assert last.startswith("app-migrate: failed: another deployment's migrations hold the lock of")


def test_failing_migration_tells_why(migrator: Migrator) -> None:
    script = (
        'echo "connected to $DATABASE_URL with $APP_SECRET_KEY"; echo Traceback >&2; '
        'echo "django.db.utils.ProgrammingError: relation of owner\'s-Hush-1 exists" >&2; exit 3'
    )
    code, log, last = migrator.run(pending=[], upgrade=["sh", "-c", script])
    assert code == 1
    assert "\nconnected to ******** with ********\n" in log
    assert last.startswith("app-migrate: failed: upgrade (sh -c ")
    assert "failed with exit code 3: django.db.utils.ProgrammingError: relation of ********" in last


def test_server_that_refuses_the_owner(migrator: Migrator) -> None:
    url = migrator.server.owner_url().replace("Hush", "hush")
    code, log, last = migrator.run(url=url)
    assert (code, log) == (1, f"{last}\n")
    assert "app-migrate: failed: PostgreSQL refuses the owner: " in last
    assert 'password authentication failed for user "shop_owner"' in last


def test_time_limit_ends_the_command(migrator: Migrator) -> None:
    begin = time.monotonic()
    words = ["sh", "-c", "sleep 60 & echo begun; wait"]
    code, log, last = migrator.run(pending=[], upgrade=words, timeout_seconds=2)
    assert time.monotonic() - begin < 15
    assert (code, "begun\n" in log) == (1, True)
    assert "It was ended after 2 s (app_migration_timeout_seconds)" in last


def test_stop_ends_the_command_and_says_so(migrator: Migrator, server: Server) -> None:
    script = "trap 'echo told to end; exit 0' TERM; echo begun; sleep 60 & wait"
    container = migrator.begin(pending=[], upgrade=["sh", "-c", script])
    until(lambda: "begun" in container.log())
    assert container.stop() < 8
    assert container.state()["ExitCode"] == 1
    log = container.log()
    assert "told to end\n" in log
    assert log.splitlines()[-1].startswith("app-migrate: failed: ended by SIGTERM before it was do")
    until(lambda: server.sql("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == "0")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("", "MIGRATION is missing: give the commands as a JSON object"),
        ("[", "MIGRATION is no JSON object: "),
        ("{}", "MIGRATION has no command `upgrade`"),
        ('{"upgrade": "ls"}', "MIGRATION: upgrade is unknown or no list: 'ls'"),
        ('{"upgrade": ["ls"], "downgrade": []}', "MIGRATION: downgrade is unknown"),
    ],
)
def test_environment_that_cannot_be_used(
    start: Start, application: Application, given: str, words: str
) -> None:
    environment = {"MIGRATION": given, "DATABASE_URL": "postgresql://127.0.0.1:1/x"}
    container = start(application.image, "app-migrate", environment=environment, wait=True)
    assert f"app-migrate: failed: {words}" in container.log()
    assert container.state()["ExitCode"] == 1
