"""Filters of the role app: what its variables must not contradict, and where a rollback goes."""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from packaging.specifiers import InvalidSpecifier, SpecifierSet

from ..plugin_utils.applications import further_databases
from ..plugin_utils.values import SERIAL, WORKERS, seconds

FACTS = ("host", "port", "dbname", "user", "password", "sslmode", "sslrootcert", "plain_url")
"""What app_environment_names can give further names to: libpq's keywords, and a URL."""

RESOURCE_LIMITS = (
    "CPUQuota",
    "CPUWeight",
    "IOWeight",
    "LimitCORE",
    "LimitNOFILE",
    "LimitNPROC",
    "MemoryHigh",
    "MemoryMax",
    "MemorySwapMax",
    "Nice",
    "OOMPolicy",
    "OOMScoreAdjust",
    "TasksMax",
)
"""Of systemd.resource-control(5) and systemd.exec(5)."""

REASON_CHARACTERS = 2000
"""So much of the end of what a failed command has said is quoted once more at a run's end."""

PLAIN = (
    r"[a-z][a-z0-9-]{0,22}",
    "use a lower-case letter, then at most 22 lower-case letters, digits and hyphens",
)
DATABASE_NAME = (r"[A-Za-z0-9_.-]{1,63}", "use 1 to 63 of the characters A-Z a-z 0-9 _ . -")
FORMS = {
    "name": PLAIN,
    "user": PLAIN,
    "database": DATABASE_NAME,
    "database_user": DATABASE_NAME,
    "database_owner": DATABASE_NAME,
    # systemd reads % and $, and quotes inside of a quoted word are not the shell's.
    "module": (
        r"[A-Za-z_][\w.]*(:[A-Za-z_][\w.]*(\([^'%$\\\x00-\x1f\x7f]*\))?)?",
        "give module:variable or module:factory(), with double quotes for texts in it",
    ),
    "python": (
        # ProtectHome= of the units hides the others.
        r"(?!/(home|root|run/user)/)/[\w./+-]+|[A-Za-z0-9][\w.+-]*",
        "give a command such as python3.13, or an absolute path without blanks and not below /home "
        "or /root, which the service does not see",
    ),
    "health_path": (r"/[!-~]*", "give a path that begins with / and has no blanks"),
    "database_url_scheme": (r"[a-z][a-z0-9+.-]*", "give a scheme such as postgresql+asyncpg"),
    "migration_timeout_seconds": (r"[1-9]\d*", "give a number of seconds, at least 1"),
}
"""The form of a value that goes into units, files and commands, and what to say of another."""

PROCESS_FORMS = {
    "command": (
        # It is put behind exec: of two commands the second would never run.
        r"(?!\w+=)[^\x00-\x1f\x7f;&|<>`]+",
        "give one program and its words; for more, and for variables, a script of the source",
    ),
    "schedule": (r"[\w*:.,/~ +-]+", "give a time as systemd's OnCalendar, such as daily"),
    "connections": (r"\d+", "give a number of connections"),
    "stop_signal": (
        r"SIG(TERM|INT|QUIT|HUP|USR1|USR2|WINCH)",
        "give SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGUSR1, SIGUSR2 or SIGWINCH",
    ),
    "stop_timeout_seconds": (r"[1-9]\d*", "give a number of seconds, at least 1"),
}
"""The keys of an entry of app_processes: their form, and what to say of another."""

VARIABLE_NAME = r"[A-Za-z_][A-Za-z0-9_]*"

RESERVED_USERS = (
    *("root", "nobody", "daemon", "bin", "sys", "www-data", "sshd"),
    *("postgres", "pgbouncer", "pgbouncer-exporter"),
)
"""Accounts of the system and of other services, on hosts that may not have them yet."""


def _is_address(value: str) -> bool:
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return False
    return "%" not in value  # systemd would read the name of an interface as a specifier


def app_value_errors(given: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the form of the role's values, each with the variable to change.

    given: the keys of FORMS, bind_address, port, hosts (pairs of a database's or pooler's host and
    port), health_headers, state_directories, system_packages,
    build_commands, and the names of variables in environment, environment_names and
    pip_environment. A value that may hold a secret is not shown.
    """
    errors = [
        f"app_{key} is {given[key]!r}: {advice}"
        for key, (form, advice) in FORMS.items()
        if not re.fullmatch(form, str(given[key]))
    ]
    user = given["user"]
    if user in RESERVED_USERS:
        errors.append(f"app_user is {user!r}, an account of something else: set another one")
    address = given["bind_address"]
    if not _is_address(str(address)):
        errors.append(f"app_bind_address is {address!r}: give an IPv4 or IPv6 address")
    ports = [("app_port", given["port"])]
    for host, port in given["hosts"]:
        # A name, a folder with a unix socket, or an address.
        if not re.fullmatch(r"[\w.-]+|/[\w./-]+", str(host), re.ASCII) and not _is_address(
            str(host)
        ):
            errors.append(
                f"{host!r} in app_database_host or app_poolers is no host: give a name or address"
            )
        ports.append((f"the port of {host} in app_database_port or app_poolers", port))
    for what, port in ports:
        if not re.fullmatch(r"[1-9][0-9]{0,4}", str(port)) or int(port) > 65535:
            errors.append(f"{what} is {port!r}: give a number from 1 to 65535")
    for key in ("state_directories", "system_packages", "build_commands"):
        if isinstance(given[key], str):
            errors.append(f"app_{key} is the text {given[key]!r}: give a list, such as [one, two]")
            given = {**given, key: []}
    errors += [
        # One folder's name: root makes no directory in one that is the application's.
        f"app_state_directories has {name!r}: give a name such as media, without /"
        for name in given["state_directories"]
        if not re.fullmatch(r"(?!\.)[\w.-]+", str(name), re.ASCII)
    ]
    errors += [
        f"app_system_packages has {name!r}: give the name of a Debian package, such as libgdal34"
        for name in given["system_packages"]
        if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]+", str(name))
    ]
    for name, value in given["health_headers"].items():
        if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", str(name)):
            errors.append(f"app_health_headers: {name!r} is no name of a header")
        if not re.fullmatch(r"[ -~\x80-\xff]*", str(value)):
            errors.append(f"app_health_headers.{name} has a line break or another character")
    for key in ("environment", "environment_names", "pip_environment"):
        errors += [
            f"app_{key}: {name!r} is no name of a variable: use letters, digits and _"
            for name in given[key]
            if not re.fullmatch(VARIABLE_NAME, str(name))
        ]
    return errors


def venv_name(found: Mapping[str, str], python: str, checksum: str) -> str:
    """Return the name of a virtual environment: what it is made with, and what is in it.

    found: the interpreter's {version, path} on the host, as app_host returns it; both empty where
    python (app_python) is yet to be installed from the distribution. checksum: of the
    requirements. An interpreter that is not the distribution's is known by its path as well: its
    version is not enough.
    """
    path = found["path"]
    version = found["version"] or python.removeprefix("python")
    own = path and not path.startswith("/usr/bin/")
    interpreter = f"-{hashlib.sha256(path.encode()).hexdigest()[:8]}" if own else ""
    return f"py{version}{interpreter}-{checksum[:12]}"


def application_databases(
    databases: Mapping[str, Any],
    main: Mapping[str, Any],
    logins: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """Return how an application reaches each of its databases, its main one first.

    databases: app_databases. main: name, database, user, owner, password, owner_password, settings,
    and the ways as pairs of host and port: pooler_hosts (with a stand-in), fallback_hosts and
    direct_hosts. logins: {user: the role that stands in for it}.
    Each: name (of its services, NAME or NAME.ALIAS), alias (""), prefix (of its
    environment variables), database, dbname (on the server itself), user, password, owner,
    owner_password, settings, made (whether poolkit makes it), hosts (of the pooled URL) and
    direct_hosts.
    """
    name, ways = main["name"], {"hosts": main["pooler_hosts"] + main["fallback_hosts"]}
    ways["direct_hosts"] = main["direct_hosts"]
    keys = ("database", "user", "password", "owner", "owner_password", "settings")
    own = {key: main[key] for key in keys} | {"dbname": main["database"], "made": True}
    found = [{"name": name, "alias": "", "prefix": "", **own, **ways}]
    for alias, entry in further_databases(databases, main).items():
        server = entry.pop("server")
        further = {"name": f"{name}.{alias}", "alias": alias, "prefix": f"{alias.upper()}_"}
        further |= {**entry, **ways, "dbname": entry["database"], "made": not server}
        if server:
            there = [[server["host"], server["port"]]]
            # One URL has one database's name: where the pooler knows it by another, it is alone.
            same = server["dbname"] == entry["database"] and main["fallback_hosts"]
            hosts = main["pooler_hosts"] + (there if same else [])
            further |= {"dbname": server["dbname"], "hosts": hosts, "direct_hosts": there}
            if not main["pooler_hosts"]:
                further |= {"database": server["dbname"], "hosts": there}
        found.append(further)
    return [{**entry, "user": (logins or {}).get(entry["user"], entry["user"])} for entry in found]


def python_misfit(requires: str, version: str, python: str) -> str:
    """Return why a host's Python does not fit a source; "" where it does.

    requires: requires-python of its pyproject.toml. version: of the host's interpreter, or of the
    one that is installed for python (app_python), such as 3.13; "3" says nothing.
    """
    if not requires or not re.fullmatch(r"\d+\.\d+(\.\d+)?", version):
        return ""
    try:
        fits = SpecifierSet(requires).contains(version, prereleases=True)
    except InvalidSpecifier:
        return ""  # the build says so
    # A version of two numbers may be any of its patches.
    if fits or (version.count(".") == 1 and SpecifierSet(requires).contains(f"{version}.99")):
        return ""
    return (
        f"app_python is {python}, version {version}, but the source's pyproject.toml says "
        f"requires-python {requires}: name one that the distribution has, or the absolute path of "
        "one that you have installed (docs/sources.md)"
    )


def _strategy_errors(given: Mapping[str, Any]) -> Iterable[str]:
    managed = given["strategy"] == "managed"
    for name in ("database_url", "database_direct_url"):
        if managed and not given[name]:
            yield (
                f"app_{name} is missing: app_connection_strategy managed takes the platform's own "
                "URLs, the pooled one and the direct one for migrations"
            )
        if given[name] and not managed:
            yield f"app_{name} is only for app_connection_strategy managed; remove it"
    if managed and given.get("databases"):
        yield (
            "app_databases needs databases of the inventory: with app_connection_strategy managed, "
            "give the URLs in app_environment"
        )
    if managed and given["environment_names"]:
        yield "app_environment_names needs a database of the inventory, not app_database_url"
    for name, fact in given["environment_names"].items():
        if fact not in FACTS:
            yield f"app_environment_names.{name} is {fact!r}: give one of {', '.join(FACTS)}"


def _certificate_errors(given: Mapping[str, Any]) -> Iterable[str]:
    mode = given["database_sslmode"]
    verifies = mode.startswith("verify-") and given["strategy"] != "managed"
    if verifies and not given["database_ca_file"]:
        yield (
            f"app_database_sslmode is {mode} (database_sslmode): needs database_ca_file, the PEM "
            "file of the authority that signed PostgreSQL's certificate"
        )


def _timeout_errors(given: Mapping[str, Any]) -> Iterable[str]:
    """Each time-out must end before the one around it: docs/timeouts.md has the table."""
    limit = int(given["timeout_seconds"])
    connect = int(given["connect_timeout_seconds"])
    for variable, value in (
        ("app_timeout_seconds", limit),
        ("app_connect_timeout_seconds", connect),
    ):
        if value < 1:
            yield f"{variable} is {value}, which would wait without end: give at least 1"
    if connect * int(given["hosts"]) >= limit:
        yield (
            f"app_timeout_seconds is {limit}, but connecting may take {connect * given['hosts']} s "
            f"({given['hosts']} hosts x app_connect_timeout_seconds {connect}): a deployment would "
            "cut the request off first; raise it"
        )
    wait = int(given["query_wait_timeout_seconds"])
    if given["poolers"] and not wait:
        yield (
            "query_wait_timeout is 0 in pgbouncer_settings, so that a query may wait in PgBouncer "
            "without end: give it less than app_timeout_seconds"
        )
    if given["poolers"] and wait >= limit:
        yield (
            f"app_timeout_seconds is {limit}, but a query may wait {wait} s in PgBouncer "
            "(query_wait_timeout): a deployment would cut it off first; lower that or raise this"
        )
    for name, value in given["database_settings"].items():
        if not name.endswith("_timeout"):
            continue
        try:
            if seconds(value) >= limit and name in ("statement_timeout", "transaction_timeout"):
                yield (
                    f"app_database_settings.{name} is {value}, not less than app_timeout_seconds "
                    f"({limit}): a deployment would cut the request off while PostgreSQL goes on"
                )
        except ValueError as error:
            yield f"app_database_settings.{name}: {error}"


def _environment_errors(variable: str, values: Mapping[str, Any]) -> Iterable[str]:
    """Values are secrets: a message says what one is, not what it holds."""
    for name, value in values.items():
        where = f"{variable}.{name}"
        if isinstance(value, bool):
            yield f'{where} is a boolean: write in quotes what the application reads, such as "1"'
        elif value is None:
            yield f'{where} is null: leave it out, or write "" for an empty value'
        elif isinstance(value, Mapping):
            yield f"{where} is a mapping: give text, such as JSON in quotes"
        elif isinstance(value, list | tuple | set):
            yield f'{where} is a list: give text as the application reads it, such as "a,b"'
        elif "\0" in str(value):
            yield f"{where} holds a NUL character, which an environment variable cannot"


def _process_errors(processes: Any) -> Iterable[str]:
    """The forms of app_processes; connections are the budget's business."""
    if not isinstance(processes, Mapping):
        yield f"app_processes is {processes!r}: give {{name: {{command: …}}}}"
        return
    for name, process in processes.items():
        where = f"app_processes.{name}"
        if not re.fullmatch(PLAIN[0], str(name)):
            yield f"{where}: {PLAIN[1]}"
        if not isinstance(process, Mapping) or not process.get("command"):
            yield f"{where} has no command: give {{command: celery -A config worker}} or so"
            continue
        if unknown := set(process) - set(PROCESS_FORMS):
            known = ", ".join(PROCESS_FORMS)
            yield f"{where}.{min(unknown, key=str)} is unknown: use {known}"
        for key, (form, advice) in PROCESS_FORMS.items():
            text = "" if process.get(key) is None else str(process[key])
            if key in process and not re.fullmatch(form, text):
                yield f"{where}.{key} is {process[key]!r}: {advice}"


def app_errors(given: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the role's variables, each with the variable to change.

    given: strategy, database_url, database_direct_url, environment_names, database_sslmode,
    database_ca_file, database_settings, workers, serial, resource_limits, migration_command,
    migration_pending_command, timeout_seconds, connect_timeout_seconds, hosts and poolers (numbers
    of the URL's hosts), query_wait_timeout_seconds (the pooler's); and where they are to be checked
    environment, pip_environment, processes, databases and docker_environment_file.
    """
    errors = [*_strategy_errors(given), *_certificate_errors(given), *_timeout_errors(given)]
    for name in ("environment", "pip_environment"):
        errors += _environment_errors(f"app_{name}", given.get(name, {}))
    if given.get("docker_environment_file"):
        errors += [
            f"app_environment.{name} has a line break, which docker.env cannot hold: encode it, or "
            "leave out app_docker_environment_file"
            for name, value in given["environment"].items()
            if re.search(r"[\r\n]", str(value))
        ]
    errors += _process_errors(given.get("processes", {}))
    if not re.fullmatch(WORKERS, str(given["workers"])):
        errors.append(f"app_workers is {given['workers']!r}: give a number or auto")
    if not re.fullmatch(SERIAL, str(given["serial"])):
        errors.append(
            f"app_serial is {given['serial']!r}: give a number or a percentage such as 25%"
        )
    if given["migration_pending_command"] and not given["migration_command"]:
        errors.append("app_migration_pending_command needs app_migration_command beside it")
    for name, value in given["resource_limits"].items():
        if name not in RESOURCE_LIMITS:
            errors.append(
                f"app_resource_limits.{name} is unknown: use {', '.join(RESOURCE_LIMITS)}"
            )
        elif not re.fullmatch(r"[\w.%+-]+", str(value)):
            errors.append(f"app_resource_limits.{name} is {value!r}: give one value of systemd's")
    return errors


def rollback_release(hosts: Iterable[tuple[str, Mapping[str, Any]]]) -> dict[str, str]:
    """Return the release to which every host of an application goes back, or why it cannot.

    As {target, problem}: one of them is empty, and the problem names the hosts.

    hosts: (name, state) in the order of the rollout. state: what app_release with `previous` says
    in check mode: previous (the release that serves), release (the one before; missing where there
    is none) and releases (those on the host); msg alone where the application was never deployed.
    The first host leads. A rollback that was cut off is finished, not turned round: the hosts that
    it did not reach would go back to what the first one serves already, and that one has withdrawn
    what they serve.
    """
    hosts = [(name, state or {}) for name, state in hosts]

    def problem(text: str) -> dict[str, str]:
        return {"target": "", "problem": text}

    lacking = [(name, state) for name, state in hosts if "releases" not in state]
    if lacking:
        said = "; ".join(
            f"{name}: {state.get('msg') or 'it was not asked'}" for name, state in lacking
        )
        return problem(f"not every host can go back: {said}")
    first, last = hosts[0][1], hosts[-1][1]
    serves, target = first.get("previous"), first.get("release")
    if serves and last.get("release") == serves and last.get("previous") != target:
        target = serves
    if not target:
        return problem(f"{hosts[0][0]}: {first.get('msg') or 'no release has served before'}")
    without = [name for name, state in hosts if target not in state["releases"]]
    if without:
        return problem(
            f"the release {target} is not on {', '.join(without)}: deploy its source instead "
            "(ansible/playbooks/app.yml)"
        )
    return {"target": target, "problem": ""}


def rollback_releases(
    hostvars: Mapping[str, Mapping[str, Any]], hosts: Iterable[str]
) -> dict[str, dict[str, Any]]:
    """Return {application: {target, problem, deployed}} of the play's hosts, before a rollback.

    target, problem: as `rollback_release`, from what app_release registered as __app_before.
    deployed: whether it was found on any of the application's hosts.
    """
    states: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
    for host in hosts:
        facts = hostvars[host]
        state = facts.get("__app_before") or {}
        states.setdefault(str(facts.get("app_name")), []).append((host, state))
    return {
        name: {
            **rollback_release(found),
            "deployed": any("releases" in state for _, state in found),
        }
        for name, found in states.items()
    }


def failure_reason(result: Mapping[str, Any]) -> str:
    """Return why a task failed, from its result: a message, or the end of what a command said."""
    items = [item for item in result.get("results") or [] if item.get("failed")]
    if items:
        return failure_reason(items[0])
    message = str(result.get("msg") or result.get("censored") or "no message")
    said = str(result.get("stderr") or result.get("module_stderr") or result.get("stdout") or "")
    said = said.strip()[-REASON_CHARACTERS:]
    return f"{message.strip()}: {said}" if said and said not in message else message.strip()


def application_failures(
    noted: Mapping[str, str], hosts: Iterable[str], present: Sequence[str]
) -> list[str]:
    """Return what has failed on an application's hosts, each reason with its hosts.

    noted: variables, among them what roles/app/tasks/attempt.yml has noted of hosts that failed.
    present: the play's hosts without those that failed outside of a rescue or are unreachable.
    """
    found: dict[str, list[str]] = {}
    answering = set(present)
    for host in hosts:
        mark = hashlib.sha1(host.encode(), usedforsecurity=False).hexdigest()
        task, _, reason = (noted.get(f"__app_failure_{mark}") or "").partition(": ")
        if task:  # most messages of the role begin with the host
            text = f": {task}: {reason.removeprefix(f'{host}: ')}"
        elif host not in answering:
            text = " does not answer any more, or failed before"
        else:
            continue
        found.setdefault(text, []).append(host)
    return [f"{', '.join(names)}{text}" for text, names in found.items()]


def serving_summary(hostvars: Mapping[str, Mapping[str, Any]], hosts: Iterable[str]) -> str:
    """Return what serves on which of an application's hosts, as app_release said."""
    found: dict[str, list[str]] = {}
    for host in hosts:
        said = (hostvars[host].get("__app_serving") or {}).get("serving") or "nobody knows"
        found.setdefault(said, []).append(host)
    return "; ".join(f"on {', '.join(names)} {said}" for said, names in found.items())


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Any]:
        return {
            function.__name__: function
            for function in (
                app_errors,
                application_databases,
                app_value_errors,
                application_failures,
                failure_reason,
                python_misfit,
                rollback_releases,
                serving_summary,
                venv_name,
            )
        }
