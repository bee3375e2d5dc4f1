"""Each application answers on every endpoint, through its pooler."""

import contextlib
import json
import socket
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import Application


def test_ready_through_the_pooler(application: Application) -> None:
    answer = application.http.get("/readyz")
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert (body["database"], body["path"], body["service"]) == ("ok", "pooler", application.name)


@pytest.mark.parametrize(
    ("path", "body"),
    [("/healthz", {"status": "ok"}), ("/ping-db", {"result": 1}), ("/nodb", {"result": 1})],
)
def test_fixed_answers(application: Application, path: str, body: dict) -> None:
    answer = application.http.get(path)
    assert (answer.status_code, answer.json()) == (200, body)


def test_silent_connections_hold_no_thread(application: Application) -> None:
    """Browsers and load balancers connect ahead of their requests; gunicorn's threads are 8."""
    url = application.http.base_url
    with contextlib.ExitStack() as silent:
        for _ in range(24):
            silent.enter_context(socket.create_connection((url.host, url.port)))
        answer = application.http.get("/nodb", timeout=2)
    assert answer.status_code == 200


@pytest.mark.parametrize("kind", ["queued", "idle"])
def test_a_connection_that_is_silent_at_the_stop_is_answered(
    applications: dict[str, Application], kind: str
) -> None:
    """And one that stays silent does not hold the stop up for the time of a kept connection."""
    host = applications["django"].host
    script = (Path(__file__).parent / "stopping_gunicorn.py").read_text()
    done = host.check_output(
        "/srv/django/current/.venv/bin/python -c %s /etc/poolkit/django/gunicorn.conf.py %s",
        *(script, kind),
    )
    answer, seconds = done.splitlines()
    assert answer == "HTTP/1.1 200 OK"
    assert float(seconds) < 6


def test_page_shows_name_version_and_path(application: Application) -> None:
    page = application.http.get("/").text
    version = application.http.get("/readyz").json()["version"]
    assert application.name in page
    assert version in page
    assert "pooler" in page


def test_item_is_written_once_and_read_back(application: Application, superuser_sql) -> None:
    key = str(uuid.uuid4())
    first = application.http.post("/items", json={"key": key, "name": "one"})
    again = application.http.post("/items", json={"key": key, "name": "two"})
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()
    assert first.json() in application.http.get("/items").json()["items"]
    # Written through the pooler, and there when PostgreSQL itself is asked.
    stored = superuser_sql(application.name, f"SELECT name FROM items WHERE key = '{key}'")
    assert stored == "one"


def test_concurrent_writes_are_neither_lost_nor_doubled(
    application: Application, superuser_sql
) -> None:
    run = uuid.uuid4().hex
    keys = [f"{run}-{number % 50}" for number in range(200)]

    def post(key: str) -> int:
        return application.http.post("/items", json={"key": key, "name": "n"}).status_code

    with ThreadPoolExecutor(20) as pool:
        codes = list(pool.map(post, keys))
    assert (codes.count(201), codes.count(200)) == (50, 150), codes
    count = superuser_sql(application.name, f"SELECT count(*) FROM items WHERE key LIKE '{run}-%'")
    assert count == "50"


@pytest.mark.parametrize("body", [{}, {"key": "", "name": "x"}, {"key": "a\0b", "name": "x"}])
def test_bad_item_is_refused(application: Application, body: dict) -> None:
    answer = application.http.post("/items", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]


def test_export_streams_every_row(application: Application, superuser_sql) -> None:
    superuser_sql(
        application.name,
        "INSERT INTO items (key, name, created_at) SELECT 'bulk-' || n, 'bulk', now() "
        "FROM generate_series(1, 20000) AS n ON CONFLICT DO NOTHING",
    )
    expected = int(superuser_sql(application.name, "SELECT count(*) FROM items"))
    with application.http.stream("GET", "/export") as answer:
        identifiers = [json.loads(line)["id"] for line in answer.iter_lines()]
    assert len(identifiers) == expected
    assert identifiers == sorted(set(identifiers))
