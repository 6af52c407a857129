"""Compute figures from replays: hypervolume against compute and time, cost to reach a share, intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.pareto import Box, Objective, box, hypervolume, hypervolume_history, minimised
from benchmarks.simulator import Replay, final_values
from benchmarks.table import Table

Floats = NDArray[np.float64]
RESAMPLES = 10_000


@dataclass(frozen=True)
class Scale:
    """The units of a table's figures.

    Attributes:
        within: the box of hypervolume.
        best: hypervolume of the table's reference, cold and warm, by recorded seed.
        trial_flops: the unit of compute: mean FLOPs of a cold trial of full length.
        trial_seconds: mean CPU seconds of a cold trial of full length.
    """

    objectives: tuple[Objective, ...]
    within: Box
    best: dict[int, float]
    trial_flops: float
    trial_seconds: float

    @classmethod
    def of(cls, table: Table) -> Scale:
        """Compute the scale of a table."""
        objectives = tuple(Objective(o.metric, o.direction) for o in table.experiment.objectives)
        within = box(objectives, table.costs.teacher.as_dict(), table.meta["classes"])
        metrics = [o.metric for o in objectives]
        best = {
            seed: hypervolume(
                minimised([final_values(r, metrics) for r in table.reference(seed)], objectives),
                within,
            )
            for seed in table.seeds
        }
        cold = [run for run in table.runs.values() if run.start == "teacher"]
        flops = np.mean([table.start_flops(r) + table.epochs * table.epoch_flops(r) for r in cold])
        seconds = np.mean([r.start_seconds + table.epochs * r.seconds for r in cold])
        return cls(objectives, within, best, float(flops), float(seconds))


@dataclass(frozen=True)
class Curve:
    """Hypervolume of a search as a step function: from `compute[i]` and `clock[i]` on it is `volume[i]`.

    Attributes:
        compute: FLOPs, ascending.
        clock: virtual seconds, ascending.
        volume: as a share of the table's best of the same recorded seed.
        front: points of the final front.
    """

    compute: Floats
    clock: Floats
    volume: Floats
    front: int

    @classmethod
    def of(cls, replay: Replay, scale: Scale, recorded: int) -> Curve:
        """Compute the curve of a replay from the true final values of its complete trials."""
        metrics = [o.metric for o in scale.objectives]
        points = minimised([final_values(c.run, metrics) for c in replay.completions], scale.objectives)
        volumes, sizes = hypervolume_history(points, scale.within)
        return cls(
            np.array([c.compute for c in replay.completions]),
            np.array([c.clock for c in replay.completions]),
            volumes / scale.best[recorded],
            int(sizes[-1]) if len(sizes) else 0,
        )

    def at(self, spent: Floats, axis: str) -> Floats:
        """Return the hypervolume after each of `spent` (n,) on `axis`, compute or clock; 0 at first."""
        index = np.searchsorted(getattr(self, axis), spent, side="right")
        return np.concatenate([[0.0], self.volume])[index]

    def spent_until(self, share: float, axis: str) -> float:
        """Return the compute or time until the hypervolume is `share` of the best; infinite if never."""
        reached = np.flatnonzero(self.volume >= share)
        return float(getattr(self, axis)[reached[0]]) if len(reached) else float("inf")


def interval(values: Sequence[float] | Floats) -> tuple[float, float, float]:
    """Return the mean and its 95 % bootstrap interval; seeded, so that it is reproducible."""
    array = np.asarray(values, dtype=np.float64)
    means = array[_resamples(len(array))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(array.mean()), float(low), float(high)


def ratio_interval(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """Return the ratio of the means of paired values and its 95 % interval by bootstrap over the pairs."""
    a, b = np.asarray(ours), np.asarray(theirs)
    index = _resamples(len(a))
    low, high = np.quantile(a[index].mean(axis=1) / b[index].mean(axis=1), [0.025, 0.975])
    return float(a.mean() / b.mean()), float(low), float(high)


def _resamples(n: int) -> NDArray[np.int64]:
    return np.random.default_rng(0).integers(0, n, size=(RESAMPLES, n))
