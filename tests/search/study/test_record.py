"""Rows of the study's record, in real SQLite files."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import optuna
import pytest
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import TrialState
from sqlalchemy import event

from search.study.database import open_storage
from search.study.record import MissingStudyError, StudyRecord, now
from trainables.errors import InputError

SPACE = {"level/a": IntDistribution(0, 3), "lr": FloatDistribution(0.01, 0.2, log=True)}
PARAMS = {"level/a": 2, "lr": 0.05}


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/study.db"


@pytest.fixture
def record(url: str) -> StudyRecord:
    return StudyRecord.create(url, "toy", ["maximize", "minimize"])


def add(record: StudyRecord, **options: object) -> int:
    return record.add(PARAMS, SPACE, {"config": {}, "costs": {"flops": 5.0}, "seed": 0}, **options)  # type: ignore[arg-type]


def metrics(epoch: int, accuracy: float = 0.5, seconds: float = 2.0) -> dict[str, float]:
    return {
        "epoch": epoch,
        "val_accuracy": accuracy,
        "val_loss": 1.0,
        "train_loss": 1.5,
        "seconds": seconds,
        "entropy": 1.0,
    }


def row(url: str, number: int) -> optuna.trial.FrozenTrial:
    """The row as another process reads it."""
    return optuna.load_study(study_name="toy", storage=url).trials[number]


def test_a_new_row_runs_with_its_params_and_attributes(record: StudyRecord, url: str) -> None:
    number = add(record)
    stored = row(url, number)
    assert (stored.state, stored.params, stored.distributions) == (TrialState.RUNNING, PARAMS, SPACE)
    assert stored.user_attrs == {"config": {}, "costs": {"flops": 5.0}, "seed": 0}
    assert stored.datetime_start is not None and stored.datetime_complete is None
    assert add(record) == number + 1


def test_a_row_is_written_in_one_transaction(record: StudyRecord) -> None:
    commits: list[object] = []
    event.listen(record._storage._backend.engine, "commit", commits.append)  # type: ignore[attr-defined]
    add(record, refused="infeasible", constraints={"flops <= 1": 4.0})
    assert len(commits) == 1


def test_a_refused_row_is_pruned_and_says_why(record: StudyRecord, url: str) -> None:
    stored = row(url, add(record, refused="infeasible", constraints={"flops <= 1": 4.0, "params <= 9": -1.0}))
    assert stored.state == TrialState.PRUNED
    assert stored.user_attrs["refused"] == "infeasible" and stored.user_attrs["epochs"] == 0
    assert stored.constraints == {"flops <= 1": 4.0, "params <= 9": -1.0}
    assert stored.datetime_complete is not None


def test_epochs_become_a_curve(record: StudyRecord, url: str) -> None:
    number = add(record)
    for epoch in (1, 2, 3):
        record.epoch(number, metrics(epoch, accuracy=epoch / 10))
    attrs = row(url, number).user_attrs
    assert attrs["curve"]["epoch"] == [1, 2, 3]
    assert attrs["curve"]["val_accuracy"] == [0.1, 0.2, 0.3]
    assert (attrs["epochs"], attrs["seconds"], attrs["metrics"]["epoch"]) == (3, 6.0, 3)


def test_an_epoch_told_again_replaces_itself_and_what_came_after(record: StudyRecord, url: str) -> None:
    number = add(record)
    for epoch in (1, 2, 3):
        record.epoch(number, metrics(epoch, accuracy=0.1))
    reopened = StudyRecord.load(url, "toy")  # another session goes on from the checkpoint of epoch 1
    reopened.epoch(number, metrics(2, accuracy=0.9, seconds=1.0))
    attrs = row(url, number).user_attrs
    assert attrs["curve"]["epoch"] == [1, 2] and attrs["curve"]["val_accuracy"] == [0.1, 0.9]
    assert (attrs["epochs"], attrs["seconds"]) == (2, 3.0)


def test_a_complete_row_has_values_and_the_limits_that_training_showed(record: StudyRecord, url: str) -> None:
    number = add(record, constraints={"flops <= 9": -4.0})
    record.complete(number, [0.9, 5.0], {"val_accuracy >= 0.95": 0.05})
    stored = row(url, number)
    assert (stored.state, stored.values) == (TrialState.COMPLETE, [0.9, 5.0])
    assert stored.constraints == {"flops <= 9": -4.0, "val_accuracy >= 0.95": 0.05}
    assert record.front() == [], "a row beyond a limit is on no front"


def test_a_pruned_row_has_no_values_and_is_on_no_front(record: StudyRecord, url: str) -> None:
    best, pruned = add(record), add(record)
    record.complete(best, [0.9, 5.0])
    record.epoch(pruned, metrics(1, accuracy=0.99))
    record.prune(pruned, "behind")
    stored = row(url, pruned)
    assert (stored.state, stored.values) == (TrialState.PRUNED, None)
    assert stored.user_attrs["reason"] == "behind" and stored.user_attrs["metrics"]["val_accuracy"] == 0.99
    assert [trial.number for trial in record.front()] == [best]


def test_the_reason_of_a_failure_shows_no_password(record: StudyRecord, url: str) -> None:
    number = add(record)
    record.fail(number, "lost postgresql://me:hunter2@db/x")
    stored = row(url, number)
    assert stored.state == TrialState.FAIL
    assert stored.user_attrs["reason"] == "lost postgresql://me:***@db/x"


def test_interrupted_rows_wait_and_are_taken_up_again(record: StudyRecord, url: str) -> None:
    done, first, second = add(record), add(record), add(record)
    record.complete(done, [0.9, 5.0])
    assert record.interrupt() == [first, second]
    assert record.interrupt() == []
    assert [row(url, n).state for n in (done, first)] == [TrialState.COMPLETE, TrialState.WAITING]
    reopened = StudyRecord.load(url, "toy")
    reopened.resume(first)
    reopened.complete(first, [0.5, 5.0])
    assert row(url, first).values == [0.5, 5.0]
    assert row(url, second).state == TrialState.WAITING


def test_attributes_of_the_study(record: StudyRecord, url: str) -> None:
    record.set_attrs({"format": 1, "blocks": [{"name": "a"}]})
    assert StudyRecord.load(url, "toy").attrs == {"format": 1, "blocks": [{"name": "a"}]}


def test_sqlite_writes_ahead_of_its_database(record: StudyRecord, url: str, tmp_path: Path) -> None:
    add(record)
    with sqlite3.connect(tmp_path / "study.db") as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    with record._storage._backend.engine.connect() as own:  # type: ignore[attr-defined]
        assert own.exec_driver_sql("PRAGMA synchronous").scalar() == 1  # NORMAL
        assert own.exec_driver_sql("PRAGMA busy_timeout").scalar() == 30000


def test_a_study_of_this_name_is_refused(record: StudyRecord, url: str) -> None:
    for attempt in (lambda: StudyRecord.create(url, "toy", ["maximize", "minimize"]), lambda: free(url)):
        with pytest.raises(InputError, match=r"already holds a study 'toy'; resume it with --resume"):
            attempt()


def free(url: str) -> None:
    StudyRecord.check_free(url, "toy")


def test_a_free_name_leaves_no_study(url: str) -> None:
    StudyRecord.check_free(url, "toy")
    with pytest.raises(MissingStudyError, match="holds no study 'toy'"):
        StudyRecord.load(url, "toy")


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://me:hunter2@127.0.0.1:1/nowhere",
        "sqlite:////no/such/folder/study.db?password=hunter2",
        "nosuchdatabase://me:hunter2@host/name",
    ],
)
def test_a_database_that_cannot_be_opened_is_named_without_its_password(url: str) -> None:
    with pytest.raises(InputError, match=r"storage\.study: cannot open the database") as fault:
        open_storage(url)
    assert "hunter2" not in str(fault.value)
    assert url.split(":")[0] in str(fault.value)


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "study.db").write_text("not a database, but a text of some length\n" * 100)
    with pytest.raises(InputError, match="file is not a database"):
        open_storage(f"sqlite:///{tmp_path}/study.db")


def test_times_are_utc_to_the_second() -> None:
    assert now().endswith("+00:00") and "." not in now()


def test_optunas_own_tools_name_the_objectives(record: StudyRecord, url: str) -> None:
    for _ in range(2):  # a write may be repeated
        record.name_objectives(["val_accuracy", "flops"])
    assert optuna.load_study(study_name="toy", storage=url).metric_names == ["val_accuracy", "flops"]


def test_rows_of_others_are_left_out_of_a_resumed_search(
    record: StudyRecord, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    mine = add(record)
    record.complete(mine, [0.9, 5.0])
    study = optuna.load_study(storage=url, study_name="toy")
    study.add_trial(optuna.trial.create_trial(values=[1.0, 0.0]))
    study.add_trial(optuna.trial.create_trial(state=TrialState.RUNNING))
    study.add_trial(
        optuna.trial.create_trial(values=[float("inf"), 0.0], user_attrs={"config": {}, "costs": {}})
    )
    resumed = StudyRecord.load(url, "toy")
    assert "trial 1 is left out" in caplog.text and "trial 3 is left out" in caplog.text
    assert [row.number for row in resumed.trials()] == [row.number for row in resumed.front()] == [mine]
    assert resumed.interrupt() == []
    assert resumed.trial(mine).values == [0.9, 5.0]
