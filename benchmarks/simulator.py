"""Replay a table with any searcher and scheduler: a virtual clock, virtual workers, no training.

The replay is asynchronous, like Ray Tune: a free worker requests a trial at once; a trial reports epoch by
epoch, and the contender decides after each report whether it continues. The clock advances by the recorded
seconds. Compute is in FLOPs and is charged when an epoch begins, so that every result is paid for, also of
trials that are still running.
"""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.plans import STARTS, Params
from benchmarks.table import Run, Table

Metrics = dict[str, float]


class Contender(ABC):
    """A searcher with its scheduler; trials are numbered from 0 in the order of their starts.

    Attributes:
        start: what its trials start from, `teacher` or `library`; the library's cost is charged if used.
    """

    start: str = STARTS[0]

    @abstractmethod
    def suggest(self, number: int) -> Params | None:
        """Return the params of trial `number`; None if there is nothing left to try."""

    @abstractmethod
    def report(self, number: int, metrics: Metrics) -> bool:
        """Receive an epoch's metrics (`epoch`, accuracy, loss, costs); return True to continue the trial."""

    @abstractmethod
    def ended(self, number: int, metrics: Metrics, full: bool) -> None:
        """Receive the last metrics of a trial that ended: complete (`full`) or stopped."""


@dataclass(frozen=True)
class Completion:
    """A complete trial.

    Attributes:
        clock: seconds since the search began.
        compute: FLOPs of the whole search so far.
        run: the recorded run.
    """

    clock: float
    compute: float
    run: Run


@dataclass
class Replay:
    """The events of a search."""

    completions: list[Completion] = field(default_factory=list)
    clock: float = 0.0
    compute: float = 0.0
    epochs: int = 0
    trials: int = 0
    stopped: int = 0
    exhausted: bool = False


@dataclass
class _Running:
    run: Run
    epoch: int = 0  # done


class _Search:
    def __init__(self, table: Table, contender: Contender, seed: int, workers: int, budget: float) -> None:
        self.table, self.contender, self.seed, self.budget = table, contender, seed, budget
        self.free = workers
        self.running: dict[int, _Running] = {}
        self.queue: list[tuple[float, int]] = []  # when the trial's current epoch ends
        self.replay = Replay()
        if contender.start == "library":
            library = table.libraries[seed]
            self.replay.clock, self.replay.compute = library.seconds, library.flops

    def go(self) -> Replay:
        self._fill()
        while self.queue:
            self.replay.clock, number = heapq.heappop(self.queue)
            self._epoch_done(number)
            self._fill()
        return self.replay

    def _fill(self) -> None:
        while self.free and not self.replay.exhausted and self.replay.compute < self.budget:
            number = self.replay.trials
            params = self.contender.suggest(number)
            if params is None:
                self.replay.exhausted = True
                return
            run = self.table.run(params, self.contender.start, self.seed)
            self.free -= 1
            self.replay.trials += 1
            self.replay.compute += self.table.start_flops(run)
            self.running[number] = _Running(run)
            self._begin_epoch(number, delay=run.start_seconds)

    def _begin_epoch(self, number: int, delay: float = 0.0) -> None:
        run = self.running[number].run
        self.replay.compute += self.table.epoch_flops(run)
        self.replay.epochs += 1
        heapq.heappush(self.queue, (self.replay.clock + delay + run.seconds, number))

    def _epoch_done(self, number: int) -> None:
        trial = self.running[number]
        trial.epoch += 1
        metrics = metrics_at(trial.run, trial.epoch)
        go_on = self.contender.report(number, metrics)
        full = trial.epoch == self.table.epochs
        if full:
            self.replay.completions.append(Completion(self.replay.clock, self.replay.compute, trial.run))
        elif go_on and self.replay.compute < self.budget:
            self._begin_epoch(number)
            return
        elif go_on:  # the budget is used up: the trial is neither complete nor stopped
            self._leave(number)
            return
        else:
            self.replay.stopped += 1
        self._leave(number)
        self.contender.ended(number, metrics, full)

    def _leave(self, number: int) -> None:
        del self.running[number]
        self.free += 1


def metrics_at(run: Run, epoch: int) -> Metrics:
    """Return what a trial reports after `epoch` epochs, without later parts of the curves."""
    return {
        "epoch": epoch,
        "val_accuracy": run.val_accuracy[epoch - 1],
        "val_loss": run.val_loss[epoch - 1],
        "flops": run.flops,
        "params": run.params_count,
    }


def simulate(table: Table, contender: Contender, *, seed: int, workers: int, budget: float) -> Replay:
    """Replay a search on recorded runs.

    Args:
        table: must hold every point that the contender proposes.
        contender: a new one.
        seed: the recorded seed of all trials.
        workers: number of parallel trials.
        budget: FLOPs; epochs that begin within it are finished, then the search ends.

    Returns:
        The events of the search, with the completions in order.
    """
    assert workers > 0, f"expected at least one worker, got {workers}"
    return _Search(table, contender, seed, workers, budget).go()


def final_values(run: Run, metrics: Sequence[str]) -> list[float]:
    """Return the true final values of `metrics`, in order."""
    final = metrics_at(run, len(run.val_accuracy))
    return [final[metric] for metric in metrics]
