"""Rows that a search did not write, or that were damaged, are named and left out by all readers."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from analysis.compare.compare import compare_runs
from analysis.picks.pick import pick
from analysis.report.write import write_report
from analysis.runs.load import load
from analysis.runs.rows import MAX_NAMED, describe_left_out
from analysis.runs.run import Run
from analysis.runs.status import status

Make = Callable[..., optuna.Study]
FEW = {"complete": 4, "pruned": 1, "failed": 0, "running": 0, "waiting": 0, "refused": 0}
OWN: dict[str, Any] = {"config": {}, "costs": {"flops": 1.0, "params": 1.0, "latency_ms": 0.1}}


def everything(run: Path | optuna.Study, out: Path) -> None:
    """Read a run with every function that reads runs."""
    opened = Run.open(run)
    assert opened.front().notna()["val_accuracy"].all()
    assert status(opened)["trials"]["COMPLETE"] == 4
    assert {p.number for p in pick(opened, top=9)} <= set(opened.trials["number"])
    write_report(opened, out)
    other = optuna.create_study(study_name="other", directions=["maximize", "minimize"])
    for key, value in opened.attrs.items():
        other.set_user_attr(key, value)
    compare_runs([opened, other])


def test_a_trial_added_by_hand_that_dominates_is_passed_over_and_said(
    make_study: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    study = make_study(**FEW)
    before = load(study).trials
    study.add_trial(create_trial(values=[1.0, 0.0]))
    run = load(study)
    assert run.trials.equals(before)
    assert run.left_out == {5: "it was not written by `ama search` (no config)"}
    assert "trial 5 is left out: it was not written by `ama search`" in caplog.text
    assert status(run)["left_out"] == {"5": run.left_out[5]}
    everything(study, tmp_path)
    assert "Trial 5 is left out" in (tmp_path / "index.html").read_text()


@pytest.mark.parametrize(
    "state", [TrialState.WAITING, TrialState.RUNNING, TrialState.PRUNED, TrialState.FAIL]
)
def test_rows_of_others_in_any_state(make_study: Make, tmp_path: Path, state: TrialState) -> None:
    study = make_study(**FEW)
    study.add_trial(create_trial(state=state, user_attrs={"note": "mine"}))
    assert list(load(study).left_out) == [5]
    everything(study, tmp_path)


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ([float("inf"), 1.0], "val_accuracy inf"),
        ([0.5, float("-inf")], "latency_ms -inf"),
    ],
)
def test_objective_values_that_are_not_finite(
    make_study: Make, tmp_path: Path, values: list[float], why: str
) -> None:
    study = make_study(**FEW)
    study.add_trial(create_trial(values=values, user_attrs=OWN))
    assert load(study).left_out == {5: f"its objective values are not finite: {why}"}
    everything(study, tmp_path)


@pytest.mark.parametrize(
    "attrs",
    [
        {"config": 3},
        {"config": {"student": ["layer1.0"]}},
        {"config": {"student": {"widths": {"layer1.0": "wide"}}}},
        {"costs": [1, 2]},
        {"costs": {"flops": "many"}},
        {"costs": {"flops": float("nan")}},
        {"metrics": "good"},
        {"metrics": {"val_accuracy": "0.9"}},
        {"metrics": {"val_accuracy": {"mean": 0.9}}},
        {"curve": [0.1, 0.2]},
        {"curve": {"epoch": 3}},
        {"curve": {"epoch": ["one"]}},
        {"curve": {"epoch": [None]}},
        {"replaced": 4},
        {"replaced": [{"width": 0.5}]},
        {"replaced": [{"span": "layer1.0", "width": 0.5}]},
        {"replaced": [{"span": [1], "width": 0.5}]},
        {"seconds": "long"},
        {"epochs": 2.5},
        {"seed": [0]},
        {"retries": "two"},
        {"epochs_lost": "one"},
        {"refused": True},
        {"reason": {"why": "x"}},
        {"checkpoint": 7},
    ],
    ids=str,
)
def test_attributes_of_another_form(make_study: Make, tmp_path: Path, attrs: dict[str, Any]) -> None:
    study = make_study(**FEW)
    study.add_trial(create_trial(values=[0.5, 1.0], user_attrs=OWN | attrs))
    (why,) = load(study).left_out.values()
    assert why.startswith(f"its {next(iter(attrs))}: expected ")
    everything(study, tmp_path)


@pytest.mark.parametrize(
    ("statement", "why"),
    [
        ("UPDATE trial_values SET value = NULL WHERE {row}", "objective value 0 cannot be read"),
        ("DELETE FROM trial_values WHERE {row} AND objective = 1", "complete with 1 of 2 objective values"),
        (
            "UPDATE trial_user_attributes SET value_json = '{{' WHERE {row} AND key = 'costs'",
            "attribute costs",
        ),
        (
            "UPDATE trial_user_attributes SET value_json = '[1' WHERE {row} AND key = 'metrics'",
            "attribute me",
        ),
        ("UPDATE trial_params SET param_value = NULL WHERE {row} AND param_name = 'lr'", "parameter lr"),
        (
            "UPDATE trial_params SET distribution_json = '' WHERE {row} AND param_name = 'alpha'",
            "parameter a",
        ),
    ],
)
def test_a_damaged_database(make_run: Callable[..., Path], tmp_path: Path, statement: str, why: str) -> None:
    folder = make_run(**{**FEW, "complete": 5})
    first = next(row.number for row in Run.open(folder).rows if row.state is TrialState.COMPLETE)
    with sqlite3.connect(folder / "study.db") as database:
        row = f"trial_id = (SELECT trial_id FROM trials WHERE number = {first})"
        database.execute(statement.format(row=row))
    left_out = load(folder).left_out
    assert list(left_out) == [first] and why in left_out[first]
    everything(folder, tmp_path)


def test_many_rows_are_counted_not_listed() -> None:
    lines = describe_left_out(dict.fromkeys(range(MAX_NAMED + 7), "why"))
    assert len(lines) == MAX_NAMED + 1 and lines[-1] == "7 more are left out"
    assert describe_left_out({}) == []


def test_rows_of_the_search_are_sound(make_study: Make) -> None:
    for names in ("0.1", "one", "two"):
        assert load(make_study(names=names)).left_out == {}
