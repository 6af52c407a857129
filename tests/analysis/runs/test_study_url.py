"""Database URLs: one for the search and for whoever reads its run, and no password in any message."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
import sqlalchemy as sa
import yaml

from analysis.errors import InputError
from analysis.runs import study_source as source
from analysis.runs.study_url import check_url, given_url, redact, study_url, with_absolute_path

VALUES = [
    "p@ss",
    "a/b",
    "a#b",
    "100%",
    "a%41b",
    "a b",
    " a  b ",
    "a:b",
    "a?b=c&d",
    "a+b",
    "x://y@z",
    "ä€",
    "'\"\\",
]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Make a run directory whose experiment names this database."""
    monkeypatch.delenv(source.URL_VARIABLE, raising=False)

    def make(study: str) -> Path:
        folder = tmp_path / "run"
        folder.mkdir(exist_ok=True)
        (folder / "experiment.yaml").write_text(yaml.safe_dump({"name": "demo", "storage": {"study": study}}))
        return folder

    return make


def both(run: Path, study: str) -> str:
    """The URL of the search, after making sure that a reader has the same."""
    ours = study_url(study, run)
    assert source.locate(run).url == ours
    return ours


@pytest.mark.parametrize("value", VALUES)
def test_a_variable_is_that_part_of_the_url_whatever_it_holds(
    value: str, run: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PW", value)
    for study in (
        "postgresql+psycopg://ann:${PW}@db.example.com:5433/name",
        "postgresql+psycopg://${PW}:x@db.example.com:5433/name",
        "postgresql+psycopg://ann:x${PW}${PW}y@db.example.com:5433/name?application_name=${PW}",
    ):
        url = sa.make_url(both(run(study), study))
        assert (url.host, url.port, url.database) == ("db.example.com", 5433, "name")
        whole = url.username if study.startswith("postgresql+psycopg://$") else url.password
        assert whole == (f"x{value}{value}y" if "x$" in study else value)
        assert url.query.get("application_name", value) == value


@pytest.mark.parametrize("value", VALUES)
def test_a_variable_may_hold_the_whole_url_or_its_beginning(
    value: str, run: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    start = f"postgresql+psycopg://ann:{quote(value, safe='')}@db.example.com"
    monkeypatch.setenv("BASE", start)
    monkeypatch.setenv("URL", f"{start}/name")
    urls = {both(run(study), study) for study in ("${URL}", "${BASE}/name", f"{start}/name")}
    assert len(urls) == 1
    assert sa.make_url(urls.pop()).password == value


def test_a_variable_may_be_any_other_part(
    run: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"DRIVER": "mysql+pymysql", "HOST": "db:3307", "PORT": "3307", "NAME": "one", "IP": "::1"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    for study in ("${DRIVER}://ann@${HOST}/${NAME}", "mysql+pymysql://ann@db:${PORT}/one"):
        assert both(run(study), study) == "mysql+pymysql://ann@db:3307/one"
    assert sa.make_url(both(run("mysql://u@${IP}/d"), "mysql://u@${IP}/d")).host == "::1"


@pytest.mark.parametrize("name", ["plain", "a@b", "a#b", "100%", "a%41b", "a b", "a:b", "a?b", "a?mode=ro"])
def test_a_sqlite_folder_may_have_any_name(
    name: str, run: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / name
    place.mkdir()
    monkeypatch.setenv("PLACE", str(place))
    study = "sqlite:///${PLACE}/all.db"
    (place / "all.db").touch()
    if "?" in name and sa.__version__ < "2.1":  # which writes no ? of a file's name into a URL
        with pytest.raises(InputError, match=r"storage\.study: expected parts that a database URL can hold"):
            study_url(study, "r")
        return
    assert sa.make_url(both(run(study), study)).database == str(place / "all.db")
    assert sa.make_url(study_url(None, place, {})).database == str(place / "study.db")
    (place / "study.db").touch()
    assert source.locate(place).url == study_url(None, place, {})


def test_the_environment_goes_first_and_old_schemes_are_known() -> None:
    env = {"URL": "mysql://h/a", "AMA_STUDY_URL": "mysql://h/b"}
    assert study_url("${URL}", "r", env) == "mysql://h/b"
    old = study_url("${URL}", "r", {"URL": "postgres://u:pw@h/db"})
    assert old == given_url("postgres://u:pw@h/db") == study_url("postgresql://u:pw@h/db", "r", {})
    assert old.startswith("postgresql") and old.endswith("://u:pw@h/db")


@pytest.mark.parametrize(
    ("study", "env", "message"),
    [
        ("${URL}", {}, "storage.study: expected the environment variable URL to be set"),
        ("${URL}", {"URL": "nonsense"}, "storage.study: expected a database URL"),
        ("${A}/x", {"A": "s3cr3t"}, "storage.study: expected values that make '${A}/x'"),
        ("postgresql://u@h:${PORT}/x", {"PORT": "s3cr3t"}, "storage.study: expected values that make"),
        ("postgresql://u@${HOST}/x", {"HOST": "s3cr3t@h"}, "storage.study: expected parts that a"),
        ("postgresql://u:***@h/db", {}, "was not kept in the run's files; set AMA_STUDY_URL"),
        ("sqlite://", {}, "expected a database that outlives the process"),
        ("sqlite:///:memory:", {}, "expected a database that outlives the process"),
        ("sqlite:///s3://bucket/x.db", {}, "SQLite cannot be in an object store"),
    ],
)
def test_study_urls_that_lead_nowhere(study: str, env: dict[str, str], message: str) -> None:
    with pytest.raises(InputError) as error:
        study_url(study, "r", env)
    assert message in str(error.value) and "s3cr3t" not in str(error.value)


def test_a_run_directory_elsewhere_needs_a_database() -> None:
    with pytest.raises(InputError, match=r"storage\.study: expected a database URL \(or AMA_STUDY_URL\)"):
        study_url(None, "s3://bucket/run", {})


@pytest.mark.parametrize("value", [*VALUES, "hunter22"])
def test_a_url_on_the_command_line_is_read_like_the_experiments(value: str) -> None:
    url = f"postgresql://ann:{quote(value, safe='')}@localhost:1/db"
    for study in ("", "#demo"):
        found = source.locate(url + study)
        assert found.url == study_url(url, "r", {}) and found.study == (study[1:] or None)
        assert value == "a b" or value not in found.label
    raw = source.locate("postgresql://ann:a#b@localhost:1/db#demo")  # not encoded, but clear
    assert (sa.make_url(raw.url).password, raw.study) == ("a#b", "demo")
    assert raw.label == "postgresql://ann:***@localhost:1/db"


# ---- a relative SQLite path


@pytest.mark.parametrize("run_place", ["runs/first", "first", "."])
def test_a_relative_sqlite_path_is_found_from_another_directory(
    run_place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(source.URL_VARIABLE, raising=False)
    began, elsewhere = tmp_path / "a", tmp_path / "b"
    run = began / run_place
    for folder in (run, began / "x", elsewhere / "x"):
        folder.mkdir(parents=True, exist_ok=True)
    study = "sqlite:///x/all.db"
    (run / "experiment.yaml").write_text(f"name: demo\nstorage: {{study: '{study}'}}\n")
    monkeypatch.chdir(began)
    ours = study_url(study, run_place)
    assert ours == f"sqlite:///{began}/x/all.db"
    (began / "x/all.db").touch()
    (elsewhere / "x/all.db").touch()  # another project's: never the one meant
    assert source.locate(Path(run_place)).url == ours
    for here in (elsewhere, tmp_path, Path("/")):
        monkeypatch.chdir(here)
        assert source.locate(run).url == ours


def test_a_relative_path_of_a_new_search_is_the_working_directorys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a" / "run").mkdir(parents=True)
    (tmp_path / "a" / "all.db").touch()
    (tmp_path / "b").mkdir()
    monkeypatch.chdir(tmp_path / "b")
    assert study_url("sqlite:///all.db", tmp_path / "a" / "run", {}) == f"sqlite:///{tmp_path}/b/all.db"
    assert with_absolute_path("sqlite:///all.db") == f"sqlite:///{tmp_path}/b/all.db"
    assert with_absolute_path("sqlite:///${X}/all.db") == "sqlite:///${X}/all.db"


# ---- no password in a message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("postgresql://u:pw@h/db", "postgresql://u:***@h/db"),
        ("postgresql+psycopg://u:p@w/:d'x@h:1/db", "postgresql+psycopg://u:***@h:1/db"),
        ("postgresql://u:p w@h/db", "postgresql://u:***@h/db"),
        ("postgresql://u: p@ w @h/db", "postgresql://u:***@h/db"),
        ("postgresql://u@h/db", "postgresql://u@h/db"),
        ("postgresql://h:5432/db", "postgresql://h:5432/db"),
        ("postgresql://u:${PW}@h/db", "postgresql://u:${PW}@h/db"),
        ("postgresql://u:${PW}@h/db and a@b", "postgresql://u:${PW}@h/db and a@b"),
        ("no (postgresql://u:pw@h/db) today", "no (postgresql://u:***@h/db) today"),
        ("a://u:p w@h/db to b://u:q r@h/db", "a://u:***@h/db to b://u:***@h/db"),
        ("mysql://h/db?user=u&password=pw&x=1", "mysql://h/db?user=u&password=***&x=1"),
        ("sqlite:////runs/a/study.db", "sqlite:////runs/a/study.db"),
        ("${STUDY}", "${STUDY}"),
        ("host=h password=pw user=u", "host=h password=*** user=u"),
        ("host=h password='a b' user=u", "host=h password=*** user=u"),
        (r"host=h password='a\'b c' user=u", "host=h password=*** user=u"),
        (r"host=h password = 'a \\' user=u", "host=h password = *** user=u"),
        (r"host=h password=a\ b&c)d user=u", "host=h password=*** user=u"),
        ('host=h password="a b" user=u', "host=h password=*** user=u"),
        ("at postgresql://u:pw@h/d now", "at postgresql://u:***@h/d now"),
    ],
)
def test_redact(text: str, expected: str) -> None:
    assert redact(text) == expected
    assert redact(redact(text)) == expected


def test_a_known_password_is_hidden_wherever_it_stands() -> None:
    assert redact("FATAL: p@ss and p%40ss", "postgresql://u:p%40ss@h/db") == "FATAL: *** and ***"
    assert redact("auth hunter22 failed", "mysql://u:hunter22@h/d") == "auth *** failed"
    assert redact("FATAL: a b", "postgresql://u:a b@h/db") == "FATAL: ***"
    assert redact("free text", "no url") == "free text"


@pytest.mark.parametrize(
    ("password", "message", "shown"),
    [
        # What is hidden in a public name would tell the password.
        ("example", "no route to db.example.com", "no route to db.example.com"),
        ("db", 'database "db" on db.example.com', 'database "db" on db.example.com'),
        ("ann", 'authentication failed for "ann"', 'authentication failed for "ann"'),
        ("postgresql", "postgresql: away", "postgresql: away"),
        ("xampl", "sent xampl to db.example.com", "sent *** to db.example.com"),
        ("example.co", "sent example.co to db.example.com", "sent *** to db.example.com"),
    ],
)
def test_a_password_that_is_a_part_of_a_public_name(password: str, message: str, shown: str) -> None:
    url = f"postgresql://ann:{password}@db.example.com/db"
    assert redact(message, url) == shown
    hidden = redact(f"{url} and host=db.example.com password={password}", url)
    assert hidden == "postgresql://ann:***@db.example.com/db and host=db.example.com password=***"


@pytest.mark.parametrize(
    "text",
    [
        "ann:s3cr3t@db/name",
        "postgresql:/ann:s3cr3t@db/name",
        "postgresql//ann:s3@cr3t@db/name",
        "postgresql://ann:s3cr3t@db:port:x/name",
        "host=db user=ann password='s3cr3t s3'",
        "host=db user=ann password = s3cr3t",
        "postgresql://ann:s3cr3t x@db:port/name",
    ],
)
def test_what_is_no_url_is_refused_without_its_password(text: str) -> None:
    for refuse in (check_url, given_url, lambda each: study_url("${X}", "r", {"X": each})):
        with pytest.raises(ValueError, match="expected a database URL") as error:
            refuse(text)
        assert "s3" not in str(error.value)


@pytest.mark.parametrize("value", [value for value in VALUES if len(value) > 3] + ["hunter22", "local"])
def test_no_message_of_a_database_that_is_away_tells_a_password(value: str) -> None:
    forms = {value, quote(value), quote(value, safe=""), quote_plus(value)}
    url = f"postgresql+psycopg://ann:{quote(value, safe='')}@localhost:1/db"
    found = source.locate(f"{url}#demo")
    with pytest.raises(InputError, match="the study database cannot be read") as error:
        source.read(found)
    for text in (str(error.value), repr(found), found.label):
        assert not any(form in text.replace("localhost", "") for form in forms)
