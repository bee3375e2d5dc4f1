"""How an image is found in a registry, and what its tag depends on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from plugins.module_utils.refused import Refused
from plugins.modules import container_image
from plugins.modules.container_image import Docker, checksum

ECR = "123456789012.dkr.ecr.eu-central-1.amazonaws.com/shop"


def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *answers: tuple) -> Docker:
    """Return Docker's client, whose commands answer (code, output, errors) in turn."""
    left = list(answers)
    done = [SimpleNamespace(returncode=a, stdout=b, stderr=c) for a, b, c in left]
    monkeypatch.setattr(container_image.subprocess, "run", lambda *_, **__: done.pop(0))
    return Docker("example.com/shop", tmp_path / "login", "linux/amd64", login=False)


@pytest.mark.parametrize(
    ("name", "errors"),
    [
        ("example.com/shop", "Error: manifest for example.com/shop:t not found: manifest unknown"),
        ("example.com/shop", "name unknown: repository name not known to registry"),
        ("example.com/shop", "failed to resolve reference: example.com/shop:t: not found\n"),
        (ECR, "manifest for x not found: manifest unknown: Requested image not found"),
    ],
)
def test_image_that_is_not_there(
    name: str, errors: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert docker(tmp_path, monkeypatch, (1, "", errors)).found(name, "t", True) == ""


@pytest.mark.parametrize(
    ("name", "errors"),
    [
        ("example.com/shop", "dial tcp: lookup example.com: no such host"),
        ("example.com/shop", "x509: certificate signed by unknown authority"),
        ("example.com/shop", "pull access denied"),
        (ECR, "name unknown: The repository with name 'shop' does not exist in the registry"),
    ],
)
def test_registry_that_gives_no_answer_is_no_missing_image(
    name: str, errors: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Refused, match="docker pull"):
        docker(tmp_path, monkeypatch, (1, "", errors)).found(name, "t", True)


def test_digest_is_that_of_this_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Docker leaves its own registry out of the name."""
    shown = '["other.example/shop@sha256:1", "acme/shop@sha256:2"]'
    found = docker(tmp_path, monkeypatch, (0, shown, "")).digest("docker.io/acme/shop", "t")
    assert found == "docker.io/acme/shop@sha256:2"
    assert docker(tmp_path, monkeypatch, (0, shown, "")).digest("example.com/shop", "t") == ""


def test_tag_depends_on_what_the_image_is_made_of(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM x")
    given = {
        **{"files": {"Dockerfile": str(tmp_path / "Dockerfile")}, "contents": {"pip.env": "A"}},
        **{"unhashed": ["pip.env"], "build_args": {"BASE": "x"}, "platform": "linux/amd64"},
    }
    first = checksum(given)
    assert checksum(given | {"contents": {"pip.env": "B"}}) == first
    others = {
        checksum(given | {"platform": "linux/arm64"}),
        checksum(given | {"build_args": {"BASE": "y"}}),
        checksum(given | {"contents": {"build.sh": "true"}}),
    }
    (tmp_path / "Dockerfile").write_text("FROM y")
    assert len(others | {first, checksum(given)}) == 5


def test_own_login_keeps_the_users_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own"
    (own / "contexts").mkdir(parents=True)
    (own / "config.json").write_text('{"auths": {"example.com": {}}}')
    monkeypatch.setenv("DOCKER_CONFIG", str(own))
    container_image.seed(tmp_path / "login")
    assert (tmp_path / "login/config.json").read_text() == (own / "config.json").read_text()
    assert (tmp_path / "login/contexts").resolve() == own / "contexts"
