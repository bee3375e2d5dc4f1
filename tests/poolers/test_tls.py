"""TLS on both sides, logins by certificate, and a renewal that cuts nobody off."""

import asyncio
import json
import re
import ssl
import subprocess
import sys
from collections.abc import Iterator

import asyncpg
import psycopg
import pytest
from conftest import Pooler
from controller import ROOT, ansible, resolve
from load import Load


@pytest.fixture(scope="module")
def folder() -> str:
    """Where certificates.yml put the certificates, on the controller."""
    return resolve("trixie1", folder="tls_folder")["trixie1"]["folder"]


@pytest.fixture
def verified(folder: str) -> dict[str, str]:
    return {"sslmode": "verify-full", "sslrootcert": f"{folder}/ca.crt"}


@pytest.fixture
def changed(pooler: Pooler) -> Iterator[Pooler]:
    yield pooler
    assert pooler.configure()[0] == 0


def serial(pooler: Pooler) -> str:
    """Return the serial number of the certificate that clients are shown."""
    client = subprocess.run(
        ["openssl", "s_client", "-starttls", "postgres", "-connect", f"{pooler.address}:6432"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=20,
    )
    shown = subprocess.run(
        ["openssl", "x509", "-noout", "-serial"],
        input=client.stdout,
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    )
    return shown.stdout.strip()


def test_client_verifies_the_pooler(pooler: Pooler, verified: dict) -> None:
    with pooler.connect(**verified) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
        (row,) = [row for row in pooler.console("SHOW CLIENTS") if row["database"] == "shop"]
    assert row["tls"].startswith("TLSv1.3")


def test_client_without_tls_is_refused(pooler: Pooler) -> None:
    with pytest.raises(psycopg.OperationalError, match="SSL required"):
        pooler.connect(sslmode="disable")


def test_pooler_verifies_postgresql(pooler: Pooler, verified: dict) -> None:
    with pooler.connect(**verified) as connection:
        connection.execute("SELECT 1")
        encrypted = connection.execute("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
        assert encrypted.fetchone() == (True,)
    assert pooler.settings()["server_tls_sslmode"] == "verify-full"


REFUSED = (asyncpg.InvalidAuthorizationSpecificationError, "no pg_hba.conf entry .*SSL encryption")
"""The controller may not log in; PostgreSQL says so after the certificate has passed."""


@pytest.mark.parametrize(
    ("authority", "error"),
    [("ca.crt", REFUSED), ("shop.crt", (ssl.SSLCertVerificationError, "verify failed"))],
)
def test_asyncpg_verifies_postgresql_behind_a_socket(
    folder: str, authority: str, error: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the fallback of one URL does: first the pooler's socket, where sslmode does not count."""
    address = resolve("db2", address="private_address")["db2"]["address"]
    monkeypatch.setenv("PGSSLROOTCERT", f"{folder}/{authority}")
    login = {"user": "shop", "database": "shop", "password": "any", "ssl": "verify-full"}
    with pytest.raises(error[0], match=error[1]):
        asyncio.run(asyncpg.connect(host=["/nonexistent", address], port=[6432, 5432], **login))


def test_authority_that_did_not_sign_is_refused_before_the_change(pooler: Pooler) -> None:
    before = pooler.state()
    code, output = pooler.configure(database_ca_file="/etc/ssl/certs/ca-certificates.crt")
    assert code != 0
    assert "server_tls_sslmode is verify-full, and PgBouncer would refuse" in output, output[-2000:]
    assert "Nothing was changed" in output
    assert pooler.state() == before


def test_key_of_another_certificate_is_refused(pooler: Pooler, folder: str) -> None:
    before = pooler.state()
    code, output = pooler.configure(pgbouncer_tls_key_file=f"{folder}/ca.key")
    assert code != 0
    assert "client_tls_cert_file and client_tls_key_file do not belong together" in output
    assert pooler.state() == before


def test_renewed_certificate_cuts_nobody_off(pooler: Pooler, verified: dict) -> None:
    before, started = serial(pooler), pooler.state().splitlines()[-2:]
    with Load(lambda: pooler.connect(**verified), clients=20) as load:
        renewal = ansible(
            *("ansible-playbook", "ansible/playbooks/certificates.yml"),
            *("-e", "certificates_renew=true"),
        )
        assert renewal.returncode == 0, renewal.stdout[-2000:]
        code, output = pooler.configure()
        assert code == 0, output[-2000:]
    assert "action: reload" in output
    assert serial(pooler) != before
    assert load.errors == []
    assert load.counts["connects"] == 20
    assert pooler.state().splitlines()[-2:-1] == started[:1]


def test_status_tells_when_certificates_end(pooler: Pooler) -> None:
    """The pooler's own, both authorities, and the one that PostgreSQL shows."""
    run = subprocess.run(
        [sys.executable, ROOT / "scripts/status.py", "--json", "--limit", pooler.name],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    (told,) = json.loads(run.stdout)["poolers"]
    found = {each["certificate"]: each for each in told["certificates"]}
    server = resolve(pooler.name, at="database_host ~ ':' ~ database_port")[pooler.name]["at"]
    files = [f"/etc/pgbouncer/tls/{name}.crt" for name in ("server", "client_ca", "database_ca")]
    assert list(found) == [*files, f"PostgreSQL at {server}"]
    end = pooler.host.check_output(f"openssl x509 -noout -enddate -dateopt iso_8601 -in {files[0]}")
    assert found[files[0]]["not_after"] == end.split("=")[1].strip().replace(" ", "T")
    assert found[files[0]]["subject"] == pooler.name
    assert found[f"PostgreSQL at {server}"]["subject"] == server.split(":")[0].split("-")[-1]


def test_login_by_certificate(changed: Pooler, verified: dict, folder: str) -> None:
    # With TLS 1.2 the handshake ends where the role itself, which has no certificate, looks at it.
    settings = {"client_tls_protocols": "tlsv1.2"} if changed.name == "bookworm1" else {}
    code, output = changed.configure(pgbouncer_tcp_auth_method="cert", pgbouncer_settings=settings)
    assert code == 0, output[-2000:]
    assert "holds the passwords of the applications in clear text" in output
    own = {**verified, "sslcert": f"{folder}/shop.crt", "sslkey": f"{folder}/shop.key"}
    with changed.connect(**own, password="") as connection:
        assert connection.execute("SELECT current_user").fetchone() == ("shop",)
    words = "certificate|TLS|SSL|login rejected"
    with pytest.raises(psycopg.OperationalError, match=re.compile(words)):
        changed.connect(**verified)


def test_private_keys_are_the_services_alone(pooler: Pooler) -> None:
    file = pooler.host.file("/etc/pgbouncer/tls/server.key")
    assert (file.user, file.group, file.mode) == ("root", "pgbouncer", 0o640)
