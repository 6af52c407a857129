"""The search policies that are compared: ours, and those of other libraries, run with their code.

Every policy is called as Ray Tune (or Syne Tune) calls it. Trials of the others start cold, because only this
package has a module library; `stock_library` shows the effect of a library on a stock policy.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler
from optuna.trial import TrialState
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler
from ray.tune.search.optuna import OptunaSearch
from ray.tune.utils import flatten_dict

from benchmarks.plans import STARTS, Params
from benchmarks.simulator import Contender, Metrics
from benchmarks.table import Table, recorded_space
from search.experiment.experiment import Experiment
from search.experiment.objectives import COSTS
from search.policy.first_trials import first_proposals
from search.policy.moasha import Decision, MoAsha
from search.policy.proposer import Proposer, SpaceExhaustedError
from search.policy.space import SearchSpace
from trainables.library.library import Library

MODES = {"maximize": "max", "minimize": "min"}


@dataclass(frozen=True)
class Policy:
    """Settings of our policy; the defaults are the presets'.

    Attributes:
        start: what trials start from.
        first: number of students proposed first, ranked by the proxy.
        grace: epochs before the first rung.
        eta: reduction factor; None: no early stopping.
        startup: random trials before the sampler models the space.
        sampler: as in the experiment file.
        stopped: result of a stopped trial for the sampler: `lesson` (extrapolated values, as in the search:
            `search.policy.extrapolation`), `pruned` (for TPE, worse than every complete trial), `values`
            (complete with its last values, as in Ray) or `nothing`.
    """

    start: str = "library"
    first: int = 12
    grace: int = 1
    eta: float | None = 3.0
    startup: int = 10
    sampler: str = "tpe"
    stopped: Literal["lesson", "pruned", "values", "nothing"] = "lesson"


class Ours(Contender):
    """Our proposer, cost table and rungs, combined as in `search.tune.searcher`."""

    def __init__(self, table: Table, seed: int, recorded: int, policy: Policy = Policy()) -> None:
        self.start, self._policy = policy.start, policy
        experiment = _experiment(table, seed, policy)
        space = recorded_space(experiment, table.costs.structure)
        self._seed = seed
        self._objectives = experiment.objectives
        self._signs = [-1.0 if o.direction == "maximize" else 1.0 for o in self._objectives]
        first = _first(table, experiment, space, recorded) if policy.first else []
        self._proposer = Proposer(experiment, space, table.price, [], first=first)
        exact = [index for index, o in enumerate(self._objectives) if o.metric in COSTS]
        self._rule = policy.eta and MoAsha(
            experiment.budget.epochs, policy.grace, policy.eta, len(self._objectives), exact
        )

    def suggest(self, number: int) -> Params | None:
        try:
            *_, last = self._proposer.propose(self._seed)
        except SpaceExhaustedError:
            return None
        self._proposer.accepted(number)
        return dict(last.params)

    def report(self, number: int, metrics: Metrics) -> bool:
        told = [metrics[o.metric] for o in self._objectives]
        self._proposer.reported(number, int(metrics["epoch"]), told)
        values = [sign * value for sign, value in zip(self._signs, told, strict=True)]
        rule = self._rule
        return not rule or rule.on_result(number, int(metrics["epoch"]), values) is Decision.CONTINUE

    def ended(self, number: int, metrics: Metrics, full: bool) -> None:
        if full or self._policy.stopped == "values":
            self._proposer.completed(number, [metrics[o.metric] for o in self._objectives], {})
        elif self._policy.stopped == "lesson":
            self._proposer.stopped(number, {})
        else:
            pruned = self._policy.stopped == "pruned"
            self._proposer.ended(number, TrialState.PRUNED if pruned else TrialState.FAIL)


def _experiment(table: Table, seed: int, policy: Policy) -> Experiment:
    given = table.meta["experiment"]
    # The number of trials is used for `first` alone.
    budget = {"trials": max(1, policy.first), "first_share": 1.0, "grace_epochs": policy.grace}
    changed = {
        "seed": seed,
        "warm_start": policy.start,
        "budget": {**given["budget"], **budget},
        "sampler": {"name": policy.sampler, "startup_trials": policy.startup},
        "run": {"dir": "runs/table"},
    }
    return Experiment.model_validate(given | changed)


def _first(table: Table, experiment: Experiment, space: SearchSpace, recorded: int) -> list[Params]:
    """Return the trials that `search.run.search` enqueues first, from the library of the recorded seed."""
    record = table.libraries[recorded]
    library = Library("recorded", {}, {}, record.solo_loss, record.seconds)
    return first_proposals(space, table.costs.structure, table.costs, library)


class RayOptuna(Contender):
    """Ray Tune's `OptunaSearch`, alone or with Ray's ASHA on accuracy.

    A trial that ASHA stops is reported to Optuna as Ray does it: complete, with its last values.

    Args:
        sampler: None: the default of `OptunaSearch`, TPE.
        eta: reduction factor of ASHA; None: no early stopping.
    """

    def __init__(
        self,
        table: Table,
        seed: int,
        sampler: BaseSampler | None = None,
        eta: float | None = None,
        grace: int = 1,
        start: str = STARTS[0],
    ) -> None:
        self.start = start
        objectives = table.experiment.objectives
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        logging.getLogger("ray.tune.search.optuna").setLevel(logging.ERROR)
        self._search = OptunaSearch(
            dict(table.space.distributions),
            metric=[o.metric for o in objectives],
            mode=[MODES[o.direction] for o in objectives],
            sampler=sampler,
            seed=None if sampler else seed,
        )
        self._asha = eta and AsyncHyperBandScheduler(
            time_attr="epoch",
            metric="val_accuracy",
            mode="max",
            max_t=table.epochs,
            grace_period=grace,
            reduction_factor=eta,
        )

    def suggest(self, number: int) -> Params | None:
        params = self._search.suggest(str(number))
        assert params is not None
        if self._asha:
            self._asha.on_trial_add(None, _trial(number))
        return dict(flatten_dict(params))

    def report(self, number: int, metrics: Metrics) -> bool:
        self._search.on_trial_result(str(number), metrics)
        if not self._asha:
            return True
        decision = self._asha.on_trial_result(None, _trial(number), metrics)
        return bool(decision == TrialScheduler.CONTINUE)

    def ended(self, number: int, metrics: Metrics, full: bool) -> None:
        self._search.on_trial_complete(str(number), metrics)


def _trial(number: int) -> Any:
    """Make a trial object with the attributes that Ray's ASHA reads."""
    return SimpleNamespace(trial_id=str(number))


class SyneMoasha(Contender):
    """Syne Tune's MOASHA: random proposals, rungs on all objectives."""

    def __init__(self, table: Table, seed: int, eta: float = 3.0, grace: int = 1) -> None:
        from syne_tune.config_space import choice, loguniform, randint, uniform  # type: ignore[import-untyped,import-not-found,unused-ignore]
        from syne_tune.optimizer.schedulers.multiobjective.moasha import (  # type: ignore[import-untyped,import-not-found,unused-ignore]
            MOASHA,
        )

        np.random.seed(seed)  # MOASHA samples from the global generator
        self._signs: dict[str, int] = {
            o.metric: -1 if o.direction == "maximize" else 1 for o in table.experiment.objectives
        }
        space = {
            name: choice(list(d.choices))
            if isinstance(d, CategoricalDistribution)
            else randint(d.low, d.high)
            if isinstance(d, IntDistribution)
            else (loguniform if d.log else uniform)(d.low, d.high)
            for name, d in table.space.distributions.items()
            if isinstance(d, CategoricalDistribution | IntDistribution | FloatDistribution)
        }
        self._scheduler = MOASHA(
            space,
            metrics=list(self._signs),
            time_attr="epoch",
            max_t=table.epochs,
            grace_period=grace,
            reduction_factor=eta,
            random_seed=seed,
        )

    def suggest(self, number: int) -> Params | None:
        suggestion = self._scheduler.suggest()
        assert suggestion is not None
        self._scheduler.on_trial_add(_syne_trial(number))
        return {
            name: value.item() if hasattr(value, "item") else value
            for name, value in suggestion.config.items()
        }

    def report(self, number: int, metrics: Metrics) -> bool:
        decision = self._scheduler.on_trial_result(_syne_trial(number), self._minimised(metrics))
        return bool(decision == "CONTINUE")

    def ended(self, number: int, metrics: Metrics, full: bool) -> None:
        self._scheduler.on_trial_complete(_syne_trial(number), self._minimised(metrics))

    def _minimised(self, metrics: Metrics) -> Metrics:
        return {name: self._signs.get(name, 1) * value for name, value in metrics.items()}


def _syne_trial(number: int) -> Any:
    return SimpleNamespace(trial_id=number)


Make = Callable[[Table, int, int], Contender]  # table, seed of the search, recorded seed


def contenders(policy: Policy, asha: tuple[int, float]) -> Mapping[str, Make]:
    """Return the contenders by name: ours, then the others.

    Args:
        policy: settings of ours.
        asha: grace period and reduction factor of the others that stop early.
    """
    grace, eta = asha
    found: dict[str, Make] = {"ours": lambda t, s, r: Ours(t, s, r, policy)}
    found |= {
        "stock": lambda t, s, r: RayOptuna(t, s),
        "stock_asha": lambda t, s, r: RayOptuna(t, s, eta=eta, grace=grace),
        "nsga2": lambda t, s, r: RayOptuna(t, s, NSGAIISampler(seed=s)),
        "random": lambda t, s, r: RayOptuna(t, s, RandomSampler(seed=s)),
        "random_asha": lambda t, s, r: RayOptuna(t, s, RandomSampler(seed=s), eta, grace),
        "syne_moasha": lambda t, s, r: SyneMoasha(t, s, eta, grace),
    }
    return found


def ablations(policy: Policy) -> Mapping[str, Make]:
    """Return the ablations: ours with one part removed, and stock with the library."""
    cold = replace(policy, start="teacher", first=0)
    return {
        "ours_no_first": lambda t, s, r: Ours(t, s, r, replace(policy, first=0)),
        "ours_no_stopping": lambda t, s, r: Ours(t, s, r, replace(policy, eta=None)),
        "ours_cold": lambda t, s, r: Ours(t, s, r, cold),
        "ours_random": lambda t, s, r: Ours(t, s, r, replace(policy, sampler="random")),
        "ours_stopped_pruned": lambda t, s, r: Ours(t, s, r, replace(policy, stopped="pruned")),
        "ours_stopped_values": lambda t, s, r: Ours(t, s, r, replace(policy, stopped="values")),
        "ours_stopped_nothing": lambda t, s, r: Ours(t, s, r, replace(policy, stopped="nothing")),
        "stock_library": lambda t, s, r: RayOptuna(t, s, start="library"),
    }
