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
from typing import TYPE_CHECKING
from urllib.parse import quote, quote_plus

from analysis.errors import InputError

if TYPE_CHECKING:  # loaded where a URL is parsed
    from sqlalchemy.engine import URL

URL_VARIABLE = "AMA_STUDY_URL"
HIDDEN = "***"
_VARIABLE = re.compile(r"\$\{(\w+)\}")
_SCHEME = r"[A-Za-z][\w+.-]*://"
# Up to the last @ of the word: a password may hold any character, and hiding too much does no harm.
_PASSWORD = re.compile(rf"({_SCHEME}[^\s:/@]*:)(\S*)(?=@)")
# With spaces in it: up to the last @ of the line that is before another URL.
_WITH_SPACES = re.compile(rf"({_SCHEME}[^\s:/@]*:)(?!\*\*\*@|\$\{{\w+\}}@)((?:(?!\w://)[^\n])*)(?=@)")
_NAMES = r"\w*(?:password|passwd|pwd|secret|token)\w*"
_QUERY = re.compile(rf"([?&]{_NAMES}=)([^&\s]+)", re.IGNORECASE)
# The form of libpq's connection strings: host=h user=u password='a \'secret\''.
_KEY = re.compile(
    r"""((?<![?&\w])(?:password|passwd|pwd|sslpassword)\s*=\s*)('(?:\\.|[^'\\])*'|"[^"]*"|(?:\\.|[^\s\\])+)""",
    re.IGNORECASE | re.DOTALL,
)
# What cannot be read as a URL may hold a password anywhere before its last @.
_BEFORE_HOST = re.compile(r"^([A-Za-z][\w+.-]*:/+)?.*@", re.DOTALL)


def redact(text: str, *urls: str) -> str:
    """`text` with the password of every URL in it replaced by ***; `${VAR}` in its place is kept.

    Args:
        text: a URL, or any text that may hold some, such as a database's error.
        urls: URLs whose passwords are also taken out where they stand alone.
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
    """The password of `url` as written, decoded and encoded, and whether to look for it as a word alone.

    A password that is a part of the host's or another public name would show itself by what is hidden there;
    one that is such a name is hidden only where it stands in a URL or after its key.
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
    """`text` if it can be a database URL; parts from the environment are not looked up yet.

    Raises:
        ValueError: it cannot; the message shows no password.
    """
    from sqlalchemy.exc import ArgumentError

    if not _VARIABLE.match(text):  # else the variable's value says what it is
        try:
            _parts(text, {name: "0" for name in _VARIABLE.findall(text)})
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
    """The URL of the study's database, with its password, for SQLAlchemy.

    The environment variable AMA_STUDY_URL goes first, then `storage.study`. Each `${VAR}` is filled in from
    the environment: one at the beginning may hold a whole URL or the beginning of one; the value of any other
    is that part of the URL as it is, whatever characters it holds. A SQLite path becomes absolute, so that
    the URL means the same file in every process.

    Args:
        text: the experiment's `storage.study`, if any.
        run_dir: the run directory.
        env: the environment; None: this process's own.
        kept: `text` is the one of the run directory's own file. A relative SQLite path is then one of the working
            directory in which the search began, and is looked for below the run directory and the folders
            that hold it first.

    Raises:
        InputError: a variable that is not set, a password that was not kept, or no place for a database.
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
    """The URL of a SQLite database in a file.

    Raises:
        InputError: a URL cannot hold the file's name.
    """
    from sqlalchemy.engine import URL

    return _rendered(URL.create("sqlite", database=str(file)), f"{file}", "storage.study")


def given_url(text: str) -> str:
    """A database URL given in place of a run directory, completed as `study_url` does it.

    Raises:
        InputError: it cannot be one, or needs a variable that is not set.
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
            f"{source}: the password in {redact(text)} was not kept in the run's files; set {URL_VARIABLE} to "
            "the whole URL"
        )
    if url.drivername == "postgresql" and find_spec("psycopg"):
        url = url.set(drivername="postgresql+psycopg")  # what the extra `postgres` installs
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
    """The parts of a URL, its variables filled in after it was taken apart: no value is read as syntax.

    Raises:
        ArgumentError, ValueError: no URL.
    """
    from sqlalchemy.engine import URL, make_url

    # Digits may stand in every part of a URL, a port too.
    tokens = {f"7{index:04}23571113": match[1] for index, match in enumerate(_VARIABLE.finditer(text))}
    waiting = iter(tokens)
    url = make_url(_VARIABLE.sub(lambda _: next(waiting), text))

    def fill(part: str | None) -> str | None:
        for token, name in tokens.items():
            part = part.replace(token, values[name]) if part else part
        return part

    host, port = fill(url.host), fill(str(url.port)) if url.port is not None else None
    if host and port is None and (pair := re.fullmatch(r"([^:\[\]]+):(\d+)", host)):
        host, port = pair[1], pair[2]  # a variable may hold both
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
    """`url` as text that is read back as the same URL."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    text = url.render_as_string(hide_password=False)
    for part in (url.username, url.password):  # SQLAlchemy leaves spaces as they are
        if part and " " in str(part):
            text = text.replace(quote(str(part), safe=" +"), quote(str(part), safe="+"), 1)
    try:
        same = make_url(text) == url
    except (ArgumentError, ValueError):
        same = False
    if not same:
        raise InputError(
            f"{source}: expected parts that a database URL can hold, got others in {redact(shown)!r}; no ? "
            "may be in a file's name, no / or @ in a host's"
        )
    return text


def _database_file(file: str, run_dir: Path | None) -> Path:
    """A SQLite path as the search that wrote it meant it: from its working directory, which held the run."""
    if run_dir is not None and not Path(file).is_absolute():
        run = run_dir.absolute()
        for folder in (run, *run.parents):
            if (folder / file).is_file():
                return folder / file
    return Path(file).absolute()


def with_absolute_path(text: str) -> str:
    """A database URL whose SQLite path does not depend on the working directory; others as they are."""
    from sqlalchemy.engine import make_url

    if (
        _VARIABLE.search(text)
        or not (url := make_url(text)).get_backend_name() == "sqlite"
        or not url.database
    ):
        return text
    return url.set(database=str(Path(url.database).absolute())).render_as_string(hide_password=False)
