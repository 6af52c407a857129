from collections.abc import Callable

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import create_trial

from analysis.report import importance
from analysis.report.importance import block_effects, importances
from analysis.runs.run import Run

Make = Callable[..., optuna.Study]
NOTHING = {"complete": 0, "pruned": 0, "failed": 0, "running": 0, "waiting": 0, "refused": 0}


def add(study: optuna.Study, n: int, value: Callable[[float, float], list[float]]) -> Run:
    rng = np.random.default_rng(0)
    space = {"lr": FloatDistribution(0, 1), "alpha": FloatDistribution(0, 1)}
    for _ in range(n):
        a, b = rng.random(2)
        study.add_trial(
            create_trial(
                params={"lr": a, "alpha": b},
                distributions=space,
                values=value(float(a), float(b)),
                user_attrs={"config": {}},
            )
        )
    return Run.open(study)


def test_the_parameter_that_decides_is_found_for_each_objective(make_study: Make) -> None:
    losses = [{"metric": name, "direction": "minimize"} for name in ("val_loss", "params")]
    run = add(make_study(objectives=losses, **NOTHING), 60, lambda a, b: [a + 0.01 * b, b])
    first, second = importances(run)
    assert first.metric == "val_loss"
    assert max(first.values, key=lambda name: first.values[name]) == "lr"
    assert first.values["lr"] > 0.8
    assert sum(first.values.values()) == pytest.approx(1.0)
    assert first.note == "fANOVA over 60 of 60 fully trained trials"
    assert second.values == {}, "no proposal has a price"


def test_costs_depend_on_the_student_alone_and_are_known_of_every_proposal(make_study: Make) -> None:
    run = Run.open(make_study(complete=3, pruned=20, failed=2, running=1, waiting=1, refused=5))
    accuracy, latency = importances(run)
    assert accuracy.values == {}
    assert latency.note == "fANOVA over 32 of 32 priced proposals"
    assert set(latency.values) == {f"level/{block['name']}" for block in run.blocks}


def test_same_study_same_importances(make_study: Make) -> None:
    study = make_study(complete=20)
    assert importances(Run.open(study)) == importances(Run.open(study))


def test_a_long_study_is_sampled(make_study: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importance, "MAX_TRIALS", 20)
    run = add(make_study(**NOTHING), 90, lambda a, b: [a, b])
    assert importances(run)[0].note == "fANOVA over 20 of 90 fully trained trials"
    assert importances(run)[0].values["lr"] > 0.7


def test_too_little_to_say_is_a_reason_not_a_crash(make_study: Make) -> None:
    few = importances(Run.open(make_study(**(NOTHING | {"complete": 9}))))
    assert (few[0].values, few[0].note) == ({}, "needs 10 fully trained trials, there are 9")
    assert (few[1].values, few[1].note) == ({}, "needs 10 priced proposals, there are 9")
    assert importances(Run.open(make_study(**NOTHING)))[0].note.endswith("there are 0")
    level = importances(add(make_study(**NOTHING), 12, lambda a, b: [0.5, b]))
    assert (level[0].values, level[0].note) == ({}, "has the same value in every trial")


def test_nothing_varied(make_study: Make) -> None:
    study = make_study(**NOTHING)
    for i in range(12):
        study.add_trial(create_trial(values=[0.5 + i / 100, 1.0 + i], user_attrs={"config": {}}))
    assert importances(Run.open(study))[0].note == "no parameter varied"


def test_block_effects_recover_additive_costs(make_study: Make) -> None:
    study = make_study(complete=150)
    effects = block_effects(Run.open(study))
    assert len(effects) == 9 * 4
    assert effects["trials"].groupby(effects["block"]).sum().tolist() == [150] * 9
    kept = effects[effects["width"].isna()]
    assert (kept["params_effect"] == 0).all()
    block = next(b for b in study.user_attrs["blocks"] if b["name"] == "layer3.0")
    row = effects[(effects["block"] == "layer3.0") & (effects["width"] == 0.25)].iloc[0]
    truth = -block["params"] * (1 - 0.05 - 0.8 * 0.25)  # as the synthetic prices are made
    assert row["params_effect"] == pytest.approx(truth, rel=0.05)
    levels = [t.params["level/layer3.0"] for t in study.trials if t.values]
    values = [t.user_attrs["costs"]["params"] for t in study.trials if t.values]
    mean = np.mean([v for v, level in zip(values, levels, strict=True) if level == 1])
    assert row["params"] == pytest.approx(mean)


def test_effects_on_costs_come_from_every_proposal(make_study: Make) -> None:
    run = Run.open(make_study(**(NOTHING | {"complete": 2, "pruned": 150, "refused": 10})))
    effects = block_effects(run)
    assert effects["trials"].sum() == 2 * 9
    block = next(b for b in run.blocks if b["name"] == "layer2.1")
    row = effects[(effects["block"] == "layer2.1") & (effects["width"] == 0.5)].iloc[0]
    assert row["flops_effect"] == pytest.approx(-block["flops"] * (1 - 0.05 - 0.8 * 0.5), rel=0.05)


def test_block_effects_of_levels_nobody_tried_are_unknown(make_study: Make) -> None:
    effects = block_effects(Run.open(make_study(**(NOTHING | {"complete": 1}))))
    untried = effects[effects["trials"] == 0]
    assert len(untried) == 27
    assert untried["val_accuracy_effect"].isna().all()
    assert untried["val_accuracy"].isna().all()
    assert untried["flops_effect"].isna().all()
    assert block_effects(Run.open(make_study(**NOTHING))).empty


def test_settings_of_one_method_are_explained_by_its_own_trials(make_study: Make) -> None:
    study = make_study(**(NOTHING | {"complete": 60}), names="two")
    run = Run.open(study)
    found = {(item.metric, item.method): item for item in importances(run)}
    assert list(found) == [("val_accuracy", m) for m in ("", "ama", "toy")] + [("latency_ms", "")]
    shared = {name for name in run.parameters if not name.startswith(("ama/", "toy/"))}
    assert set(found["val_accuracy", ""].values) == shared
    assert "method" in shared and "optim/lr" in shared
    assert found["val_accuracy", ""].note.endswith("; what all methods share")
    for method, other in (("ama", "toy"), ("toy", "ama")):
        item = found["val_accuracy", method]
        own = {name for name in run.parameters if not name.startswith(f"{other}/")} - {"method"}
        assert set(item.values) == own
        assert sum(item.values.values()) == pytest.approx(1.0)
    count = sum(trial.params["method"] == "ama" for trial in study.trials)
    assert found["val_accuracy", "ama"].note == f"fANOVA over {count} of {count} fully trained trials of ama"
    few = importances(Run.open(make_study(**(NOTHING | {"complete": 11}), names="two")))
    assert [item.values == {} for item in few if item.method] == [True, True]
    assert few[1].note.startswith("needs 10 fully trained trials of ama, there are ")


def test_trials_that_share_no_parameter_that_varies(make_study: Make) -> None:
    study = make_study(**NOTHING)
    for i in range(12):
        name = f"m{i % 2}/k"
        params, space = {name: i / 12}, {name: FloatDistribution(0, 1)}
        values = [0.5 + i / 100, 1.0 + i]
        study.add_trial(
            create_trial(params=params, distributions=space, values=values, user_attrs={"config": {}})
        )
    assert importances(Run.open(study))[0].note == "no parameter varied"
