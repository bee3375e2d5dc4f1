"""Services of ECS under traffic: rolls, faults, what is refused, and what must not be seen.

The tests go on from what the ones before have deployed, as a service lives.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from conftest import PLAYBOOK, POLICIES, ROLLBACK, STATUS, Cloud, Site, docker, resolve
from controller import connect

Sites = Callable[[str], Site]
Release = Callable[..., Path]

REQUESTS = 2000
"""At least so many in a roll."""

WRITES = ("Create", "Put", "Register", "Tag", "Update")
"""How the names of calls begin that change something."""

LATE = '''

def late(request):
    """Take three seconds, and only then a connection."""
    import time
    from django.db import connection
    connection.close()
    time.sleep(3)
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    return HttpResponse("late")
'''


class Peak:
    """Counts the connections of an application in PostgreSQL twice a second."""

    def __init__(self, name: str) -> None:
        self.command = (
            f"SELECT count(*) FROM pg_stat_activity WHERE usename IN ('{name}', '{name}_owner')"
        )
        self.host, self.most, self.end = connect("db4", "docker", "poolkit-test-db4"), 0, False
        self.thread = threading.Thread(target=self.watch)

    def watch(self) -> None:
        while not self.end:
            count = self.host.check_output("sudo -u postgres psql -XAtqc %s", self.command)
            self.most = max(self.most, int(count))
            time.sleep(0.5)

    def __enter__(self) -> Peak:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end = True
        self.thread.join()


def direct(site: Site) -> str:
    """Return the URL of one task itself."""
    (task, *_) = site.tasks()
    return f"http://{task.address}:8000"


@contextmanager
def no_task_replaced(site: Site) -> Iterator[None]:
    before = {task.arn for task in site.tasks()}
    yield
    assert {task.arn for task in site.tasks()} == before


def test_check_mode_before_there_is_anything(cloud: Cloud) -> None:
    run = cloud.play("django,fastapi", PLAYBOOK, "--check", "--diff")
    assert run.code == 0, run.output[-3000:]
    assert [call for call in run.calls if call.operation.startswith(WRITES)] == []
    assert "changed=0" not in run.output.partition("django_service : ok=")[2][:40]


def test_first_deployment(sites: Sites) -> None:
    """One run has deployed two services."""
    assert sites("fastapi").readiness()["path"] == "pooler"
    site = sites("django")
    assert site.readiness()["path"] == "pooler"
    # Nobody outside of the task reaches its pooler.
    (task, *_) = site.tasks()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://{task.address}:6432/", timeout=5)


@pytest.mark.parametrize("name", ["django", "fastapi"])
def test_roll_under_load(name: str, sites: Sites, release: Release, cloud: Cloud) -> None:
    site = sites(name)
    before = cloud.serving(name)
    source = release(name, "second")
    with Peak(name) as peak, site.traffic(pause_seconds=0.05) as traffic:
        run = site.deploy(source)
        assert run.code == 0, run.output[-3000:]
        traffic.wait_for(REQUESTS)
    site.assert_nothing_lost(traffic)
    assert traffic.requests >= REQUESTS
    assert cloud.serving(name) != before
    assert site.readiness()["path"] == "pooler"
    # 2 new tasks and 2 that drain, each with 4 + 1 pooled and a fallback of 4; 5 of the owner.
    assert 0 < peak.most <= 4 * (5 + 4) + 5
    print(f"{name}: at most {peak.most} connections at once, 41 computed")
    assert len(run.made("ecs:RegisterTaskDefinition")) == 2  # its own, and its migrations'


def test_unchanged_run_changes_nothing(sites: Sites, release: Release, cloud: Cloud) -> None:
    site = sites("django")
    before = cloud.revisions("django"), cloud.service("django")["deployments"][0]["id"]
    run = site.deploy(release("django", "second"))
    assert run.code == 0, run.output[-3000:]
    assert "django_service : ok=" in run.output
    assert "changed=0" in run.output.partition("django_service : ok=")[2][:40]
    assert [call for call in run.calls if call.operation.startswith(WRITES)] == []
    assert before == (cloud.revisions("django"), cloud.service("django")["deployments"][0]["id"])


def test_check_mode_tells_what_would_change(sites: Sites, cloud: Cloud) -> None:
    site = sites("django")
    before = cloud.revisions("django")
    run = cloud.play(
        "django", PLAYBOOK, "--check", "--diff", pgbouncer_settings={"default_pool_size": 3}
    )
    assert run.code == 0, run.output[-3000:]
    assert "+default_pool_size = 3" in run.output
    assert cloud.revisions("django") == before
    assert site.readiness()["path"] == "pooler"


def test_rollback_and_status(sites: Sites, cloud: Cloud) -> None:
    site = sites("django")
    second = site.readiness()["version"]
    with site.traffic(pause_seconds=0.05) as traffic:
        run = cloud.play("django", ROLLBACK)
    assert run.code == 0, run.output[-3000:]
    assert site.readiness()["version"] != second
    site.assert_nothing_lost(traffic)
    status = cloud.play("django", STATUS)
    assert "past_pooler: []" in status.output
    assert "pgbouncer RUNNING, HEALTHY, web RUNNING, HEALTHY" in status.output


def test_bad_release_is_our_failure(sites: Sites, release: Release, cloud: Cloud) -> None:
    """The breaker goes back, the service is stable, and the run fails with the reason."""
    site = sites("django")
    before, served = cloud.serving("django"), site.readiness()["version"]
    bad = release("django", "bad", {"config/wsgi.py": lambda text: text + "\nimport nothing\n"})
    with site.traffic(pause_seconds=0.05) as traffic:
        run = site.deploy(bad)
    assert run.code != 0
    assert "failed:" in run.output and "exit code" in run.output and "last events" in run.output
    assert site.readiness()["version"] == served
    assert cloud.serving("django") == before
    site.assert_nothing_lost(traffic)
    # What most tools ask calls this a success.
    waiter = cloud.ecs.client("ecs").get_waiter("services_stable")
    waiter.wait(cluster="main", services=["django"], WaiterConfig={"Delay": 1, "MaxAttempts": 5})


def test_failing_migration_registers_nothing(sites: Sites, release: Release, cloud: Cloud) -> None:
    site = sites("django")
    before = cloud.revisions("django"), site.readiness()["version"]
    migration = (
        "from django.db import migrations\n"
        "class Migration(migrations.Migration):\n"
        "    dependencies = [('items', '0002_created_at_index')]\n"
        "    operations = [migrations.RunSQL('SELECT no_such_column FROM items')]\n"
    )
    source = release("django", "broken", {"items/migrations/0003_broken.py": lambda _: migration})
    run = site.deploy(source)
    assert run.code != 0
    assert "the migrations failed" in run.output and "no_such_column" in run.output
    own = [row for row in cloud.revisions("django") if row.startswith("django:")]
    assert own == [row for row in before[0] if row.startswith("django:")]
    assert run.made("ecs:UpdateService") == []
    assert site.readiness()["version"] == before[1]


def test_run_that_was_cut_off_is_picked_up(sites: Sites, release: Release, cloud: Cloud) -> None:
    """The deployment that a killed run has begun goes on; the next run waits for it."""
    site = sites("django")
    source = release("django", "third")
    # A deployment that may take no time at all: the run gives up at once.
    run = site.deploy(source, ecs_deployment_timeout_seconds=0)
    assert run.code != 0
    assert "It goes on: run this again to wait for it" in run.output
    newest = cloud.revisions("django")
    again = site.deploy(source)
    assert again.code == 0, again.output[-3000:]
    assert cloud.revisions("django") == newest
    assert again.made("ecs:UpdateService", "ecs:RegisterTaskDefinition") == []
    assert site.readiness()["version"] == cloud_release(cloud)


def cloud_release(cloud: Cloud) -> str:
    """Return the release of the revision that serves."""
    definition = cloud.ecs.client("ecs").describe_task_definition(
        taskDefinition=cloud.serving("django")
    )["taskDefinition"]
    (web,) = (row for row in definition["containerDefinitions"] if row["name"] == "web")
    return next(row["value"] for row in web["environment"] if row["name"] == "APP_VERSION")


def test_pooler_that_dies_is_started_again(sites: Sites) -> None:
    site = sites("django")
    time.sleep(7)  # restartAttemptPeriod, on this clock
    with no_task_replaced(site):
        (task, *_) = site.tasks()
        pooler = task.by_name["pgbouncer"]
        restarts = pooler.restarts
        docker("kill", "--signal=KILL", pooler.id)
        assert httpx.get(f"{direct(site)}/ping-db", timeout=10).status_code == 200
        site.cloud.ecs.wait_for(lambda: pooler.restarts > restarts, 60)
        wait_for_path(site, "pooler")


def test_pooler_that_hangs_is_killed(sites: Sites, cloud: Cloud) -> None:
    site = sites("django")
    time.sleep(7)
    with no_task_replaced(site):
        (first, *_) = site.containers("pgbouncer")
        (task, *_) = site.tasks()
        restarts = task.by_name["pgbouncer"].restarts
        docker("exec", first, "sh", "-c", STOP)
        cloud.ecs.wait_for(lambda: task.by_name["pgbouncer"].restarts > restarts, 60)
        wait_for_path(site, "pooler")


STOP = (
    'for p in /proc/[0-9]*; do [ "$(cat $p/comm)" != pgbouncer ] || kill -STOP "${p#/proc/}"; done'
)


def wait_for_path(site: Site, path: str) -> None:
    """Wait until each task uses this way to the database."""
    end = time.monotonic() + 60
    for task in site.tasks():
        while True:
            answer = httpx.get(f"http://{task.address}:8000/readyz", timeout=15).json()
            if answer["path"] == path:
                break
            assert time.monotonic() < end, answer
            time.sleep(0.5)


def test_pooler_that_stays_away_is_seen(sites: Sites, cloud: Cloud) -> None:
    """It dies again before it has run for restartAttemptPeriod: ECS leaves it; the task goes on."""
    site = sites("django")
    (task, *_) = site.tasks()
    with no_task_replaced(site):
        pooler = task.by_name["pgbouncer"]
        end = time.monotonic() + 60
        while pooler.state != "STOPPED" and time.monotonic() < end:
            docker("kill", "--signal=KILL", pooler.id)
            time.sleep(1)
        answer = httpx.get(f"{direct(site)}/readyz", timeout=15)
        assert (answer.status_code, answer.json()["path"]) == (200, "direct")
        assert httpx.get(f"{direct(site)}/ping-db", timeout=10).status_code == 200
        status = cloud.play("django", STATUS)
    assert f"past_pooler: - {task.id}" in status.output


def test_database_that_is_away_ends_no_task(sites: Sites, cloud: Cloud) -> None:
    site = sites("django")
    host = connect("db4", "docker", "poolkit-test-db4")
    with no_task_replaced(site):
        host.check_output("systemctl stop postgresql")
        try:
            end = time.monotonic() + 15
            while time.monotonic() < end:
                assert httpx.get(f"{site.url}/healthz", timeout=10).status_code == 200
                time.sleep(0.5)
            assert httpx.get(f"{site.url}/readyz", timeout=10).status_code == 503
        finally:
            host.check_output("systemctl start postgresql")
        cloud.ecs.wait_for(lambda: site_ready(site), 60)


def site_ready(site: Site) -> bool:
    return httpx.get(f"{site.url}/readyz", timeout=10).status_code == 200


def test_the_application_stops_before_its_pooler(
    sites: Sites, release: Release, cloud: Cloud
) -> None:
    """A request takes its connection while its task stops. Without dependsOn the pooler is gone."""
    site = sites("django")
    source = release(
        "django",
        "late",
        {
            "items/views.py": lambda text: text + LATE,
            "items/urls.py": lambda text: text.replace(
                'path("nodb"', 'path("late", views.late),\n    path("nodb"'
            ),
        },
    )
    # Without the fallback, which would hide it.
    run = site.deploy(source, app_database_fallback_enabled=False)
    assert run.code == 0, run.output[-3000:]
    assert asked_while_it_stops(site) == 200
    take_away_the_order(site)
    assert asked_while_it_stops(site) != 200


def take_away_the_order(site: Site) -> None:
    """Deploy the revision that serves without dependsOn."""
    ecs = site.cloud.ecs.client("ecs")
    served = ecs.describe_task_definition(taskDefinition=site.cloud.serving("django"))
    definition = served["taskDefinition"]
    kept = ("family", "networkMode", "cpu", "memory", "executionRoleArn", "volumes")
    containers = definition["containerDefinitions"]
    for container in containers:
        container.pop("dependsOn", None)
    arn = ecs.register_task_definition(
        **{key: definition[key] for key in kept},
        containerDefinitions=containers,
        requiresCompatibilities=["FARGATE"],
    )["taskDefinition"]["taskDefinitionArn"]
    ecs.update_service(cluster="main", service="django", taskDefinition=arn)

    def alone() -> bool:
        deployments = site.cloud.service("django")["deployments"]
        return [row["taskDefinition"] for row in deployments] == [arn] and all(
            row["rolloutState"] == "COMPLETED" for row in deployments
        )

    site.cloud.ecs.wait_for(alone, 120)


def asked_while_it_stops(site: Site) -> object:
    """Return the status of a request during which its task was stopped, or its error."""
    (task, *_) = [task for task in site.tasks() if task.last_status == "RUNNING"]
    answers: list[object] = []

    def ask() -> None:
        try:
            answers.append(httpx.get(f"http://{task.address}:8000/late", timeout=30).status_code)
        except httpx.HTTPError as error:
            answers.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    time.sleep(1)
    site.cloud.ecs.client("ecs").stop_task(cluster="main", task=task.arn, reason="test")
    thread.join()
    return answers[0]


def test_what_is_refused_beforehand(sites: Sites, cloud: Cloud) -> None:
    sites("django")
    before = cloud.revisions("django")
    away = "arn:aws:iam::123456789012:role/away"
    for variables, messages in (
        (
            {"ecs_execution_role_arn": away, "ecs_subnets": ["subnet-0"]},
            ("there is no role", "ecs_subnets: there is no subnet-0"),
        ),
        (
            {"ecs_cpu": 512, "ecs_memory_mib": 8192, "app_timeout_seconds": 118},
            ("which Fargate does not have", "give at most 115"),
        ),
        ({"ecs_tasks": 12}, ("Lower, the largest first",)),
    ):
        run = cloud.play("django", PLAYBOOK, **variables)
        assert run.code != 0
        assert all(words in run.output for words in messages), (messages, run.output[-2000:])
    assert cloud.revisions("django") == before


def secrets_of(name: str) -> dict[str, str]:
    """Return an application's secrets by kind."""
    facts = resolve(
        f"{name}_service",
        user="app_database_password",
        owner="app_database_owner_password",
        key="app_environment.APP_SECRET_KEY",
    )
    return facts[f"{name}_service"]


def seen_as(secret: str) -> set[str]:
    """Return a secret as it is, in a URL, and in JSON, also twice."""
    once = json.dumps(secret)[1:-1]
    return {secret, quote(secret, safe=""), once, json.dumps(once)[1:-1]}


def test_no_secret_is_seen(sites: Sites, release: Release, cloud: Cloud) -> None:
    """In no definition, in no output at -vvv, in no label and in no log."""
    sites("django")
    secrets = secrets_of("django")
    run = cloud.play(
        "django", PLAYBOOK, "-vvv", "--diff", app_source=str(release("django", "fourth"))
    )
    assert run.code == 0, run.output[-3000:]
    ecs = cloud.ecs.client("ecs")
    seen = {"the output": run.output}
    for family in ("django", "django-migrate"):
        for revision in cloud.revisions(family):
            found = ecs.describe_task_definition(taskDefinition=revision)["taskDefinition"]
            seen[revision] = json.dumps(found, default=str)
    for stream, lines in cloud.ecs.logs("/ecs/poolkit").items():
        seen[stream] = "\n".join(lines)
    labels = "{{.Name}} {{json .Config.Labels}}"
    ids = docker("ps", "--all", "--quiet", f"--filter=network={cloud.ecs.network}").split()
    for task in cloud.ecs.tasks("django"):
        ids += [container.id for container in task.containers if container.id]
    seen["labels"] = docker("inspect", f"--format={labels}", *ids)
    assert len(seen) > 10
    words = {word for secret in secrets.values() for word in seen_as(secret)}
    found = [where for where, text in seen.items() for word in words if word in text]
    assert found == []
    # A test that cannot fail proves nothing: the containers do have them.
    (web, *_) = [task.by_name["web"].id for task in cloud.ecs.tasks("django")]
    assert secrets["key"] in docker("inspect", "--format={{json .Config.Env}}", web)


def test_deployer_may_do_what_it_does_and_no_more(sites: Sites, cloud: Cloud) -> None:
    sites("django")
    policy = json.loads((POLICIES / "ecs_deployer.json").read_text())
    allowed = {
        action
        for statement in policy["Statement"]
        for action in (
            [statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"]
        )
    }
    made = {call.action for call in cloud.ecs.calls}
    assert made - allowed == set()
    elsewhere = {
        # Of Docker's client and AWS's registry, where the images are pushed to in production.
        *(action for action in allowed if action.startswith("ecr:")),
        # Checked by AWS inside of the calls that name a role.
        "iam:PassRole",
        # The inventory's own lookups, and a database's security groups.
        *("secretsmanager:GetSecretValue", "ec2:DescribeSecurityGroups"),
        # A migration that has taken too long.
        "ecs:StopTask",
    }
    assert allowed - made - elsewhere == set()
