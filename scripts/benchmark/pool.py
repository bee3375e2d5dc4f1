"""Two database endpoints in turn: many short sessions, and pgbench with one query."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import time
from collections import Counter
from typing import Any

import psycopg

from .load import Unusable, percentile

HOLD_SECONDS = 0.01


def shown(dsn: str) -> str:
    """Return an endpoint without its password."""
    try:
        facts = psycopg.conninfo.conninfo_to_dict(dsn)
    except psycopg.ProgrammingError as error:
        raise Unusable(f"this is no connection string: {error}") from None
    return f"{facts.get('host', 'socket')}:{facts.get('port', 5432)}/{facts.get('dbname', '')}"


def check(dsn: str) -> None:
    """Refuse an endpoint that does not answer, and a password, which others would see in `ps`."""
    name = shown(dsn)
    if psycopg.conninfo.conninfo_to_dict(dsn).get("password"):
        raise Unusable(f"{name}: leave the password out; put it into ~/.pgpass or PGPASSWORD")
    try:
        with psycopg.connect(dsn, connect_timeout=5, autocommit=True) as connection:
            connection.execute("SELECT 1")
    except psycopg.Error as error:
        raise Unusable(f"{name}: {str(error).strip().splitlines()[0]}") from None


async def sessions(dsn: str, number: int, seconds: float) -> dict[str, Any]:
    """Run `number` sessions at a time, one after the other for some seconds; return what came.

    Each logs in, runs SELECT 1, holds its connection for 10 ms and leaves.
    """
    times: list[float] = []
    errors: Counter[str] = Counter()
    end = time.monotonic() + seconds

    async def one() -> None:
        while time.monotonic() < end:
            start = time.monotonic()
            try:
                connection = await psycopg.AsyncConnection.connect(
                    dsn, autocommit=True, connect_timeout=10, prepare_threshold=None
                )
                try:
                    await connection.execute("SELECT 1")
                    await asyncio.sleep(HOLD_SECONDS)
                finally:
                    await connection.close()
                times.append(1000 * (time.monotonic() - start))
            except psycopg.Error as error:
                state = getattr(error, "sqlstate", None)
                errors[state or str(error).strip().splitlines()[-1][:60]] += 1
                await asyncio.sleep(HOLD_SECONDS)

    await asyncio.gather(*(one() for _ in range(number)))
    times.sort()
    return {
        "sessions": len(times),
        "sessions_per_second": round(len(times) / seconds, 1),
        "p50_ms": round(percentile(times, 0.5), 2),
        "p99_ms": round(percentile(times, 0.99), 2),
        "errors": dict(errors),
    }


def pgbench(dsn: str, clients: int, seconds: int) -> dict[str, Any]:
    """Return pgbench's figures for SELECT 1 over open connections; {} where it is not installed.

    It changes nothing in the database: pgbench's own tables are not needed.
    """
    program = shutil.which("pgbench")
    if not program:
        return {}
    command = [program, "-n", "-M", "simple", "-f", "-", "-c", str(clients), "-j", "1"]
    command += ["-T", str(seconds), dsn]
    done = subprocess.run(command, input="SELECT 1;\n", capture_output=True, text=True)
    latency = re.search(r"latency average = ([\d.]+) ms", done.stdout)
    rate = re.search(r"tps = ([\d.]+)", done.stdout)
    if done.returncode or not latency or not rate:
        return {"error": (done.stderr.strip().splitlines() or ["no answer"])[-1]}
    return {"queries_per_second": float(rate[1]), "mean_ms": float(latency[1])}


def compare(
    dsns: list[str], number: int, seconds: float, rounds: int, tell: Any
) -> list[dict[str, Any]]:
    """Measure the endpoints in turn; return a row for each and round."""
    for dsn in dsns:
        check(dsn)
    rows = []
    for count in range(1, rounds + 1):
        for dsn in dsns:
            tell(f"round {count}: {shown(dsn)}", len(rows), rounds * len(dsns))
            row = asyncio.run(sessions(dsn, number, seconds))
            row["pgbench"] = pgbench(dsn, min(number, 10), max(1, int(seconds)))
            rows.append({"name": shown(dsn), "round": count, "concurrency": number, **row})
    return rows
