"""Separate students in the search space: parameters with an effect, configs and back, proposals, size."""

from __future__ import annotations

from typing import Any

import optuna
import pytest

from search.experiment.experiment import Experiment
from search.policy.limits import Limit
from search.policy.proposer import Proposer
from search.policy.space import SearchSpace, student_key
from trainables.config import DistillConfig, StudentSpec
from trainables.costs.table import Costs
from trainables.errors import InputError

BLOCKS = ("a", "b")


def space_of(**space: Any) -> SearchSpace:
    given = {"widths": [0.25, 0.5], "optim": {"lr": 0.1}, **space}
    return SearchSpace(Experiment.model_validate({"name": "x", "space": given}), BLOCKS)


def price(spec: StudentSpec) -> Costs:
    if spec.arch is not None:
        return Costs(100, 1000, 1.0)
    return Costs(300 - 50 * len(spec.widths), 3000 - 500 * len(spec.widths), 3.0 - len(spec.widths))


def drawn(space: SearchSpace, trials: int = 60) -> list[dict[str, Any]]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    return [space.suggest(study.ask()) for _ in range(trials)]


def test_without_levels_where_they_have_no_effect() -> None:
    space = space_of(student="wrn10_1", fuse="search")
    assert list(space.distributions) == ["ama/alpha", "ama/tau"]
    assert space.size() == "1 separate student × 2 continuous ranges"
    config = space.to_config({"ama/alpha": 0.3, "ama/tau": 2.0}, seed=1)
    assert config.student == StudentSpec(arch="wrn10_1")
    assert (config.loss.beta, config.loss.supervision, config.loss.alpha) == (0.0, "uniform", 0.3)


def test_levels_are_those_of_the_modules_in_the_teacher() -> None:
    space = space_of(student=["wrn10_1", "wrn10_2"], method={"separate": {"rho": 1.0}})
    assert list(space.distributions)[:3] == ["level/a", "level/b", "student"]
    assert space.size().startswith("3^2 = 9 sets of modules in the teacher + 2 separate students")
    params = {"level/a": 0, "level/b": 2, "student": "wrn10_2", "separate/eta": 0.1}
    settings = {"separate/alpha": 0.5, "separate/tau": 2.0, "separate/beta": 1.0}
    config = space.to_config(params | settings, seed=0)
    assert config.student == StudentSpec(arch="wrn10_2", widths={"a": 0.25}) and config.loss.eta == 0.1
    assert space.params_of(config) == params | settings


@pytest.mark.parametrize("fuse", [True, False, "search"])
def test_parameters_of_every_student_and_method_convert_both_ways(fuse: object) -> None:
    space = space_of(student=["teacher", "wrn10_1"], method=["ama", "separate", "fitnet"], fuse=fuse)
    seen = set()
    for params in drawn(space):
        config = space.to_config(params, seed=0)
        seen.add((config.student.name, config.method, "level/a" in params, "ama/beta" in params))
        assert space.params_of(config) == params
        assert DistillConfig.model_validate_json(config.model_dump_json()) == config
    assert seen == {
        ("teacher", "ama", True, True),
        ("teacher", "separate", True, False),
        ("teacher", "fitnet", True, False),
        ("wrn10_1", "ama", False, False),
        ("wrn10_1", "separate", True, False),
        ("wrn10_1", "fitnet", False, False),
    }


def test_an_unknown_student_and_a_student_of_the_teacher_are_outside_the_space() -> None:
    space = space_of(student="wrn10_1")
    for spec in (StudentSpec(arch="wrn16_1"), StudentSpec(widths={"a": 0.25})):
        with pytest.raises(InputError, match="student: expected one of wrn10_1, got"):
            space.params_of(DistillConfig(student=spec, loss={"beta": 0.0}))


def test_the_architecture_is_part_of_the_key() -> None:
    specs = [StudentSpec(arch="wrn10_1"), StudentSpec(arch="wrn10_2"), StudentSpec()]
    assert len({student_key(DistillConfig(student=spec)) for spec in specs}) == 3


def test_proposals_are_students_that_their_method_trains_within_the_limits() -> None:
    space = space_of(student=["teacher", "wrn10_1"], method=["ama", "separate"])
    proposer = Proposer(space.experiment, space, price, [Limit("flops", "<=", 2600.0, "flops")])
    accepted, refused = [], []
    for number in range(30):
        for proposal in proposer.propose(seed=0):
            (accepted if proposal.refused is None else refused).append(proposal)
        proposer.accepted(number)
        proposer.completed(number, [0.5, 1.0], {})
    pairs = {(p.config.student.name, p.config.method) for p in accepted}
    assert pairs == {("teacher", "ama"), ("wrn10_1", "ama"), ("wrn10_1", "separate")}
    unfit = [p.config for p in refused if p.refused == "unfit"]
    assert all(c.student.arch is None or not c.student.widths for c in unfit) and unfit
