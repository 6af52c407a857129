"""Searches that start from the module library, on digits with a tiny teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest

from search.experiment.experiment import Experiment
from search.policy.first_trials import first_proposals
from search.policy.space import LEVEL, SearchSpace
from search.run.search import search
from search.stages.library import get_library, library_folder
from search.stages.prepare import Prepared, prepare
from trainables.library.library import Library


def experiment(folder: Path, **budget: Any) -> Experiment:
    return Experiment.model_validate(
        {
            "name": "warm",
            "run": {"dir": str(folder / "run")},
            "data": {"name": "digits", "train_limit": 200},
            "teacher": {"arch": "cifar_resnet8", "epochs": 1},
            "objectives": ["val_accuracy", "flops"],
            "space": {"widths": [0.25, 0.5], "fuse": "search", "optim": {"batch_size": [32, 64]}},
            "budget": {"trials": 4, "epochs": 1, "first_share": 0.5, **budget},
            "runtime": {"device": "cpu", "precision": "fp32", "layout": "contiguous"}
            | {"optimizer": "single", "eval_batch": 512},
            "costs": {"seconds": 0.5},
            "warm_start": "library",
            "library": {"dir": str(folder / "library"), "epochs": 1, "student_epochs": 1, "batch_size": 64},
        }
    )


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(experiment(tmp_path_factory.mktemp("warm")))


@pytest.fixture(scope="module")
def library(setup: Prepared) -> Library:
    return get_library(setup)


def test_the_library_is_made_once_and_found_by_its_content(setup: Prepared, library: Library) -> None:
    folder = library_folder(setup)
    assert folder.name == library.key and folder.is_dir()
    written = folder.stat().st_mtime_ns
    assert get_library(setup).errors == library.errors
    assert folder.stat().st_mtime_ns == written


def test_first_proposals_lie_in_the_space_along_the_cost_axis(setup: Prepared, library: Library) -> None:
    space = SearchSpace.from_experiment(setup.experiment, setup.blocks)
    first = first_proposals(space, setup.blocks, setup.costs, library)
    assert len(first) == 2  # half of four trials
    configs = [space.to_config(params, seed=0) for params in first]
    for params, config in zip(first, configs, strict=True):
        assert set(params) == set(space.distributions)
        assert space.params_of(config) == params
        assert config.optim.batch_size == 48 and config.loss.alpha == pytest.approx(0.5)
        assert config.loss.tau == pytest.approx(8**0.5)
    prices = [setup.costs.price(config.student).flops for config in configs]
    assert prices == sorted(prices) and prices[0] < prices[1] < setup.costs.teacher.flops


def test_a_search_tries_them_first_and_a_longer_one_does_not_repeat_them(
    setup: Prepared, library: Library, local_ray: None
) -> None:
    space = SearchSpace.from_experiment(setup.experiment, setup.blocks)
    first = first_proposals(space, setup.blocks, setup.costs, library)
    search(setup.experiment)
    run = setup.experiment.run.dir

    def rows() -> list[Any]:
        return optuna.load_study(study_name="warm", storage=f"sqlite:///{run}/study.db").trials

    levels = [{k: v for k, v in params.items() if k.startswith(LEVEL)} for params in first]
    begun = [{k: v for k, v in row.params.items() if k.startswith(LEVEL)} for row in rows()[:2]]
    assert begun == levels
    assert {row.user_attrs["config"]["warm_start"] for row in rows()} == {"library"}
    search(experiment(Path(run).parent, trials=5), resume=True)
    ran = [row for row in rows() if "refused" not in row.user_attrs]
    assert len(ran) == 5 and all(row.state.is_finished() for row in ran)
    assert len({str(sorted(row.params.items())) for row in ran}) == 5
