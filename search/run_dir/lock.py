"""Lock a run against a second search; the lock ends with the process, however it ends."""

from __future__ import annotations

import fcntl
import hashlib
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import SQLAlchemyError

from analysis.runs.study_url import redact
from search.run_dir.folder import Folder
from search.run_dir.periodic import repeated
from trainables.errors import InputError

PING_SECONDS = 20.0  # keep-alive interval, shorter than the idle timeout of firewalls
# With these settings the server drops the lock of a dead machine after about a minute, not after hours.
_KEEPALIVE = {"tcp_keepalives_idle": 30, "tcp_keepalives_interval": 10, "tcp_keepalives_count": 3}

log = logging.getLogger(__name__)


@contextmanager
def locked(folder: Folder, url: str, name: str) -> Iterator[None]:
    """Lock a run for this process: its directory (on a file system), and its study.

    Args:
        folder: the run directory.
        url: URL of the study's database.
        name: name of the study.

    Raises:
        InputError: another process holds the lock, or the directory cannot be created or written.
    """
    database = make_url(url)
    with ExitStack() as held:
        if not folder.remote:
            held.enter_context(_file_locked(folder.path / ".lock", f"in {folder.place}"))
        if database.get_backend_name() == "postgresql":
            held.enter_context(_session_locked(database, name))
        elif folder.remote and database.get_backend_name() == "sqlite":
            file = Path(f"{database.database}.{name}.lock")
            held.enter_context(_file_locked(file, f"with this study in {database.database}"))
        yield


@contextmanager
def _file_locked(path: Path, where: str) -> Iterator[None]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as fault:
        raise InputError(f"run.dir: cannot write in {path.parent}: {fault.strerror}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"run.dir: another `ama search` is running {where}") from None
        yield


@contextmanager
def _session_locked(url: URL, name: str) -> Iterator[None]:
    """Hold an advisory lock in a separate PostgreSQL session; take it again after a server restart."""
    secret = url.render_as_string(hide_password=False)
    lock, shown = _SessionLock(url, name), redact(secret)
    try:
        ours = lock.take()
    except SQLAlchemyError as fault:
        reason = redact(str(getattr(fault, "orig", None) or fault), secret).strip().splitlines()[0]
        raise InputError(f"storage.study: cannot open the database {shown}: {reason}") from None
    if not ours:
        raise InputError(
            f"storage.study: another `ama search` is running with the study {name!r} in {shown}; if its "
            "machine was lost, the lock ends within two minutes"
        )

    def ping() -> None:
        with suppress(SQLAlchemyError):  # database unreachable: the search itself waits and reports it
            if not lock.alive() and not lock.take():
                log.warning("storage.study: while the database was away, another search locked the study")

    try:
        with repeated(ping, PING_SECONDS, "study lock"):
            yield
    finally:
        lock.release()


class _SessionLock:
    def __init__(self, url: URL, name: str) -> None:
        self._engine = sa.create_engine(url, poolclass=sa.pool.NullPool, isolation_level="AUTOCOMMIT")
        self._url = url
        # PostgreSQL's key is a signed 64-bit number, separate for each database.
        digest = hashlib.sha256(f"ama-search {name}".encode()).digest()
        self._key = int.from_bytes(digest[:8], "big", signed=True)
        self._connection: Any = None

    def take(self) -> bool:
        """Try to acquire the lock; return True on success."""
        self.release()
        self._connection = self._engine.connect()
        if self._url.host:
            for setting, value in _KEEPALIVE.items():
                self._connection.exec_driver_sql(f"SET {setting} = {value}")
        query = sa.text("SELECT pg_try_advisory_lock(:key)")
        return bool(self._connection.execute(query, {"key": self._key}).scalar())

    def alive(self) -> bool:
        """Return True if the session that holds the lock still answers."""
        if self._connection is None:
            return False
        try:
            self._connection.exec_driver_sql("SELECT 1")
        except SQLAlchemyError:
            return False
        return True

    def release(self) -> None:
        """Release the lock by closing its session."""
        if self._connection is not None:
            self._connection.invalidate()
            self._connection.close()
            self._connection = None
