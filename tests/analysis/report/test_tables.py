import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import pytest
from optuna.trial import TrialState, create_trial
from scipy import stats
from scipy.stats import binomtest

from analysis.errors import InputError
from analysis.pareto import hypervolume
from analysis.report import tables
from analysis.runs.failures import failures
from analysis.runs.run import Run

Make = Callable[..., optuna.Study]


def test_points_hold_teacher_and_every_trial_with_metrics(make_study: Make) -> None:
    run = Run.open(make_study())
    table = tables.points(run, picks=[int(run.front()["number"].iloc[0])])
    assert table["role"].value_counts().to_dict() == {
        "teacher": 1,
        "front": len(run.front()),
        "dominated": 30 - len(run.front()),
        "stopped early": 8,
    }
    assert table["picked"].sum() == 1
    assert table.iloc[0]["number"] == -1
    assert table.iloc[0]["val_accuracy"] == 0.92


def test_history_ends_at_the_hypervolume_of_the_front(make_study: Make) -> None:
    run = Run.open(make_study())
    table = tables.history(run)
    assert len(table) == 41  # 30 complete, 8 stopped, 3 failed; neither refused nor running ones
    assert table["hypervolume"].iloc[-1] == pytest.approx(hypervolume(run.points(run.front()), run.box))
    assert table["hypervolume"].is_monotonic_increasing
    assert table["hours"].is_monotonic_increasing
    assert table["front"].iloc[-1] == len(run.front())
    frame = run.trials
    ended = frame[frame["ended"].notna() & (frame["refused"] == "")]
    assert table["epochs"].iloc[-1] == ended["epochs"].sum() == 30 * 8 + 11 * 2
    assert table["train_hours"].iloc[-1] == pytest.approx(ended["seconds"].sum() / 3600)
    assert (table["trials"] == np.arange(1, 42)).all()
    flat = table[table["state"] != "COMPLETE"].index
    assert (table["hypervolume"].diff().loc[flat[flat > 0]] == 0).all()


def test_block_map_says_width_and_span_of_every_block(make_study: Make) -> None:
    study = make_study(complete=0, pruned=0, failed=0, running=0, waiting=0, refused=0)
    replaced = [{"span": ["layer1.1", "layer1.2"], "width": 0.25}, {"span": ["layer3.0"], "width": 0.5}]
    study.add_trial(create_trial(values=[0.9, 3.0], user_attrs={"config": {}, "replaced": replaced}))
    cells = tables.block_map(Run.open(study)).set_index("block")
    assert len(cells) == 9
    assert cells.loc["layer1.1", "span"] == cells.loc["layer1.2", "span"] == 0
    assert cells.loc["layer3.0", ["width", "span"]].tolist() == [0.5, 1]
    assert np.isnan(cells.loc["layer2.0", "width"])


def test_long_fronts_are_thinned_from_end_to_end(make_study: Make) -> None:
    run = Run.open(make_study(complete=200))
    numbers = run.front()["number"].tolist()
    assert len(numbers) > 5
    cells = tables.block_map(run, limit=5)
    shown = list(dict.fromkeys(cells["number"]))
    assert len(shown) == 5
    assert [shown[0], shown[-1]] == [numbers[0], numbers[-1]]


def test_curves_keep_the_front_and_sample_the_rest(make_study: Make) -> None:
    run = Run.open(make_study(complete=60))
    table = tables.curves(run, limit=10)
    roles = table.groupby("number")["role"].first()
    assert set(roles[roles == "front"].index) == set(run.front()["number"])
    assert (roles != "front").sum() == 10
    everyone = tables.curves(run).groupby("number")["role"].first().value_counts()
    assert everyone["stopped early"] == 8
    assert everyone["failed"] == 3
    assert everyone["running"] == 2


def test_settings_are_the_searched_parameters_that_are_no_levels(make_study: Make) -> None:
    run = Run.open(make_study())
    assert list(tables.settings(run).columns[3:]) == ["alpha", "beta", "lr", "supervision"]
    assert len(tables.settings(run)) == 30
    assert tables.log_parameters(run) == {"beta", "lr"}


def test_settings_of_two_methods_are_missing_where_they_do_not_apply(make_study: Make) -> None:
    run = Run.open(make_study(names="two"))
    table = tables.settings(run)
    names = ["ama/alpha", "ama/beta", "ama/supervision", "method", "optim/lr"]
    assert list(table.columns[3:]) == [
        *names,
        *(f"toy/{key}" for key in ("alpha", "kind", "layers", "temperature")),
    ]
    assert (table["toy/alpha"].isna() == (table["method"] == "ama")).all()
    assert tables.log_parameters(run) == {"ama/beta", "optim/lr", "toy/temperature"}


def test_results_by_method(make_study: Make) -> None:
    study = make_study(names="two")
    run = Run.open(study)
    table = tables.methods(run)
    assert table["method"].tolist() == ["ama", "toy"]
    frame = tables.ran(run.trials)
    for (_, row), name in zip(table.iterrows(), run.methods, strict=True):
        part = frame[(frame["method"] == name) & (frame["state"] != "WAITING")]
        done = part[part["state"] == "COMPLETE"]
        assert (row["trials"], row["complete"]) == (len(part), len(done))
        assert row["front"] == done["on_front"].sum()
        assert row["val_accuracy_best"] == done["val_accuracy"].max()
        assert row["latency_ms_best"] == done["latency_ms"].min()
        assert row["val_accuracy_mean"] == pytest.approx(np.mean(done["val_accuracy"]))
        assert row["val_accuracy_std"] == pytest.approx(np.std(done["val_accuracy"], ddof=1))
        assert row["seconds_per_epoch"] == pytest.approx(part["seconds"].sum() / part["epochs"].sum())
    assert table["trials"].sum() == 43
    assert tables.methods(Run.open(make_study())).empty
    assert tables.methods(Run.open(make_study(names="one"))).empty


def test_a_method_without_a_trained_trial_has_no_results(make_study: Make) -> None:
    nothing = dict.fromkeys(("complete", "pruned", "failed", "running", "waiting", "refused"), 0)
    table = tables.methods(Run.open(make_study(**{**nothing, "complete": 1, "waiting": 3}, names="two")))
    assert table["complete"].sum() == 1 and table["trials"].sum() == 1
    without = table[table["complete"] == 0].iloc[0]
    assert without[["val_accuracy_best", "val_accuracy_mean", "seconds_per_epoch"]].isna().all()
    assert table["val_accuracy_std"].isna().all()


def test_states_count_refused_apart_and_failures_group_by_reason(make_study: Make) -> None:
    study = make_study()
    for epoch in (1, 7):
        study.add_trial(
            create_trial(
                state=TrialState.FAIL,
                user_attrs={"config": {}, "reason": f"no memory at {epoch}.5 s\ntrace"},
            )
        )
    study.add_trial(create_trial(state=TrialState.FAIL, user_attrs={"config": {}}))
    run = Run.open(study)
    states = tables.states(run).set_index("state")["trials"].to_dict()
    assert states == {"COMPLETE": 30, "PRUNED": 8, "FAIL": 6, "RUNNING": 2, "WAITING": 1, "refused": 4}
    found = failures(run)
    assert found["trials"].sum() == 6
    row = found[found["reason"] == "no memory at 1.5 s"].iloc[0]
    assert (row["trials"], row["numbers"]) == (2, "48, 49")
    assert "no reason recorded" in found["reason"].tolist()


def test_importance_table_says_why_it_is_empty(make_study: Make) -> None:
    table = tables.importance(
        Run.open(make_study(complete=3, pruned=2, failed=0, running=0, waiting=0, refused=0))
    )
    assert table["metric"].tolist() == ["val_accuracy", "latency_ms"]
    assert table["parameter"].tolist() == ["", ""]
    assert table["note"].iloc[0] == "needs 10 fully trained trials, there are 3"


def test_retrained_students_mean_and_deviation(make_run: Callable[..., Path]) -> None:
    folder = make_run(complete=2)
    assert tables.retrained(Run.open(folder)).empty
    (folder / "retrained").mkdir()
    file = folder / "retrained" / "results.json"
    rows = [
        {"number": 1, "kind": "student", "seed": s, "test_accuracy": a, "test_loss": 0.3, "params": 5}
        for s, a in enumerate([0.90, 0.91, 0.92])
    ]
    rows.append({"number": 1, "kind": "scratch", "seed": 0, "test_accuracy": 0.8, "test_loss": 0.5})
    file.write_text(json.dumps(rows))
    table = tables.retrained(Run.open(folder)).set_index("kind")
    assert table.loc["student", "test_accuracy"] == pytest.approx(0.91)
    assert table.loc["student", "test_accuracy_std"] == pytest.approx(0.01)
    assert table.loc["student", "n"] == 3
    assert table.loc["student", "params"] == 5
    assert np.isnan(table.loc["scratch", "test_accuracy_std"])
    assert table.loc["scratch", "gain_test_accuracy"] == pytest.approx(0.1)  # of the one seed that both have
    assert np.isnan(table.loc["student", "gain_test_accuracy"])


def test_an_accuracys_interval_is_wilsons() -> None:
    low, high = tables.accuracy_interval(pd.Series([0.9, 1.0, 0.5, np.nan]), 100)
    # scipy.stats.binomtest(90, 100).proportion_ci(method="wilson"), and so on
    for k, place in ((90, 0), (100, 1), (50, 2)):
        found = binomtest(k, 100).proportion_ci(method="wilson")
        assert (low[place], high[place]) == (pytest.approx(found.low), pytest.approx(found.high))
    assert np.isnan(low[3]) and np.isnan(high[3])
    assert np.isnan(tables.accuracy_interval(pd.Series([0.5]), 0)[0]).all()


def test_the_front_has_its_students_retrained_scores_beside_it(make_run: Callable[..., Path]) -> None:
    folder = make_run(complete=12)
    best = Run.open(folder).front()
    number = int(best["number"].iloc[0])
    (folder / "retrained").mkdir()
    rows = [
        {
            "number": number,
            "kind": kind,
            "seed": s,
            "test_accuracy": a,
            "test_loss": 0.3,
            "val_accuracy": a + 0.01,
        }
        for kind, values in (("student", [0.90, 0.92]), ("scratch", [0.80, 0.81]))
        for s, a in enumerate(values)
    ]
    (folder / "retrained" / "results.json").write_text(json.dumps(rows))
    run = Run.open(folder)
    front = tables.front(run)
    assert front["number"].tolist() == best["number"].tolist()
    first = front.iloc[0]
    assert (first["retrained_test_accuracy"], first["retrained_n"]) == (pytest.approx(0.91), 2)
    assert first["val_accuracy_low"] < first["val_accuracy"] < first["val_accuracy_high"]
    assert front["retrained_n"].iloc[1:].isna().all()
    points = tables.points(run).set_index("role")
    assert points.loc["retrained", "val_accuracy"] == pytest.approx(0.92)
    low, high = stats.t.interval(0.95, 1, loc=0.92, scale=0.01)
    assert points.loc["retrained", "val_accuracy_low"] == pytest.approx(low)
    assert points.loc["retrained", "val_accuracy_high"] == pytest.approx(high)
    assert points.loc["baseline scratch", "val_accuracy"] == pytest.approx(0.815)


def test_the_teachers_test_scores_come_from_the_retraining(make_run: Callable[..., Path]) -> None:
    folder = make_run(complete=2)
    assert tables.teacher_tests(Run.open(folder)) == {}
    (folder / "retrained").mkdir()
    file = folder / "retrained" / "results.csv"
    file.write_text(
        "number,kind,test_accuracy,test_loss,val_accuracy\n,teacher,0.93,0.2,0.95\n1,student,0.9,0.3,0.9\n"
    )
    assert tables.teacher_tests(Run.open(folder)) == {"test_accuracy": 0.93, "test_loss": 0.2}


def test_losses_are_what_failed_and_what_was_trained_again(make_study: Make) -> None:
    study = make_study(complete=4, pruned=0, failed=2, running=0, waiting=0, refused=3)
    run = Run.open(study)
    table = run.trials
    failed = table[table["state"] == "FAIL"]
    found = tables.losses(run).set_index("what")
    assert found.loc["failed", "trials"] == 2
    assert found.loc["failed", "train_hours"] == pytest.approx(failed["seconds"].sum() / 3600)
    assert found.loc["failed", "share"] == pytest.approx(failed["seconds"].sum() / table["seconds"].sum())
    assert found.loc["broken off", "trials"] == found.loc["epochs trained again", "trials"] == 0
    changed = [t for t in run.rows if t.state is TrialState.COMPLETE][:2]
    changed[0].user_attrs.update(retries=1)
    changed[1].user_attrs.update(retries=2, epochs_lost=3)
    again = tables.losses(replace(run, rows=run.rows)).set_index("what")
    once, twice = (t.user_attrs["seconds"] / t.user_attrs["epochs"] for t in changed)
    assert again.loc["epochs trained again", "trials"] == 1
    assert again.loc["epochs trained again", "train_hours"] == pytest.approx(3 * twice / 3600)
    assert again.loc["broken off", "trials"] == 2
    assert again.loc["broken off", "train_hours"] == pytest.approx((once + 2 * twice) / 3600)


@pytest.mark.parametrize("text", ["{", '[{"kind": "ama"}]', "[3]", "7"])
def test_a_broken_results_file_is_named(make_run: Callable[..., Path], text: str) -> None:
    folder = make_run(complete=2)
    (folder / "retrained").mkdir()
    (folder / "retrained" / "results.json").write_text(text)
    with pytest.raises(InputError, match=r"results\.json: expected a list of results"):
        tables.retrained(Run.open(folder))
