from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
import sqlalchemy as sa

from analysis.errors import InputError
from analysis.runs import study_source as source


def test_plain_selects_read_what_optuna_reads(make_run: Callable[..., Path]) -> None:
    run = make_run()
    ours = source.read(source.locate(run)).trials
    study = optuna.load_study(study_name="demo", storage=f"sqlite:///{run / 'study.db'}")
    theirs = study.get_trials()
    assert len(ours) == len(theirs) == 48
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.number == other.number
        assert mine.state == other.state
        assert mine.values == other.values
        assert mine.params == other.params
        assert mine.distributions == other.distributions
        assert mine.user_attrs == other.user_attrs
        assert (mine.datetime_start, mine.datetime_complete) == (
            other.datetime_start,
            other.datetime_complete,
        )


def test_infinite_values_and_other_studies_in_the_database(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 's.db'}"
    for name, value in (("a", float("inf")), ("b", 2.0)):
        study = optuna.create_study(study_name=name, storage=url, directions=["minimize", "maximize"])
        study.add_trial(optuna.trial.create_trial(values=[value, 1.0]))
    assert source.read(source.locate(f"{url}#a")).trials[0].values == [float("inf"), 1.0]
    assert source.read(source.locate(url, "b")).trials[0].values == [2.0, 1.0]
    with pytest.raises(InputError, match=r"no study named \(write URL#name\); the database has: a, b"):
        source.read(source.locate(url))
    with pytest.raises(InputError, match=r"no study named 'c'; the database has: a, b"):
        source.read(source.locate(f"{url}#c"))


def test_what_is_no_run_directory_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="missing does not exist: expected a run directory"):
        source.locate(tmp_path / "missing")
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is a file: expected a run directory"):
        source.locate(tmp_path / "file")
    with pytest.raises(InputError, match=r"it has neither experiment\.yaml nor study\.db"):
        source.locate(tmp_path)


def test_a_database_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    (tmp_path / "experiment.yaml").write_text("name: demo\n")
    with pytest.raises(InputError, match=r"no study yet, the database .*study\.db does not exist"):
        source.locate(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        source.locate(f"sqlite:///{tmp_path / 'other.db'}#demo")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["experiment.yaml"]


@pytest.mark.parametrize("content", [b"this is not a database, however long it may be" * 50, b""])
def test_an_unreadable_database_is_said(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "study.db").write_bytes(content)
    with pytest.raises(InputError, match=f"{tmp_path.name}: the study database cannot be read"):
        source.read(source.locate(tmp_path))
    assert (tmp_path / "study.db").read_bytes() == content


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "\x00"])
def test_an_unreadable_experiment_is_said(tmp_path: Path, text: str) -> None:
    (tmp_path / "experiment.yaml").write_text(text)
    with pytest.raises(InputError, match=r"experiment\.yaml"):
        source.locate(tmp_path)


def test_the_experiment_names_another_database(
    make_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = make_run("there", complete=2)
    here = tmp_path / "here"
    here.mkdir()
    (here / "experiment.yaml").write_text('name: demo\nstorage: {study: "sqlite:///${PLACE}/study.db"}\n')
    with pytest.raises(
        InputError, match=r"storage\.study: expected the environment variable PLACE to be set"
    ):
        source.locate(here)
    monkeypatch.setenv("PLACE", str(there))
    found = source.locate(here)
    assert found.path == here
    assert len(source.read(found).trials) == 20


def test_the_environment_overrides_the_run(
    make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = make_run("one", complete=1), make_run("other", complete=5)
    monkeypatch.setenv(source.URL_VARIABLE, f"sqlite:///{other / 'study.db'}")
    found = source.locate(one)
    assert "from AMA_STUDY_URL" in found.label
    assert len(source.read(found).trials) == 23


SECRETS = ["hunter22", "p@ss/w:rd%41", "geheim&mehr"]


@pytest.mark.parametrize("secret", SECRETS)
def test_no_message_tells_a_password(secret: str) -> None:
    url = sa.URL.create("postgresql+psycopg", "ann", secret, "localhost", 1, "db").render_as_string(False)
    place = source.locate(f"{url}#demo")
    with pytest.raises(InputError, match="the study database cannot be read") as error:
        source.read(place)
    for text in (str(error.value), repr(place), place.label):
        assert secret not in text
        assert sa.make_url(url).render_as_string(False) not in text
    assert error.value.__cause__ is None
    assert error.value.__suppress_context__


@pytest.mark.parametrize("url", ["nosuch://ann:hunter22@host/db", "://ann:hunter22@host"])
def test_a_url_nothing_understands(url: str) -> None:
    with pytest.raises(InputError, match="cannot be read|expected a database URL") as error:
        source.read(source.locate(f"{url}#x"))
    assert "hunter22" not in str(error.value)
