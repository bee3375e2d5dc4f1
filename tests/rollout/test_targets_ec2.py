"""EC2: the hosts are instances in moto's AWS, found by tags, behind a balancer that obeys its API.

moto has no deregistration delay and no health checks of its own: the delay is added here, and a
target is healthy as soon as it is registered. docs/ec2.md says what has never run on AWS.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import boto3
import pytest
import yaml
from botocore.config import Config
from conftest import Run, Site
from controller import ROOT, resolve
from controller import ansible as run_ansible
from local_ecs.api import OUR_AGENT, Api
from local_ecs.balancer import Balancer
from moto.elbv2.models import ELBv2Backend, FakeHealthStatus, FakeTargetGroup
from traffic import Traffic

REGION = "eu-central-1"
HOSTS = {"web1": "172.29.218.31", "web2": "172.29.218.32"}
PORT = 8000
INSTANCES = "172.29.218.0/25"
"""Who may reach the database."""
SECRET = "^__|_password$|salt_seed$"
INSTALLATION = {
    "admin_user": "database_admin_user",
    "admin_password": "database_admin_password",
    "scram_salt_seed": "scram_salt_seed",
}
SHOP = {
    "user_password": "app_database_password",
    "owner_password": "app_database_owner_password",
}
DELAY_SECONDS = 2
"""How long a target drains; AWS's default is 300."""


@dataclass
class Cloud:
    """moto's AWS with the instances, a target group, and the inventory that finds them."""

    api: Api
    inventory: Path
    target_group: str
    ids: dict[str, str]
    security_group: str
    left: dict[str, float]
    """When each target was deregistered."""

    def __post_init__(self) -> None:
        self.balancing = boto3.client("elbv2", **access(self.api.endpoint))

    def targets(self, state: str = "healthy") -> list[str]:
        """Return the hosts in this state."""
        found = self.balancing.describe_target_health(TargetGroupArn=self.target_group)
        named = {id_: name for name, id_ in self.ids.items()}
        return [
            named[row["Target"]["Id"]]
            for row in found["TargetHealthDescriptions"]
            if row["TargetHealth"]["State"] == state
        ]

    def play(self, *playbooks: str, **variables: object) -> Run:
        environment = {
            "AWS_ENDPOINT_URL": self.api.endpoint,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_REGION": REGION,
            "POOLKIT_FRAMEWORK": "django",
            "ANSIBLE_INVENTORY": str(self.inventory),
        }
        done = run_ansible(
            "ansible-playbook", *playbooks, "-e", json.dumps(variables), **environment
        )
        counts = re.findall(r"^(\S+) +: ok=\d+ +changed=(\d+)", done.stdout, re.MULTILINE)
        output = re.sub(r"\s+", " ", done.stdout + done.stderr)
        return Run(done.returncode, output, {host: int(count) for host, count in counts})


def admit(ec2: object, group: str, network: str, *, away: bool = False) -> None:
    """Let a network reach PostgreSQL, or no longer."""
    rule = {
        "IpProtocol": "tcp",
        "FromPort": 5432,
        "ToPort": 5432,
        "IpRanges": [{"CidrIp": network}],
    }
    change = "revoke" if away else "authorize"
    getattr(ec2, f"{change}_security_group_ingress")(GroupId=group, IpPermissions=[rule])


def access(endpoint: str) -> dict[str, object]:
    """Return what a client of the tests' own needs, whose calls are not recorded."""
    keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing"}
    own = Config(user_agent_extra=OUR_AGENT)
    return {"endpoint_url": endpoint, "region_name": REGION, "config": own, **keys}


@pytest.fixture(scope="module")
def draining() -> Iterator[dict[str, float]]:
    """Let moto's targets drain for DELAY_SECONDS; yield when each was deregistered."""
    left: dict[str, float] = {}
    health, leave = FakeTargetGroup.health_for, FakeTargetGroup.deregister
    whole = ELBv2Backend.describe_target_health

    def drains(target: str) -> bool:
        return time.time() - left.get(target, 0) < DELAY_SECONDS

    def health_for(group: FakeTargetGroup, target: dict, backend: object) -> FakeHealthStatus:
        found = health(group, target, backend)
        if found.status == "unused" and drains(target["Id"]):
            found.status, found.reason = "draining", "Target.DeregistrationInProgress"
        return found

    def describe(self: ELBv2Backend, arn: str, targets: list[dict]) -> list[FakeHealthStatus]:
        """AWS lists also the targets that drain."""
        group = self.target_groups[arn]
        gone = [target for id_, target in group.deregistered_targets.items() if drains(id_)]
        return whole(self, arn, targets or [*group.targets.values(), *gone])

    def deregister(group: FakeTargetGroup, targets: list[dict]) -> None:
        leave(group, targets)
        left.update({target["Id"]: time.time() for target in targets})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeTargetGroup, "health_for", health_for)
        patch.setattr(FakeTargetGroup, "deregister", deregister)
        patch.setattr(ELBv2Backend, "describe_target_health", describe)
        yield left


def write_inventory(folder: Path, target_group: str, security_group: str) -> None:
    """Write inventories/ec2 as a user copies it, with the hosts' own way in and the database's."""
    given = yaml.safe_load((ROOT / "inventories/ec2/aws_ec2.yml").read_text())
    given["compose"]["ansible_host"] = "'poolkit-test-' ~ tags.Name"
    given["groups"].pop("database_admin")
    (folder / "aws_ec2.yml").write_text(yaml.safe_dump(given))
    own = ROOT / "molecule/rollout/inventory"
    static = yaml.safe_load((own / "hosts.yml").read_text())
    for group in ("applications", "pgbouncer"):
        static["all"]["children"].pop(group)
    (folder / "hosts.yml").write_text(yaml.safe_dump(static))
    # The example's own words for secrets, everything else as on these hosts.
    groups = folder / "group_vars"
    groups.mkdir()
    more = {
        "all": {
            "database_security_groups": [security_group],
            "database_security_group_sources": [INSTANCES],
        },
        "applications": {"app_target_group_arns": [target_group], "app_keepalive_seconds": 65},
    }
    for name, example in (("all", "all"), ("applications", "shop")):
        text = (own / f"group_vars/{name}.yml").read_text()
        text = text.replace("{{ inventory_dir }}/../../..", str(ROOT))
        text = text.replace("{{ inventory_dir }}/../..", str(ROOT / "molecule"))
        shipped = yaml.safe_load(
            (ROOT / f"inventories/ec2/group_vars/{example}/main.yml").read_text()
        )
        secret = {key: value for key, value in shipped.items() if re.search(SECRET, key)}
        assert len(secret) >= 3
        given = {**yaml.safe_load(text), **secret, **more[name]}
        (groups / f"{name}.yml").write_text(yaml.safe_dump(given))


def keep_secrets(endpoint: str) -> None:
    """Put what the example looks up into Secrets Manager: the values that these hosts have."""
    facts = resolve("web1", **{name: name for name in (*INSTALLATION.values(), *SHOP.values())})
    client = boto3.client("secretsmanager", **access(endpoint))
    for name, names in (("installation", INSTALLATION), ("django", SHOP)):
        values = {key: facts["web1"][variable] for key, variable in names.items()}
        client.create_secret(Name=f"poolkit/{name}", SecretString=json.dumps(values))


@pytest.fixture(scope="module")
def cloud(sites, draining, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    sites("django")
    with Api({}) as api:
        yield make(api, draining, tmp_path_factory.mktemp("ec2"))


def make(api: Api, draining: dict[str, float], folder: Path) -> Cloud:
    """Make what Terraform would have made."""
    endpoint = api.endpoint
    ec2, balancing = (boto3.client(name, **access(endpoint)) for name in ("ec2", "elbv2"))
    vpc = ec2.create_vpc(CidrBlock="172.29.218.0/24")["Vpc"]["VpcId"]
    subnet = ec2.create_subnet(VpcId=vpc, CidrBlock="172.29.218.0/25")["Subnet"]["SubnetId"]
    ids = {}
    for name, address in HOSTS.items():
        tags = {"Name": name, "poolkit:application": "django", "poolkit:pgbouncer": "yes"}
        made = ec2.run_instances(
            ImageId="ami-12c6146b",
            **{"MinCount": 1, "MaxCount": 1, "SubnetId": subnet, "PrivateIpAddress": address},
            TagSpecifications=[
                {
                    "ResourceType": "instance",
                    "Tags": [{"Key": key, "Value": value} for key, value in tags.items()],
                }
            ],
        )
        ids[name] = made["Instances"][0]["InstanceId"]
    group = balancing.create_target_group(
        Name="shop", Protocol="HTTP", Port=PORT, VpcId=vpc, TargetType="instance"
    )["TargetGroups"][0]["TargetGroupArn"]
    balancing.modify_target_group_attributes(
        TargetGroupArn=group,
        Attributes=[{"Key": "deregistration_delay.timeout_seconds", "Value": "60"}],
    )
    other = ec2.create_subnet(VpcId=vpc, CidrBlock="172.29.218.128/25")["Subnet"]["SubnetId"]
    made = balancing.create_load_balancer(Name="shop", Subnets=[subnet, other])
    front = made["LoadBalancers"][0]["LoadBalancerArn"]
    balancing.modify_load_balancer_attributes(
        LoadBalancerArn=front,
        Attributes=[{"Key": "idle_timeout.timeout_seconds", "Value": "60"}],  # AWS's default
    )
    balancing.create_listener(
        LoadBalancerArn=front,
        **{"Protocol": "HTTP", "Port": 80},
        DefaultActions=[{"Type": "forward", "TargetGroupArn": group}],
    )
    balancing.register_targets(
        TargetGroupArn=group, Targets=[{"Id": id_, "Port": PORT} for id_ in ids.values()]
    )
    database = ec2.create_security_group(GroupName="database", Description="-", VpcId=vpc)
    guard = database["GroupId"]
    admit(ec2, guard, INSTANCES)
    keep_secrets(endpoint)
    write_inventory(folder, group, guard)
    return Cloud(api, folder, group, ids, guard, draining)


@pytest.fixture
def balancer(cloud: Cloud) -> Iterator[Balancer]:
    balancer = Balancer(lambda: [(HOSTS[name], PORT) for name in cloud.targets()])
    yield balancer
    balancer.close()


def test_rolling_release_behind_the_balancer(
    cloud: Cloud, balancer: Balancer, release, sites
) -> None:
    site: Site = sites("django")
    new = release("django", "balanced", {})
    before = site.releases()
    with Traffic([balancer.url], clients=4, pause_seconds=0.05) as traffic:
        run = cloud.play("site.yml", app_source=str(new))
        assert run.code == 0, run.output[-3000:]
        traffic.wait_for(1000)
    assert site.releases() != before
    site.assert_nothing_lost(traffic)
    assert min(balancer.sent.get(address, 0) for address in HOSTS.values()) > 20
    assert sorted(cloud.targets()) == ["web1", "web2"]
    assert run.output.count("Leave its target groups") == 2
    # An unchanged run takes nobody out.
    again = cloud.play("ansible/playbooks/app.yml", app_source=str(new))
    assert set(again.changed.values()) == {0}, again.output[-3000:]
    assert "Leave its target groups" not in again.output


def test_last_healthy_target_stays(cloud: Cloud, release, sites) -> None:
    site: Site = sites("django")
    before = site.releases()
    run = cloud.play(
        "ansible/playbooks/app.yml",
        app_source=str(release("django", "all-at-once", {})),
        app_serial=2,
    )
    assert run.code != 0
    assert "has no healthy target but" in run.output
    assert site.releases() == before
    assert sorted(cloud.targets()) == ["web1", "web2"]


def test_release_that_fails_leaves_the_host_registered(cloud: Cloud, release, sites) -> None:
    site: Site = sites("django")
    before = site.releases()
    bad = release(
        "django", "bad", {"items/views.py": lambda text: text + "\nraise SystemExit(1)\n"}
    )
    run = cloud.play("ansible/playbooks/app.yml", app_source=str(bad))
    assert run.code != 0
    assert site.releases() == before
    assert sorted(cloud.targets()) == ["web1", "web2"]


def test_instance_that_joins_is_registered(cloud: Cloud, release, sites) -> None:
    """As a new one: in no target group, deployed with --limit."""
    cloud.balancing.deregister_targets(
        TargetGroupArn=cloud.target_group, Targets=[{"Id": cloud.ids["web2"], "Port": PORT}]
    )
    assert cloud.targets() == ["web1"]
    cloud.left.clear()
    run = cloud.play("site.yml", "--limit=web2")
    assert run.code == 0, run.output[-3000:]
    assert sorted(cloud.targets()) == ["web1", "web2"]


def test_run_that_was_cut_off_is_finished(cloud: Cloud, balancer: Balancer, sites) -> None:
    """The host still drains when the next run comes: it is taken back, and by a rollback too."""
    site: Site = sites("django")
    before = site.releases()
    cloud.balancing.deregister_targets(
        TargetGroupArn=cloud.target_group, Targets=[{"Id": cloud.ids["web1"], "Port": PORT}]
    )
    cloud.left[cloud.ids["web1"]] = time.time() + 20  # AWS's delay is longer than a run, too
    with Traffic([balancer.url], clients=4, pause_seconds=0.05) as traffic:
        run = cloud.play("ansible/playbooks/rollback.yml")
    assert run.code == 0, run.output[-3000:]
    assert sorted(cloud.targets()) == ["web1", "web2"]
    assert site.releases() != before
    site.assert_nothing_lost(traffic)


@pytest.mark.parametrize(
    ("network", "words"),
    [("0.0.0.0/0", "lets the whole world"), ("10.9.0.0/16", "lets 10.9.0.0/16 reach port 5432")],
)
def test_open_database_is_refused(cloud: Cloud, network: str, words: str) -> None:
    ec2 = boto3.client("ec2", **access(cloud.api.endpoint))
    admit(ec2, cloud.security_group, network)
    try:
        for book in ("site.yml", "ansible/playbooks/app.yml"):
            run = cloud.play(book)
            assert run.code != 0
            assert words in run.output
            assert set(run.changed.values()) == {0}
    finally:
        admit(ec2, cloud.security_group, network, away=True)


def test_target_group_that_loses_requests_is_refused(cloud: Cloud) -> None:
    run = cloud.play("ansible/playbooks/app.yml", app_timeout_seconds=61, app_keepalive_seconds=60)
    assert run.code != 0
    assert "drains for 60 s, and a request may take 61 s" in run.output
    assert "Set app_keepalive_seconds to 65, or more" in run.output
    assert set(run.changed.values()) == {0}


def test_deployer_may_do_what_it_does_and_no_more(cloud: Cloud) -> None:
    policy = json.loads((ROOT / "templates/iam/ec2_deployer.json").read_text())
    listed = [statement["Action"] for statement in policy["Statement"]]
    allowed = {action for row in listed for action in ([row] if isinstance(row, str) else row)}
    assert {call.action for call in cloud.api.calls} == allowed
