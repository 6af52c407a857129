"""Optuna's private names still mean what the adapter takes them for."""

from __future__ import annotations

from pathlib import Path

import optuna
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial

from analysis.runs import optuna_adapter as adapter


def test_keys_and_storage_are_those_of_the_study(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    optuna.create_study(study_name="first", storage=url)
    study = optuna.create_study(study_name="second", storage=url)
    storage = adapter.storage_of(study)
    assert storage.get_study_name_from_id(adapter.study_id(study)) == "second"
    study.add_trial(create_trial(state=TrialState.RUNNING))
    (row,) = study.get_trials()
    assert storage.get_trial(adapter.trial_id(row)).number == row.number == 0
    study.tell(adapter.trial_of(study, row), 1.5)
    assert study.trials[0].values == [1.5]
    adapter.close(storage)
    assert [file.name for file in tmp_path.iterdir()] == ["study.db"]


def test_a_repeated_insertion_makes_one_row(tmp_path: Path) -> None:
    storage = adapter.Storage(f"sqlite:///{tmp_path}/study.db")
    study = optuna.create_study(storage=storage)
    for token in (adapter.new_token(), adapter.new_token()):
        row = create_trial(state=TrialState.RUNNING, system_attrs=token)
        made = [storage.create_new_trial(adapter.study_id(study), row) for _ in range(3)]
        assert len(set(made)) == 1
    assert len(study.get_trials()) == 2
    adapter.close(storage)


def test_nsga2_keeps_generations_where_the_adapter_says() -> None:
    sampler = optuna.samplers.NSGAIISampler(population_size=4, seed=0)
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
    for _ in range(12):
        trial = study.ask({"x": FloatDistribution(0, 1)})
        study.tell(trial, [trial.params["x"], 1 - trial.params["x"]])
    generations = [trial.system_attrs[adapter.generation_key()] for trial in study.trials]
    assert generations == sorted(generations) and {0, 1} <= set(generations)
