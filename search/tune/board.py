"""The live state of a search: trials by state, epochs done, the front. Each is updated as it changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

ENDED = ("COMPLETE", "PRUNED", "FAIL")  # states in which a trial trains no more


class Front:
    """The non-dominated points of a growing set; equal points are all on it.

    Args:
        directions: "maximize" or "minimize" of each objective.

    Attributes:
        values: the points on the front by trial number.
    """

    def __init__(self, directions: Sequence[str]) -> None:
        self._signs = [-1.0 if direction == "maximize" else 1.0 for direction in directions]
        self._points: dict[int, tuple[float, ...]] = {}  # minimised
        self.values: dict[int, tuple[float, ...]] = {}

    def add(self, number: int, values: Sequence[float]) -> None:
        """Compare a point with those on the front: with no others, however many there are."""
        new = tuple(sign * value for sign, value in zip(self._signs, values, strict=True))
        if any(dominates(point, new) for point in self._points.values()):
            return
        for worse in [n for n, point in self._points.items() if dominates(new, point)]:
            del self._points[worse], self.values[worse]
        self._points[number], self.values[number] = new, tuple(values)


class Board:
    """The live state of a search, for whoever watches it. No question costs more the more trials there are.

    Args:
        trials: budget.
        epochs: of a full trial.
        directions: "maximize" or "minimize" of each objective.

    Attributes:
        states: of the trials, by number.
        done_epochs: by trial number.
        values: of the objectives of complete trials, by number.
        ended: numbers of the trials that ended, in this order.
        epochs_in_all: that all trials did.
        epochs_of_ended: that the trials did that ended.
        refused: proposals that were not trained.
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
        """Trial `number` got into this state."""
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
        """Trial `number` did this many epochs."""
        more = epochs - self.done_epochs.get(number, 0)
        self.done_epochs[number] = epochs
        self.epochs_in_all += more
        if self.states.get(number) in ENDED:
            self.epochs_of_ended += more

    def complete(self, number: int, values: Sequence[float]) -> None:
        """Trial `number`, trained to the end, has these values of the objectives."""
        self.values[number] = tuple(values)
        self._front.add(number, values)

    def counts(self) -> Counter[str]:
        """Trials by state."""
        return Counter({state: count for state, count in self._counts.items() if count})

    def front(self) -> dict[int, tuple[float, ...]]:
        """Values of the complete trials that no other dominates, by number."""
        return dict(self._front.values)


def dominates(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether `a` is at least as good as `b` everywhere and better somewhere; smaller is better."""
    return all(x <= y for x, y in zip(a, b, strict=True)) and tuple(a) != tuple(b)
