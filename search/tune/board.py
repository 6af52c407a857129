"""The live state of a search: trials by state, epochs done, current front; updated incrementally."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

ENDED = ("COMPLETE", "PRUNED", "FAIL")  # states of trials that have ended


class Front:
    """The non-dominated points of a growing set, including equal points.

    Args:
        directions: "maximize" or "minimize" for each objective.

    Attributes:
        values: the points on the front by trial number.
    """

    def __init__(self, directions: Sequence[str]) -> None:
        self._signs = [-1.0 if direction == "maximize" else 1.0 for direction in directions]
        self._points: dict[int, tuple[float, ...]] = {}  # minimised
        self.values: dict[int, tuple[float, ...]] = {}

    def add(self, number: int, values: Sequence[float]) -> None:
        """Add a point; it is compared only with the points on the front."""
        new = tuple(sign * value for sign, value in zip(self._signs, values, strict=True))
        if any(dominates(point, new) for point in self._points.values()):
            return
        for worse in [n for n, point in self._points.items() if dominates(new, point)]:
            del self._points[worse], self.values[worse]
        self._points[number], self.values[number] = new, tuple(values)


class Board:
    """The live state of a search. The time of a query does not grow with the number of trials.

    Args:
        trials: number of trials in the budget.
        epochs: epochs of a full trial.
        directions: "maximize" or "minimize" for each objective.

    Attributes:
        states: state of each trial, by number.
        done_epochs: epochs done, by trial number.
        values: objective values of complete trials, by number.
        ended: numbers of ended trials, in order of their end.
        epochs_in_all: epochs done by all trials.
        epochs_of_ended: epochs done by ended trials.
        refused: number of proposals refused before training.
    """

    def __init__(self, trials: int, epochs: int, directions: Sequence[str]) -> None:
        self.trials, self.epochs = trials, epochs
        self.states: dict[int, str] = {}
        self.done_epochs: dict[int, int] = {}
        self.values: dict[int, tuple[float, ...]] = {}
        self.ended: list[int] = []
        self.epochs_in_all = 0
        self.epochs_of_ended = 0
        self.refused = 0
        self._counts: Counter[str] = Counter()
        self._front = Front(directions)

    def change(self, number: int, state: str) -> None:
        """Set the state of trial `number`."""
        before = self.states.get(number)
        if before == state:
            return
        self.states[number] = state
        self._counts[state] += 1
        if before is not None:
            self._counts[before] -= 1
        if state in ENDED and before not in ENDED:
            self.ended.append(number)
            self.epochs_of_ended += self.done_epochs.get(number, 0)
        elif state not in ENDED and before in ENDED:
            self.ended.remove(number)
            self.epochs_of_ended -= self.done_epochs.get(number, 0)

    def reached(self, number: int, epochs: int) -> None:
        """Set the epochs done by trial `number`."""
        more = epochs - self.done_epochs.get(number, 0)
        self.done_epochs[number] = epochs
        self.epochs_in_all += more
        if self.states.get(number) in ENDED:
            self.epochs_of_ended += more

    def complete(self, number: int, values: Sequence[float], within: bool = True) -> None:
        """Set the objective values of trial `number`, which was fully trained.

        Args:
            number: of the trial.
            values: of the objectives, in their order.
            within: whether it satisfies the limits on trained metrics; others are on no front.
        """
        self.values[number] = tuple(values)
        if within:
            self._front.add(number, values)

    def counts(self) -> Counter[str]:
        """Count the trials by state."""
        return Counter({state: count for state, count in self._counts.items() if count})

    def front(self) -> dict[int, tuple[float, ...]]:
        """Return the objective values of the non-dominated complete trials, by number."""
        return dict(self._front.values)


def dominates(a: Sequence[float], b: Sequence[float]) -> bool:
    """Return True if `a` dominates `b`: nowhere worse and somewhere better; smaller is better."""
    return all(x <= y for x, y in zip(a, b, strict=True)) and tuple(a) != tuple(b)
