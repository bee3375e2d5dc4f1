"""What the roles say of PEM files on the controller, before anything changes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.parsing.vault import VaultLib, VaultSecret

from plugins.lookup import pem_errors


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    for name, options in {"plain": ["-nodes"], "locked": ["-passout", "pass:secret"]}.items():
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-subj", "/CN=db1", *options),
                *("-keyout", folder / f"{name}.key", "-out", folder / f"{name}.crt"),
            ],
            check=True,
            capture_output=True,
        )
    plain, locked = ((folder / f"{name}.crt").read_text() for name in ("plain", "locked"))
    (folder / "bundle.crt").write_text(f"# Főtanúsítvány\n{plain}{locked}")
    lines = plain.splitlines()
    (folder / "damaged.crt").write_text("\n".join(lines[:3] + lines[5:]))
    (folder / "cut.crt").write_text(plain[:400])
    (folder / "notes.txt").write_text("the certificate is on the other machine\n")
    (folder / "empty.crt").write_text("")
    (folder / "der.crt").write_bytes(b"0\x82\x03\xff\xfe")
    secret = VaultLib([("default", VaultSecret(b"s"))])
    (folder / "vaulted.key").write_bytes(secret.encrypt((folder / "plain.key").read_bytes()))
    return folder


def errors(folder: Path, **files: str) -> list[str]:
    loader = DataLoader()
    loader.set_vault_secrets([("default", VaultSecret(b"s"))])
    loader.set_basedir(str(folder))
    return pem_errors.LookupModule(loader=loader).run([files], variables={})


def test_good_files(folder: Path) -> None:
    assert errors(folder, database_ca_file="") == []
    assert errors(folder, database_ca_file=f"{folder}/bundle.crt") == []
    assert errors(folder, pgbouncer_tls_key_file=f"{folder}/plain.key") == []
    assert errors(folder, pgbouncer_tls_key_file=f"{folder}/vaulted.key") == []


@pytest.mark.parametrize(
    ("variable", "name", "error"),
    [
        ("database_ca_file", "gone.crt", "there is no such file on the controller"),
        ("database_ca_file", "notes.txt", "it holds no certificate in PEM format"),
        ("database_ca_file", "empty.crt", "it holds no certificate in PEM format"),
        ("database_ca_file", "cut.crt", "it holds no certificate in PEM format"),
        ("database_ca_file", "plain.key", "it holds no certificate in PEM format"),
        ("database_ca_file", "der.crt", "it holds no certificate in PEM format"),
        ("database_ca_file", "damaged.crt", "it holds a certificate that cannot be read"),
        ("database_ca_file", ".", "the controller cannot read it"),
        ("postgres_tls_key_file", "plain.crt", "it holds no private key in PEM format"),
        ("postgres_tls_key_file", "locked.key", "its key has a passphrase"),
    ],
)
def test_bad_files(folder: Path, variable: str, name: str, error: str) -> None:
    (found,) = errors(folder, **{variable: f"{folder}/{name}"})
    assert found.startswith(f"{variable} is {folder}/{name}: {error}")
    assert "PRIVATE" not in found
