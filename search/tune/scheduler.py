"""Apply the rung rule in Ray Tune: decide CONTINUE or STOP for every result."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterable, Mapping
from numbers import Real
from typing import Any

from optuna.trial import FrozenTrial
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from search.experiment.objectives import COSTS
from search.policy.moasha import Decision, MoAsha
from search.tune.verdicts import Verdicts

logger = logging.getLogger(__name__)


class RungScheduler(FIFOScheduler):  # type: ignore[misc]
    """Start trials in the suggested order, and stop those that do not pass a rung.

    The trial of a result is its number in the study (`result["number"]`, else that of the trial config). Its
    epoch is `result["epoch"]`, which is also correct for a resumed trial, else Ray's `training_iteration`. A
    metric is read from the result, else from `verdicts.costs`. If a result lacks the number or a metric, this
    is logged once per name, and the trial continues.

    Args:
        directions: metric to "minimize" or "maximize", in the objectives' order.
        max_epochs: epochs of a full trial.
        grace_epochs: epoch of the first rung.
        reduction_factor: eta; about one trial in eta passes a rung.
        verdicts: gives the costs of trials whose results do not contain them; receives the stopped trials.
        known: metrics that are known before a trial trains (costs).

    Attributes:
        rule: the rungs.

    Raises:
        InputError: a number is out of range.
    """

    _supports_buffered_results = False  # stop a trial before it trains the next epoch

    def __init__(
        self,
        directions: Mapping[str, str],
        *,
        max_epochs: int,
        grace_epochs: int,
        reduction_factor: float,
        verdicts: Verdicts,
        known: Collection[str] = COSTS,
    ) -> None:
        super().__init__()
        self._signs = {metric: -1.0 if way == "maximize" else 1.0 for metric, way in directions.items()}
        exact = [index for index, metric in enumerate(directions) if metric in known]
        self.rule = MoAsha(max_epochs, grace_epochs, reduction_factor, len(directions), exact)
        self._verdicts = verdicts
        self._missed: set[str] = set()

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Return CONTINUE or STOP for a result."""
        number = result.get("number", trial.config.get("number"))
        if number is None:
            self._miss("number")
            return str(TrialScheduler.CONTINUE)
        values = self._values({**self._verdicts.costs.get(number, {}), **result})
        if values is None:
            return str(TrialScheduler.CONTINUE)
        epoch = int(result["epoch"] if "epoch" in result else result["training_iteration"])
        if self.rule.on_result(number, epoch, values) is Decision.CONTINUE:
            return str(TrialScheduler.CONTINUE)
        finite = all(map(math.isfinite, values))
        (self._verdicts.stopped if finite else self._verdicts.diverged).add(number)
        return str(TrialScheduler.STOP)

    def replay(self, rows: Iterable[FrozenTrial]) -> None:
        """Rebuild the rungs from the study's rows after a restart of the driver.

        Args:
            rows: rows of any state; those without a curve or without costs are skipped.
        """
        for row in rows:
            curve = row.user_attrs.get("curve", {})
            for index, epoch in enumerate(curve.get("epoch", [])):
                metrics = {name: column[index] for name, column in curve.items()}
                values = self._values({**row.user_attrs.get("costs", {}), **metrics})
                if values is not None:
                    self.rule.record(row.number, int(epoch), values)

    def debug_string(self) -> str:
        """Describe the rungs and their numbers of trials, for Ray's log."""
        rungs = ", ".join(f"epoch {epoch}: {len(seen)} trials" for epoch, seen in self.rule.rungs.items())
        return f"RungScheduler ({len(self._verdicts.stopped)} stopped): {rungs or 'no rungs'}"

    def _values(self, metrics: Mapping[str, Any]) -> tuple[float, ...] | None:
        """Return the objective values, all minimised; None if one is missing."""
        missing = [name for name in self._signs if not isinstance(metrics.get(name), Real)]
        for name in missing:
            self._miss(name)
        return None if missing else tuple(sign * metrics[name] for name, sign in self._signs.items())

    def _miss(self, name: str) -> None:
        if name not in self._missed:
            logger.warning("early stopping: a result has no number %r; its trial continues", name)
        self._missed.add(name)
