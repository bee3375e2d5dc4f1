"""A real image registry on loopback: Debian's docker-registry in a container.

Docker speaks plain HTTP with registries on 127.0.0.0/8, so push and pull by digest work as is.
"""

from __future__ import annotations

import hashlib
import io
import os
import time

import docker
import httpx
from docker.errors import ImageNotFound

from .agent import PAUSE_IMAGE, Agent

RECIPE = """\
FROM {base}
ENV DEBIAN_FRONTEND=noninteractive
RUN rm -f /etc/apt/sources.list /etc/apt/sources.list.d/* && \\
    printf 'Types: deb\\nURIs: %s\\nSuites: trixie\\nComponents: main\\n\\
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\\n' "{mirror}" \\
        > /etc/apt/sources.list.d/debian.sources && \\
    apt-get update -q && \\
    apt-get install -y -q --no-install-recommends docker-registry && \\
    rm -rf /var/lib/apt/lists/* && \\
    printf '%s\\n' 'version: 0.1' 'http: {{addr: ":5000"}}' \\
        'storage: {{filesystem: {{rootdirectory: /tmp}}}}' \\
        > /etc/docker/registry/config.yml
USER docker-registry
ENTRYPOINT ["docker-registry", "serve", "/etc/docker/registry/config.yml"]
"""


def image(client: docker.DockerClient) -> str:
    """Return the registry's image, built where it is not there (about half a minute)."""
    mirror = os.environ.get("POOLKIT_DEBIAN_MIRROR", "http://deb.debian.org/debian")
    name = f"poolkit-registry:{hashlib.sha256(RECIPE.encode()).hexdigest()[:12]}"
    try:
        client.images.get(name)
    except ImageNotFound:
        text = RECIPE.format(base=PAUSE_IMAGE, mirror=mirror)
        client.images.build(fileobj=io.BytesIO(text.encode()), tag=name, rm=True)
    return name


class Registry:
    """A registry for one test run; gone with what was pushed when the agent closes."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.container = agent.client.containers.run(
            image(agent.client),
            detach=True,
            labels=agent.labels,
            ports={"5000/tcp": ("127.0.0.1", 0)},
        )
        self.container.reload()
        port = self.container.attrs["NetworkSettings"]["Ports"]["5000/tcp"][0]["HostPort"]
        self.address = f"127.0.0.1:{port}"
        for _ in range(100):
            try:
                httpx.get(f"http://{self.address}/v2/").raise_for_status()
                return
            except httpx.HTTPError:
                time.sleep(0.1)
        raise RuntimeError(f"the registry does not answer: {self.container.logs()[-2000:]!r}")

    def push(self, local: str, name: str) -> str:
        """Push a local image; return its reference by digest, not kept locally."""
        repository = f"{self.address}/{name}"
        self.agent.client.images.get(local).tag(repository, "pushed")
        digest = ""
        for line in self.agent.client.images.push(repository, "pushed", stream=True, decode=True):
            if "error" in line:
                raise RuntimeError(line["error"])
            digest = line.get("aux", {}).get("Digest", digest)
        self.agent.client.images.remove(f"{repository}:pushed")
        return f"{repository}@{digest}"
