#!/usr/bin/python
"""Have an image in a registry, built from files only where its content is not there yet."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: container_image
short_description: Have an image in a registry, built only where its content is not there yet
version_added: 0.1.0
author: The poolkit authors (@poolkit)
description:
  - The tag ends with a checksum of the files, of the build's arguments and of the base image. What
    has that tag in the registry is taken as it is.
  - A registry of AWS (ECR) is logged in to with the controller's role; others as `docker login` has
    left it.
  - Check mode only looks whether the image is in the registry.
  - Runs on the controller and needs Docker's client, an engine and boto3 for ECR.
options:
  name:
    description: The image with its registry, without a tag.
    type: str
    required: true
  tag:
    description: What the tag begins with.
    type: str
    default: image
  files:
    description: Files of the build's context, each a path on the controller by its name there.
    type: dict
    required: true
  contents:
    description: Further files by their names, as text. They may hold logins to a package index.
    type: dict
    default: {}
  unhashed:
    description: Files that the image does not depend on, such as how pip reaches its index.
    type: list
    elements: str
    default: []
  platform:
    description: The image's platform, such as linux/amd64.
    type: str
    required: true
  build_args:
    description: Arguments of the build, no secrets.
    type: dict
    default: {}
  push:
    description: Whether the image has to be in the registry. Otherwise it is only built here.
    type: bool
    default: true
  asked:
    description: A command that is run in the image, without a network.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: Have the pooler's image
  poolkit.poolkit.container_image:
    name: 123456789012.dkr.ecr.eu-central-1.amazonaws.com/pgbouncer
    platform: linux/amd64
    files: {Dockerfile: images/pgbouncer/Dockerfile}
    build_args: {BASE: "debian:13-slim"}
"""

RETURN = r"""
image:
  description: The image with its digest; in check mode, where it is missing, "".
  type: str
  returned: success
answer:
  description: What the command has printed.
  type: str
  returned: success
"""

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from ..module_utils import ecs_client
from ..module_utils.command_output import shortened
from ..module_utils.refused import Refused
from ..module_utils.unlogged_module import UnloggedModule

ECR = re.compile(r"(\d+)\.dkr\.ecr\.([\w-]+)\.amazonaws\.com(\.cn)?")
TELLING = (r"pgbouncer|app-build|ERROR:|E: ", r"(?i)\berror\b")


class Docker:
    """Docker's client, with a login of its own for ECR."""

    def __init__(self, name: str, folder: Path, platform: str, *, login: bool) -> None:
        self.platform = f"--platform={platform}"
        self.environment = dict(os.environ)
        registry = name.partition("/")[0]
        if login and (found := ECR.fullmatch(registry)):
            with ecs_client.told():
                ecr = ecs_client.client("ecr", found[2])
                token = ecr.get_authorization_token()["authorizationData"][0]["authorizationToken"]
            user, _, password = base64.b64decode(token).decode().partition(":")
            seed(folder)
            self.environment["DOCKER_CONFIG"] = str(folder)
            self.run("login", "--username", user, "--password-stdin", registry, given=password)

    def run(self, *words: str, given: str = "") -> str:
        """Return what a command has printed; raises Refused."""
        code, output, errors = self.tried(*words, given=given)
        if code:
            said = shortened(errors or output, "", TELLING)
            raise Refused(f"docker {words[0]} failed: {said}")
        return output

    def tried(self, *words: str, given: str = "") -> tuple[int, str, str]:
        try:
            done = subprocess.run(
                ["docker", *words],
                input=given,
                env=self.environment,
                capture_output=True,
                text=True,
            )
        except FileNotFoundError:
            raise Refused("the controller has no docker: install its client and engine") from None
        return done.returncode, done.stdout, done.stderr

    def found(self, name: str, tag: str, in_registry: bool) -> str:
        """Return an image that is there already, in the registry or here; "" where it is not."""
        if not in_registry:
            code, _, _ = self.tried("image", "inspect", f"{name}:{tag}")
            return "" if code else f"{name}:{tag}"
        code, _, errors = self.tried("pull", "--quiet", self.platform, f"{name}:{tag}")
        # Most registries make a repository with its first image; ECR does not.
        absent = "manifest unknown|: not found$" + ("" if ECR.match(name) else "|name unknown")
        if code and not re.search(absent, errors.strip()):
            raise Refused(f"docker pull {name}:{tag} failed: {shortened(errors)}")
        return "" if code else self.digest(name, tag)

    def digest(self, name: str, tag: str) -> str:
        """Return NAME@sha256:… of an image that is here; "" where it was never in the registry."""
        shown = self.run("image", "inspect", "--format", "{{json .RepoDigests}}", f"{name}:{tag}")
        # Docker leaves its own registry out.
        own = name.removeprefix("docker.io/")
        found = [row for row in json.loads(shown) or [] if row.partition("@")[0] in (name, own)]
        return f"{name}@{found[0].partition('@')[2]}" if found else ""


def seed(folder: Path) -> None:
    """Give a folder of Docker's settings what the user's own has, besides further logins."""
    folder.mkdir()
    own = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker")
    if (own / "config.json").is_file():
        shutil.copy(own / "config.json", folder)
    for name in ("cli-plugins", "contexts"):
        if (own / name).is_dir():
            (folder / name).symlink_to(own / name)


def checksum(given: dict[str, Any]) -> str:
    """Return a checksum of what the image is made of."""
    found = {
        "args": given["build_args"],
        "platform": given["platform"],
        "contents": {},
        "files": {},
    }
    for name, path in sorted(given["files"].items()):
        if name not in given["unhashed"]:
            content = hashlib.sha256(Path(path).read_bytes()).hexdigest()
            found["files"][name] = [content, os.access(path, os.X_OK)]
    for name, text in given["contents"].items():
        if name not in given["unhashed"]:
            found["contents"][name] = text
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def have(module: UnloggedModule) -> dict[str, Any]:
    given = module.params
    name, tag = given["name"], f"{given['tag']}-{checksum(given)[:12]}"
    with tempfile.TemporaryDirectory(prefix="poolkit-image-") as folder:
        docker = Docker(name, Path(folder) / "login", given["platform"], login=given["push"])
        image = docker.found(name, tag, given["push"])
        absent = not image
        if not image and not module.check_mode:
            context = Path(folder) / "context"
            context.mkdir()
            for file, path in given["files"].items():
                shutil.copy(path, context / file)
            for file, text in given["contents"].items():
                (context / file).write_text(text)
            arguments = [f"--build-arg={key}={value}" for key, value in given["build_args"].items()]
            docker.run(
                "build",
                "--quiet",
                docker.platform,
                *arguments,
                "--tag",
                f"{name}:{tag}",
                str(context),
            )
            image = f"{name}:{tag}"
            if given["push"]:
                docker.run("push", "--quiet", image)
                image = docker.digest(name, tag)
            if not image:
                raise Refused(f"docker knows no digest of {name}:{tag}, which it has just pushed")
        answer = ""
        if given["asked"] and image:
            command, *words = given["asked"]
            answer = docker.run(
                *("run", "--rm", "--network=none", docker.platform),
                *(f"--entrypoint={command}", image, *words),
            )
    return {"changed": absent, "image": image, "answer": answer.strip()}


def main() -> None:
    module = UnloggedModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "tag": {"type": "str", "default": "image"},
            "files": {"type": "dict", "required": True},
            "contents": {"type": "dict", "default": {}, "no_log": True},
            "platform": {"type": "str", "required": True},
            "unhashed": {"type": "list", "elements": "str", "default": []},
            "build_args": {"type": "dict", "default": {}},
            "push": {"type": "bool", "default": True},
            "asked": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    ecs_client.run(module, have)


if __name__ == "__main__":
    main()
