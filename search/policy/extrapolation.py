"""Estimate the final values of an early-stopped trial."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]


class Curves:
    """Objective values of all trials by epoch; estimates the final values of stopped trials.

    Args:
        directions: "minimize" or "maximize", in the objectives' order.
        trained: indices of the objectives that change during training; the others are exact.
    """

    def __init__(self, directions: Sequence[str], trained: Sequence[int]) -> None:
        self._signs = np.array([-1.0 if way == "maximize" else 1.0 for way in directions])
        self._trained = np.array(sorted(trained), dtype=np.int64)
        self._curves: dict[int, dict[int, Values]] = {}
        self._finals: dict[int, Values] = {}

    def report(self, trial: int, epoch: int, values: Sequence[float]) -> None:
        """Record the objective values of trial `trial` after `epoch` epochs."""
        self._curves.setdefault(trial, {})[epoch] = self._signs * np.asarray(values, dtype=np.float64)

    def complete(self, trial: int, values: Sequence[float]) -> None:
        """Record the final objective values of a completed trial."""
        self._finals[trial] = self._signs * np.asarray(values, dtype=np.float64)

    def gain(self, epoch: int) -> Values | None:
        """Return the median change (M,) of the minimised objectives from `epoch` on; None: no data."""
        gains = [
            final - self._curves[trial][epoch]
            for trial, final in self._finals.items()
            if epoch in self._curves.get(trial, {})
        ]
        return np.median(gains, axis=0) if gains else None

    def expected(self, trial: int, capped: bool = True) -> list[float] | None:
        """Estimate the final objective values of a stopped trial.

        The estimate is the trial's last values plus the median gain of complete trials from that epoch on.
        The estimate is capped: it may not beat the best trial that dominated this one at the same epoch. The
        cap applies to the objectives that change during training, and uses final values or their estimates.

        Args:
            trial: a trial that reported values.
            capped: whether to cap the estimate.

        Returns:
            Values in the objectives' original directions; None while no complete trial shows a gain.
        """
        epoch = max(self._curves[trial])
        own = self._curves[trial][epoch]
        gain = self.gain(epoch)
        if gain is None:
            return None
        expected = own + gain
        rivals = [
            self._finals.get(other, curve[epoch] + gain)
            for other, curve in self._curves.items()
            if epoch in curve and (curve[epoch] <= own).all() and (curve[epoch] < own).any()
        ]
        if rivals and capped:
            best = np.min(rivals, axis=0)
            expected[self._trained] = np.maximum(expected, best)[self._trained]
        return [float(value) for value in self._signs * expected]
