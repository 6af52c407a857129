"""Propose trials: an Optuna sampler over an in-memory study; proposals are priced before they train.

When a search resumes, the sampler's study is rebuilt from the rows of the record. So the sampler need not be
saved: it knows every past proposal and does not repeat one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import RandomSampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from analysis.runs.optuna_adapter import trial_of
from search.experiment.experiment import Experiment
from search.experiment.samplers import SAMPLERS
from search.policy.extrapolation import Curves
from search.policy.limits import Limit
from search.policy.sampler import make_sampler
from search.policy.space import LEVEL, SearchSpace
from trainables.config import METHODS, DistillConfig, StudentSpec
from trainables.costs.table import Costs

# Random proposals refused in a row before random points are repaired.
RANDOM_PATIENCE = 2000
# Random points that are then repaired (moved towards the limits) before the space counts as exhausted.
REPAIRS = 100

Price = Callable[[StudentSpec], Costs]


@dataclass(frozen=True)
class Proposal:
    """A point of the space with its price, and the reason if it is refused."""

    params: Mapping[str, Any]
    distributions: Mapping[str, BaseDistribution]
    config: DistillConfig
    costs: Costs
    violations: Mapping[str, float]  # by the limit's text; > 0 if violated
    refused: str | None


class SpaceExhaustedError(Exception):
    """Raised when no untried proposal within the limits was found."""


class Proposer:
    """Ask the sampler for proposals, price them, and refuse duplicates and violations of limits.

    Args:
        experiment: gives sampler, seed and objectives.
        space: converts parameters to a `DistillConfig`.
        price: returns the costs of a student before it trains.
        limits: constraints in absolute values. A violated limit on costs refuses a proposal. Violations of
            other limits (accuracy, loss) are told to the sampler when a trial is complete.
        past: rows of the record when a search resumes, oldest first.
        first: parameters to propose before the sampler is asked; those already tried are skipped.
    """

    def __init__(
        self,
        experiment: Experiment,
        space: SearchSpace,
        price: Price,
        limits: Sequence[Limit],
        past: Iterable[FrozenTrial] = (),
        first: Iterable[Mapping[str, Any]] = (),
    ) -> None:
        past = list(past)
        self._experiment = experiment
        self._space = space
        self._price = price
        known = experiment.cost_metrics
        self._cost_limits = [limit for limit in limits if limit.metric in known]
        self._trained_limits = [limit for limit in limits if limit.metric not in known]
        # A resumed sampler must not repeat the random numbers of the first session.
        seed = experiment.seed + len(past)
        self._random = RandomSampler(seed=seed + 1)
        self._shuffle = random.Random(seed + 2)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study = optuna.create_study(
            directions=[o.direction for o in experiment.objectives],
            sampler=make_sampler(experiment.sampler.name, seed, experiment.sampler.startup_trials),
        )
        self._kind = SAMPLERS.get(experiment.sampler.name)
        self._startup = experiment.sampler.startup_trials if self._kind.startup else 0
        self._ran = 0
        self._completed = 0
        self._open: dict[int, optuna.Trial] = {}
        self._pending: optuna.Trial | None = None
        self._seen: set[str] = set()
        self._curves = Curves(
            [o.direction for o in experiment.objectives],
            [i for i, o in enumerate(experiment.objectives) if o.metric not in known],
        )
        for row in past:
            self._recall_curve(row)
        for row in past:
            self._remember(row)
        for params in first:
            if self._judge(params, experiment.seed).refused is None:
                self._study.enqueue_trial(dict(params))

    def _recall_curve(self, row: FrozenTrial) -> None:
        curve, costs = row.user_attrs.get("curve", {}), row.user_attrs.get("costs", {})
        for index, epoch in enumerate(curve.get("epoch", ())):
            metrics = {**costs, **{name: column[index] for name, column in curve.items()}}
            self.reported(row.number, epoch, [metrics[o.metric] for o in self._experiment.objectives])
        if row.state == TrialState.COMPLETE:
            self._curves.complete(row.number, row.values)

    def _remember(self, row: FrozenTrial) -> None:
        """Tell the sampler about a row of the record."""
        if "config" not in row.user_attrs:
            return  # not a row written by this package
        if "refused" not in row.user_attrs:
            self._ran += 1
            self._seen.add(self._space.student_key(DistillConfig.model_validate(row.user_attrs["config"])))
        state, values = row.state, row.values
        if state == TrialState.WAITING:
            state = TrialState.RUNNING
        elif state == TrialState.PRUNED and "curve" in row.user_attrs:
            state, values = self._lesson(row.number)
        attrs = {k: v for k, v in row.system_attrs.items() if k.startswith("constraints")}
        if state == TrialState.COMPLETE:
            attrs |= self._kind.recall(self._study.sampler, self._completed)
            self._completed += 1
        copy = create_trial(
            state=state,
            params=row.params,
            distributions=row.distributions,
            values=values,
            system_attrs=attrs,
        )
        self._study.add_trial(copy)
        if state == TrialState.RUNNING:
            stored = self._study.get_trials(deepcopy=False)[-1]
            self._open[row.number] = trial_of(self._study, stored)

    def propose(self, seed: int) -> Iterator[Proposal]:
        """Yield refused proposals as they occur, then one accepted proposal.

        Args:
            seed: training seed of the trial.

        Raises:
            SpaceExhaustedError: the sampler and random proposals only gave duplicates or violated limits.
        """
        for _ in range(self._kind.patience):
            proposal = self._ask(seed)
            yield proposal
            if proposal.refused is None:
                return
        self._study.enqueue_trial(dict(self._draw(seed)))
        proposal = self._ask(seed)
        assert proposal.refused is None, "_draw returns accepted points only"
        yield proposal

    def _ask(self, seed: int) -> Proposal:
        """Ask the sampler for one proposal; tell it at once if the proposal is refused."""
        sampler = self._study.sampler
        try:
            # Refused proposals do not count as startup trials: else the sampler would model the space after
            # one trial.
            if self._ran < self._startup:
                self._study.sampler = self._random
            trial = self._study.ask()
            params = self._space.suggest(trial)
        finally:
            self._study.sampler = sampler
        proposal = self._judge(params, seed)
        for text, violation in proposal.violations.items():
            trial.set_constraint(text, violation)
        if proposal.refused is None:
            self._ran += 1
            self._seen.add(self._space.student_key(proposal.config))
            self._pending = trial
        else:
            self._study.tell(trial, state=TrialState.PRUNED)
        return proposal

    def _draw(self, seed: int) -> Mapping[str, Any]:
        """Return a random point that is new and within the limits; others are not recorded."""
        dummy = create_trial(state=TrialState.RUNNING)
        for attempt in range(RANDOM_PATIENCE + REPAIRS):
            params = {
                name: self._random.sample_independent(self._study, dummy, name, distribution)
                for name, distribution in self._space.distributions.items()
            }
            params = {name: params[name] for name in self._space.active(params)}
            if attempt >= RANDOM_PATIENCE:
                params = self._repaired(params, seed)
            if self._judge(params, seed).refused is None:
                return params
        raise SpaceExhaustedError(
            f"none of {RANDOM_PATIENCE} random proposals was new and within the limits "
            f"({', '.join(limit.text for limit in self._cost_limits) or 'no limits'})"
        )

    def _repaired(self, params: dict[str, Any], seed: int) -> dict[str, Any]:
        """Change levels one by one, in random order, while that lowers the violation of limits.

        It finds points in corners of the space that random sampling misses when limits are tight.
        """
        excess = self._excess(params, seed)
        moves = [
            (name, level)
            for name in params
            if name.startswith(LEVEL)
            for level in range(self._space.keep + 1)
        ]
        improved = True
        while excess > 0 and improved:
            improved = False
            self._shuffle.shuffle(moves)
            for name, level in moves:
                moved = {**params, name: level}
                if (now := self._excess(moved, seed)) < excess:
                    params, excess, improved = moved, now, True
        return params

    def _excess(self, params: Mapping[str, Any], seed: int) -> float:
        return sum(max(0.0, v) for v in self._judge(params, seed).violations.values())

    def _judge(self, params: Mapping[str, Any], seed: int) -> Proposal:
        config = self._space.to_config(params, seed)
        if self._experiment.scores:
            config = config.model_copy(update={"scores": self._experiment.scores})
        costs = self._price(config.student)
        violations = {
            limit.text: limit.violation(costs.as_dict()[limit.metric]) for limit in self._cost_limits
        }
        refused = None
        if any(violation > 0 for violation in violations.values()):
            refused = "infeasible"
        elif METHODS.get(config.method).unfit(config) is not None:
            refused = "unfit"  # the method cannot train this student
        elif (config.student.arch is None and not config.student.widths) or self._space.student_key(
            config
        ) in self._seen:
            refused = "duplicate"  # a student without replaced blocks is the teacher
        distributions = {name: self._space.distributions[name] for name in params}
        return Proposal(params, distributions, config, costs, violations, refused)

    def accepted(self, number: int) -> None:
        """Note that the last proposal became row `number` of the record."""
        assert self._pending is not None, "propose() must be called first"
        self._open[number] = self._pending
        self._pending = None

    def violations(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Return the violations of the limits that need training, by the limit's text."""
        return {limit.text: limit.violation(metrics[limit.metric]) for limit in self._trained_limits}

    def reported(self, number: int, epoch: int, values: Sequence[float]) -> None:
        """Record the objective values of row `number` after `epoch` epochs."""
        self._curves.report(number, epoch, values)

    def completed(self, number: int, values: Sequence[float], violations: Mapping[str, float]) -> None:
        """Tell the sampler the final objective values of row `number`.

        Args:
            number: of the record's row.
            values: of the objectives, in their order.
            violations: what `violations` said about the trial's last metrics.
        """
        self._curves.complete(number, values)
        trial = self._open.pop(number)
        for text, violation in violations.items():
            trial.set_constraint(text, violation)
        self._study.tell(trial, list(values))

    def stopped(self, number: int, violations: Mapping[str, float]) -> None:
        """Tell the sampler the expected final values of row `number`, which was stopped early.

        Args:
            number: of the record's row.
            violations: what `violations` said about the trial's last metrics.
        """
        state, values = self._lesson(number)
        trial = self._open.pop(number)
        for text, violation in violations.items():
            trial.set_constraint(text, violation)
        self._study.tell(trial, values, state=state)

    def _lesson(self, number: int) -> tuple[TrialState, list[float] | None]:
        """Return state and values to tell the sampler for an early-stopped trial (its row stays PRUNED)."""
        if not self._kind.hears_of_stopped:
            return TrialState.PRUNED, None
        values = self._curves.expected(number)
        return (TrialState.PRUNED, None) if values is None else (TrialState.COMPLETE, values)

    def ended(self, number: int, state: TrialState) -> None:
        """Note that row `number` ended without objective values (PRUNED or FAIL)."""
        self._study.tell(self._open.pop(number), state=state)
