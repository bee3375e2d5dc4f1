"""The page of `make report` in a real browser: Chromium, in a container without a network."""

import json
import os
import re
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from html import unescape

import pytest
import sample_fleet
import status
from conftest import Application
from controller import ROOT, resolve

WIDTHS = (1280, 390)  # a desk, a telephone
PROBE = """
<script>
const outside = (text) => {
  const one = text.getBoundingClientRect(), box = text.parentNode.getBoundingClientRect();
  return one.left < box.left || one.right > box.right || one.bottom > box.bottom;
};
const texts = [...document.querySelectorAll("svg svg text")];
addEventListener("load", () => document.title = JSON.stringify({
  overflow: document.documentElement.scrollWidth - window.innerWidth,
  asked: performance.getEntriesByType("resource").map((entry) => entry.name),
  scripts: document.scripts.length,
  outside: texts.filter(outside).map((text) => text.textContent),
  boxes: document.querySelectorAll("svg svg").length,
  ground: getComputedStyle(document.body).backgroundColor,
  text: document.body.innerText,
}));
</script>
"""
"""Added to the page that is opened: what only a browser knows, as the title."""

Open = Callable[..., dict]


@pytest.fixture(scope="module")
def open_page() -> Iterator[Open]:
    """Open a page at a width; return what PROBE finds. Chromium is Debian's, on a host's image."""
    ((container,),) = [fact.values() for fact in resolve("postgres", c="ansible_host").values()]
    shown = ["docker", "inspect", "-f", "{{.Config.Image}}", container]
    image = subprocess.check_output(shown, text=True).strip()
    name = f"{container}-browser-{os.getpid()}"

    def docker(*words: str) -> str:
        return subprocess.run(
            ["docker", *words], check=True, capture_output=True, text=True, timeout=300
        ).stdout

    def run(page: str, width: int, *options: str, picture: str = "") -> dict:
        path = ROOT / ".cache" / f"{name}.html"
        path.write_text(page.replace("</body>", f"{PROBE}</body>"))
        docker("cp", str(path), f"{name}:/root/page.html")
        path.unlink()
        # The container is the sandbox; Chromium's own needs a user.
        command = ["chromium-headless-shell", "--no-sandbox", "--disable-gpu", *options]
        command += [f"--window-size={width},2400", "--hide-scrollbars"]
        if picture:
            docker("exec", name, *command, "--screenshot=/root/a.png", "file:///root/page.html")
            docker("cp", f"{name}:/root/a.png", str(ROOT / ".cache" / picture))
        made = docker("exec", name, *command, "--dump-dom", "file:///root/page.html")
        return json.loads(unescape(re.search("<title>(.*?)</title>", made, re.DOTALL).group(1)))

    install = "apt-get update -qq && apt-get install -qq --no-install-recommends"
    install += " chromium-headless-shell fonts-dejavu-core"
    docker("run", "--detach", "--rm", "--name", name, image, "sleep", "3600")
    try:
        docker("exec", name, "sh", "-c", install)
        docker("network", "disconnect", "bridge", name)
        yield run
    finally:
        docker("rm", "--force", name)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict]:
    """Return the page of the scenario's hosts, and the JSON of the same run."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    run = subprocess.run(
        [sys.executable, ROOT / "scripts/status.py", "--json", "--report", path],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode in (0, 1), run.stderr
    return path.read_text(), json.loads(run.stdout)


@pytest.mark.parametrize("width", WIDTHS)
def test_page_of_the_hosts(
    width: int,
    open_page: Open,
    told: tuple[str, dict],
    applications: dict[str, Application],
    secrets: dict[str, str],
) -> None:
    page, fleet = told
    name = f"report-{width}.png"
    found = open_page(page, width, picture=name)
    assert (found["overflow"], found["asked"], found["outside"]) == (0, [], [])
    assert found["boxes"] == 2 * len(applications) + 1
    for application in applications.values():
        assert re.search(rf"\b{application.name}\s+{application.inventory_host}\s", found["text"])
    assert fleet["applications"][0]["release"] in found["text"]
    assert fleet["poolers"][0]["version"] in found["text"]
    total = fleet["budget"]["totals"]["total"]
    assert f"{total} connections may be open at once" in found["text"]
    assert "are open now, one of them for this page" in found["text"]
    picture = (ROOT / ".cache" / name).read_bytes()
    assert struct.unpack(">II", picture[16:24]) == (width, 2400)
    assert len(picture) > 20_000  # a blank one has some 10 kB
    assert [name for name, secret in secrets.items() if secret in page] == []


FLEETS = {
    "tier": sample_fleet.tier(40, 3),
    "mixed": sample_fleet.mixed(),
    "silent": sample_fleet.silent(),
    "hostile": sample_fleet.hostile(),
}


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("shape", FLEETS)
def test_pages_of_other_fleets(shape: str, width: int, open_page: Open) -> None:
    fleet = FLEETS[shape]
    problems = [sample_fleet.ODD] if shape == "hostile" else []
    parts = (fleet["applications"], fleet["poolers"], fleet["budget"])
    page = status.page(*parts, problems, "inventories/mine", datetime.now(UTC))
    found = open_page(page, width)
    assert (found["overflow"], found["asked"], found["scripts"]) == (0, [], 1)
    if shape == "hostile":
        assert sample_fleet.ODD in found["text"]
    else:
        assert found["outside"] == []


def test_dark_screens_get_a_dark_page(open_page: Open, told: tuple[str, dict]) -> None:
    light = open_page(told[0], 1280, "--blink-settings=preferredColorScheme=1")["ground"]
    dark = open_page(told[0], 1280, "--blink-settings=preferredColorScheme=0")["ground"]
    assert (light, dark) == ("rgb(255, 255, 255)", "rgb(20, 24, 31)")
