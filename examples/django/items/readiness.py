"""Is the database there, and which way do we reach it?"""

from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from time import monotonic

from django.db import close_old_connections, connection

TIMEOUT = 4.5  # seconds; whoever probes us should have an answer within 5

# A query sent to a stalled peer has no time limit of its own, so the check runs in a thread that
# we can stop waiting for. One thread and one check at a time: callers share the check in flight and
# its deadline, so a stall costs one thread, not one per probe, and once it is known, no more time.
_executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="readiness")
_lock = Lock()
_check: Future[str] | None = None
_deadline = 0.0


def database_path() -> str:
    """Return "pooler" or "direct"; raise an error when the database does not answer in time."""
    global _check, _deadline
    with _lock:
        if _check is None or _check.done():
            _check, _deadline = _executor.submit(_query_path), monotonic() + TIMEOUT
        check, deadline = _check, _deadline
    try:
        return check.result(timeout=deadline - monotonic())
    except TimeoutError:
        raise TimeoutError(f"no answer from the database within {TIMEOUT} s") from None


def _query_path() -> str:
    """Compare the process that we logged in to with the one that runs our query.

    A pooler answers the login itself, with a process id of its own making. The thread keeps its
    own connection, made and aged like those of the threads that serve requests; Django only does
    the housekeeping for those, hence close_old_connections().
    """
    close_old_connections()
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid(), current_setting('transaction_read_only')")
            pid, read_only = cursor.fetchone()
        if read_only == "on":  # a server that was demoted, or a standby
            raise OSError("the database takes no writes: it is read-only")
        return "direct" if connection.connection.info.backend_pid == pid else "pooler"
    finally:
        close_old_connections()
