import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from analysis.errors import InputError
from analysis.pareto import Objective, front_mask, minimised
from analysis.runs.load import front, load
from analysis.runs.run import Run

Make = Callable[..., optuna.Study]
RATES = [
    {"metric": "val_loss", "direction": "minimize"},
    {"metric": "flops", "direction": "minimize"},
    {"metric": "params", "direction": "minimize"},
]


def test_one_row_a_trial_with_the_documented_columns(make_study: Make) -> None:
    table = load(make_study()).trials
    assert table["number"].tolist() == list(range(48))
    assert table["state"].value_counts().to_dict() == {
        **{"COMPLETE": 30, "PRUNED": 12, "FAIL": 3, "RUNNING": 2, "WAITING": 1}
    }
    assert (table["refused"] != "").sum() == 4
    names = list(table.columns)
    levels = [name for name in names if name.startswith("level/")]
    assert levels == [f"level/layer{i}.{j}" for i in (1, 2, 3) for j in (0, 1, 2)]
    for name in ("val_loss", "flops", "measured_latency_ms", "alpha", "supervision", "ray_id", "started"):
        assert name in names
    assert str(table["level/layer1.0"].dtype) == "Int64"
    assert str(table["epochs"].dtype) == "Int64"


def test_values_of_finished_trials_and_last_metrics_of_others(make_study: Make) -> None:
    study = make_study(objectives=RATES)
    table = load(study).trials.set_index("number")
    for trial in study.trials:
        row = table.loc[trial.number]
        if trial.state is TrialState.COMPLETE:
            assert [row["val_loss"], row["flops"], row["params"]] == trial.values
            assert row["val_accuracy"] == trial.user_attrs["metrics"]["val_accuracy"]
        elif "metrics" in trial.user_attrs:
            assert row["val_loss"] == trial.user_attrs["metrics"]["val_loss"]
        else:
            assert np.isnan(row["val_loss"])
        assert row["replaced"] == len(trial.user_attrs["replaced"])


def test_front_is_of_fully_trained_trials_alone(make_study: Make) -> None:
    run = Run.open(make_study())
    table = run.trials
    done = table[table["state"] == "COMPLETE"]
    points = minimised(done[["val_accuracy", "latency_ms"]].to_numpy(), run.objectives)
    assert set(table.loc[table["on_front"], "number"]) == set(done["number"].to_numpy()[front_mask(points)])
    best = run.front()
    assert best["val_accuracy"].is_monotonic_decreasing
    assert best["latency_ms"].is_monotonic_decreasing
    assert front(run).equals(best)


def test_a_cheap_half_trained_trial_is_never_on_the_front(make_study: Make) -> None:
    study = make_study(complete=3)
    trial = optuna.trial.create_trial(
        state=TrialState.PRUNED,
        user_attrs={
            "config": {},
            "metrics": {"val_accuracy": 0.99, "val_loss": 0.01},
            "costs": {"latency_ms": 0.1},
        },
    )
    study.add_trial(trial)
    assert not load(study).trials.iloc[-1]["on_front"]


def test_curves_are_long(make_study: Make) -> None:
    study = make_study(complete=4, pruned=2, failed=0, running=1, waiting=1, refused=1)
    curves = Run.open(study).curves()
    assert len(curves) == 4 * 8 + 3 * 2
    trial = next(t for t in study.trials if t.state is TrialState.COMPLETE)
    mine = curves[curves["number"] == trial.number]
    assert mine["val_accuracy"].tolist() == trial.user_attrs["curve"]["val_accuracy"]
    assert mine["epoch"].tolist() == list(range(1, 9))


def test_curves_with_a_missing_column_are_padded(make_study: Make) -> None:
    study = make_study(complete=0, pruned=0, failed=0, running=0, waiting=0, refused=0)
    study.add_trial(
        optuna.trial.create_trial(
            state=TrialState.FAIL,
            user_attrs={"config": {}, "curve": {"epoch": [1, 2], "val_accuracy": [0.5]}},
        )
    )
    curves = Run.open(study).curves()
    assert curves["val_accuracy"].tolist()[0] == 0.5
    assert curves["val_accuracy"].isna().tolist() == [False, True]
    assert curves["train_loss"].isna().all()


def test_run_directory_and_study_say_the_same(make_run: Callable[..., Path], make_study: Make) -> None:
    folder = make_run()
    from_disk, from_memory = load(folder).trials, load(make_study()).trials
    assert from_disk.equals(from_memory)
    run = Run.open(folder)
    assert run.path == folder
    assert Run.open(run) is run
    assert run.objectives[0] == Objective("val_accuracy", "maximize")
    assert run.teacher["arch"] == "cifar_resnet20"
    assert run.data["classes"] == 10
    assert run.widths == [0.125, 0.25, 0.5]
    assert len(run.blocks) == 9
    assert run.constraints[0]["text"] == "flops <= 0.85x"
    assert run.experiment["name"] == "demo"
    assert run.trial(3).number == 3
    with pytest.raises(InputError, match="no trial 99; there are 48"):
        run.trial(99)


def test_no_trials_and_no_finished_trial(make_study: Make) -> None:
    nothing = {"complete": 0, "pruned": 0, "failed": 0, "running": 0, "waiting": 0, "refused": 0}
    empty = make_study(**nothing)
    with pytest.raises(InputError, match="study 'demo' has no trials yet"):
        load(empty)
    assert "level/layer1.0" not in Run.open(empty).trials
    assert Run.open(empty).trials["on_front"].tolist() == []
    assert Run.open(empty).curves().empty
    with pytest.raises(InputError, match="no trial has finished yet: none was started"):
        Run.open(empty).front()
    young = make_study(**{**nothing, "running": 3, "waiting": 1, "refused": 2})
    with pytest.raises(InputError, match="finished yet: 3 running, 1 waiting, 2 refused before training"):
        Run.open(young).front()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format", 2, "has format 2: this version reads format 1"),
        ("objectives", [{"metric": "val_accuracy", "direction": "maximize"}], "two or more of"),
        ("objectives", [{"metric": "a"}, {"metric": "b"}], "got a, b"),
    ],
)
def test_studies_of_another_kind_are_refused(make_study: Make, key: str, value: object, message: str) -> None:
    study = make_study(complete=1)
    study.set_user_attr(key, value)
    with pytest.raises(InputError, match=message):
        Run.open(study)


def test_a_study_that_nobody_searched() -> None:
    with pytest.raises(InputError, match="was not created by `ama search`"):
        load(optuna.create_study(directions=["maximize", "minimize"]))


def test_analysis_loads_neither_torch_nor_ray() -> None:
    code = (
        "import pkgutil, sys, analysis\n"
        "names = [m.name for m in pkgutil.walk_packages(analysis.__path__, 'analysis.')]\n"
        "[__import__(name) for name in names]\n"
        "print(len(names), [m for m in ('torch', 'ray', 'search', 'trainables') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    count, found = out.split(maxsplit=1)
    assert int(count) > 10
    assert found.strip() == "[]"


def test_measured_latencies_stand_beside_the_study(make_study: Make) -> None:
    study = make_study()
    assert load(study).trials["measured_latency_ms"].isna().all()
    study.set_user_attr("measured", {"3": {"latency_ms": 1.25}})
    table = load(study).trials.set_index("number")
    assert table.loc[3, "measured_latency_ms"] == 1.25
    assert table["measured_latency_ms"].notna().sum() == 1
