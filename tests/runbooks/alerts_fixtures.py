"""The pooler host whose faults the alerts are to see: the first one of the inventory.

Its exporter has to listen on private_address, which the controller reaches.
"""

from __future__ import annotations

import pytest
from controller import connect, resolve
from testinfra.host import Host


@pytest.fixture(scope="session")
def pooler_facts() -> dict[str, str]:
    found = resolve(
        "pgbouncer[0]",
        connection="ansible_connection",
        container="ansible_host",
        address="private_address",
        exporter_port="pgbouncer_exporter_port | default(9127)",
        application="app_name",
        application_port="app_port | default(8000)",
    )
    ((name, facts),) = found.items()
    return {"name": name, **{key: str(value) for key, value in facts.items()}}


@pytest.fixture(scope="session")
def pooler_host(pooler_facts: dict[str, str]) -> Host:
    return connect(pooler_facts["name"], pooler_facts["connection"], pooler_facts["container"])


@pytest.fixture(scope="session")
def exporter_url(pooler_facts: dict[str, str]) -> str:
    return f"http://{pooler_facts['address']}:{pooler_facts['exporter_port']}/metrics"


@pytest.fixture(scope="session")
def application(pooler_facts: dict[str, str]) -> str:
    """The application's name: its operating system user, its database and its role there."""
    return pooler_facts["application"]


@pytest.fixture(scope="session")
def application_url(pooler_facts: dict[str, str]) -> str:
    return f"http://{pooler_facts['address']}:{pooler_facts['application_port']}"
