"""SCRAM verifiers as PostgreSQL's pg_authid and PgBouncer's user list hold them."""

from __future__ import annotations

import base64
import hashlib
import hmac

from ansible.errors import AnsibleFilterError

SCRAM_ITERATIONS = 4096
"""PostgreSQL's default scram_iterations; verifiers on both sides must agree for pass-through."""


def scram_verifier(password: str, user: str, seed: str) -> str:
    """Return the SCRAM-SHA-256 verifier of a password, as pg_authid and userlist.txt hold it.

    The salt is HMAC-SHA-256(seed, user), cut to PostgreSQL's 16 bytes: stable over runs, different
    for each role and each installation. The same verifier on both sides lets PgBouncer pass the
    client's SCRAM keys through, so no pooler host holds a password in clear text.
    """
    import scramp  # here: Ansible loads this file for every task that uses a filter

    seed = str(seed)
    if len(seed) < 16:
        raise AnsibleFilterError(
            "scram_salt_seed must have at least 16 characters: it keeps the salts of this "
            "installation apart from those of every other one"
        )
    if not password:
        raise AnsibleFilterError(f"the password of the database role {user!r} is empty")
    salt = hmac.new(seed.encode(), user.encode(), hashlib.sha256).digest()[:16]
    try:
        salt, stored_key, server_key, _ = scramp.ScramMechanism("SCRAM-SHA-256").make_auth_info(
            password, iteration_count=SCRAM_ITERATIONS, salt=salt
        )
    except scramp.ScramException as error:
        raise AnsibleFilterError(
            f"the password of the database role {user!r} holds a character that SASLprep "
            f"(RFC 4013) forbids: use printable characters. ({type(error).__name__})"
        ) from None
    salt64, stored64, server64 = (
        base64.b64encode(part).decode() for part in (salt, stored_key, server_key)
    )
    return f"SCRAM-SHA-256${SCRAM_ITERATIONS}:{salt64}${stored64}:{server64}"


def verifier_fingerprint(verifier: str) -> str:
    """Return a short public mark of a verifier, kept as the role's comment in PostgreSQL.

    A managed database hides pg_authid; the mark tells whether the password was already set.
    """
    return "poolkit:" + hashlib.sha256(verifier.encode()).hexdigest()[:16]
