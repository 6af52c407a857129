"""Database URLs of studies: variables, credentials, redaction. The only place that parses or hides one.

`study_url` gives the URL to connect to, for the search and for the analysis alike; `redact` is applied to
every text that may hold a URL before a person or a file sees it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote, quote_plus

from analysis.errors import InputError

URL_VARIABLE = "AMA_STUDY_URL"
HIDDEN = "***"
_VARIABLE = re.compile(r"\$\{(\w+)\}")
# Greedy up to the last @ of the word: a password may hold any sign, and hiding too much does no harm.
_PASSWORD = re.compile(r"([A-Za-z][\w+.-]*://[^\s:/@]*:)(\S*)(?=@)")
_QUERY = re.compile(r"([?&]\w*(?:password|passwd|pwd|secret|token)\w*=)([^&\s]+)", re.IGNORECASE)
# The form of libpq's connection strings: host=h user=u password=secret.
_KEY = re.compile(r"(\b(?:password|passwd|pwd|sslpassword)=)('[^']*'|[^&\s'\")]+)", re.IGNORECASE)


def redact(text: str, *urls: str) -> str:
    """`text` with the password of every URL in it replaced by ***; `${VAR}` in its place is kept.

    Args:
        text: a URL, or any text that may hold some, such as a database's error.
        urls: URLs whose passwords are also taken out where they stand alone.
    """
    for url in urls:
        for secret in _secrets(url):
            text = text.replace(secret, HIDDEN)
    for pattern in (_PASSWORD, _QUERY, _KEY):
        text = pattern.sub(_hide, text)
    return text


def _hide(match: re.Match[str]) -> str:
    return match[0] if _VARIABLE.fullmatch(match[2]) else match[1] + HIDDEN


def _secrets(url: str) -> set[str]:
    """The password of `url` as written, decoded, and encoded."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    written = {match[2] for pattern in (_PASSWORD, _QUERY) for match in pattern.finditer(url)}
    try:
        decoded = make_url(url).password
    except (ArgumentError, ValueError):
        decoded = None
    if decoded:
        written |= {str(decoded), quote(str(decoded), safe=""), quote_plus(str(decoded))}
    return {secret for secret in written if secret and not _VARIABLE.fullmatch(secret)}


def check_url(text: str) -> str:
    """`text` if it can be a database URL; parts from the environment are not looked up yet.

    Raises:
        ValueError: it cannot; the message shows no password.
    """
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    if _VARIABLE.fullmatch(text):
        return text
    try:
        make_url(_VARIABLE.sub("0", text))
    except (ArgumentError, ValueError):
        raise ValueError(
            f"expected a database URL such as postgresql://user@host/name or '${{VAR}}', got {redact(text)!r}"
        ) from None
    return text


def study_url(
    text: str | None, run_dir: str | os.PathLike[str], env: Mapping[str, str] | None = None
) -> str:
    """The URL of the study's database, with its password, for SQLAlchemy.

    The environment variable AMA_STUDY_URL goes first, then `storage.study` with each `${VAR}` filled in from
    the environment, then `study.db` in the run directory. A SQLite path becomes absolute, so that the URL
    means the same file in every process; a relative one that does not exist below the working directory is
    looked for below the run directory and the folders that hold it.

    Args:
        text: the experiment's `storage.study`, if any.
        run_dir: the run directory.
        env: the environment; None: this process's own.

    Raises:
        InputError: a variable that is not set, a password that was not kept, or no place for a database.
    """
    env = os.environ if env is None else env
    source = "storage.study"
    if env.get(URL_VARIABLE):
        source, text = URL_VARIABLE, env[URL_VARIABLE]
    if text is None:
        if "://" in str(run_dir):
            raise InputError(
                f"storage.study: expected a database URL (or {URL_VARIABLE}), because the run directory "
                f"{redact(str(run_dir))} is not on this machine's file system; got nothing"
            )
        return f"sqlite:///{Path(run_dir).absolute() / 'study.db'}"
    return _complete(_fill_in(text, source, env), source, run_dir)


def _fill_in(text: str, source: str, env: Mapping[str, str]) -> str:
    for name in _VARIABLE.findall(text):
        if not env.get(name):
            raise InputError(f"{source}: expected the environment variable {name} to be set, it is not")
    # A variable that is a part of the URL, such as a password, may hold signs that mean something in a URL.
    return _VARIABLE.sub(lambda match: _part(env[match[1]]), text)


def _part(value: str) -> str:
    return value if "://" in value else quote(value, safe="")


def _complete(text: str, source: str, run_dir: str | os.PathLike[str]) -> str:
    from sqlalchemy.engine import make_url

    try:
        text = check_url(re.sub(r"^postgres://", "postgresql://", text))
    except ValueError as error:
        raise InputError(f"{source}: {error}") from None
    url = make_url(text)
    if url.password == HIDDEN:
        raise InputError(
            f"{source}: the password in {redact(text)} was not kept in the run's files; set {URL_VARIABLE} to "
            "the whole URL"
        )
    if url.drivername == "postgresql" and find_spec("psycopg"):
        url = url.set(drivername="postgresql+psycopg")  # what the extra `postgres` installs
    if url.get_backend_name() == "sqlite":
        if not url.database or url.database == ":memory:":
            raise InputError(f"{source}: expected a database that outlives the process, got {text!r}")
        if "://" in url.database:
            raise InputError(
                f"{source}: SQLite cannot be in an object store ({url.database}); expected a file of this "
                "machine or, for a cluster, postgresql://…"
            )
        url = url.set(database=str(_database_file(url.database, run_dir)))
    return url.render_as_string(hide_password=False)


def _database_file(file: str, run_dir: str | os.PathLike[str]) -> Path:
    """A SQLite path as the search that wrote it meant it: from its working directory, which held the run."""
    here = Path(file).absolute()
    if here.exists() or Path(file).is_absolute() or "://" in str(run_dir):
        return here
    run = Path(run_dir).absolute()
    found = (folder / file for folder in (run, *run.parents) if (folder / file).is_file())
    return next(found, here)


def with_absolute_path(text: str) -> str:
    """A database URL whose SQLite path does not depend on the working directory; others as they are."""
    from sqlalchemy.engine import make_url

    if _VARIABLE.search(text) or not (url := make_url(text)).get_backend_name() == "sqlite" or not url.database:
        return text
    return url.set(database=str(Path(url.database).absolute())).render_as_string(hide_password=False)
