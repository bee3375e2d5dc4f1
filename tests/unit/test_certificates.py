"""When certificates end: read of files, asked of a server, told by status and the exporter."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import certifi
import jinja2
import pgbouncer_exporter
import pytest
import report
import status
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from plugins.filter.certificates import certificate_end
from plugins.module_utils import certificates
from plugins.module_utils.refused import Refused
from plugins.modules import certificate_expiry

ROOT = Path(__file__).resolve().parents[2]
KEY = ec.generate_private_key(ec.SECP256R1())
NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)
BEGIN = datetime(1950, 1, 1, tzinfo=UTC)
PEM = serialization.Encoding.PEM


def made(end: datetime, name: str = "db1") -> x509.Certificate:
    """Return a certificate that another program's library has made."""
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Example"),
            x509.NameAttribute(NameOID.COMMON_NAME, name),
        ]
    )
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "issuer")]))
        .public_key(KEY.public_key())
        .serial_number(2**150 + 1)
        .not_valid_before(BEGIN)
        .not_valid_after(end)
        .sign(KEY, hashes.SHA256())
    )


def pem(*ends: datetime) -> str:
    texts = [made(end, f"number {n}").public_bytes(PEM).decode() for n, end in enumerate(ends)]
    return "a comment - with a dash\n" + "\n".join(texts)


@pytest.mark.parametrize(
    "end",
    [
        datetime(1950, 1, 2, tzinfo=UTC),
        datetime(1999, 12, 31, 23, 59, 59, tzinfo=UTC),
        datetime(2049, 12, 31, tzinfo=UTC),
        datetime(2050, 1, 1, tzinfo=UTC),  # from here on with four digits of the year
        datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC),  # RFC 5280: without an end
    ],
)
def test_end_and_subject(end: datetime) -> None:
    found = certificates.first_to_end(made(end, "Zürich").public_bytes(PEM).decode())
    assert found == certificates.Certificate(end, "Example, Zürich")


def test_of_several_the_one_that_ends_first_counts() -> None:
    text = pem(datetime(2031, 1, 1, tzinfo=UTC), NOW, datetime(2030, 1, 1, tzinfo=UTC))
    assert certificates.first_to_end(text) == certificates.Certificate(NOW, "Example, number 1")
    assert certificate_end(text) == NOW.timestamp()


def test_authorities_of_the_world_are_read_as_another_library_reads_them() -> None:
    """More than a hundred, of many programs, with keys and encodings of every kind."""
    bundle = Path(certifi.where()).read_text()
    blocks = [f"{part}-----END " for part in bundle.split("-----END CERTIFICATE-----")[:-1]]
    ours = [certificates.first_to_end(block).not_after for block in blocks]
    theirs = [each.not_valid_after_utc for each in x509.load_pem_x509_certificates(bundle.encode())]
    assert len(theirs) > 100
    assert ours == theirs


@pytest.mark.parametrize("text", ["", "no certificate", pem(NOW).replace("CERTIFICATE", "KEY")])
def test_file_without_certificates_is_refused(text: str) -> None:
    with pytest.raises(Refused, match="holds no certificate"):
        certificates.first_to_end(text)


def test_damaged_certificate_is_refused() -> None:
    whole = made(NOW).public_bytes(serialization.Encoding.DER)
    for length in range(len(whole)):
        with pytest.raises(ValueError):
            certificates.parse(whole[:length])
    block = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
    with pytest.raises(Refused, match="holds a damaged certificate"):
        certificates.first_to_end(block)


@settings(max_examples=300)
@given(st.integers(0, 400), st.binary(max_size=6))
def test_odd_bytes_are_no_crash(place: int, bytes_: bytes) -> None:
    whole = made(NOW).public_bytes(serialization.Encoding.DER)
    with contextlib.suppress(ValueError):
        certificates.parse(whole[:place] + bytes_ + whole[place + len(bytes_) :])


@contextlib.contextmanager
def server(folder: Path, answer: bytes) -> Iterator[int]:
    """Be a PostgreSQL that answers the question for TLS, with a certificate that has ended."""
    path = folder / "server.pem"
    key = KEY.private_bytes(
        PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    path.write_text(pem(datetime(2020, 2, 3, tzinfo=UTC)) + key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)

    def serve() -> None:
        plain, _ = listener.accept()
        with plain, contextlib.suppress(OSError):
            plain.recv(8)
            plain.sendall(answer)
            if answer == b"S":
                with context.wrap_socket(plain, server_side=True) as secure:
                    secure.recv(1)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(5)


def test_module_reads_files_and_asks_servers(
    tmp_path: Path, run_module: Callable[..., dict]
) -> None:
    (tmp_path / "ca.crt").write_text(pem(NOW))
    (tmp_path / "odd.crt").write_text("nothing")
    files = [str(tmp_path / name) for name in ("ca.crt", "odd.crt", "missing.crt")]
    with server(tmp_path, b"S") as tls, server(tmp_path, b"N") as plain:
        servers = [["127.0.0.1", tls], ["127.0.0.1", plain], ["/run/postgresql", 5432]]
        result = run_module(certificate_expiry, files=files, servers=servers)
    assert result["changed"] is False
    assert [list(each.values()) for each in result["certificates"]] == [
        [files[0], "2026-11-28T12:00:00Z", "Example, number 0", ""],
        [files[1], "", "", "holds no certificate"],
        [f"PostgreSQL at 127.0.0.1:{tls}", "2020-02-03T00:00:00Z", "Example, number 0", ""],
        [f"PostgreSQL at 127.0.0.1:{plain}", "", "", f"127.0.0.1:{plain} offers no TLS"],
    ]


def test_server_that_is_away_is_told(run_module: Callable[..., dict]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    result = run_module(certificate_expiry, servers=[["127.0.0.1", port]])
    assert "refused" in result["certificates"][0]["error"]


def told(end: datetime | None, error: str = "") -> dict[str, str]:
    after = end.strftime("%Y-%m-%dT%H:%M:%SZ") if end else ""
    return {"certificate": "a.crt", "not_after": after, "subject": "db1", "error": error}


@pytest.mark.parametrize(
    ("left", "days", "words"),
    [
        (timedelta(seconds=-1), -1, "has ended"),
        (timedelta(0), 0, "ends in 0 days"),
        (timedelta(days=1, hours=3), 1, "ends in 1 day,"),
        (timedelta(days=29, hours=23), 29, "ends in 29 days"),
        (timedelta(days=30), 30, ""),
    ],
)
def test_certificates_that_end_soon_are_named(left: timedelta, days: int, words: str) -> None:
    found = report.certificates([{"host": "web1", "certificates": [told(NOW + left)]}], NOW)
    assert [each["days"] for each in found] == [days]
    lines = status.expiries(found)
    assert len(lines) == bool(words)
    assert all(line.startswith("web1: the certificate of a.crt (db1) ") for line in lines)
    assert words in "".join(lines)


def test_certificate_that_cannot_be_read_is_named() -> None:
    found = report.certificates([{"host": "web1", "certificates": [told(None, "odd")]}], NOW)
    assert status.expiries(found) == ["web1: the certificate of a.crt cannot be read: odd"]


def test_exporter_serves_the_ends() -> None:
    pairs = [["server.crt", "1795867200"], ["database_ca.crt", "253402300799"]]
    lines = pgbouncer_exporter.exposition(pgbouncer_exporter.certificates(pairs)).splitlines()
    name = "pgbouncer_certificate_not_after_seconds"
    assert lines == [
        f"# TYPE {name} gauge",
        f'{name}{{file="server.crt"}} 1795867200.0',
        f'{name}{{file="database_ca.crt"}} 253402300799.0',
    ]


@pytest.mark.parametrize("used", [(), ("server.crt",), ("server.crt", "database_ca.crt")])
def test_unit_tells_the_exporter_of_the_files_in_use(used: tuple, tmp_path: Path) -> None:
    folder = ROOT / "roles/pgbouncer/templates/etc/systemd/system"
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder), trim_blocks=True, keep_trailing_newline=True
    )
    environment.globals["lookup"] = lambda _, source: Path(source).read_text()
    environment.filters |= {
        "comment": lambda text: f"# {text}",
        "dirname": lambda path: str(Path(path).parent),
        "poolkit.poolkit.certificate_end": certificate_end,
    }
    (tmp_path / "ca.pem").write_text(pem(NOW))
    files = ("server.crt", "client_ca.crt", "database_ca.crt")
    text = environment.get_template("pgbouncer-exporter.service.j2").render(
        _pgbouncer_certificates={n: str(tmp_path / "ca.pem") if n in used else "" for n in files},
        _pgbouncer_connections_library="/usr/local/lib/tcp_connections.py",
        pgbouncer_database_host="db1",
        pgbouncer_database_port=5432,
        pgbouncer_exporter_port=9127,
        pgbouncer_listen_port=6432,
    )
    assert re.findall(r"--certificate (\S+) (\d+)", text) == [
        (name, str(int(NOW.timestamp()))) for name in used
    ]
    command, rest = text.split("ExecStart=")[1].split("\nRestart=always\n")
    lines = command.rstrip("\n").splitlines()
    assert all(line.endswith(" \\") for line in lines[:-1]), lines
    assert not lines[-1].endswith("\\")
    assert "Restart" in rest
