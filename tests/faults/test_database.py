"""The study's database goes away and comes back, under single writes and under a running search."""

from __future__ import annotations

import logging
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from faultbench import Bench, check_epochs, check_rows
from optuna.distributions import IntDistribution
from optuna.trial import TrialState
from proxy import Proxy
from server import PASSWORD, Postgres

from search.study.database import PATIENCE_VARIABLE, DatabaseAwayError, Waiting
from search.study.record import StudyRecord
from trainables.errors import InputError

METRICS = {"val_accuracy": 0.5, "val_loss": 1.0, "train_loss": 1.0, "seconds": 1.0}
AWAY_SECONDS = 20.0


def add(record: StudyRecord, level: int = 0) -> int:
    return record.add({"level/a": level}, {"level/a": IntDistribution(0, 9)}, {"config": {}, "seed": 0})


@pytest.fixture
def proxy(postgres: Postgres) -> Iterator[Proxy]:
    proxy = Proxy(postgres.port, b"COMMIT")
    yield proxy
    proxy.close()


def test_a_commit_whose_answer_is_lost_is_made_once(
    postgres: Postgres, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    direct = postgres.create("lost")
    record = StudyRecord.create(
        direct.replace(f":{postgres.port}/", f":{proxy.port}/"), "toy", ["minimize"] * 2
    )
    numbers = []
    for lose in (1, 2, 0):  # twice: the repetition's answer is lost too
        proxy.lose = lose
        numbers.append(add(record, level=lose))
    assert numbers == [0, 1, 2] and proxy.lost == 3
    proxy.lose = 1
    record.epoch(0, {**METRICS, "epoch": 1})
    proxy.lose = 1
    record.complete(0, [0.5, 2.0])
    proxy.lose = 1
    record.fail(1, "broke")
    proxy.lose = 1
    assert record.interrupt() == [2]
    proxy.lose = 1
    record.resume(2)
    assert proxy.lost == 8 and proxy.lose == 0
    rows = optuna.load_study(study_name="toy", storage=direct).trials
    assert [(row.number, row.params["level/a"], row.state.name) for row in rows] == [
        (0, 1, "COMPLETE"),
        (1, 2, "FAIL"),
        (2, 0, "RUNNING"),
    ]
    assert rows[0].values == [0.5, 2.0] and rows[0].user_attrs["curve"]["epoch"] == [1]


def test_a_wait_has_an_end_and_shows_no_password(
    postgres: Postgres, caplog: pytest.LogCaptureFixture
) -> None:
    record = StudyRecord.create(postgres.create("end"), "toy", ["minimize"] * 2)
    number = add(record)
    record.waiting.patience = 2.0
    postgres.stop()
    try:
        with caplog.at_level(logging.WARNING), pytest.raises(DatabaseAwayError) as fault:
            record.complete(number, [0.5, 2.0])
        with pytest.raises(DatabaseAwayError):
            record.trials()
    finally:
        postgres.start()
    assert "was away for" in str(fault.value) and "continue with --resume" in str(fault.value)
    assert PASSWORD not in str(fault.value) + caplog.text
    assert caplog.text.count("the database is away") == 1, "it is said once"
    record.complete(number, [0.5, 2.0])
    assert record.trials()[number].state == TrialState.COMPLETE


def test_a_fault_that_time_does_not_mend_is_not_waited_for(tmp_path: Path) -> None:
    waiting = Waiting("sqlite://", patience=60.0)
    calls = []

    def broken() -> None:
        calls.append(1)
        raise KeyError("no such row")

    with pytest.raises(KeyError):
        waiting(broken)
    assert len(calls) == 1


def test_a_locked_sqlite_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = StudyRecord.create(f"sqlite:///{tmp_path}/study.db", "toy", ["minimize"] * 2)
    number = add(record)
    with record._storage._backend.engine.connect() as own:  # type: ignore[attr-defined]
        own.exec_driver_sql("PRAGMA busy_timeout=100")  # else SQLite itself would wait for the lock
    other = sqlite3.connect(tmp_path / "study.db", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    release = threading.Timer(2.0, other.rollback)
    release.start()
    began = time.monotonic()
    record.complete(number, [0.5, 2.0])
    assert time.monotonic() - began > 1.0
    release.join()
    other.close()
    assert record.trials()[number].values == [0.5, 2.0]


def test_a_patience_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PATIENCE_VARIABLE, "an hour")
    with pytest.raises(InputError, match=r"AMA_STUDY_PATIENCE: expected a number of seconds, got 'an hour'"):
        Waiting("sqlite://")
    monkeypatch.setenv(PATIENCE_VARIABLE, "90")
    assert Waiting("sqlite://").patience == 90


def slow_bench(folder: Path, teacher: Path, url: str, **environment: str) -> Bench:
    """A search whose epochs take long enough to fall into a gap."""
    return Bench(folder, teacher, study=url, environment={"AMA_TEST_SECONDS": "0.7", **environment})


def running(bench: Bench) -> subprocess.Popen[bytes]:
    process = bench.start()
    assert bench.wait_for_epochs(10, process), bench.said()
    return process


@pytest.mark.faults
def test_a_search_outlives_a_database_away_for_twenty_seconds(
    tmp_path: Path, teacher: Path, postgres: Postgres
) -> None:
    bench = slow_bench(tmp_path, teacher, postgres.create("away"))
    process = running(bench)
    postgres.stop()
    time.sleep(AWAY_SECONDS)
    assert process.poll() is None, bench.said()
    postgres.start()
    said = bench.finish(process)
    assert "all trials used" in said
    assert said.count("the database is away") == 1 and said.count("the database is back") == 1, said
    check_rows(bench)
    assert check_epochs(bench, 0) == 0
    assert not [row.number for row in bench.rows() if "retries" in row.user_attrs]


@pytest.mark.faults
def test_a_search_ends_when_its_database_stays_away(
    tmp_path: Path, teacher: Path, postgres: Postgres
) -> None:
    bench = slow_bench(tmp_path, teacher, postgres.create("gone"), **{PATIENCE_VARIABLE: "3"})
    process = running(bench)
    postgres.stop()
    try:
        said = bench.finish(process, code=1)
    finally:
        postgres.start()
    assert "was away for" in said and "continue with --resume" in said and "Traceback" not in said, said
    assert PASSWORD not in said
    bench.finish(bench.start("--resume"))
    check_rows(bench)
    check_epochs(bench, 1)


@pytest.mark.faults
def test_a_search_outlives_a_locked_sqlite(tmp_path: Path, teacher: Path) -> None:
    bench = Bench(tmp_path, teacher, environment={"AMA_TEST_SECONDS": "0.3"})
    process = running(bench)
    other = sqlite3.connect(bench.run / "study.db", isolation_level=None, timeout=60.0)
    other.execute("BEGIN EXCLUSIVE")
    time.sleep(40)  # longer than SQLite waits by itself
    other.rollback()
    other.close()
    bench.finish(process)
    check_rows(bench)
    assert check_epochs(bench, 0) == 0
