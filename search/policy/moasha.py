"""Multi-objective asynchronous successive halving: the rung rule alone, without Ray.

Source: Schmucker, Donini, Zafar, Salinas, Archambeau 2021, *Multi-objective Asynchronous Successive
Halving*, arXiv 2106.12639. Asynchronous halving: Li et al. 2020, arXiv 1810.05934.

The rule. A newcomer reaches a rung that then holds `n` trials, itself included; `keep = floor(n / eta)`.

1. `n < eta`: it goes on. There is nothing yet to halve.
2. No trial of the rung dominates it (it is on the rung's front): it goes on, however long the front is.
3. Otherwise the rung is put in order and the newcomer goes on if fewer than `keep` trials stand before it.
   The order is the non-dominated rank first; within a rank, farthest first from everything already ahead
   (the paper's epsilon-net, begun from the better fronts), so that what survives covers the cost axis.

Why this satisfies all that is asked of it: a trial stands behind every trial that dominates it, because
those have a better rank. So `keep` or more dominators always mean a stop, a front trial never has one, and
step 2 extends the front's place to fronts longer than `keep`. Every comparison is one of dense ranks
within the rung, so positive affine (indeed any strictly increasing) changes of an objective change nothing;
names are never looked at, and trials of equal values share one place, the first of them.

Costs are exact from the first epoch. A trial is dominated only by trials that cost no more, so a cheap one
never loses to a dear one; and the spread, measured along the costs, gives a place to the best of every
region of the cost axis that the better fronts left empty, so the dear ones are not crowded out by the many
cheap ones that learn fast.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Any

import moocore
import numpy as np
import numpy.typing as npt

from trainables.errors import InputError

Record = tuple[int, tuple[float, ...]]  # epoch, objective values
Ranks = npt.NDArray[np.int64]

FORMAT = 1


class Decision(Enum):
    """What a trial does after a result."""

    CONTINUE = "continue"
    STOP = "stop"


class MoAsha:
    """Rungs at `grace, grace * eta, grace * eta^2, ...` below `max_epochs`, and who passes them.

    Args:
        max_epochs: epochs of a full trial; the last epoch is no rung, so a trial that got there is complete.
        grace_epochs: the first rung.
        reduction_factor: eta, greater than 1; about one trial in eta passes a rung.
        n_objectives: how many values a trial reports; all are minimised.
        costs: indices of the objectives that are exact from the start; the spread is measured along
            them. None or empty: along all objectives.

    Raises:
        InputError: a number outside its range.
    """

    def __init__(
        self,
        max_epochs: int,
        grace_epochs: int,
        reduction_factor: float,
        n_objectives: int,
        costs: Sequence[int] | None = None,
    ) -> None:
        for name, value, least in (
            ("epochs", max_epochs, 1),
            ("grace_epochs", grace_epochs, 1),
            ("objectives", n_objectives, 1),
        ):
            if value < least:
                raise InputError(f"early stopping: {name} must be at least {least}, but got {value}")
        if not reduction_factor > 1:
            raise InputError(
                f"early stopping: reduction_factor must be greater than 1, but got {reduction_factor}"
            )
        if not all(0 <= index < n_objectives for index in costs or ()):
            raise InputError(f"early stopping: costs {costs} must index one of {n_objectives} objectives")
        self.max_epochs = max_epochs
        self.grace_epochs = grace_epochs
        self.reduction_factor = reduction_factor
        self.n_objectives = n_objectives
        self.costs = tuple(costs) if costs else None
        self.rungs: dict[int, dict[int, Record]] = {
            epoch: {} for epoch in _rung_epochs(max_epochs, grace_epochs, reduction_factor)
        }

    def on_result(self, trial_id: int, epoch: int, values: Sequence[float]) -> Decision:
        """Record a result where it counts and say whether the trial goes on.

        A result counts at the highest rung at or below its epoch (so a trial that skipped a rung's epoch is
        still judged there, but epoch 10 never stands among the values of epoch 1), once a trial: a later
        epoch between two rungs is neither recorded nor judged. The recorded epoch reported again, after a
        resume, is judged again, against the rung as it then is.

        Args:
            trial_id: the study's number of the trial.
            epoch: epochs done, from 1.
            values: the objectives, all minimised. A NaN or infinite value is worse than anything: the trial
                is stopped at whichever epoch, and the values are not recorded.

        Returns:
            STOP or CONTINUE; at `max_epochs` and beyond a finite result always continues: it is complete.
        """
        if not all(math.isfinite(value) for value in values):
            return Decision.STOP
        rung = self.record(trial_id, epoch, values)
        if rung is None or self.rungs[rung][trial_id][0] != epoch:
            return Decision.CONTINUE
        records = self.rungs[rung]
        table = np.array([recorded for _, recorded in records.values()], dtype=np.float64)
        newcomer = np.array(records[trial_id][1], dtype=np.float64)
        return Decision.CONTINUE if self._passes(newcomer, table) else Decision.STOP

    def record(self, trial_id: int, epoch: int, values: Sequence[float]) -> int | None:
        """Record a result without judging it.

        A trial's record at a rung is the least (epoch, values) it reported between that rung and the next:
        a function of what was reported, not of the order in which it arrived.

        Returns:
            The rung (its epoch) at which the result counts, or None below the first rung, from
            `max_epochs` on, and for values that are not finite.
        """
        assert len(values) == self.n_objectives, f"expected {self.n_objectives} objectives, got {values}"
        if epoch >= self.max_epochs or not all(math.isfinite(value) for value in values):
            return None
        rung = max((at for at in self.rungs if at <= epoch), default=None)
        if rung is None:
            return None
        new = (epoch, tuple(float(value) for value in values))
        records = self.rungs[rung]
        records[trial_id] = min(records.get(trial_id, new), new)
        return rung

    def replay(self, histories: Iterable[tuple[int, int, Sequence[float]]]) -> None:
        """Rebuild the rungs from (trial_id, epoch, values) in any order, for instance from the study."""
        for trial_id, epoch, values in histories:
            self.record(trial_id, epoch, values)

    def state(self) -> dict[str, Any]:
        """Parameters and rungs as JSON can hold them; equal rungs give equal states."""
        return {
            "format": FORMAT,
            "max_epochs": self.max_epochs,
            "grace_epochs": self.grace_epochs,
            "reduction_factor": self.reduction_factor,
            "n_objectives": self.n_objectives,
            "costs": list(self.costs) if self.costs else None,
            "rungs": [{"epoch": at, "records": _rows(records)} for at, records in self.rungs.items()],
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> MoAsha:
        """The rule that `state()` described.

        Raises:
            InputError: a state of another format.
        """
        if state.get("format") != FORMAT:
            raise InputError(
                f"early stopping: expected rungs of format {FORMAT}, got {state.get('format')!r}"
            )
        rule = cls(
            state["max_epochs"],
            state["grace_epochs"],
            state["reduction_factor"],
            state["n_objectives"],
            state["costs"],
        )
        for rung in state["rungs"]:
            rule.replay((trial_id, epoch, values) for trial_id, epoch, values in rung["records"])
        return rule

    def _passes(self, newcomer: npt.NDArray[np.float64], table: npt.NDArray[np.float64]) -> bool:
        """Whether the newcomer (M,) goes on from a rung with values (n, M), its own row among them."""
        keep = math.floor(len(table) / self.reduction_factor)
        if keep < 1:
            return True
        dominators = (table <= newcomer).all(1) & (table < newcomer).any(1)
        n_dominators = int(dominators.sum())
        if n_dominators == 0 or n_dominators >= keep:
            return n_dominators == 0
        points, own, counts = _dense_ranks(table, newcomer)
        return _n_ahead(points, own, counts, keep, self.costs) < keep


def _rows(records: dict[int, Record]) -> list[list[Any]]:
    return [[trial_id, epoch, list(values)] for trial_id, (epoch, values) in sorted(records.items())]


def _rung_epochs(max_epochs: int, grace_epochs: int, reduction_factor: float) -> list[int]:
    epochs: list[int] = []
    level = float(grace_epochs)
    while round(level) < max_epochs:
        # A factor close to 1 may round two levels to the same epoch.
        if not epochs or round(level) > epochs[-1]:
            epochs.append(round(level))
        level *= reduction_factor
    return epochs


def _dense_ranks(
    table: npt.NDArray[np.float64], newcomer: npt.NDArray[np.float64]
) -> tuple[Ranks, int, Ranks]:
    """Distinct points of the rung as dense ranks per objective.

    Returns:
        Points (k, M) in lexicographic order, the newcomer's index among them, and how many trials (k,)
        stand at each.
    """
    ranks = np.stack([np.unique(column, return_inverse=True)[1] for column in table.T], axis=1)
    own = int((table == newcomer).all(1).argmax())
    points, inverse, counts = np.unique(ranks, axis=0, return_inverse=True, return_counts=True)
    return points, int(inverse.reshape(-1)[own]), counts


def _n_ahead(points: Ranks, own: int, counts: Ranks, keep: int, costs: Sequence[int] | None) -> int:
    """Trials that stand before point `own` in the rung's order; counting ends at `keep`.

    Ties of the spread go to the point that fewer trials dominate, then to the lexicographically first.
    """
    fronts = moocore.pareto_rank(points.astype(np.float64))
    ahead = int(counts[fronts < fronts[own]].sum())
    peers = np.flatnonzero(fronts == fronts[own])
    if ahead >= keep or ahead + int(counts[peers].sum()) <= keep:
        return ahead
    scaled = points / np.maximum(points.max(0), 1)  # each objective in 0..1
    if costs is not None:
        scaled = scaled[:, list(costs)]
    dominated_by = np.array([counts[(points <= points[peer]).all(1)].sum() for peer in peers]) - counts[peers]
    distance = np.full(len(peers), np.inf)
    for better in scaled[fronts < fronts[own]]:
        distance = np.minimum(distance, ((scaled[peers] - better) ** 2).sum(1))
    while ahead < keep:
        # lexsort: the last key counts most; peers are in lexicographic order of their ranks already.
        chosen = int(np.lexsort((dominated_by, -distance))[0])
        if peers[chosen] == own:
            break
        ahead += int(counts[peers[chosen]])
        distance = np.minimum(distance, ((scaled[peers] - scaled[peers[chosen]]) ** 2).sum(1))
        distance[chosen] = -1.0  # taken
    return ahead
