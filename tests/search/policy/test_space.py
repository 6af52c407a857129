"""The search space: distributions, parameters to configs and back, duplicates, size."""

from __future__ import annotations

import optuna
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from search.experiment.experiment import Experiment
from search.policy.space import LEVEL, SearchSpace, student_key, to_config
from trainables.blocks.blocks import find_blocks
from trainables.config import DistillConfig, StudentSpec
from trainables.errors import InputError
from trainables.network.architectures import build_model

BLOCKS = ("layer1.0", "layer1.1", "layer2.0")


def experiment_with(**space):
    """An experiment with every setting fixed but those in `space`."""
    loss = {"alpha": 0.5, "tau": 4.0, "beta": 1.0, "supervision": "uniform"} | space.pop("loss", {})
    optim = {"lr": 0.1} | space.pop("optim", {})
    return Experiment.model_validate({"name": "x", "space": {"loss": loss, "optim": optim} | space})


@pytest.fixture
def wide():
    """A space with every kind of parameter."""
    experiment = experiment_with(
        widths=[0.5, 0.25],
        fuse="search",
        loss={"tau": [1, 8], "alpha": [0.2, 0.8], "supervision": ["uniform", "adaptive"]},
        optim={"lr": {"choices": [0.1, 0.01]}, "batch_size": [32, 64]},
    )
    return SearchSpace(experiment, BLOCKS)


def test_levels_come_first_in_block_order_then_what_is_searched(wide):
    assert list(wide.distributions.items()) == [
        ("level/layer1.0", IntDistribution(0, 2)),
        ("level/layer1.1", IntDistribution(0, 2)),
        ("level/layer2.0", IntDistribution(0, 2)),
        ("fuse", CategoricalDistribution((True, False))),
        ("ama/alpha", FloatDistribution(0.2, 0.8)),
        ("ama/tau", FloatDistribution(1.0, 8.0, log=True)),
        ("ama/supervision", CategoricalDistribution(("uniform", "adaptive"))),
        ("optim/lr", CategoricalDistribution((0.1, 0.01))),
        ("optim/batch_size", IntDistribution(32, 64)),
    ]


def test_what_is_fixed_is_no_parameter():
    space = SearchSpace(experiment_with(fuse=False), ("a",))
    assert list(space.distributions) == ["level/a"]
    config = space.to_config({"level/a": 0}, seed=0)
    assert (config.student.fuse, config.loss.tau, config.optim.lr) == (False, 4.0, 0.1)


def test_levels_are_widths_from_narrow_to_wide_and_then_keep(wide):
    params = {"level/layer1.0": 0, "level/layer1.1": 1, "level/layer2.0": 2}
    settings = {
        "fuse": False,
        "alpha": 0.3,
        "tau": 2.0,
        "supervision": "adaptive",
        "lr": 0.01,
        "batch_size": 48,
    }
    config = wide.to_config(params | settings, seed=7)
    assert config.student == StudentSpec(widths={"layer1.0": 0.25, "layer1.1": 0.5}, fuse=False)
    assert (config.loss.alpha, config.loss.tau, config.loss.supervision) == (0.3, 2.0, "adaptive")
    assert (config.optim.lr, config.optim.batch_size) == (0.01, 48)
    assert (config.seed, config.epochs, config.warm_start) == (7, 10, "teacher")
    assert DistillConfig.model_validate(config.model_dump(mode="json")) == config


def test_train_warm_start_and_epochs_come_from_the_experiment():
    experiment = Experiment.model_validate(
        {
            "name": "x",
            "warm_start": "library",
            "budget": {"epochs": 3},
            "space": {"train": "modules", "fuse": True},
        }
    )
    params = {"alpha": 0.5, "tau": 1.0, "beta": 1.0, "supervision": "uniform", "lr": 0.1}
    config = to_config(params, experiment, seed=0)
    assert (config.train, config.warm_start, config.epochs) == ("modules", "library", 3)
    assert config.student.widths == {}


@given(seed=st.integers(0, 2**16))
@settings(max_examples=30, deadline=None)
def test_params_survive_the_way_to_a_config_and_back(seed):
    space = SearchSpace(Experiment.model_validate({"name": "x", "space": {"fuse": "search"}}), BLOCKS)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    trial = study.ask()
    params = space.suggest(trial)
    assert params == trial.params
    assert trial.distributions == space.distributions
    assert space.params_of(space.to_config(params, seed)) == params


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"student": {"widths": {"layer9": 0.25}}},
            "layer9 at width 0.25: expected one of the blocks layer1.0,",
        ),
        ({"student": {"widths": {"layer1.0": 0.3}}}, "layer1.0 at width 0.3: expected"),
        ({"loss": {"tau": 9.0}}, "ama/tau: expected a value of FloatDistribution"),
        ({"loss": {"beta": 2.0}}, "ama/beta: the experiment fixes it at 1.0, got 2.0"),
        ({"optim": {"lr": 0.05, "batch_size": 32}}, "optim/lr: expected a value of CategoricalDistribution"),
    ],
)
def test_a_config_outside_the_space_is_named(wide, change, message):
    settings = {"alpha": 0.5, "tau": 2.0, "supervision": "uniform", "lr": 0.1, "batch_size": 32}
    data = wide.to_config({"fuse": True} | settings, seed=0).model_dump()
    for section, values in change.items():
        data[section] |= values
    config = DistillConfig.model_validate(data)
    with pytest.raises(InputError) as error:
        wide.params_of(config)
    assert str(error.value).startswith(message)


def test_the_size_counts_students_and_names_the_rest(wide):
    students = "3^3 = 27 students × 2 (fuse) × 2 (ama/supervision) × 2 (optim/lr) × 33 (optim/batch_size)"
    assert wide.size() == f"{students} × 2 continuous ranges"
    nine = tuple(f"b{i}" for i in range(9))
    four = experiment_with(widths=[0.25, 0.5, 1], loss={"alpha": [0, 1]})
    assert SearchSpace(four, nine).size() == "4^9 = 262,144 students × 1 continuous range"
    many = SearchSpace(experiment_with(widths=[0.25, 0.5, 1]), nine * 3)
    assert many.size() == "4^27 = 1.8e16 students"


def test_duplicates_have_one_key_and_differences_another(wide):
    def key(seed=0, **changes):
        params = {"level/layer1.0": 0, "fuse": True, "alpha": 0.5, "tau": 2.0, "supervision": "uniform",
                  "lr": 0.1, "batch_size": 32}  # fmt: skip
        return wide.student_key(wide.to_config(params | changes, seed))

    assert key(seed=1) == key(seed=2)
    assert key(**{"level/layer1.1": 2}) == key()  # kept, said or unsaid
    assert key(fuse=False) == key()  # one module alone
    distinct = [
        key(),
        key(**{"level/layer1.0": 1}),
        key(**{"level/layer1.1": 0}),
        key(**{"level/layer1.1": 0}, fuse=False),
        key(tau=3.0),
        key(supervision="adaptive"),
        key(lr=0.01),
    ]
    assert len(set(distinct)) == len(distinct)


def test_the_entropy_weight_counts_only_where_it_acts():
    def key(supervision, weight):
        return student_key(
            DistillConfig.model_validate({"loss": {"supervision": supervision, "entropy_weight": weight}})
        )

    assert key("uniform", 1.0) == key("uniform", 2.0)
    assert key("adaptive", 1.0) != key("adaptive", 2.0)


def test_widths_that_give_one_module_mean_one_student():
    # Maps of 16, 32 and 64 channels; hidden channels come in eights.
    model = build_model("cifar_resnet8", 10, (3, 16, 16))
    blocks = find_blocks(model, torch.zeros(1, 3, 16, 16))
    experiment = experiment_with(widths=[0.25, 0.5, 1.0])
    space = SearchSpace.from_experiment(experiment, blocks)
    low, middle, high = (
        space.to_config({LEVEL + name: level for name in space.blocks}, seed=0).student.widths
        for level in range(3)
    )
    assert list(low.values()) == [0.25, 0.25, 0.25]
    assert list(middle.values()) == [0.25, 0.5, 0.5]
    assert list(high.values()) == [1.0, 1.0, 1.0]
    assert space.size() == "3^1·4^2 = 48 students"
    mixed = {**dict.fromkeys(map(LEVEL.__add__, space.blocks), 1), LEVEL + space.blocks[0]: 0}
    assert space.student_key(space.to_config(mixed, 0)) == space.student_key(
        space.to_config(dict.fromkeys(mixed, 1), 0)
    )
