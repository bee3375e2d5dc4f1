"""The role that stands in for an application's user while that user's password changes.

One role has one password, in PostgreSQL and in each pooler, and an application's hosts change over
one after the other. So meanwhile they log in as another role, which has the new password already.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

ENDING = "_rotation"
LONGEST_NAME = 63
"""Bytes of a name in PostgreSQL (NAMEDATALEN - 1)."""


def stand_in_of(user: str) -> str:
    """Return the name of the role that stands in for an application's user."""
    return user[: LONGEST_NAME - len(ENDING)] + ENDING


def with_stand_ins(apps: Iterable[dict], users: Mapping[str, bool]) -> list[dict]:
    """Return the applications with an entry more for each whose user is in `users`.

    users: {user: whether the inventory's password is still to come}. An entry whose user waits for
    it has `waits`; one of a stand-in has `stands_in_for`, the user.
    """
    found = []
    for app in apps:
        user = app["user"]
        if user not in users:
            found.append(app)
            continue
        found.append({**app, "waits": users[user]})
        own = {"name": f"{app['name']} ({stand_in_of(user)})", "user": stand_in_of(user)}
        found.append({**app, **own, "stands_in_for": user})
    return found
