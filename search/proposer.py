"""What to try next: an Optuna sampler over an in-memory study, behind prices known before training.

The sampler's study is rebuilt from the record's rows when a search resumes, so nothing of the sampler has to
be saved: it knows every past proposal and does not repeat one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from search.experiment import Experiment
from search.goals import COSTS
from search.space import SearchSpace
from trainables.config import DistillConfig, StudentSpec
from trainables.cost import Costs
from trainables.errors import InputError

# Proposals refused in a row before a random one is taken instead: a sampler that has converged on a place it
# knows would propose it for ever.
PATIENCE = 50
# Random proposals refused in a row before the search says that there is nothing left to try.
RANDOM_PATIENCE = 2000

Price = Callable[[StudentSpec], Costs]


@dataclass(frozen=True)
class Limit:
    """A constraint in absolute figures: `metric op limit`, with op `<=` or `>=`."""

    metric: str
    op: str
    limit: float
    text: str

    def violation(self, value: float) -> float:
        """How far `value` is beyond the limit, relative to the limit; <= 0 within it."""
        beyond = value - self.limit if self.op == "<=" else self.limit - value
        return beyond / (abs(self.limit) or 1.0)


@dataclass(frozen=True)
class Proposal:
    """A point of the space with its price, and why it is not worth training, if so."""

    params: Mapping[str, Any]
    distributions: Mapping[str, BaseDistribution]
    config: DistillConfig
    costs: Costs
    violations: tuple[float, ...]
    refused: str | None


class SpaceExhaustedError(Exception):
    """No proposal was left that is within the limits and not tried yet."""


def make_sampler(name: str, seed: int, startup_trials: int) -> BaseSampler:
    """An Optuna sampler by its name in the experiment file: tpe, nsga2, gp or random."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if name == "tpe":
            # On a conditional two-objective toy (100 trials, 10 seeds) multivariate with groups reached the
            # largest hypervolume; multivariate alone collapsed on one seed.
            return TPESampler(multivariate=True, group=True, n_startup_trials=startup_trials, seed=seed)
        if name == "nsga2":
            return NSGAIISampler(population_size=max(8, startup_trials), seed=seed)
        if name == "gp":
            return GPSampler(n_startup_trials=startup_trials, seed=seed)
        if name == "random":
            return RandomSampler(seed=seed)
    raise InputError(f"sampler: expected tpe, nsga2, gp or random, got {name!r}")


class Proposer:
    """Asks the sampler, prices what it proposes and refuses what is not worth a trial.

    Args:
        experiment: sampler, seed, objectives.
        space: params to `DistillConfig`.
        price: costs of any student, before it trains.
        limits: constraints in absolute figures; those on costs refuse proposals, those on what only training
            shows (accuracy, loss) are told to the sampler when a trial is complete.
        past: rows of the record when a search resumes, oldest first.
    """

    def __init__(
        self,
        experiment: Experiment,
        space: SearchSpace,
        price: Price,
        limits: Sequence[Limit],
        past: Iterable[FrozenTrial] = (),
    ) -> None:
        past = list(past)
        self._experiment = experiment
        self._space = space
        self._price = price
        self._cost_limits = [limit for limit in limits if limit.metric in COSTS]
        self._trained_limits = [limit for limit in limits if limit.metric not in COSTS]
        # A resumed sampler must not draw the random numbers of the first session again.
        seed = experiment.seed + len(past)
        self._random = RandomSampler(seed=seed + 1)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study = optuna.create_study(
            directions=[o.direction for o in experiment.objectives],
            sampler=make_sampler(experiment.sampler.name, seed, experiment.sampler.startup_trials),
        )
        self._open: dict[int, optuna.Trial] = {}
        self._pending: optuna.Trial | None = None
        self._seen: set[str] = set()
        for row in past:
            self._remember(row)

    def _remember(self, row: FrozenTrial) -> None:
        if "config" in row.user_attrs and row.user_attrs.get("refused") is None:
            self._seen.add(self._space.student_key(DistillConfig.model_validate(row.user_attrs["config"])))
        state = TrialState.RUNNING if row.state == TrialState.WAITING else row.state
        copy = create_trial(
            state=state,
            params=row.params,
            distributions=row.distributions,
            values=row.values if state == TrialState.COMPLETE else None,
            system_attrs={k: v for k, v in row.system_attrs.items() if k.startswith("constraints")},
        )
        self._study.add_trial(copy)
        if state == TrialState.RUNNING:
            stored = self._study.get_trials(deepcopy=False)[-1]
            self._open[row.number] = optuna.Trial(self._study, stored._trial_id)

    def propose(self, seed: int) -> Iterable[Proposal]:
        """Refused proposals as they come, and last one to train.

        Args:
            seed: of the trial's training.

        Raises:
            SpaceExhaustedError: after `RANDOM_PATIENCE` refusals of random proposals in a row.
        """
        sampler = self._study.sampler
        for attempt in range(PATIENCE + RANDOM_PATIENCE):
            # Random proposals fill in once the sampler only repeats itself.
            self._study.sampler = sampler if attempt < PATIENCE else self._random
            try:
                trial = self._study.ask()
                params = self._space.suggest(trial)
            finally:
                self._study.sampler = sampler
            proposal = self._judge(params, trial.distributions, seed)
            if proposal.refused is None:
                self._seen.add(self._space.student_key(proposal.config))
                self._pending = trial
                yield proposal
                return
            for limit, violation in zip(self._cost_limits, proposal.violations, strict=True):
                trial.set_constraint(limit.text, violation)
            self._study.tell(trial, state=TrialState.PRUNED)
            # A row for every random miss would swell the record and teach the sampler nothing new.
            if attempt < PATIENCE:
                yield proposal
        raise SpaceExhaustedError(
            f"none of {RANDOM_PATIENCE} random proposals was new and within the limits "
            f"({', '.join(limit.text for limit in self._cost_limits) or 'no limits'})"
        )

    def _judge(
        self, params: Mapping[str, Any], distributions: Mapping[str, BaseDistribution], seed: int
    ) -> Proposal:
        config = self._space.to_config(params, seed)
        costs = self._price(config.student)
        violations = tuple(limit.violation(costs.as_dict()[limit.metric]) for limit in self._cost_limits)
        refused = None
        if any(v > 0 for v in violations):
            refused = "infeasible"
        elif not config.student.widths or self._space.student_key(config) in self._seen:
            refused = "duplicate"  # the student without a replaced block is the teacher itself
        return Proposal(params, distributions, config, costs, violations, refused)

    def accepted(self, number: int) -> None:
        """The last proposal became row `number` of the record."""
        assert self._pending is not None, "propose() comes first"
        self._open[number] = self._pending
        self._pending = None

    def completed(self, number: int, values: Sequence[float], metrics: Mapping[str, float]) -> None:
        """Row `number` was trained to the end: the sampler learns its objective values.

        Args:
            number: of the record's row.
            values: of the objectives, in their order.
            metrics: whatever the trial reported last, for the limits on trained metrics.
        """
        trial = self._open.pop(number)
        for limit in self._trained_limits:
            trial.set_constraint(limit.text, limit.violation(metrics[limit.metric]))
        self._study.tell(trial, list(values))

    def ended(self, number: int, state: TrialState) -> None:
        """Row `number` ended without objective values (PRUNED or FAIL)."""
        self._study.tell(self._open.pop(number), state=state)
