"""Names of parameters and methods for people, in runs of version 0.1, of one method and of several."""

from collections.abc import Callable

import numpy as np
import optuna
import pandas as pd
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import create_trial

from analysis.runs.parameters import method_labels, method_of, parameter_labels
from analysis.runs.run import Run

Make = Callable[..., optuna.Study]
TOY = "import:mine.py:Toy"


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["level/a.0", "alpha", "lr", "fuse"], ["level/a.0", "alpha", "lr", "fuse"]),
        (["level/a.0", "ama/alpha", "optim/lr", "fuse"], ["level/a.0", "alpha", "lr", "fuse"]),
        (["ama/alpha", "toy/alpha", "method"], ["ama: alpha", "toy: alpha", "method"]),
        (["ama/alpha", "method", "optim/lr"], ["ama: alpha", "method", "lr"]),
        (["toy/lr", "optim/lr", "toy/k"], ["toy: lr", "optim: lr", "k"]),
        (["toy/fuse", "fuse"], ["toy: fuse", "fuse"]),
        (["level/toy/deep", "toy/deep"], ["level/toy/deep", "deep"]),
        ([], []),
    ],
)
def test_labels_are_the_keys_as_far_as_they_are_unique(names: list[str], labels: list[str]) -> None:
    assert list(parameter_labels(names).values()) == labels
    assert len(set(labels)) == len(names)


def test_methods_have_the_names_of_their_parameters() -> None:
    space = {"toy/k": FloatDistribution(0, 1), "level/b": FloatDistribution(0, 1)}
    trial = create_trial(
        params={"level/b": 0.0, "toy/k": 0.5},
        distributions=space,
        value=0.0,
        user_attrs={"config": {"method": TOY}},
    )
    bare = create_trial(value=0.0, user_attrs={"config": {"method": TOY}})
    old = create_trial(value=0.0, user_attrs={"config": {"loss": {"alpha": 0.5}}})
    several = {"space": {"method": {"ama": None, TOY: {}}}}
    assert method_labels(several, [trial, old]) == {"ama": "ama", TOY: "toy"}
    assert method_labels(several, [bare]) == {"ama": "ama", TOY: "Toy"}
    assert method_labels({"space": {"method": TOY}}, []) == {TOY: "Toy"}
    assert method_labels({"space": {"loss": {}}}, [old]) == {"ama": "ama"}
    assert method_labels({}, []) == {"ama": "ama"}
    twins = {"space": {"method": {TOY: {}, "import:other.py:Toy": {}}}}
    assert list(method_labels(twins, []).values()) == [TOY, "import:other.py:Toy"]
    assert [method_of(t) for t in (trial, bare, old)] == [TOY, TOY, "ama"]


def test_a_run_of_version_01_has_flat_parameters_and_no_parts(make_study: Make) -> None:
    run = Run.open(make_study())
    assert run.parameters[-4:] == ("alpha", "beta", "lr", "supervision")
    assert all(run.labels[name] == name for name in run.parameters)
    assert run.recorded == ()
    assert run.methods == {"ama": "ama"}
    assert not [name for name in run.trials.columns if name.startswith("loss/")]


def test_a_row_has_what_its_method_recorded_in_its_last_epoch(make_study: Make) -> None:
    study = make_study(names="two")
    run = Run.open(study)
    assert {"loss/ce", "loss/kl", "loss/feature", "loss/regulariser", "loss/pull"} <= set(run.recorded)
    assert {"entropy", "queue", "weight/layer1.0", "mix/layer1.0/layer1.1.act"} <= set(run.recorded)
    assert not {"epoch", "seconds", "val_accuracy", "train_loss"} & set(run.recorded)
    table = run.trials.set_index("number")
    trained = 0
    for trial in study.trials:
        last, row = trial.user_attrs.get("metrics") or {}, table.loc[trial.number]
        for name in run.recorded:
            assert row[name] == last[name] if name in last else np.isnan(row[name])
            assert table[name].dtype == np.float64
        parts = row[[name for name in run.recorded if name.startswith("loss/")]]
        if last:
            assert parts.sum() == pytest.approx(last["train_loss"])
            trained += 1
    assert trained == 43


def test_parameters_of_the_other_methods_are_missing(make_study: Make) -> None:
    table = Run.open(make_study(names="two")).trials
    ama = table["method"] == "ama"
    assert 5 < ama.sum() < len(table) - 5
    assert table.loc[ama, "toy/temperature"].isna().all() and table.loc[~ama, "ama/beta"].isna().all()
    assert table.loc[ama, "ama/beta"].notna().all() and table.loc[~ama, "toy/kind"].notna().all()
    assert table["optim/lr"].notna().all()


def test_curves_have_the_parts_of_the_trials_asked_for(make_study: Make) -> None:
    study = make_study(names="two")
    run = Run.open(study)
    everything = run.curves()
    assert list(everything.columns[:8]) == [
        *("number", "state", "epoch", "val_accuracy", "val_loss", "train_loss", "seconds"),
        run.recorded[0],
    ]
    parts = everything[[name for name in run.recorded if name.startswith("loss/")]]
    assert np.allclose(parts.sum(axis=1), everything["train_loss"])
    some = run.curves({3, 7, 999})
    expected = everything[everything["number"].isin([3, 7])].reset_index(drop=True)
    pd.testing.assert_frame_equal(some, expected)


def test_a_recorded_name_that_is_a_column_already_is_left_out(make_study: Make) -> None:
    study = make_study(complete=2, pruned=0, failed=0, running=0, waiting=0, refused=0)
    last = {"epoch": 1, "train_loss": 2.0, "number": 77.0, "started": 5.0, "alpha": 3.0, "loss/ce": 2.0}
    curve = {name: [value] for name, value in last.items()}
    study.add_trial(
        create_trial(
            params={"alpha": 0.25},
            distributions={"alpha": FloatDistribution(0, 1)},
            values=[0.5, 1.0],
            user_attrs={"config": {}, "curve": curve, "metrics": last},
        )
    )
    row = Run.open(study).trials.iloc[-1]
    assert (row["number"], row["alpha"], row["loss/ce"]) == (2, 0.25, 2.0)
    assert pd.isna(row["started"]) or isinstance(row["started"], pd.Timestamp)
