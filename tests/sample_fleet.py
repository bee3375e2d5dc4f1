"""What hosts report to scripts/status.py, for tests of its page: fleets of several shapes."""

from __future__ import annotations

from typing import Any

Fleet = dict[str, Any]
"""{applications, poolers, budget}, as status.py --json prints it."""

ODD = "\"><script>alert('shop')</script>&amp;{{ 7 * 7 }}"
"""A text that breaks out of an attribute, an element and a template, if nothing stops it."""


def certificate(end: str = "2027-06-01T00:00:00Z", subject: str = "Example, web1") -> dict:
    path = "/etc/pgbouncer/tls/server.crt"
    return {"certificate": path, "not_after": end, "subject": subject, "error": ""}


def pool(**values: str | int) -> dict[str, str | int]:
    usual = {"process": 1, "database": "shop", "user": "shop", "pool_mode": "transaction"}
    columns = {"cl_active": "4", "cl_waiting": "0", "sv_active": "1", "sv_idle": "2"}
    return {**usual, **columns, "maxwait": "0", "maxwait_us": "0", **values}


def application(host: str, poolers: list[str], **values: Any) -> dict[str, Any]:
    return {
        "host": host,
        "application": "shop",
        "address": "192.0.2.10",
        "port": 8000,
        "status": 200,
        "readiness": {"path": "pooler"},
        "pooled": bool(poolers),
        "poolers": poolers,
        "pools": [pool()] if poolers == ["127.0.0.1"] else [],
        "pooler_error": "",
        "database": "shop",
        "direct": 0,
        "direct_since": "",
        "refused": [],
        "uncounted": "",
        "certificates": [],
        "release": "0123456789ab",
        "release_since": "2026-11-28 08:00:00",
        "releases": ["0123456789ab", "ba9876543210"],
        **values,
    }


def pooler(host: str, address: str, **values: Any) -> dict[str, Any]:
    return {
        "host": host,
        "address": address,
        "differs": False,
        "settings": [],
        "reasons": [],
        "problems": [],
        "error": "",
        "advisories": ["CVE-1: a fault"],
        "version": "1.24.1-1+deb13u2",
        "distribution": "debian 13",
        "pools": [],
        "pools_error": "",
        "certificates": [certificate()],
        **values,
    }


def budget() -> dict[str, Any]:
    row = {"application": "shop", "poolers": "3 x 1", "pool": "10 + 2", "pooled": 12, "direct": 0}
    row |= {"rolling": 12, "fallback": 8, "limit": 20, "migrations": 5, "auth_query": 0}
    version = "17.12 (Debian 17.12-0+deb13u1)"
    return {
        "rows": [row],
        "totals": {"limits": 20, "migrations": 5, "auth_query": 0, "others": 5, "total": 30},
        "available": 97,
        "source": "PostgreSQL at db1:5432: max_connections 100 less 3 reserved",
        "server": "db1:5432",
        "notes": [],
        "fits": True,
        "users": {"shop": "shop"},
        "databases": {"shop": "shop"},
        "connections": [
            {"user": "shop", "database": "shop", "connections": 4, "version": version},
            {"user": "admin", "database": "postgres", "connections": 1, "version": version},
        ],
    }


def beside(number: int) -> Fleet:
    """A pooler on each application's host."""
    names = [f"web{n}" for n in range(1, number + 1)]
    return {
        "applications": [application(name, ["127.0.0.1"]) for name in names],
        "poolers": [pooler(name, f"192.0.2.{n}") for n, name in enumerate(names)],
        "budget": budget(),
    }


def tier(number: int, poolers: int) -> Fleet:
    """Application hosts that share poolers; each begins with another one."""
    addresses = [f"198.51.100.{n}" for n in range(1, poolers + 1)]
    pools = [pool(), pool(database="a_database_with_a_long_name", cl_waiting="7", maxwait="3")]
    return {
        "applications": [
            application(f"web{n + 1}", addresses[n % poolers :] + addresses[: n % poolers])
            for n in range(number)
        ],
        "poolers": [
            pooler(f"pool{n}", address, pools=pools) for n, address in enumerate(addresses, 1)
        ],
        "budget": budget(),
    }


def mixed() -> Fleet:
    """Poolers beside applications, a larger tier than it has applications, an application past it.

    One pooler that no application uses, and one that nobody has asked.
    """
    found = beside(2)
    found["applications"] += [
        application("old1", ["192.0.2.91", "192.0.2.92", "192.0.2.93"], direct=2),
        application("batch1", [], readiness={}),
    ]
    found["poolers"] += [
        pooler("pool1", "192.0.2.91", error="it is locked"),
        pooler("pool2", "192.0.2.92", differs=True),
        pooler("spare1", "192.0.2.94"),
    ]
    return found


def silent() -> Fleet:
    """Hosts that Ansible could not reach, or that ended half-way."""
    return {
        "applications": [{"host": "web1"}, {"host": "web2", "error": "no route to web2"}],
        "poolers": [{"host": "pool1", "error": "no route to pool1"}, {"host": "pool2"}],
        "budget": {},
    }


def hostile() -> Fleet:
    """Every text that comes from somewhere else is as bad as it can be, and long."""
    long = ODD + "W" * 200
    found = beside(1)
    (row,), (one,) = found["applications"], found["poolers"]
    row |= {"application": long, "status": 503, "release": long, "releases": [long]}
    row["readiness"] = {"path": long, "reason": long}
    row["pools"] = [pool(database=long, user=long, pool_mode=long)]
    row |= {"direct": 3, "direct_since": long}
    one |= {"version": long, "distribution": long, "advisories": [long]}
    one["certificates"] = [certificate(subject=long), certificate("") | {"error": long}]
    found["applications"].append({"host": long, "error": long})
    found["budget"] |= {"source": long, "server": long, "notes": [long]}
    found["budget"]["rows"][0]["application"] = long
    found["budget"]["connections"][0]["version"] = long
    return found
