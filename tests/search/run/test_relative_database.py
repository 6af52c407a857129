"""A relative SQLite `storage.study`: the run is read from any directory, by its own database."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.report import make_run

STUDY = "sqlite:///x/all.db"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("made") / "large", 60)


@pytest.fixture
def old_run(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of a version that kept the path as it was written; another project's database is elsewhere."""
    monkeypatch.delenv("AMA_STUDY_URL", raising=False)
    run = tmp_path / "a/runs/first"
    for folder in (run, tmp_path / "a/x", tmp_path / "b/x"):
        folder.mkdir(parents=True)
    (run / "experiment.yaml").write_text(yaml.safe_dump({"name": "large", "storage": {"study": STUDY}}))
    shutil.copy(finished / "study.db", tmp_path / "a/x/all.db")
    shutil.copy(make_run(tmp_path / "other", 3) / "study.db", tmp_path / "b/x/all.db")
    return run


@pytest.mark.parametrize("here", ["a", "a/runs", "b", "."])
def test_an_old_run_is_read_from_any_directory(
    old_run: Path, ama: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: str
) -> None:
    monkeypatch.chdir(tmp_path / here)
    ended = ama("status", old_run, "--json")
    assert ended.code == 0, ended.err
    trials = yaml.safe_load(ended.out)["trials"]
    assert trials["refused"] + sum(trials[state] for state in ("COMPLETE", "PRUNED", "FAIL")) == 60
    ended = ama("pick", old_run, "--max", "flops=0.9x", "--out", tmp_path / "pick.yaml")
    assert ended.code == 0, ended.err
    ended = ama("report", old_run, "--out", tmp_path / "report")
    assert ended.code == 0, ended.err
    assert len((tmp_path / "report/trials.csv").read_text().splitlines()) == 61
    assert not (tmp_path / here / "x/all.db-wal").exists()


def test_a_new_run_says_where_its_database_is(
    local_ray: None, ama: Callable[..., Any], tiny_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AMA_STUDY_URL", raising=False)
    for folder in ("a/x", "b"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a")
    search = ("search", tiny_yaml, "-o", f"storage.study={STUDY}", "--trials", 1, "-o", "budget.epochs=1")
    search += ("-o", "budget.grace_epochs=1", "-o", "teacher.epochs=1")
    ended = ama(*search, "--out", "run")
    assert ended.code == 0, ended.err
    kept = yaml.safe_load((tmp_path / "a/run/experiment.yaml").read_text())["storage"]["study"]
    assert kept == f"sqlite:///{tmp_path}/a/x/all.db"
    monkeypatch.chdir(tmp_path / "b")
    run = tmp_path / "a/run"
    ended = ama("status", run, "--json")
    assert ended.code == 0 and yaml.safe_load(ended.out)["trials"]["COMPLETE"] == 1, ended.err
    ended = ama(*search, "--out", run, "--resume")
    assert ended.code == 0 and "all 1 trials are done already" in ended.out, ended.err
    assert not list((tmp_path / "b").iterdir())
