"""The lock of a run holds from whatever directory the run is named, and shows no password."""

from __future__ import annotations

from pathlib import Path

import pytest

from analysis.runs.study_url import study_url
from search.run_dir.folder import Folder
from search.run_dir.lock import locked
from trainables.errors import InputError


class Remote(Folder):
    """A run directory in an object store, of which only that matters here."""

    remote = True


def test_a_relative_run_and_database_are_the_same_lock_from_another_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, elsewhere = tmp_path / "a", tmp_path / "b"
    for folder in (began / "x", elsewhere / "x"):
        folder.mkdir(parents=True)
    monkeypatch.chdir(began)
    url = study_url("sqlite:///x/all.db", "runs/first", {})
    with locked(Folder("runs/first", Path("runs/first")), url, "demo"):
        monkeypatch.chdir(elsewhere)
        place = began / "runs/first"
        refused = pytest.raises(InputError, match="another `ama search` is running in")
        with refused, locked(Folder(str(place), place), url, "demo"):
            pass
        with locked(Folder("runs/first", Path("runs/first")), url, "demo"):
            pass  # another directory, another run


def test_a_study_of_remote_runs_is_locked_beside_its_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, elsewhere = tmp_path / "a", tmp_path / "b"
    for folder in (began / "x", elsewhere):
        folder.mkdir(parents=True)
    monkeypatch.chdir(began)
    url = study_url("sqlite:///x/all.db", "s3://bucket/run", {})
    with locked(Remote("s3://bucket/run", Path()), url, "demo"):
        monkeypatch.chdir(elsewhere)
        same = study_url(f"sqlite:///{began}/x/all.db", "s3://bucket/run", {})
        refused = pytest.raises(InputError, match="another `ama search` is running with this study")
        with refused, locked(Remote("s3://bucket/run", Path()), same, "demo"):
            pass
    assert (began / "x/all.db.demo.lock").exists() and not list(elsewhere.iterdir())


@pytest.mark.parametrize("secret", ["hunter22", "p@ss/w#rd%", "a b c"])
def test_a_database_that_is_away_is_named_without_its_password(secret: str) -> None:
    for study in ("postgresql://ann:${PW}@localhost:1/db", "postgresql://ann@localhost:1/db?password=${PW}"):
        url = study_url(study, "r", {"PW": secret})
        refused = pytest.raises(InputError, match=r"storage\.study: cannot open the database")
        with refused as fault, locked(Remote("s3://bucket/run", Path()), url, "demo"):
            pass
        assert secret not in str(fault.value) and "***" in str(fault.value)
