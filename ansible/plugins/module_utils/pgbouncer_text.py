"""Parse and compare PgBouncer's files and the answers of its console, without side effects."""

from __future__ import annotations

import re
from collections.abc import Iterator

Sections = dict[str, dict[str, str]]
"""A parsed file: section -> name -> value, as text."""

Rows = dict[str, dict[str, dict[str, str]]]
"""What a process shows: CONFIG, DATABASES and USERS -> name -> column -> value."""

NOWHERE = "nowhere to listen on"
"""What a good candidate ends with, since it is given no address and no socket."""

ABSENT_IN_TRIAL = ("listen_addr", "unix_socket_dir", "pidfile", "logfile")
"""Settings that a trial beside the live process must not have."""

DATABASE_COLUMNS = {
    "host": "host",
    "port": "port",
    "dbname": "database",
    "pool_size": "pool_size",
    "min_pool_size": "min_pool_size",
    "reserve_pool": "reserve_pool_size",
    "reserve_pool_size": "reserve_pool_size",
    "pool_mode": "pool_mode",
    "max_db_connections": "max_connections",
    "max_db_client_connections": "max_client_connections",
    "server_lifetime": "server_lifetime",
}
"""[databases] key -> column of SHOW DATABASES (before 1.24 reserve_pool_size was reserve_pool)."""

USER_COLUMNS = (
    "pool_size",
    "reserve_pool_size",
    "pool_mode",
    "max_user_connections",
    "max_user_client_connections",
)
"""[users] keys that SHOW USERS shows under their own names, where the version has them."""

OWN_SETTINGS = ("conffile", "verbose", "user", "job_name", "service_name")
"""Settings that the command line and the service give the process."""

NEUTRAL_USER = "max_user_connections=-1"
"""A [users] line that resets every limit of the user: a key that is not given goes to "unset"."""


def entries(text: str, included: dict[str, str] | None = None) -> Iterator[tuple[str, str, str]]:
    """Yield (section, name, value) of a pgbouncer.ini, and ("name", "", "") where a section begins.

    Only a line feed ends a line for PgBouncer; comments are at line starts only. included: path
    -> content of the files that %include may name; the section goes on in them and after them.
    """
    section = ""

    def read(part: str) -> Iterator[tuple[str, str, str]]:
        nonlocal section
        for line in part.split("\n"):
            line = line.strip()
            if not line or line[0] in ";#":
                continue
            if header := re.fullmatch(r"\[(\w+)\]", line):
                section = header.group(1)
                yield section, "", ""
            elif line.startswith("%include "):
                yield from read((included or {}).get(line.removeprefix("%include ").strip(), ""))
            elif "=" in line:
                name, value = line.split("=", 1)
                yield section, name.strip(), value.strip()

    yield from read(text)


def parse_ini(text: str, included: dict[str, str] | None = None) -> Sections:
    """Parse a pgbouncer.ini as PgBouncer does: the last value wins. included: see entries()."""
    sections: Sections = {}
    for section, name, value in entries(text, included):
        sections.setdefault(section, {})
        if name:
            sections[section][name] = value
    return sections


def repeated_names(text: str, included: dict[str, str] | None = None) -> list[str]:
    """Return section.name of everything that a file states twice: only one of them would hold."""
    names = [f"{section}.{name}" for section, name, _ in entries(text, included) if name]
    return sorted({name for name in names if names.count(name) > 1})


def parse_connstr(text: str) -> dict[str, str]:
    """Parse a [databases] or [users] value: key=value, quoted values with doubled quotes."""
    pairs = re.findall(r"(\w+)\s*=\s*('(?:[^']|'')*'|\S+)", text)
    return {
        key: value[1:-1].replace("''", "'") if value.startswith("'") else value
        for key, value in pairs
    }


def same(rendered: str, live: str | None) -> bool:
    """Compare two values as PgBouncer would: 30 and 30.0 are the same time."""
    if live is None:
        return False
    try:
        return float(rendered) == float(live)
    except ValueError:
        return rendered == live


def changed_names(before: Sections, after: Sections) -> list[str]:
    """Return section.name of everything that differs between two files."""
    return sorted(
        f"{section}.{name}"
        for section in {*before, *after}
        for name in {*before.get(section, {}), *after.get(section, {})}
        if before.get(section, {}).get(name) != after.get(section, {}).get(name)
    )


def trial_config(text: str, moved: dict[str, str]) -> str:
    """Return the candidate as a trial beside the live process can load it.

    moved: live path -> path of the trial's copy, for the files that the configuration names.
    """
    lines = []
    for line in text.removesuffix("\n").split("\n"):
        name = line.split("=", 1)[0].strip()
        if name in ABSENT_IN_TRIAL:
            line = f"{name} ="
        for live, trial in moved.items():
            if (name.endswith("_file") or name.startswith("%include ")) and line.endswith(live):
                line = line.removesuffix(live) + trial
                break
        lines.append(line)
    return "\n".join(lines) + "\n"


def trial_error(output: str, moved: dict[str, str]) -> str | None:
    """Return why the binary refused the candidate; None when it loaded all of it.

    A warning is a refusal as well: an HBA rule that PgBouncer skips would leave a door open.
    """
    problems = [
        re.sub(r"^.*?\b(WARNING|ERROR|FATAL)\b", r"\1", line)
        for line in output.splitlines()
        if re.search(r"\b(WARNING|ERROR|FATAL)\b", line) and NOWHERE not in line
    ]
    if not problems and NOWHERE in output:
        return None
    message = "; ".join(problems) or output.strip() or "it printed nothing"
    for live, trial in moved.items():
        message = message.replace(trial, live)
    return message


def config_drift(sections: Sections, config: dict[str, dict[str, str]]) -> dict[str, str]:
    """Return {setting: value that it should have} where SHOW CONFIG differs from the file.

    A setting that is not in the file should have its default: one that was removed and needs a
    restart to forget its value would otherwise stay.
    """
    rendered = sections.get("pgbouncer", {})
    wanted = {
        name: rendered.get(name, row.get("default", row["value"]))
        for name, row in config.items()
        if name in rendered or name not in OWN_SETTINGS
    }
    wanted |= {name: value for name, value in rendered.items() if name not in config}
    found = {}
    for name, value in wanted.items():
        live = config.get(name, {}).get("value")
        if name == "unix_socket_mode" and live is not None:
            live = f"0{int(live):o}"  # shown as a decimal number
        if not same(value, live):
            found[name] = value
    return found


def kept_by_reload(sections: Sections, rows: Rows) -> list[str]:
    """Return the settings that left the file and keep their value after a reload, as auth_user.

    Only a restart makes the process forget them. Nothing when a setting of the file differs as
    well: then the reload itself failed, and a restart would fail too.
    """
    names = list(config_drift(sections, rows["CONFIG"]))
    removed = [name for name in names if name not in sections.get("pgbouncer", {})]
    return removed if removed == names else []


def drift(sections: Sections, rows: Rows) -> list[str]:
    """Return where the running process differs from the rendered file, as readable statements."""
    config = rows["CONFIG"]
    found = [
        f"{name} is {config.get(name, {}).get('value')!r} and should be {value!r}"
        for name, value in config_drift(sections, config).items()
    ]
    databases = rows["DATABASES"]
    rendered = sections.get("databases", {})
    found += [f"database {name} is missing" for name in rendered if name not in databases]
    found += [
        f"database {name} is still there"
        for name, row in databases.items()
        if name not in rendered and name != "pgbouncer" and "*" not in rendered
    ]
    for name, text in rendered.items():
        row = databases.get(name, {})
        wanted = parse_connstr(text)
        pairs = [(key, DATABASE_COLUMNS[key]) for key in wanted if key in DATABASE_COLUMNS]
        for key, column in pairs if row else []:
            live = row.get("reserve_pool" if column not in row and "reserve" in column else column)
            older = live is None and key == "server_lifetime"  # no such column before 1.23
            shows_global = key == "server_lifetime" and wanted[key] == "0"
            if not older and not shows_global and not same(wanted[key], live):
                found.append(f"database {name}: {key} is {live!r} and should be {wanted[key]!r}")
        if row and row["force_user"] != wanted.get("user", ""):
            found.append(f"database {name}: the forced user is {row['force_user']!r}")
    users = rows["USERS"]
    for name, text in sections.get("users", {}).items():
        wanted = parse_connstr(text)
        for key in (key for key in USER_COLUMNS if key in wanted and key in users.get(name, {})):
            if not same(wanted[key], users[name][key]):
                live = users[name][key]
                found.append(f"user {name}: {key} is {live!r} and should be {wanted[key]!r}")
    return found


def pool_modes(sections: Sections) -> dict[str, str]:
    """Return the pool_mode of all (under ""), and of each database and user that has its own."""
    found = {"": sections.get("pgbouncer", {}).get("pool_mode", "session")}
    for kind in ("databases", "users"):
        for name, text in sections.get(kind, {}).items():
            if mode := parse_connstr(text).get("pool_mode"):
                found[f"{kind}.{name}"] = mode
    return found


def restart_only(sections: Sections, rows: Rows) -> list[str]:
    """Return the settings that differ in the running process and that a reload cannot change."""
    config = rows["CONFIG"]
    names = [
        name
        for name in config_drift(sections, config)
        if config.get(name, {}).get("changeable") == "no"
    ]
    forced = [
        f"databases.{name}.user"
        for name, text in sections.get("databases", {}).items()
        if rows["DATABASES"].get(name, {}).get("force_user") and "user" not in parse_connstr(text)
    ]
    return names + forced
