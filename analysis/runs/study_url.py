"""Parse, complete and redact the database URLs of studies. No other module parses or hides a URL.

`study_url` returns the URL to connect to, for search and analysis. `redact` is applied to every text that may
contain a URL before it is shown or written.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, quote_plus

from analysis.errors import InputError

if TYPE_CHECKING:  # imported only when a URL is parsed
    from sqlalchemy.engine import URL

URL_VARIABLE = "AMA_STUDY_URL"
HIDDEN = "***"
_VARIABLE = re.compile(r"\$\{(\w+)\}")
_SCHEME = r"[A-Za-z][\w+.-]*://"
# Up to the last @ of the word: a password may contain any character; hiding too much does no harm.
_PASSWORD = re.compile(rf"({_SCHEME}[^\s:/@]*:)(\S*)(?=@)")
# With spaces: up to the last @ of the line before the next URL.
_WITH_SPACES = re.compile(rf"({_SCHEME}[^\s:/@]*:)(?!\*\*\*@|\$\{{\w+\}}@)((?:(?!\w://)[^\n])*)(?=@)")
_NAMES = r"\w*(?:password|passwd|pwd|secret|token)\w*"
_QUERY = re.compile(rf"([?&]{_NAMES}=)([^&\s]+)", re.IGNORECASE)
# The form of libpq's connection strings: host=h user=u password='a \'secret\''.
_KEY = re.compile(
    r"""((?<![?&\w])(?:password|passwd|pwd|sslpassword)\s*=\s*)('(?:\\.|[^'\\])*'|"[^"]*"|(?:\\.|[^\s\\])+)""",
    re.IGNORECASE | re.DOTALL,
)
# A text that is not a valid URL may contain a password anywhere before its last @.
_BEFORE_HOST = re.compile(r"^([A-Za-z][\w+.-]*:/+)?.*@", re.DOTALL)


def redact(text: str, *urls: str) -> str:
    """Replace the password of every URL in `text` by ***; keep a `${VAR}` in its place.

    Args:
        text: a URL, or any text that may contain URLs, such as a database error.
        urls: URLs whose passwords are also replaced outside of a URL.
    """
    for url in urls:
        for secret, alone in _secrets(url).items():
            bounds = (r"(?<![\w.-])", r"(?![\w.-])") if alone else ("", "")
            text = re.sub(re.escape(secret).join(bounds), HIDDEN, text)
    for pattern in (_PASSWORD, _WITH_SPACES, _QUERY, _KEY):
        text = pattern.sub(_hide, text)
    return text


def _hide(match: re.Match[str]) -> str:
    return match[0] if _VARIABLE.fullmatch(match[2]) else match[1] + HIDDEN


def _secrets(url: str) -> dict[str, bool]:
    """Return the password of `url` as written, decoded and encoded; True: hide it only as a whole word.

    If the password is a part of the host's or another public name, hiding it there would reveal it. If it
    equals such a name, it is hidden only in a URL or after its key.
    """
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    patterns = (_PASSWORD, _WITH_SPACES, _QUERY, _KEY)
    written = {match[2] for pattern in patterns for match in pattern.finditer(url)}
    public: list[str] = []
    try:
        parts = make_url(url)
    except (ArgumentError, ValueError):
        pass
    else:
        public = [
            str(part) for part in (parts.drivername, parts.username, parts.host, parts.database) if part
        ]
        public += [word for part in public for word in re.split(r"\W+", part)]
        if decoded := str(parts.password or ""):
            written |= {decoded, quote(decoded, safe=""), quote(decoded, safe=" +"), quote_plus(decoded)}
    secrets = {secret for secret in written if secret and not _VARIABLE.fullmatch(secret)}
    return {
        secret: any(secret in part for part in public)
        for secret in sorted(secrets - set(public), key=len, reverse=True)
    }


def check_url(text: str) -> str:
    """Return `text` if it can be a database URL; variables are not replaced yet.

    Raises:
        ValueError: it cannot; the message does not show the password.
    """
    from sqlalchemy.exc import ArgumentError

    if not _VARIABLE.match(text):  # else the variable's value decides
        try:
            _parts(text, dict.fromkeys(_VARIABLE.findall(text), "0"))
        except (ArgumentError, ValueError):
            shown = _BEFORE_HOST.sub(rf"\1{HIDDEN}@", redact(text))
            raise ValueError(
                f"expected a database URL such as postgresql://user@host/name or '${{VAR}}', got {shown!r}"
            ) from None
    return text


def study_url(
    text: str | None,
    run_dir: str | os.PathLike[str],
    env: Mapping[str, str] | None = None,
    *,
    kept: bool = False,
) -> str:
    """Return the URL of the study's database, with its password, for SQLAlchemy.

    The environment variable AMA_STUDY_URL takes precedence over `storage.study`. Each `${VAR}` is replaced
    from the environment. A variable at the start may contain a whole URL or the start of one. The value of
    any other variable is taken literally as a part of the URL, with any characters. A SQLite path becomes
    absolute, so that the URL means the same file in every process.

    Args:
        text: the experiment's `storage.study`, if any.
        run_dir: the run directory.
        env: the environment; None: that of this process.
        kept: whether `text` comes from the run's own file. A relative SQLite path is then relative to the
            working directory in which the search started; it is looked up first in the run directory and the
            folders that contain it.

    Raises:
        InputError: a variable is not set, the password was not kept, or no database is given.
    """
    env = os.environ if env is None else env
    source = "storage.study"
    if env.get(URL_VARIABLE):
        source, text, kept = URL_VARIABLE, env[URL_VARIABLE], False
    if text is None:
        if "://" in str(run_dir):
            raise InputError(
                f"storage.study: expected a database URL (or {URL_VARIABLE}), because the run directory "
                f"{redact(str(run_dir))} is not on this machine's file system; got nothing"
            )
        return sqlite_url(Path(run_dir).absolute() / "study.db")
    return _complete(text, source, env, Path(run_dir) if kept and "://" not in str(run_dir) else None)


def sqlite_url(file: Path) -> str:
    """Return the URL of a SQLite database in a file.

    Raises:
        InputError: a URL cannot contain the file's name.
    """
    from sqlalchemy.engine import URL

    return _rendered(URL.create("sqlite", database=str(file)), f"{file}", "storage.study")


def given_url(text: str) -> str:
    """Complete a database URL that was given instead of a run directory, as `study_url` does.

    Raises:
        InputError: the URL is not valid, or needs a variable that is not set.
    """
    return _complete(text, "the study's URL", os.environ, None)


def _complete(text: str, source: str, env: Mapping[str, str], run_dir: Path | None) -> str:
    from sqlalchemy.exc import ArgumentError

    for name in _VARIABLE.findall(text):
        if not env.get(name):
            raise InputError(f"{source}: expected the environment variable {name} to be set, it is not")
    try:
        filled = text
        if (first := _VARIABLE.match(text)) and ("://" in env[first[1]] or first.end() == len(text)):
            filled = check_url(env[first[1]] + text[first.end() :])
        try:
            url = _parts(re.sub(r"^postgres://", "postgresql://", filled), env)
        except (ArgumentError, ValueError):
            check_url(filled)
            raise ValueError(f"expected values that make {redact(text)!r} a database URL") from None
    except ValueError as error:
        raise InputError(f"{source}: {error}") from None
    if url.password == HIDDEN:
        raise InputError(
            f"{source}: the password in {redact(text)} was not kept in the run's files; set {URL_VARIABLE} "
            "to the whole URL"
        )
    if url.drivername == "postgresql" and find_spec("psycopg"):
        url = url.set(drivername="postgresql+psycopg")  # installed by the extra `postgres`
    if url.get_backend_name() == "sqlite":
        if not url.database or url.database == ":memory:":
            raise InputError(f"{source}: expected a database that outlives the process, got {redact(text)!r}")
        if "://" in url.database:
            raise InputError(
                f"{source}: SQLite cannot be in an object store ({url.database}); expected a file of this "
                "machine or, for a cluster, postgresql://…"
            )
        url = url.set(database=str(_database_file(url.database, run_dir)))
    return _rendered(url, text, source)


def _parts(text: str, values: Mapping[str, str]) -> URL:
    """Split a URL and then replace its variables, so that no value is read as syntax.

    Raises:
        ArgumentError, ValueError: the text is not a URL.
    """
    from sqlalchemy.engine import URL, make_url

    # Digits are valid in every part of a URL, including the port.
    tokens = {f"7{index:04}23571113": match[1] for index, match in enumerate(_VARIABLE.finditer(text))}
    waiting = iter(tokens)
    url = make_url(_VARIABLE.sub(lambda _: next(waiting), text))

    def fill(part: str | None) -> str | None:
        for token, name in tokens.items():
            part = part.replace(token, values[name]) if part else part
        return part

    host, port = fill(url.host), fill(str(url.port)) if url.port is not None else None
    if host and port is None and (pair := re.fullmatch(r"([^:\[\]]+):(\d+)", host)):
        host, port = pair[1], pair[2]  # a variable may contain both
    query = {
        key: fill(value) or "" if isinstance(value, str) else tuple(fill(each) or "" for each in value)
        for key, value in url.query.items()
    }
    return URL.create(
        fill(url.drivername) or "",
        fill(url.username),
        fill(str(url.password)) if url.password is not None else None,
        host,
        int(port) if port else None,
        fill(url.database),
        query,
    )


def _rendered(url: URL, shown: str, source: str) -> str:
    """Return `url` as a text that parses to the same URL."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    text = url.render_as_string(hide_password=False)
    for part in (url.username, url.password):  # SQLAlchemy does not encode spaces
        if part and " " in str(part):
            text = text.replace(quote(str(part), safe=" +"), quote(str(part), safe="+"), 1)
    try:
        same = make_url(text) == url
    except (ArgumentError, ValueError):
        same = False
    if not same:
        raise InputError(
            f"{source}: expected parts that a database URL can contain, got others in {redact(shown)!r}; a "
            "file name must not contain ?, a host name neither / nor @"
        )
    return text


def _database_file(file: str, run_dir: Path | None) -> Path:
    """Resolve a SQLite path of a run: relative to the search's working directory, which contained the run."""
    if run_dir is not None and not Path(file).is_absolute():
        run = run_dir.absolute()
        for folder in (run, *run.parents):
            if (folder / file).is_file():
                return folder / file
    return Path(file).absolute()


def with_absolute_path(text: str) -> str:
    """Make the SQLite path in a database URL absolute; return other URLs unchanged."""
    from sqlalchemy.engine import make_url

    if _VARIABLE.search(text) or (url := make_url(text)).get_backend_name() != "sqlite" or not url.database:
        return text
    return url.set(database=str(Path(url.database).absolute())).render_as_string(hide_password=False)
