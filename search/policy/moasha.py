"""Multi-objective asynchronous successive halving: the rung rule, independent of Ray.

Source: Schmucker, Donini, Zafar, Salinas, Archambeau 2021, *Multi-objective Asynchronous Successive
Halving*, arXiv 2106.12639. Asynchronous halving: Li et al. 2020, arXiv 1810.05934.

The rule. A trial (the newcomer) reaches a rung that then holds `n` trials, including it;
`keep = floor(n / eta)`.

1. `n < eta`: it continues. The rung is still too small to halve.
2. No trial of the rung dominates it (it is on the rung's front): it continues, however long the front is.
3. Otherwise the rung is sorted, and the newcomer continues if fewer than `keep` trials are ahead of it. The
   rung is sorted by non-dominated rank. Within a rank, the trial farthest from all trials already ahead comes
   first (the paper's epsilon-net, started from the better fronts), so that survivors cover the cost axis.

Properties. A trial is behind every trial that dominates it, because dominators have a better rank. So a trial
with `keep` or more dominators is always stopped. A trial on the front does not have dominators, and step 2
also covers fronts longer than `keep`. Only dense ranks within the rung are compared, so a strictly increasing
transformation of an objective changes nothing. Names do not matter. Trials of equal values share the place of
the first of them.

Costs are exact from the first epoch. A trial is dominated only by trials that cost no more, so a cheap trial
is never stopped because an expensive one is more accurate. The spread is measured along the costs: the best
trial of every region of the cost axis that better fronts left empty gets a place: many cheap trials that
learn fast do not crowd out the expensive ones.
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
    """Decision about a trial after a result."""

    CONTINUE = "continue"
    STOP = "stop"


class MoAsha:
    """Decide which trials pass the rungs at `grace, grace * eta, grace * eta^2, ...` below `max_epochs`.

    Args:
        max_epochs: epochs of a full trial. The last epoch is not a rung: a trial that reaches it is complete.
        grace_epochs: epoch of the first rung.
        reduction_factor: eta, greater than 1; about one trial in eta passes a rung.
        n_objectives: number of values that a trial reports; all are minimised.
        costs: indices of the objectives that are exact from the start; the spread is measured along
            them. None or empty: along all objectives.

    Raises:
        InputError: a number is out of range.
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
        """Record a result at its rung and decide whether the trial continues.

        A result counts at the highest rung at or below its epoch. So a trial that skipped a rung's epoch is
        still judged at this rung, but a value of epoch 10 is never compared with values of epoch 1. A trial
        is judged once per rung: a later epoch between two rungs is neither recorded nor judged. If the
        recorded epoch is reported again, after a resume, it is judged again against the current rung.

        Args:
            trial_id: number of the trial in the study.
            epoch: epochs done, from 1.
            values: the objectives, all minimised. With a NaN or infinite value the trial is stopped at any
                epoch, and the values are not recorded.

        Returns:
            STOP or CONTINUE; from `max_epochs` on, always CONTINUE for finite values: the trial is complete.
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

        A trial's record at a rung is the smallest (epoch, values) it reported between this rung and the next.
        So it does not depend on the order in which results arrive.

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
        """Rebuild the rungs from (trial_id, epoch, values) in any order, e.g. from the study."""
        for trial_id, epoch, values in histories:
            self.record(trial_id, epoch, values)

    def state(self) -> dict[str, Any]:
        """Return parameters and rungs in a JSON-compatible form; equal rungs give equal states."""
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
        """Restore the rule from `state()`.

        Raises:
            InputError: the state has another format.
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
        """Return True if the newcomer (M,) passes a rung with values (n, M), including its own row."""
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
        # With a factor close to 1, two levels may round to the same epoch.
        if not epochs or round(level) > epochs[-1]:
            epochs.append(round(level))
        level *= reduction_factor
    return epochs


def _dense_ranks(
    table: npt.NDArray[np.float64], newcomer: npt.NDArray[np.float64]
) -> tuple[Ranks, int, Ranks]:
    """Return the distinct points of the rung as dense ranks per objective.

    Returns:
        Points (k, M) in lexicographic order, the newcomer's index among them, and the number of trials (k,)
        at each.
    """
    ranks = np.stack([np.unique(column, return_inverse=True)[1] for column in table.T], axis=1)
    own = int((table == newcomer).all(1).argmax())
    points, inverse, counts = np.unique(ranks, axis=0, return_inverse=True, return_counts=True)
    return points, int(inverse.reshape(-1)[own]), counts


def _n_ahead(points: Ranks, own: int, counts: Ranks, keep: int, costs: Sequence[int] | None) -> int:
    """Count the trials ahead of point `own` in the rung's order, up to `keep`.

    Ties of the spread go to the point with fewer dominators, then to the lexicographically first.
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
        # lexsort: the last key is the primary one; peers are already in lexicographic order.
        chosen = int(np.lexsort((dominated_by, -distance))[0])
        if peers[chosen] == own:
            break
        ahead += int(counts[peers[chosen]])
        distance = np.minimum(distance, ((scaled[peers] - scaled[peers[chosen]]) ** 2).sum(1))
        distance[chosen] = -1.0  # mark as taken
    return ahead
