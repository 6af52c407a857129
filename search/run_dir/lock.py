"""One search at a time in a run: a lock that goes with the process, however it ends."""

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

PING_SECONDS = 20.0  # between two signs of life to the database, less than what firewalls let pass idle
# So that the server ends the lock of a machine that vanished without a word in about a minute, not in hours.
_KEEPALIVE = {"tcp_keepalives_idle": 30, "tcp_keepalives_interval": 10, "tcp_keepalives_count": 3}

log = logging.getLogger(__name__)


@contextmanager
def locked(folder: Folder, url: str, name: str) -> Iterator[None]:
    """Hold a run for this process: by its directory where that is a folder, and by its study.

    Args:
        folder: the run directory.
        url: of the study's database.
        name: of the study.

    Raises:
        InputError: another process holds it, or the directory cannot be made or written.
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
    """An advisory lock of a PostgreSQL session of its own, taken again when the server was restarted."""
    secret = url.render_as_string(hide_password=False)
    lock, shown = _SessionLock(url, name), redact(secret)
    try:
        ours = lock.take()
    except SQLAlchemyError as fault:
        reason = redact(str(getattr(fault, "orig", None) or fault), secret).strip().splitlines()[0]
        raise InputError(f"storage.study: cannot open the database {shown}: {reason}") from None
    if not ours:
        raise InputError(
            f"storage.study: another `ama search` is running with the study {name!r} in {shown}; the lock of "
            "one whose machine was lost goes within two minutes"
        )

    def ping() -> None:
        with suppress(SQLAlchemyError):  # away: the search itself waits for it, and says so
            if not lock.alive() and not lock.take():
                log.warning("storage.study: while the database was away, another search took the study")

    try:
        with repeated(ping, PING_SECONDS, "study lock"):
            yield
    finally:
        lock.release()


class _SessionLock:
    def __init__(self, url: URL, name: str) -> None:
        self._engine = sa.create_engine(url, poolclass=sa.pool.NullPool, isolation_level="AUTOCOMMIT")
        self._url = url
        # PostgreSQL's key is a signed number of 64 bits, and counts within one database.
        digest = hashlib.sha256(f"ama-search {name}".encode()).digest()
        self._key = int.from_bytes(digest[:8], "big", signed=True)
        self._connection: Any = None

    def take(self) -> bool:
        """Whether the lock is ours now."""
        self.release()
        self._connection = self._engine.connect()
        if self._url.host:
            for setting, value in _KEEPALIVE.items():
                self._connection.exec_driver_sql(f"SET {setting} = {value}")
        query = sa.text("SELECT pg_try_advisory_lock(:key)")
        return bool(self._connection.execute(query, {"key": self._key}).scalar())

    def alive(self) -> bool:
        """Whether the session that holds the lock still answers."""
        if self._connection is None:
            return False
        try:
            self._connection.exec_driver_sql("SELECT 1")
        except SQLAlchemyError:
            return False
        return True

    def release(self) -> None:
        """End the session, and the lock with it."""
        if self._connection is not None:
            self._connection.invalidate()
            self._connection.close()
            self._connection = None
