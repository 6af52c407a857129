"""Open the study's database, and wait while it is unreachable."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import optuna
from optuna.exceptions import StorageInternalError
from sqlalchemy import event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, InterfaceError, InternalError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from analysis.runs.optuna_adapter import Storage
from analysis.runs.study_url import redact
from search.errors import FailedError
from trainables.errors import InputError

PATIENCE_VARIABLE = "AMA_STUDY_PATIENCE"
PATIENCE = 600.0  # seconds to wait for an unreachable database
WAITING = (
    "storage.study: the database is away (%s); waiting up to %.0f s for it, trials keep what they have "
    "(Ctrl-C twice ends the search, which stays resumable)"
)
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 10.0  # seconds between two attempts

# A network database can disappear silently: drop a connection after half a minute without an answer, not
# after the 15 minutes of TCP's defaults.
_POSTGRES = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 4,
    "tcp_user_timeout": 30_000,
}

log = logging.getLogger(__name__)

T = TypeVar("T")


class DatabaseAwayError(BaseException):
    """Raised when the database did not come back in time.

    Not an `Exception`: Ray Tune would count one as the failure of the current trial.
    """


@contextmanager
def away_is_failure() -> Iterator[None]:
    """Convert `DatabaseAwayError` to `FailedError`, the failure of the command.

    Raises:
        FailedError: the database stayed unreachable.
    """
    try:
        yield
    except DatabaseAwayError as fault:
        raise FailedError(str(fault)) from None


def open_storage(url: str) -> Storage:
    """Open the storage of a SQLAlchemy URL; SQLite runs in WAL mode, where a write takes a fifth of the time.

    Raises:
        InputError: the database cannot be opened; the message shows the URL without its password.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        parts = make_url(url)
        settings = _POSTGRES if parts.drivername == "postgresql+psycopg" else {}
        connect_args = {key: value for key, value in settings.items() if key not in parts.query}
        storage = Storage(url, engine_kwargs={"pool_pre_ping": True, "connect_args": connect_args})
    except (SQLAlchemyError, ImportError, RuntimeError, ValueError, TypeError) as fault:
        # TypeError: the database driver does not know a setting in the URL.
        raise InputError(
            f"storage.study: cannot open the database {redact(url)}: {_reason(fault, url)}"
        ) from None
    if storage.engine.dialect.name == "sqlite":
        event.listen(storage.engine, "connect", _wal)
        storage.engine.dispose()  # close connections made before the listener was registered
    return storage


def _wal(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.execute("PRAGMA busy_timeout=30000")
    cursor.close()


class Waiting:
    """Retry database operations until the database answers, for a limited time.

    Args:
        url: URL of the database, shown in messages without its password.
        patience: seconds; None: the environment variable `AMA_STUDY_PATIENCE`, else ten minutes.
    """

    def __init__(self, url: str, patience: float | None = None) -> None:
        self._url = url
        self.patience = _patience() if patience is None else patience

    def __call__(self, attempt: Callable[[], T]) -> T:
        """Return the result of `attempt`, which must be idempotent.

        Raises:
            DatabaseAwayError: the time is over; later calls make one attempt.
        """
        began, pause, said = time.monotonic(), FIRST_PAUSE, False
        while True:
            try:
                result = attempt()
            except (StorageInternalError, SQLAlchemyError) as fault:
                if not _may_pass(fault):
                    raise
                reason = _reason(fault, self._url)
            else:
                if said:
                    log.warning("storage.study: the database is back after %.0f s", time.monotonic() - began)
                return result
            away = time.monotonic() - began
            if away >= self.patience:
                raise self._given_up(reason, away)
            if away > 1 and not said:
                said = True
                log.warning(WAITING, reason, self.patience)
            time.sleep(min(pause, self.patience - away))
            pause = min(2 * pause, LONGEST_PAUSE)

    def _given_up(self, reason: str, away: float) -> DatabaseAwayError:
        self.patience = 0.0
        return DatabaseAwayError(
            f"storage.study: the database {redact(self._url)} was away for {away:.0f} s ({reason}); no "
            "finished trial is lost: continue with --resume when it is back"
        )


def _patience() -> float:
    text = os.environ.get(PATIENCE_VARIABLE)
    try:
        seconds = PATIENCE if text is None else float(text)
    except ValueError:
        seconds = -1.0
    if not seconds >= 0:
        raise InputError(f"{PATIENCE_VARIABLE}: expected a number of seconds, got {text!r}")
    return seconds


def _may_pass(fault: Exception) -> bool:
    """Return True if a retry may succeed: database unreachable, locked, full, restarting or read-only."""
    cause = fault if isinstance(fault, SQLAlchemyError) else fault.__cause__
    if isinstance(cause, DBAPIError) and cause.connection_invalidated:
        return True
    return isinstance(cause, OperationalError | InterfaceError | InternalError | PoolTimeoutError)


def _reason(fault: Exception, url: str) -> str:
    """Return the first line of the database driver's message, without the password."""
    cause = fault.__cause__ or fault
    cause = getattr(cause, "orig", None) or cause
    return (redact(str(cause), url).strip().splitlines() or [type(fault).__name__])[0]
